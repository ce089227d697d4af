"""What one stage of a pipeline takes."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Memory:
    """Bytes that a process takes of its device at once, by what they are of.

    Attributes:
        weights: of the model; of layers that are shared out the process's share.
        gradients: of what is trained, and their partial sums over microbatches.
        moments: of the optimizer.
        average: of the weights.
        gathered: layers that are shared out, as they are put together while they run.
        batch: the most that is computed of a batch.
        trunk: that runs live beside training.
    """

    weights: int = 0
    gradients: int = 0
    moments: int = 0
    average: int = 0
    gathered: int = 0
    batch: int = 0
    trunk: int = 0

    @property
    def total(self) -> int:
        """Return the bytes of all parts together."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Training:
    """What it takes to train a model, in however many steps.

    Attributes:
        memory: of a process; ``host``: as in ``Cost``.
        sent: bytes that each process sends for an operation of all of them; ``read``: bytes of states that they read for it.
    """

    memory: Memory
    host: int
    sent: float
    read: float


@dataclass(frozen=True)
class Cost:
    """Compute, memory, traffic and disk that one stage takes.

    Attributes:
        stage: its name.
        parameters: of its models, with what is not loaded; ``trained`` and ``loaded`` in memory: of them.
        parts: memory of a process; ``host``: bytes beside them on the host of the first one's device, while it saves.
        steps: optimizer steps; ``epochs``: how often they see each example, in every pass that is unrolled.
        flops_per_step, flops: floating-point operations of one and of all of them, as ``metrics.json`` tells them.
        beside: operations of validations and of a trunk that runs live; all there are of a stage that trains nothing.
        disk: bytes of states that it writes; ``read``: bytes of states that its steps read.
        sent: bytes that each process sends to the others in all steps.
    """

    stage: str
    parameters: int
    trained: int
    loaded: int
    parts: Memory = Memory()
    host: int = 0
    steps: int = 0
    epochs: float = 0.0
    flops_per_step: int = 0
    flops: int = 0
    beside: int = 0
    disk: int = 0
    read: int = 0
    sent: int = 0

    @property
    def memory(self) -> int:
        """Return the bytes that a process takes of its device at once."""
        return self.parts.total
