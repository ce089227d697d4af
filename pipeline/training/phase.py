"""What every training phase has in common: freeze, load, fit, save, report. The stages say what differs."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from components.backbones.backbone import BackboneModel
from components.model import Model
from components.refined_lm import RefinedLM
from components.refiners.core import Core
from components.training.freezing import Table, by_module, freeze_except
from pipeline.data.batches import Source
from pipeline.data.loading import TrainLoader, in_order
from pipeline.errors import ConfigError
from pipeline.files import write_atomic, write_json
from pipeline.machine.distributed import rank
from pipeline.machine.runtime import Runtime
from pipeline.models.model_folder import CURVES, METRICS, UNFINISHED, VALIDATION, ModelFolder, seal
from pipeline.training import rate_search
from pipeline.training.loop import as_it_is
from pipeline.training.train_state import TrainRun, TrainState


def run_phase(
    name: str,
    model: Model,
    sources: Callable[[str], Source],
    out: str | Path,
    save: Callable[[], None],
    runtime: Runtime,
    *,
    fit: Callable[..., TrainState],
    unfreeze: Sequence[str],
    layer_norms: bool = False,
    table: Table = by_module,
    batch_size: int,
    validation_batch_size: int = 256,
    seed: int,
    matched: Sequence[ModelFolder] = (),
    rates: Sequence[float] = (1.0,),
    facts: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Train ``model`` on ``sources("train")``, keep the best on ``sources("validation")``, write ``metrics.json`` and seal
    the folder.

    Args:
        name: of the phase.
        model: everything of it that no pattern names stays frozen.
        sources: batches of a split.
        out: folder of the phase.
        save: writes the model.
        runtime: where it computes.
        fit: the training loop with its settings.
        unfreeze: module paths to train.
        layer_norms: train every norm too.
        table: how what is trained is written to the log.
        batch_size: sequences of a microbatch.
        validation_batch_size: sequences that are validated together.
        seed: of the order of the examples.
        matched: phases whose floating-point operations are to be spent; none: the loop's number of steps are taken.
        rates: multipliers of the learning rates; of several the best on validation is taken (``pipeline.training.rate_search``).
        facts: that ``metrics.json`` holds too.

    Raises:
        ConfigError: a pattern matches nothing, or the batch is larger than the data.
        DataError: a matched phase is not what it was when it ended.
    """
    out = Path(out)
    limit = {"budget": sum(int(folder.metrics()["flops"]) for folder in matched)} if matched else {}
    examples = sources("train")
    try:
        if isinstance(model, RefinedLM):
            model.check_taps(examples.taps)
        frozen = freeze_except(model, unfreeze, layer_norms=layer_norms)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None
    idle = not frozen.trainable or inspect.unwrap(fit) is inspect.unwrap(as_it_is)
    print(f"{name}: nothing is trained" if idle else f"{name}: training\n{table(frozen)}", flush=True)
    training = TrainLoader(examples, batch_size, seed, pin=runtime.device.type == "cuda")
    validation = partial(in_order, sources("validation"), validation_batch_size)
    if not rank():
        write_atomic(out / UNFINISHED, b"")
    searched = rate_search.search(TrainRun(name, model, training, validation, out, save, runtime), rates, partial(fit, **limit))
    if rank():
        return
    result, facts = searched.result, {**facts, **searched.facts()}
    parameters = {"total": frozen.total, "trainable": frozen.trainable}
    write_json(out / METRICS, {**asdict(result), "flops": result.flops, "parameters": parameters, **facts})
    data = {examples.stage: examples.fingerprint} if examples.fingerprint else {}
    seal(out, name, {**data, **{folder.manifest.writer: folder.manifest.digest for folder in matched}})
    (out / UNFINISHED).unlink()


def with_new_refiner(
    name: str, tail: BackboneModel, make: Callable[..., Core], source: Source, batch_size: int, seed: int, runtime: Runtime
) -> RefinedLM:
    """Put a refiner with its first weights over a backbone.

    Args:
        name: of the phase.
        tail: of the backbone.
        make: makes the refiner from ``dim``; its other sizes are bound.
        source: whose first rows tell how large the states are that it will see.
        batch_size: how many of them are looked at.
        seed: of its weights.
        runtime: where it computes.

    Raises:
        ConfigError: the refiner does not fit the backbone.
    """
    try:
        model = RefinedLM(tail, make(dim=tail.architecture["dim"]))
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None
    model.refiner.init_weights(hidden_rms(tail, source, batch_size, runtime), torch.Generator().manual_seed(seed))
    return model


@torch.no_grad()
def hidden_rms(model: BackboneModel, source: Source, batch_size: int, runtime: Runtime) -> float:
    """Root mean square of the states that a refiner will see, over the first rows."""
    rows = torch.arange(min(batch_size, len(source.padded)))
    batch = source.batch(rows, torch.zeros_like(rows)).to(runtime.device)
    with runtime.autocast():
        states = model.to(runtime.device).eval().states(batch).float()
    token_states = states if batch.attention is None else states[batch.attention]
    return float(token_states.square().mean().sqrt())


def skipped(name: str, out: str | Path, save: Callable[[], None]) -> None:
    """The model as it is, metrics and curves of a phase that is switched off: zero steps."""
    if rank():
        return
    save()
    out = Path(out)
    write_json(out / METRICS, {"steps": 0, "flops": 0})
    write_atomic(out / CURVES, b"step,loss\n")
    seal(out, name, {})
    for name in (UNFINISHED, VALIDATION):
        (out / name).unlink(missing_ok=True)  # of an earlier run
