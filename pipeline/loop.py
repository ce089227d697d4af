"""The training loop of every phase. A model is what yields states per supervised step and reads them out; nothing else is known.

Order of one optimizer step: microbatches forward and backward -> clip -> step -> average -> record. Every ``log_every`` steps the
recorded rows reach the host in one sync; a non-finite loss stops the run there and names the step it appeared in. Every
``validate_every`` steps the averaged weights are validated and, if they are the best so far, saved.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torchdata.nodes import Loader

from components.batch import Batch
from components.ema import EMA
from components.losses import masked_cross_entropy
from components.model import Model
from components.optim import adamw, set_lr, warmup_cosine
from components.recursion import State
from components.supervision import linear_decay, normalised
from pipeline import flops
from pipeline.curves import Curves
from pipeline.errors import ConfigError, TrainingError
from pipeline.progress import Progress
from pipeline.runtime import Runtime

COUNTED = 4  # optimizer steps over which operations are counted: how many positions are masked varies from batch to batch


@dataclass
class Fit:
    """What a finished run reports.

    Attributes:
        steps: optimizer steps taken (fewer than asked for after an early stop).
        flops: floating-point operations of all of them.
        best_step: step of the best validation loss, the one that was saved.
        best_loss: that loss (last recursion step, nats per answer token).
        validation: one entry per validation: step, loss, loss of each recursion step.
    """

    steps: int = 0
    flops: int = 0
    best_step: int = 0
    best_loss: float = math.inf
    validation: list[dict[str, object]] = field(default_factory=list)


def fit(
    model: Model,
    train: Loader[Batch],
    validation: Loader[Batch],
    out: Path,
    save: Callable[[], None],
    runtime: Runtime,
    *,
    budget: int | None = None,
    steps: int = 1000,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = adamw,
    schedule: Callable[[int, int], float] = warmup_cosine,
    supervision: Callable[[int], list[float]] = linear_decay,
    accumulation: int = 1,
    clip: float = 1.0,
    ema: float = 0.0,
    validate_every: int = 200,
    patience: int = 0,
    log_every: int = 50,
) -> Fit:
    """Train what is not frozen and keep the best validated weights.

    Args:
        model: already frozen as wanted.
        train: endless batches; the microbatch size is theirs.
        validation: finite batches.
        out: folder of ``curves.csv``.
        save: writes the model as it stands; called with the averaged weights in place.
        runtime: device and precision.
        budget: floating-point operations to spend; sets ``steps``.
        steps: optimizer steps at most.
        optimizer: makes the optimizer from the model.
        schedule: (step, steps) -> multiplier of the peak learning rate.
        supervision: number of recursion steps -> weight of each.
        accumulation: microbatches per optimizer step.
        clip: largest gradient norm.
        ema: decay of the weight average; 0 = no average.
        validate_every: steps between validations; the last step is always validated.
        patience: validations without a better loss before stopping early; 0 = never.
        log_every: steps between lines and host syncs.

    Raises:
        TrainingError: the loss is not finite; names the step and the last good checkpoint.
    """
    model.to(runtime.device).train()
    optimise, average = optimizer(model), EMA(model, ema)
    curves, result, started = Curves(out / "curves.csv"), Fit(), time.monotonic()
    batches: Iterator[Batch] = iter(train)
    first = [batch.to(runtime.device) for batch in islice(batches, COUNTED * accumulation)]
    flops_per_step = flops.count(lambda: _backward(model, first, supervision, runtime, False)) // COUNTED
    optimise.zero_grad(set_to_none=True)
    batches = chain(first, batches)
    steps = steps if budget is None else max(1, round(budget / flops_per_step))
    if steps < 1:
        raise ConfigError(f"loop.fit.steps must be at least 1, got {steps}")
    with Progress(out.name, steps, "step") as bar:
        for step in range(steps):
            multiplier = schedule(step, steps)
            set_lr(optimise, multiplier)
            micro = [next(batches).to(runtime.device) for _ in range(accumulation)]
            values = _backward(model, micro, supervision, runtime, True)
            norm = nn.utils.clip_grad_norm_(_trainable(model), clip)
            optimise.step()
            optimise.zero_grad(set_to_none=True)
            average.update()
            curves.record(step, {**values, "lr": optimise.param_groups[0]["lr"], "grad_norm": norm})
            bar.advance()
            last = step == steps - 1
            due = last or (step + 1) % validate_every == 0
            if due or (step + 1) % log_every == 0:
                _report(curves.flush(), bar, steps, time.monotonic() - started, result)
            if due and _validated(model, validation, average, runtime, step + 1, result, save, bar) >= patience > 0:
                break
    result.steps = step + 1
    result.flops = result.steps * flops_per_step
    return result


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _backward(
    model: Model, micro: list[Batch], supervision: Callable[[int], list[float]], runtime: Runtime, statistics: bool
) -> dict[str, Tensor]:
    """Accumulate gradients of the microbatches; returns loss, loss of each step and statistics, still on the device.

    The loss is a sum divided by the sequences of the whole optimizer step, whatever the microbatches are.
    """
    sequences = sum(len(batch) for batch in micro)
    recorded: dict[str, Tensor] = {}
    for batch in micro:
        with runtime.autocast():
            states = list(model.steps(batch, statistics=statistics))
            losses = [masked_cross_entropy(model.readout, state.hidden, batch) / sequences for state in states]
        weights = normalised(supervision(len(losses)))
        share = len(batch) / sequences
        penalties = [state.penalty * share if state.penalty is not None else 0.0 for state in states]
        loss = torch.stack([w * (x + penalty) for w, x, penalty in zip(weights, losses, penalties, strict=True)]).sum()
        loss.backward()
        parts = {"loss": loss, **{f"loss/step_{k}": x for k, x in enumerate(losses)}, **_mean_statistics(states, share)}
        for name, value in parts.items():
            recorded[name] = recorded[name] + value.detach() if name in recorded else value.detach()
    return recorded


def _mean_statistics(states: list[State], share: float) -> dict[str, Tensor]:
    """Mean over recursion steps of each statistic, times the microbatch's share of the optimizer step."""
    return {name: share * torch.stack([state.statistics[name] for state in states]).mean() for name in states[0].statistics}


