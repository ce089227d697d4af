"""Freeze everything, then unfreeze modules by path: a pattern that matches nothing is an error, never silence."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from components.nn.attention import RMSNorm


@dataclass(frozen=True)
class Row:
    """One line of the table: a module that holds parameters of its own."""

    module: str
    parameters: int
    trainable: bool


@dataclass(frozen=True)
class Frozen:
    """What is trained and what is not: a row per module, and totals in parameters."""

    rows: list[Row]
    total: int
    trainable: int

    def __str__(self) -> str:
        """The table as text, trainable modules first."""
        lines = [f"{row.module:<48} {row.parameters:>14,}" for row in self.rows if row.trainable]
        frozen = self.total - self.trainable
        return "\n".join(
            [
                *lines,
                f"{'trainable':<48} {self.trainable:>14,} ({self.trainable / max(1, self.total):.2%})",
                f"{'frozen':<48} {frozen:>14,}",
            ]
        )


def freeze_except(model: nn.Module, patterns: Iterable[str], *, layer_norms: bool = False) -> Frozen:
    """Freeze ``model``, then unfreeze every module whose path matches a pattern, with all below it.

    Args:
        model: any module.
        patterns: module paths, ``*`` and ``?`` allowed: "refiner", "backbone.blocks.*", "" (everything).
        layer_norms: also unfreeze every norm.

    Raises:
        ValueError: a pattern matches no module (the message names the nearest paths), or one whose weights are quantised.
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
        chosen += [module for module in modules.values() if isinstance(module, nn.LayerNorm | RMSNorm)]
    packed = [name for module in chosen for name, weight in module.named_parameters() if not weight.is_floating_point()]
    if packed:
        named = ", ".join(repr(pattern) for pattern in patterns)
        raise ValueError(f"{named} would train '{packed[0]}', which is quantised; name modules above the trunk")
    model.requires_grad_(False)
    for module in chosen:
        module.requires_grad_(True)
    return _table(modules)


def _table(modules: dict[str, nn.Module]) -> Frozen:
    rows = []
    for path, module in modules.items():
        own = list(module.parameters(recurse=False))
        if own:
            rows.append(Row(path or "(root)", sum(p.numel() for p in own), any(p.requires_grad for p in own)))
    trainable = sum(row.parameters for row in rows if row.trainable)
    return Frozen(rows, sum(row.parameters for row in rows), trainable)
