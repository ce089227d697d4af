"""Modes that see every operator which runs: torch's, without the compiler."""

from torch.utils._python_dispatch import TorchDispatchMode


class Watching(TorchDispatchMode):
    """Base of what counts or replaces operators of models as they are written.

    torch (2.13) keeps its compiler away from a mode by importing it at the first operator: a second and a half of every process,
    though nothing is compiled. ``_should_skip_dynamo`` asks it not to.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
