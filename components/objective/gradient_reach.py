"""How far a loss sends its gradient back through the recursion, measured: what deep supervision and truncation change."""

import torch
from jaxtyping import Float
from torch import Tensor

from components.batch import Batch
from components.model import Model
from components.objective.losses import Loss, masked_cross_entropy
from components.recursion import BpttSegments, State, bptt_segments, full_gradient, mapped, tensors


def gradient_reach(
    model: Model, batch: Batch, bptt: BpttSegments = full_gradient, loss: Loss = masked_cross_entropy
) -> Float[Tensor, "losses states"]:
    """Measure the norm of d loss_j / d state_i for each pair of recursion steps; 0 where no gradient flows.

    The state of an earlier step is what it hands on (the states of the carry that recur, where the model names them), that of the
    loss's own step what is read out. Losses are not weighted; they are divided by the sequences of the batch.

    Args:
        model: whose steps are taken, with something to train.
        batch: of which the losses are.
        bptt: where the gradient is cut.
        loss: of a step's states.
    """
    reach = torch.zeros(model.n_steps, model.n_steps)
    condition, carry, layout = model.begin(batch)
    for numbers in bptt_segments(model.n_steps, bptt):
        before: list[tuple[int, list[Tensor]]] = []
        for number in numbers:
            state = model.step(number, carry, condition, layout)
            value = loss(model, state.hidden, batch, compute=True)[0] / len(batch)
            for earlier, handed_on in [*before, (number, [state.hidden])]:
                reach[number, earlier] = _norm(value, handed_on)
            before.append((number, _recurring(model, state)))
            carry = state.carry
        carry = mapped(Tensor.detach, carry)
    return reach


def _recurring(model: Model, state: State) -> list[Tensor]:
    named = [state.carry[name] for name in model.carried_states]
    return [tensor for tensor in named or tensors(state.carry) if tensor.requires_grad]


def _norm(value: Tensor, states: list[Tensor]) -> Tensor:
    if not states or not value.requires_grad:
        return torch.zeros(())
    gradients = torch.autograd.grad(value, states, retain_graph=True, allow_unused=True)
    return torch.stack([gradient.norm() for gradient in gradients if gradient is not None] or [torch.zeros(())]).norm()
