"""What one stage of a pipeline takes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Compute, memory and disk that one stage takes.

    Attributes:
        stage: its name.
        parameters: of its models, with what is not loaded; ``trained`` and ``loaded`` in memory: of them.
        memory: bytes of weights, optimizer and average, and what a step holds at most.
        steps: optimizer steps; ``epochs``: how often they see each example, in every pass that is unrolled.
        flops_per_step, flops: floating-point operations of one and of all of them, as ``metrics.json`` tells them.
        beside: operations of validations and of a trunk that runs live; all there are of a stage that trains nothing.
        disk: bytes of states that it writes.
    """

    stage: str
    parameters: int
    trained: int
    loaded: int
    memory: int = 0
    steps: int = 0
    epochs: float = 0.0
    flops_per_step: int = 0
    flops: int = 0
    beside: int = 0
    disk: int = 0
