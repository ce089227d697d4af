"""Freeze everything, then unfreeze modules by path: a pattern that matches nothing is an error, never silence."""

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn


@dataclass(frozen=True)
class Row:
    """One line of the table: a module that holds parameters of its own, or one of its weights."""

    module: str
    parameters: int
    trainable: bool


@dataclass(frozen=True)
class Frozen:
    """What is trained and what is not. A tensor that several modules share counts once, at the first of them.

    Attributes:
        rows: one a module.
        weights: one a weight, by its whole name.
        total, trainable: parameters.
    """

    rows: list[Row]
    weights: list[Row]
    total: int
    trainable: int

    def __str__(self) -> str:
        return by_module(self)


Table = Callable[[Frozen], str]


def by_module(frozen: Frozen) -> str:
    """Write the table with one line for each module that is trained, and one for all whose paths differ in numbers alone."""
    alike: dict[str, list[Row]] = {}
    for row in frozen.rows:
        if row.trainable:
            alike.setdefault(re.sub(r"\b\d+\b", "*", row.module), []).append(row)
    rows = [
        Row(f"{pattern} ({len(some)})", sum(row.parameters for row in some), True) if len(some) > 1 else some[0]
        for pattern, some in alike.items()
    ]
    return _text(rows, frozen)


def by_weight(frozen: Frozen) -> str:
    """Write the table with one line for each weight that is trained."""
    return _text(frozen.weights, frozen)


def freeze_except(model: nn.Module, patterns: Iterable[str], *, layer_norms: bool = False) -> Frozen:
    """Freeze ``model``, then unfreeze every module whose path matches a pattern, with all below it.

    Args:
        model: any module.
        patterns: module paths, ``*`` and ``?`` allowed: "refiner", "backbone.blocks.*", "" (everything).
        layer_norms: also unfreeze every norm, of torch, of transformers and ours: a module whose class is called so and that holds
            no matrix.

    Raises:
        ValueError: a pattern matches no module (the message names the nearest paths), or one whose weights are quantised; or there
            is no norm to unfreeze.
    """
    modules = dict(model.named_modules())
    chosen = []
    for pattern in patterns:
        matched = [module for path, module in modules.items() if fnmatchcase(path, pattern)]
        if not matched:
            near = difflib.get_close_matches(pattern, [m for m in modules if m], n=3, cutoff=0.0)
            raise ValueError(f"no module matches '{pattern}'; the nearest are {', '.join(near)}")
        chosen += matched
    if layer_norms:
        norms = [module for module in modules.values() if is_norm(module)]
        if not norms:
            raise ValueError(f"layer_norms is set, and no module of {type(model).__name__} is a norm with weights; leave it out")
        chosen += norms
    packed = [name for module in chosen for name, weight in module.named_parameters() if not weight.is_floating_point()]
    if packed:
        named = ", ".join(repr(pattern) for pattern in patterns)
        raise ValueError(f"{named} would train '{packed[0]}', which is quantised; name modules above the trunk")
    model.requires_grad_(False)
    for module in chosen:
        module.requires_grad_(True)
    return _table(modules)


def count_parameters(model: nn.Module, *, trained: bool = False) -> int:
    """Count parameters, or those alone that are trained; a tensor that several modules share once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad or not trained)


def is_norm(module: nn.Module) -> bool:
    """Tell a normalisation with weights: a class called so, whose own weights are vectors and which holds no other module.

    Every library has classes of its own (``LlamaRMSNorm``, ``Qwen3RMSNorm``, ``T5LayerNorm``, ``GroupNorm``), with no common base.
    """
    own = list(module.parameters(recurse=False))
    called = any("norm" in kind.__name__.lower() for kind in type(module).__mro__ if kind is not nn.Module)
    return called and bool(own) and all(p.ndim == 1 for p in own) and not any(True for _ in module.children())


def _table(modules: dict[str, nn.Module]) -> Frozen:
    rows, weights, counted = [], [], set[int]()
    for path, module in modules.items():
        own = {name: p for name, p in module.named_parameters(recurse=False) if id(p) not in counted}
        counted |= {id(p) for p in own.values()}
        weights += [Row(f"{path}.{name}" if path else name, p.numel(), p.requires_grad) for name, p in own.items()]
        if own:
            row = Row(path or "(root)", sum(p.numel() for p in own.values()), any(p.requires_grad for p in own.values()))
            rows.append(row)
    trainable = sum(row.parameters for row in weights if row.trainable)
    return Frozen(rows, weights, sum(row.parameters for row in weights), trainable)


def _text(rows: list[Row], frozen: Frozen) -> str:
    """Lines of what is trained, then the three totals in millions."""
    sums = {"Total": frozen.total, "Trainable": frozen.trainable, "Frozen": frozen.total - frozen.trainable}
    return "\n".join(
        [
            *(f"{row.module:<56} {row.parameters:>14,}" for row in rows if row.trainable),
            *(f"{name + ' parameters:':<56} {_millions(n):>14} ({n / max(1, frozen.total):.2%})" for name, n in sums.items()),
        ]
    )


def _millions(count: int) -> str:
    """A number of parameters in millions, to two places, small ones to four."""
    return f"{count / 1e6:,.{2 if count >= 1e6 else 4}f}M"
