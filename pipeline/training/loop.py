"""The training loop of every phase. A model is what yields states per supervised step and reads them out; nothing else is known.

Order of one optimizer step: microbatches forward and backward -> clip -> step -> average -> record. Every ``log_every`` steps the
recorded rows reach the host in one sync; a step whose loss or gradient was not finite was not taken, and stops the run there. Every
``validate_every`` steps the averaged weights are validated, a row of ``validation.csv``, and, if they are the best so far, saved.
Every ``save_every`` steps the whole state goes to scratch: nothing random has to be in it, order and masks are functions of a step.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from components import noise
from components.batch import Batch
from components.model import Model
from components.nn.masters import widen
from components.objective.objective import Objective
from components.ranges import Decay, NonNegativeFloat, NonNegativeInt, PositiveInt, in_range
from components.training.ema import EMA
from components.training.finiteness import first_non_finite
from components.training.optim import adamw, set_lr, warmup_cosine
from pipeline.errors import ConfigError, DataError, TrainingError
from pipeline.files import write_atomic
from pipeline.machine import snapshots
from pipeline.machine.distributed import any_of, as_one, gathered, rank
from pipeline.machine.process import Interrupted, termination_noted
from pipeline.machine.runtime import Runtime
from pipeline.models.model_folder import CURVES, VALIDATION
from pipeline.progress import Progress
from pipeline.training import flops
from pipeline.training.curves import Curves
from pipeline.training.execution import Execution, eager
from pipeline.training.gradients import accumulate
from pipeline.training.health import Health
from pipeline.training.sharding import Sharding, Shares, replicated, trainable
from pipeline.training.step_guard import StepGuard
from pipeline.training.step_operations import counted
from pipeline.training.train_state import Training, TrainRun, TrainState

Numbered = Iterator[tuple[int | None, Batch]]


@in_range
def fit(
    run: TrainRun,
    *,
    budget: PositiveInt | None = None,
    steps: PositiveInt = 1000,
    objective: Callable[[int], Objective] = Objective,
    optimizer: Callable[..., torch.optim.Optimizer] = adamw,
    schedule: Callable[[int, int], float] = warmup_cosine,
    execution: Execution = eager,
    sharding: Sharding = replicated,
    accumulation: PositiveInt = 1,
    clip: NonNegativeFloat = 1.0,
    ema: Decay = 0.0,
    validate_every: PositiveInt = 200,
    patience: NonNegativeInt = 0,
    log_every: PositiveInt = 50,
    save_every: PositiveInt = 100,
) -> TrainState:
    """Train what is not frozen and keep the best validated weights; a run that was killed continues where it last saved.

    Args:
        run: what is trained, on what, and where it goes.
        budget: floating-point operations to spend; sets ``steps``.
        steps: optimizer steps at most.
        objective: makes what a step minimises, and how its gradient is made, from the number of recursion steps.
        optimizer: makes the optimizer from parameters with their names.
        schedule: (step, steps) -> multiplier of the peak learning rate.
        execution: how the model is run (``pipeline.training.execution``): as written, compiled, or layers twice for less memory.
        sharding: which process holds what is trained (``pipeline.training.sharding``).
        accumulation: microbatches per optimizer step, of all processes together.
        clip: largest gradient norm; 0 = off, the gradient is taken as it is.
        ema: decay of the weight average; 0 = no average.
        validate_every: steps between validations; the last step is always validated.
        patience: validations without a better loss before stopping early; 0 = never.
        log_every: steps between lines and host syncs.
        save_every: steps between snapshots to continue from.

    Raises:
        ConfigError: an objective that does not fit the model, or a way of sharing it out that does not fit the optimizer.
        TrainingError: loss, gradient or weights are not finite; names the step and the last good checkpoint. That step is not
            taken, and nothing of it is kept.
        DataError: a microbatch cannot be had; a snapshot of the last step is kept, but for one of several processes' shares.
        Interrupted: SIGTERM or SIGUSR1 came; a snapshot of the last step is kept.
    """
    train, runtime, (goal, counter, meter, shares) = run.train, run.runtime, _set_up(run, objective, execution, sharding)
    optimise, average = optimizer(shares.parameters.items()), EMA(shares.parameters.values(), ema)
    shares.check(optimise, run.trials)
    curves, training = Curves(run.out / CURVES, writes=rank() == 0), Training(shares, optimise, average, train, accumulation)
    result = training.resume(scratch := snapshots.of(run.name), run.out)
    guard, health = StepGuard(shares.parameters, optimise, clip, shares.norms), Health(run, clip)
    gradient = partial(accumulate, run.model, goal, runtime=runtime, sequences=train.sequences(accumulation), shares=shares)
    batches = counted(train.steps(result.steps, accumulation), train.sequences(accumulation), counter, goal, steps, result)
    steps = _affordable(steps, budget, result.flops_per_step)
    with Progress(run.name, steps, "step", done=result.steps) as bar, termination_noted() as terminated, as_one(), scratch.in_use():
        for step in range(result.steps, 0 if result.stopped else steps):
            try:
                micro = [batch.to(runtime.device) for batch in health.waited(batches)]
            except DataError as error:  # of a trunk elsewhere that is gone, for example; no step is lost with it
                _report(curves.flush(), guard, bar, result, "")
                alone = training.keep_alone(result, scratch, run.out)
                raise (_interrupted(run, result, steps, terminated()) if alone and terminated() else error) from None
            set_lr(optimise, run.rate * _multiplier(schedule, step, steps, bar.label))
            lead = goal.steps_before(noise.key(train.seed, step))
            values = gradient(micro=micro, seed=train.seed, step=step, progress=step / steps, lead=lead, statistics=True)
            norm, refused = guard.step(step, values["loss"])
            average.update()
            curves.record(step, {**values, "lr": optimise.param_groups[0]["lr"], "grad_norm": norm})
            result.steps = step + 1
            bar.advance()
            due, ending = result.steps == steps or result.steps % validate_every == 0, any_of(terminated()) and step + 1 < steps
            saving = due or ending or result.steps % save_every == 0
            if refused or saving or result.steps % log_every == 0:
                _report(curves.flush(), guard, bar, result, meter.summary(micro, step / steps, bar.speed()))
            if saving:
                _check_finite(training.tensors(), bar, result)
            if due:
                _validate(run, goal, shares, average, result, bar, health)
                result.stopped = 0 < patience <= result.worse()
            if saving:
                training.keep(result, scratch, run.out)
            if result.stopped:
                return result
            if ending:
                raise _interrupted(run, result, steps, next(filter(None, gathered(terminated()))))
    return result


def as_it_is(run: TrainRun, *, budget: PositiveInt | None = None, objective: Callable[[int], Objective] = Objective) -> TrainState:
    """Take no step, in place of ``fit``: the model is validated and kept as it came. For a pretrained backbone, and for a phase
    that is switched off.
    """
    goal = objective_of(run.model.to(run.runtime.device).requires_grad_(False), objective)
    losses = validation_losses(run.model, run.validation(), run.runtime, goal)
    if not rank():
        run.save()
        write_atomic(run.out / CURVES, b"step,loss\n")
        (run.out / VALIDATION).unlink(missing_ok=True)
    result = TrainState(best_loss=losses[-1])
    _note(run, result, losses)
    return result


def objective_of(model: Model, objective: Callable[[int], Objective]) -> Objective:
    """Make the objective of a model's recursion steps.

    Raises:
        ConfigError: its settings do not fit them, or each other.
    """
    try:
        made = objective(model.n_steps)
        made.check(model)
        return made
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _set_up(
    run: TrainRun, objective: Callable[[int], Objective], execution: Execution, sharding: Sharding
) -> tuple[Objective, flops.GradientCounter, flops.Meter, Shares]:
    """The objective, what counts operations, on the model as it is written, and what of the trained parameters is held here."""
    model = run.model.to(run.runtime.device).train()
    goal = objective_of(model, objective).to(run.runtime.device)
    widen(model, trainable(model, goal).values())
    counter = flops.GradientCounter(model, goal, run.runtime)
    execution(model)
    return goal, counter, flops.Meter(counter, goal, run.runtime), sharding(model, goal)


def _affordable(steps: int, budget: int | None, flops_per_step: int) -> int:
    return steps if budget is None else max(1, round(budget / flops_per_step))


def _multiplier(schedule: Callable[[int, int], float], step: int, steps: int, label: str) -> float:
    value = schedule(step, steps)
    if not math.isfinite(value):
        raise TrainingError(f"{label}: loop.fit.schedule gave {value} for step {step + 1} of {steps}, which was not taken; mend it")
    return value


def _report(rows: list[dict[str, float]], guard: StepGuard, bar: Progress, result: TrainState, work: str) -> None:
    """Print a line for the newest row, if there is one; stop if a step was refused since the last one."""
    if refused := guard.refused():
        number, parameter = refused
        row = next(row for row in rows if row["step"] == number)
        broken = ("loss", "the loss") if not math.isfinite(row["loss"]) else ("grad_norm", f"the gradient of '{parameter}'")
        raise TrainingError(f"{bar.label}: {broken[1]} became {row[broken[0]]} at step {number + 1}; {_last_checkpoint(result)}")
    if not rows:
        return
    per_step = " ".join(f"{v:.3f}" for k, v in rows[-1].items() if k.startswith("loss/step_"))
    bar.line(
        f"step {result.steps}/{bar.total} loss {rows[-1]['loss']:.3f} | steps {per_step} | {bar.rate()}{work and f' | {work}'}"
    )


def _check_finite(tensors: Mapping[str, Tensor], bar: Progress, result: TrainState) -> None:
    """Raise TrainingError if weights, moments or average are not finite: they are neither validated nor kept."""
    if name := next(filter(None, gathered(first_non_finite(tensors))), None):
        raise TrainingError(f"{bar.label}: '{name}' is not finite after step {result.steps}; {_last_checkpoint(result)}")


def _interrupted(run: TrainRun, result: TrainState, steps: int, came: str) -> Interrupted:
    return Interrupted(f"{run.name}: {came} after step {result.steps} of {steps}; run it again to continue from there")


def _last_checkpoint(result: TrainState) -> str:
    saved = f"the last good checkpoint is of step {result.best_step}" if result.best_step else "nothing was saved yet"
    return f"{saved}. Lower the learning rate or check the data"


def _validate(
    run: TrainRun, objective: Objective, shares: Shares, average: EMA, result: TrainState, bar: Progress, health: Health
) -> None:
    """Validate the averaged weights; save them if they are the best so far. Says what looks wrong."""
    with average.applied():
        losses = validation_losses(run.model, shares.in_step(run.validation()), run.runtime, objective)
        if not math.isfinite(losses[-1]):
            raise TrainingError(
                f"{bar.label}: the validation loss became {losses[-1]} at step {result.steps}; {_last_checkpoint(result)}"
            )
        _note(run, result, losses)
        if losses[-1] < result.best_loss:
            result.best_step, result.best_loss = result.steps, losses[-1]
            with shares.model_whole():
                if rank() == 0:
                    run.save()
    bar.line(f"step {result.steps} validation " + " ".join(f"{x:.4f}" for x in losses))
    if rank() == 0 and (wrong := health.news(result, bar.total)):
        bar.line(f"health: {wrong}; python -m stages doctor says what mends it")


def _note(run: TrainRun, result: TrainState, losses: list[float]) -> None:
    """Add a validation to the run's numbers, and a row to ``validation.csv``, which can be read while the run goes on."""
    result.validation.append({"step": result.steps, "loss": losses[-1], "loss_by_step": losses})
    rows = Curves(run.out / VALIDATION, writes=rank() == 0)
    rows.record(result.steps, {"loss": losses[-1], **{f"loss/step_{number}": loss for number, loss in enumerate(losses)}})
    rows.flush()


def validation_losses(model: Model, batches: Numbered, runtime: Runtime, objective: Objective) -> list[float]:
    """Average the loss of each recursion step over all numbered validation sequences, added up in the order of the numbers."""
    model.eval()
    mine = []
    for number, batch in batches:
        batch = batch.to(runtime.device)
        with runtime.autocast():
            sums = objective.losses(model, batch)
        if number is not None:
            mine.append((number, len(batch), sums.double()))
    model.train()
    parts = sorted((number, n, sums.tolist()) for share in gathered(mine) for number, n, sums in share)
    total = torch.tensor([sums for *_, sums in parts], dtype=torch.float64)
    sequences = sum(n for _, n, _ in parts)
    return [float(sum(column)) / sequences for column in total.T.tolist()]
