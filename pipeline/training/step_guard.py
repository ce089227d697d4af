"""Refuses the optimizer step of a gradient that is not finite, before weights, moments and average change.

On a GPU nothing waits for the answer: a flag on the device tells the fused optimizer to leave everything as it is, for this step
and all that follow, until the host reads it together with the recorded rows. Elsewhere it costs nothing and is read at once.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


class StepGuard:
    """Clips a gradient and takes the step, unless gradient or loss are not finite; from the first such step on it takes none.

    Args:
        parameters: what is trained, by name.
        optimizer: over them.
        clip: largest gradient norm; 0 = as it is.
        norms: makes the norm of each gradient of those that this process knows, where it holds but parts.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        clip: float,
        norms: Callable[[Tensor], Tensor] = Tensor.detach,
    ) -> None:
        self.parameters, self.optimizer, self.clip, self.norms = dict(parameters), optimizer, clip, norms
        device = next(iter(self.parameters.values())).device
        self._refused = torch.zeros((), device=device)  # 1 from the first refused step on
        self._where = torch.full((2,), -1, dtype=torch.int64, device=device)  # that step, and the parameter's number
        self._waits = device.type == "cpu" or not getattr(optimizer, "_step_supports_amp_scaling", False)

    def step(self, number: int, loss: Tensor) -> tuple[Tensor, bool]:
        """Take step ``number``, from 0.

        Returns:
            The gradient's norm before it was clipped, and whether the host knows that the step was refused.
        """
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norms = self.norms(torch.stack([norm.to(self._refused.device) for norm in torch._foreach_norm(gradients)]))
        norm = torch.linalg.vector_norm(norms)
        broken = ~(norm.isfinite() & loss.isfinite().to(norm.device))
        if self._waits:
            if broken:
                self._where.copy_(torch.stack([torch.tensor(number), _worst(norms).cpu()]))
                self._refused.fill_(1)
                return norm, True
        else:
            here = torch.stack([torch.full_like(self._where[0], number), _worst(norms)])
            self._where = torch.where((self._refused == 0) & broken, here, self._where)
            self._refused = torch.maximum(self._refused, broken.to(self._refused))
            self.optimizer.found_inf = self._refused  # type: ignore[attr-defined]  # the fused kernels look at it
        if self.clip:
            nn.utils.clip_grads_with_norm_(self.parameters.values(), self.clip, norm)
        self.optimizer.step()
        return norm, False

    def refused(self) -> tuple[int, str] | None:
        """Read which step was refused, from 0, and the parameter of its gradient; None = every step was taken."""
        number, index = self._where.tolist()
        names = [name for name, p in self.parameters.items() if p.grad is not None]
        return None if number < 0 else (number, names[index])


def _worst(norms: Tensor) -> Tensor:
    """Number of the first norm that is not finite; of the largest where only their sum is not."""
    return torch.where(norms.isfinite(), norms, torch.inf).argmax()
