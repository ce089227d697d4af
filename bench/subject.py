"""What the benches of training steps measure: a core with a frozen random head, a batch for it, the plain-torch ways to train it.

``naive`` and ``plain`` are written as one writes them without a library: every graph and all logits live until the backward
pass. They gather supervised rows before the head, as ours do; computing all logits and masking the loss would only flatter us.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn import functional as F

from components.batch import Batch
from components.model import Model
from components.recursion import State, Tree, tensors
from components.refiners.core import Core, Inputs, Layout
from components.refiners.recursive_core import RecursiveCore


class Subject(Model):
    """A core on cached states of its own width, read out by a frozen head."""

    def __init__(self, core: Core, vocab: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        core.init_weights(1.0, generator)
        for name in ("out", "delta_out"):  # zero at first, which would make every other gradient zero
            if (layer := getattr(core, name, None)) is not None:
                nn.init.normal_(layer.weight, std=core.dim**-0.5, generator=generator)
        self.refiner, self.n_steps = core, core.n_steps
        self.head = nn.Linear(core.dim, vocab, bias=False)
        nn.init.normal_(self.head.weight, std=core.dim**-0.5, generator=generator)
        self.head.requires_grad_(False)

    def begin(self, batch: Batch, positions: Bool[Tensor, "batch seq"] | None = None) -> tuple[Tree, Tree, Layout]:
        """From the cached states, which also stand for the token embeddings."""
        assert batch.hidden is not None
        layout = Layout(batch.attention, positions)
        hidden = batch.hidden.to(self.head.weight.dtype)
        condition = self.refiner.condition(Inputs(hidden, hidden), layout)
        return condition, self.refiner.initial_carry(hidden, condition), layout

    def step(self, number: int, carry: Tree, condition: Tree, layout: Layout, statistics: bool = False) -> State:
        """The core's."""
        return self.refiner.step(number, carry, condition, layout, statistics)

    def normed(self, state: Tensor) -> Tensor:
        """State over its root mean square."""
        return F.rms_norm(state, (state.shape[-1],))


def batch_of(sequences: int, length: int, dim: int, vocab: int, supervised: float, seed: int = 1) -> Batch:
    """Random states and targets; a share ``supervised`` of all positions, weights that differ."""
    generator = torch.Generator().manual_seed(seed)
    shape = (sequences, length)
    masked = torch.zeros(sequences * length, dtype=torch.bool)
    masked[torch.randperm(len(masked), generator=generator)[: max(1, round(supervised * len(masked)))]] = True
    masked = masked.view(shape)
    targets = torch.randint(vocab, shape, generator=generator)
    weights = torch.rand(shape, generator=generator).add(0.5) * masked
    hidden = torch.randn((*shape, dim), generator=generator)
    return Batch(targets, targets, masked, weights, hidden=hidden, rows=masked.flatten().nonzero()[:, 0])


def naive(model: Model, batch: Batch, steps: int) -> None:
    """Deep supervision: all logits in a list, their losses after the last step."""
    rows = batch.supervised
    logits = [model.readout(state.hidden.flatten(0, 1)[rows]) for state in model.steps(batch, steps=steps)]
    (torch.stack([_loss(step, batch) for step in logits]).sum() / len(batch)).backward()


def plain(model: Model, batch: Batch, steps: int) -> None:
    """No deep supervision: the loss of the last step alone, its gradient through all steps."""
    *_, last = (state.hidden for state in model.steps(batch, steps=steps))
    (_loss(model.readout(last.flatten(0, 1)[batch.supervised]), batch) / len(batch)).backward()


def _loss(logits: Tensor, batch: Batch) -> Tensor:
    targets, weights = batch.targets.flatten()[batch.supervised], batch.weights.flatten()[batch.supervised]
    return (F.cross_entropy(logits, targets, reduction="none").to(weights.dtype) * weights).sum()


def carry_bytes(model: Model, batch: Batch) -> int:
    """Bytes a step adds to what the next starts from; what is handed on unchanged costs nothing."""
    with torch.no_grad():
        condition, carry, layout = model.begin(batch)
        new = model.step(0, carry, condition, layout).carry
    old = {tensor.data_ptr() for tensor in tensors(carry)}
    return sum(tensor.nbytes for tensor in tensors(new) if tensor.data_ptr() not in old)


def graph_bytes(model: Model, batch: Batch) -> int:
    """Bytes that the graph of one step keeps besides parameters, buffers and what it started from."""
    condition, carry, layout = model.begin(batch)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        state = model.step(0, carry, condition, layout)
    outside = [*model.parameters(), *model.buffers(), *tensors(carry), *tensors(condition), *tensors(state.carry)]
    for tensor in outside:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(kept.values())


def step_flops(core: Core, sequences: int, length: int) -> int:
    """Multiply-adds of one forward step, twice: every linear layer of it as often as it is called, and attention.

    Counted by hooks on a forward pass, because a recursion calls its layers several times a step.
    """
    total = 0

    def linear(module: nn.Module, arguments: tuple[Tensor, ...], _: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Linear)
        total += 2 * arguments[0].numel() * module.out_features
        if module.out_features == 3 * module.in_features:  # queries, keys, values: both products of attention follow
            total += 4 * arguments[0].numel() * length

    parameter = next(core.parameters())
    hidden = torch.zeros(sequences, length, core.dim, device=parameter.device, dtype=parameter.dtype)
    with torch.no_grad():
        condition = core.condition(Inputs(hidden, hidden), Layout())
        hooks = [m.register_forward_hook(linear) for m in core.modules() if isinstance(m, nn.Linear)]
        core.step(0, core.initial_carry(hidden, condition), condition, Layout())
    for hook in hooks:
        hook.remove()
    return total


def recursive(dim: int, steps: int = 8, blocks: int = 2, heads: int = 4, vocab: int = 32000) -> Subject:
    """RecursiveCore, one update of each state a step."""
    return Subject(RecursiveCore(dim, heads=heads, steps=steps, blocks=blocks, l_cycles=1), vocab)


Step = Callable[[], None]
