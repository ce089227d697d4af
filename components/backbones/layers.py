"""Any transformer's own forward with only some of its layers live: that is how a model without a cut in its code is cut.

A layer that is not live hands on what it was given, or the states that are to enter the first live one. The model itself prepares
positions, masks and whatever else its layers want, so nothing of that is known here. Calls enter through the outermost module.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Parts:
    """Where a model keeps what is needed of it, as dotted paths.

    Attributes:
        layers: the ModuleList of its blocks.
        readout: modules between the last block and the output layer, in order; one that holds the output layer is run without it.
        output: the linear layer that gives logits; "" = the model has none.
        tuples: blocks return a tuple, states first.
        scale: of the logits.
    """

    layers: str
    readout: tuple[str, ...]
    output: str
    tuples: bool = False
    scale: float = 1.0


class Layers:
    """The blocks of ``model``, and how to run some of them.

    Args:
        model: any module called with keyword arguments (``input_ids``, ``attention_mask``).
        parts: where things are.
    """

    def __init__(self, model: nn.Module, parts: Parts) -> None:
        self.model, self.parts = model, parts
        blocks = model.get_submodule(parts.layers)
        assert isinstance(blocks, nn.ModuleList)
        self.blocks: list[nn.Module] = list(blocks)

    def run(
        self,
        inputs: Mapping[str, Any],
        start: int = 0,
        stop: int | None = None,
        hidden: Float[Tensor, "batch seq dim"] | None = None,
        inside: Mapping[int, str] | None = None,
    ) -> tuple[Float[Tensor, "batch seq dim"], dict[int, Tensor]]:
        """States after the layers ``start`` to ``stop`` - 1.

        Args:
            inputs: of the model's forward.
            start: first live layer.
            stop: first layer that is not run; None = all.
            hidden: states that enter layer ``start``; needed unless it is 0.
            inside: layer -> path of a module within it whose input is wanted.

        Returns:
            (states, wanted inputs by layer).
        """
        stop = len(self.blocks) if stop is None else stop
        assert start == 0 or hidden is not None
        if start == stop:
            assert hidden is not None
            return hidden, {}
        module_inputs: dict[int, Tensor] = {}
        result: list[Tensor] = []
        with ExitStack() as stack:
            for number, block in enumerate(self.blocks):
                if not start <= number < stop:
                    stack.enter_context(replaced(block, partial(self._passed, number == start - 1, hidden)))
            for number, path in (inside or {}).items():
                stack.enter_context(_read(self.blocks[number].get_submodule(path), partial(module_inputs.__setitem__, number)))
            hook = self.blocks[stop - 1].register_forward_hook(lambda module, given, out: result.append(_states(out)))
            stack.callback(hook.remove)
            if self.parts.output:  # logits are not wanted here, and would be the cost
                stack.enter_context(replaced(self.model.get_submodule(self.parts.output), _first_channel))
            self.model(**inputs)
        return result[0], module_inputs

    def features(self, states: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """Last states as the output layer reads them."""
        with ExitStack() as stack:
            if self.parts.output:
                stack.enter_context(replaced(self.model.get_submodule(self.parts.output), _unchanged))
            for path in self.parts.readout:
                states = self.model.get_submodule(path)(states)
        return states if self.parts.scale == 1 else states * self.parts.scale

    def _passed(self, last: bool, hidden: Tensor | None, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        states = hidden if last else hidden_states
        return (states, None, None) if self.parts.tuples else states


def emptied(model: nn.Module, layers: str, below: int) -> None:
    """Take the weights of the layers ``below`` this one out of the model; the layers themselves stay, as names."""
    blocks = model.get_submodule(layers)
    assert isinstance(blocks, nn.ModuleList)
    for block in list(blocks)[:below]:
        for members in (block._modules, block._parameters, block._buffers):
            members.clear()


@contextmanager
def replaced(module: nn.Module, forward: Any) -> Iterator[None]:
    """The module computes something else for a while."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        module.__dict__.pop("forward")
        if before is not None:
            module.__dict__["forward"] = before


@contextmanager
def _read(module: nn.Module, keep: Any) -> Iterator[None]:
    hook = module.register_forward_pre_hook(lambda module, given: keep(given[0]))
    try:
        yield
    finally:
        hook.remove()


def _states(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def _first_channel(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x[..., :1]


def _unchanged(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x
