"""The training loop of every phase. A model is what yields states per supervised step and reads them out; nothing else is known.

Order of one optimizer step: microbatches forward and backward -> clip -> step -> average -> record. Every ``log_every`` steps the
recorded rows reach the host in one sync; a non-finite loss stops the run there and names the step it appeared in. Every
``validate_every`` steps the averaged weights are validated and, if they are the best so far, saved. Every ``save_every`` steps the
whole state goes to scratch: nothing random has to be in it, order and masks are functions of the step.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor, nn

from components.batch import Batch
from components.model import Model
from components.objective.losses import Loss, masked_cross_entropy
from components.objective.memory import Memory, store
from components.objective.supervision import LearnedWeights, Supervision, Weights, deepened, linear_decay
from components.recursion import Stretches, full_gradient
from components.training.ema import EMA
from components.training.optim import adamw, set_lr, warmup_cosine
from pipeline.data.loading import TrainLoader
from pipeline.errors import ConfigError, TrainingError
from pipeline.files import write_atomic
from pipeline.machine import snapshots
from pipeline.machine.distributed import any_of, gathered, rank
from pipeline.machine.process import Interrupted, termination_noted
from pipeline.machine.runtime import Runtime
from pipeline.progress import Progress
from pipeline.training import flops
from pipeline.training.curves import Curves
from pipeline.training.execution import Execution, eager
from pipeline.training.gradients import accumulate, trainable
from pipeline.training.train_state import TrainState, progress_of, resume

COUNTED = 4  # optimizer steps over which operations are counted: how many positions are masked varies from batch to batch


Validation = Callable[[], Iterator[tuple[int, Batch]]]  # this process's batches, with their numbers


def fit(
    name: str,
    model: Model,
    train: TrainLoader,
    validation: Validation,
    out: Path,
    save: Callable[[], None],
    runtime: Runtime,
    *,
    budget: int | None = None,
    steps: int = 1000,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = adamw,
    schedule: Callable[[int, int], float] = warmup_cosine,
    loss: Loss = masked_cross_entropy,
    supervision: Supervision = linear_decay,
    deepen: float = 0.0,
    recursion: Stretches = full_gradient,
    memory: Memory = store,
    execution: Execution = eager,
    accumulation: int = 1,
    clip: float = 1.0,
    ema: float = 0.0,
    validate_every: int = 200,
    patience: int = 0,
    log_every: int = 50,
    save_every: int = 100,
) -> TrainState:
    """Train what is not frozen and keep the best validated weights; a run that was killed continues where it last saved.

    Args:
        name: of the run, for its lines and its snapshots.
        model: already frozen as wanted.
        train: endless microbatches; their size is theirs.
        validation: gives the validation batches.
        out: folder of ``curves.csv``.
        save: writes the model as it stands; called with the averaged weights in place.
        runtime: device and precision.
        budget: floating-point operations to spend; sets ``steps``.
        steps: optimizer steps at most.
        optimizer: makes the optimizer from the model.
        schedule: (step, steps) -> multiplier of the peak learning rate.
        loss: of a recursion step's states (``components.objective.losses``).
        supervision: number of recursion steps -> weight of each (``components.objective.supervision``).
        deepen: share of the steps over which supervision grows from the first recursion step to all; 0 = all from the start.
        recursion: how the gradient flows through the recursion steps (``components.recursion``).
        memory: what is kept of a recursion step until its backward pass (``components.objective.memory``).
        execution: how a step is run (``pipeline.training.execution``): as it is written, or compiled.
        accumulation: microbatches per optimizer step, of all processes together.
        clip: largest gradient norm.
        ema: decay of the weight average; 0 = no average.
        validate_every: steps between validations; the last step is always validated.
        patience: validations without a better loss before stopping early; 0 = never.
        log_every: steps between lines and host syncs.
        save_every: steps between snapshots to continue from.

    Raises:
        TrainingError: the loss is not finite; names the step and the last good checkpoint.
        Interrupted: SIGTERM came; a snapshot of the last step is kept.
    """
    weights = weights_of_steps(model, supervision, deepen)
    model.to(runtime.device).train()
    optimise, average, scratch = optimizer(model), EMA(model, ema), snapshots.of(name)
    curves = Curves(out / "curves.csv", writes=rank() == 0)
    result = resume(scratch, out, model, optimise, average, train, accumulation)
    gradient = partial(accumulate, model, runtime=runtime, loss=loss, stretches=recursion, memory=memory)
    gradient = partial(gradient, sequences=train.sequences(accumulation), seed=train.seed)
    batches = _counted(train.steps(result.steps, accumulation), gradient, weights, steps, runtime, result)
    steps = _affordable(steps, budget, result.flops_per_step)
    meter = flops.Meter(execution(model), runtime, recursion)
    with Progress(name, steps, "step", done=result.steps) as bar, termination_noted() as asked_to_end:
        for step in range(result.steps, 0 if result.stopped else steps):
            micro = [batch.to(runtime.device) for batch in next(batches)]
            set_lr(optimise, schedule(step, steps))
            values = gradient(micro=micro, weights=weights(step / steps), step=step, statistics=True)
            curves.record(step, {**values, **_update(model, optimise, average, clip)})
            result.steps = step + 1
            bar.advance()
            due, ending = result.steps == steps or result.steps % validate_every == 0, any_of(asked_to_end()) and step + 1 < steps
            keep = due or ending or result.steps % save_every == 0
            if keep or result.steps % log_every == 0:
                _report(curves.flush(), bar, result, meter.told(micro, weights(step / steps), bar.speed()))
            if due:
                _validate(partial(validation_losses, model, runtime=runtime, loss=loss), validation, average, result, save, bar)
                result.stopped = 0 < patience <= result.worse()
            if keep and rank() == 0:
                scratch.save(result.steps, *progress_of(model, optimise, average, result, train, accumulation), out)
            if result.stopped:
                return result
            if ending:
                raise Interrupted(f"{name}: SIGTERM after step {result.steps} of {steps}; run it again to continue from there")
    return result


def as_it_is(
    name: str,
    model: Model,
    train: TrainLoader,
    validation: Callable[[], Iterator[tuple[int, Batch]]],
    out: Path,
    save: Callable[[], None],
    runtime: Runtime,
    *,
    budget: int | None = None,
    loss: Loss = masked_cross_entropy,
) -> TrainState:
    """In place of ``fit``: no step is taken, the model is validated and kept as it came. For a pretrained backbone, and for a phase
    that is switched off.
    """
    losses = validation_losses(model.to(runtime.device).requires_grad_(False), validation(), runtime, loss)
    if not rank():
        save()
        write_atomic(out / "curves.csv", b"step,loss\n")
    return TrainState(best_loss=losses[-1], validation=[{"step": 0, "loss": losses[-1], "loss_by_step": losses}])


def _affordable(steps: int, budget: int | None, flops_per_step: int) -> int:
    return steps if budget is None else max(1, round(budget / flops_per_step))


def weights_of_steps(model: Model, supervision: Supervision, deepen: float) -> Callable[[float], Weights]:
    """Share of the training that is done -> weight of each recursion step; learned weights become part of the model.

    Raises:
        ConfigError: learned weights cannot be deepened.
    """
    if deepen:
        if isinstance(supervision(1), LearnedWeights):
            raise ConfigError("loop.fit.deepen grows given weights; supervision.learned finds its own: use one of the two")
        return lambda done: deepened(supervision, model.n_steps, done / deepen)
    weights = supervision(model.n_steps)
    if isinstance(weights, LearnedWeights):
        model.step_weights = weights
    return lambda done: weights


def _update(model: Model, optimise: torch.optim.Optimizer, average: EMA, clip: float) -> dict[str, Tensor | float]:
    """Take the optimizer's step and that of the average; returns the learning rate and the gradient's norm."""
    norm = nn.utils.clip_grad_norm_(trainable(model), clip)
    optimise.step()
    average.update()
    return {"lr": optimise.param_groups[0]["lr"], "grad_norm": norm}


def _counted(
    batches: Iterator[list[Batch]],
    gradient: Callable[..., object],
    weights: Callable[[float], Weights],
    steps: int,
    runtime: Runtime,
    result: TrainState,
) -> Iterator[list[Batch]]:
    """The same batches, once the floating-point operations of an optimizer step, over all processes, are known: the mean over the
    first ones' microbatches and over the weights of a whole run. A step that supervises fewer recursion steps takes fewer.
    """
    if result.flops_per_step:
        return batches
    if steps < 1:
        raise ConfigError(f"loop.fit.steps must be at least 1, got {steps}")
    first = list(islice(batches, COUNTED))
    moved = [[batch.to(runtime.device) for batch in micro] for micro in first]
    result.flops_per_step = flops_per_step(moved, gradient, weights, steps)
    return chain(first, batches)


def flops_per_step(
    first: Sequence[Sequence[Batch]], gradient: Callable[..., object], weights: Callable[[float], Weights], steps: int
) -> int:
    """Floating-point operations of an optimizer step, over all processes: the mean over the ``first`` steps' microbatches and over
    the weights of ``steps`` steps.
    """

    def work(weights: Weights) -> None:
        for step, micro in enumerate(first):
            gradient(micro=micro, weights=weights, step=step, statistics=False)

    schedules = [weights(step / steps) for step in range(steps)]
    kinds = Counter(schedule if isinstance(schedule, LearnedWeights) else tuple(schedule) for schedule in schedules)
    taken = {kind: flops.count(partial(work, list(kind) if isinstance(kind, tuple) else kind)) for kind in kinds}
    return int(sum(gathered(sum(times * taken[kind] for kind, times in kinds.items())))) // (len(first) * steps)


def _report(rows: list[dict[str, float]], bar: Progress, result: TrainState, work: str) -> None:
    """Print a line for the newest row; stop at the first row that is not finite."""
    for row in rows:
        if not math.isfinite(row["loss"]):
            raise TrainingError(f"{bar.label}: the loss became {row['loss']} at step {int(row['step']) + 1}; {_kept(result)}")
    per_step = " ".join(f"{v:.3f}" for k, v in rows[-1].items() if k.startswith("loss/step_"))
    bar.line(
        f"step {result.steps}/{bar.total} loss {rows[-1]['loss']:.3f} | steps {per_step} | {bar.rate()}{work and f' | {work}'}"
    )


def _kept(result: TrainState) -> str:
    kept = f"the last good checkpoint is of step {result.best_step}" if result.best_step else "nothing was saved yet"
    return f"{kept}. Lower the learning rate or check the data"


def _validate(
    losses_of: Callable[..., list[float]],
    validation: Validation,
    average: EMA,
    result: TrainState,
    save: Callable[[], None],
    bar: Progress,
) -> None:
    """Validate the averaged weights; save them if they are the best so far."""
    with average.applied():
        losses = losses_of(validation())
        if not math.isfinite(losses[-1]):
            raise TrainingError(f"{bar.label}: the validation loss became {losses[-1]} at step {result.steps}; {_kept(result)}")
        result.validation.append({"step": result.steps, "loss": losses[-1], "loss_by_step": losses})
        if losses[-1] < result.best_loss:
            result.best_step, result.best_loss = result.steps, losses[-1]
            if rank() == 0:
                save()
    bar.line(f"step {result.steps} validation " + " ".join(f"{x:.4f}" for x in losses))


@torch.no_grad()
def validation_losses(
    model: Model, batches: Iterator[tuple[int, Batch]], runtime: Runtime, loss: Loss = masked_cross_entropy
) -> list[float]:
    """Loss of each recursion step over all validation sequences, added up in the order of the batches' numbers."""
    model.eval()
    mine = []
    for number, batch in batches:
        batch = batch.to(runtime.device)
        with runtime.autocast():
            sums = [loss(model, state.hidden, batch, compute=True)[0] for state in model.steps(batch)]
        mine.append((number, len(batch), torch.stack(sums).double()))
    model.train()
    parts = sorted((number, n, sums.tolist()) for share in gathered(mine) for number, n, sums in share)
    total = torch.tensor([sums for *_, sums in parts], dtype=torch.float64)
    sequences = sum(n for _, n, _ in parts)
    return [float(sum(column)) / sequences for column in total.T.tolist()]
