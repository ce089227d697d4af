"""The training loop of every phase. A model is what yields states per supervised step and reads them out; nothing else is known.

Order of one optimizer step: microbatches forward and backward -> clip -> step -> average -> record. Every ``log_every`` steps the
recorded rows reach the host in one sync; a non-finite loss stops the run there and names the step it appeared in. Every
``validate_every`` steps the averaged weights are validated and, if they are the best so far, saved. Every ``save_every`` steps the
whole state goes to scratch: nothing random has to be in it, order and masks are functions of the step.
"""

import math
from collections.abc import Callable, Iterator
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
from pipeline import scratch as snapshots
from pipeline.curves import Curves
from pipeline.errors import ConfigError, TrainingError
from pipeline.fitstate import Fit, progress_of, resume
from pipeline.progress import Progress
from pipeline.runtime import Runtime

COUNTED = 4  # optimizer steps over which operations are counted: how many positions are masked varies from batch to batch


def fit(
    name: str,
    model: Model,
    train: Callable[[int], Loader[Batch]],
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
    save_every: int = 100,
) -> Fit:
    """Train what is not frozen and keep the best validated weights; a run that was killed continues where it last saved.

    Args:
        name: of the run, for its lines and its snapshots.
        model: already frozen as wanted.
        train: endless batches from the given microbatch on; the microbatch size is theirs.
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
        save_every: steps between snapshots to continue from.

    Raises:
        TrainingError: the loss is not finite; names the step and the last good checkpoint.
    """
    model.to(runtime.device).train()
    optimise, average = optimizer(model), EMA(model, ema)
    curves, scratch = Curves(out / "curves.csv"), snapshots.of(name)
    result = resume(scratch, out, model, optimise, average)
    batches: Iterator[Batch] = iter(train(result.steps * accumulation))
    if not result.flops_per_step:
        first = [batch.to(runtime.device) for batch in islice(batches, COUNTED * accumulation)]
        batches = chain(first, batches)
        result.flops_per_step = flops.count(lambda: _backward(model, first, supervision, runtime, False)) // COUNTED
        optimise.zero_grad(set_to_none=True)
    steps = steps if budget is None else max(1, round(budget / result.flops_per_step))
    if steps < 1:
        raise ConfigError(f"loop.fit.steps must be at least 1, got {steps}")
    with Progress(name, steps, "step", done=result.steps) as bar:
        for step in range(result.steps, 0 if result.stopped else steps):
            micro = [next(batches).to(runtime.device) for _ in range(accumulation)]
            set_lr(optimise, schedule(step, steps))
            values = _backward(model, micro, supervision, runtime, True)
            norm = nn.utils.clip_grad_norm_(_trainable(model), clip)
            optimise.step()
            optimise.zero_grad(set_to_none=True)
            average.update()
            curves.record(step, {**values, "lr": optimise.param_groups[0]["lr"], "grad_norm": norm})
            result.steps = step + 1
            bar.advance()
            due = result.steps == steps or result.steps % validate_every == 0
            keep = due or result.steps % save_every == 0
            if keep or result.steps % log_every == 0:
                _report(curves.flush(), bar, result)
            if due:
                _validate(model, validation, average, runtime, result, save, bar)
                result.stopped = 0 < patience <= result.worse()
            if keep:
                scratch.save(result.steps, *progress_of(model, optimise, average, result), out)
            if result.stopped:
                break
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


def _report(rows: list[dict[str, float]], bar: Progress, result: Fit) -> None:
    """Print a line for the newest row; stop at the first row that is not finite."""
    for row in rows:
        if not math.isfinite(row["loss"]):
            raise TrainingError(f"{bar.label}: the loss became {row['loss']} at step {int(row['step']) + 1}; {_kept(result)}")
    per_step = " ".join(f"{v:.3f}" for k, v in rows[-1].items() if k.startswith("loss/step_"))
    bar.line(f"step {result.steps}/{bar.total} loss {rows[-1]['loss']:.3f} | steps {per_step} | {bar.rate()}")


def _kept(result: Fit) -> str:
    kept = f"the last good checkpoint is of step {result.best_step}" if result.best_step else "nothing was saved yet"
    return f"{kept}. Lower the learning rate or check the data"


def _validate(
    model: Model,
    batches: Loader[Batch],
    average: EMA,
    runtime: Runtime,
    result: Fit,
    save: Callable[[], None],
    bar: Progress,
) -> None:
    """Validate the averaged weights; save them if they are the best so far."""
    with average.applied():
        losses = validation_losses(model, batches, runtime)
        if not math.isfinite(losses[-1]):
            raise TrainingError(f"{bar.label}: the validation loss became {losses[-1]} at step {result.steps}; {_kept(result)}")
        result.validation.append({"step": result.steps, "loss": losses[-1], "loss_by_step": losses})
        if losses[-1] < result.best_loss:
            result.best_step, result.best_loss = result.steps, losses[-1]
            save()
    bar.line(f"step {result.steps} validation " + " ".join(f"{x:.4f}" for x in losses))


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