def _report(rows: list[dict[str, float]], bar: Progress, steps: int, seconds: float, result: Fit) -> None:
    """Print a line for the newest row; stop at the first row that is not finite."""
    for row in rows:
        if not math.isfinite(row["loss"]):
            raise TrainingError(f"{bar.label}: the loss became {row['loss']} at step {int(row['step']) + 1}; {_kept(result)}")
    row = rows[-1]
    done = int(row["step"]) + 1
    per_step = " ".join(f"{v:.3f}" for k, v in row.items() if k.startswith("loss/step_"))
    rate = done / seconds
    left = (steps - done) / rate
    bar.line(f"step {done}/{steps} loss {row['loss']:.3f} | steps {per_step} | {rate:.1f} steps/s, {left:.0f} s left")


def _kept(result: Fit) -> str:
    kept = f"the last good checkpoint is of step {result.best_step}" if result.best_step else "nothing was saved yet"
    return f"{kept}. Lower the learning rate or check the data"


def _validated(
    model: Model,
    batches: Loader[Batch],
    average: EMA,
    runtime: Runtime,
    step: int,
    result: Fit,
    save: Callable[[], None],
    bar: Progress,
) -> int:
    """Validate the averaged weights, save them if they are the best so far; returns validations since the best."""
    with average.applied():
        losses = validation_losses(model, batches, runtime)
        if not math.isfinite(losses[-1]):
            raise TrainingError(f"{bar.label}: the validation loss became {losses[-1]} at step {step}; {_kept(result)}")
        result.validation.append({"step": step, "loss": losses[-1], "loss_by_step": losses})
        if losses[-1] < result.best_loss:
            result.best_step, result.best_loss = step, losses[-1]
            save()
    bar.line(f"step {step} validation " + " ".join(f"{x:.4f}" for x in losses))
    return sum(1 for entry in result.validation if int(str(entry["step"])) > result.best_step)


@torch.no_grad()
def validation_losses(model: Model, batches: Loader[Batch], runtime: Runtime) -> list[float]:
    """Loss of each recursion step over all validation sequences."""
    model.eval()
    total: Tensor | None = None
    sequences = 0
    for batch in batches:
        batch = batch.to(runtime.device)
        with runtime.autocast():
            sums = [masked_cross_entropy(model.readout, state.hidden, batch) for state in model.steps(batch)]
        stacked = torch.stack(sums).double()
        total = stacked if total is None else total + stacked
        sequences += len(batch)
    model.train()
    assert total is not None
    return [float(x) for x in total / sequences]
