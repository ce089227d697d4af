"""What a stage will take, reckoned on shapes: models without weights, batches drawn as training will draw them, and operations
counted by the very code that training counts with. From prepared data the numbers are those that ``metrics.json`` will hold.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor

from components.backbones.backbone import BackboneModel
from components.backbones.split import split_layer
from components.backbones.taps import below_split, tapped_trunk
from components.batch import Batch
from components.model import Model
from components.objective.objective import Objective
from components.refined_lm import RefinedLM
from components.training.freezing import count_parameters, freeze_except
from components.training.optim import adamw
from components.training.order import DeterministicSampler
from pipeline.data.batches import padded_lengths
from pipeline.data.extraction import STORED, token_bytes
from pipeline.errors import ConfigError
from pipeline.planning import memory
from pipeline.planning.corpus import Corpus, some
from pipeline.planning.cost import Cost, Memory, Training
from pipeline.planning.forward_costs import every_step_read
from pipeline.planning.process_memory import ProcessMemory, own_microbatches, process_memory
from pipeline.settings import config, ginstate
from pipeline.training import flops, loop
from pipeline.training.execution import checkpointed, eager
from pipeline.training.gradients import accumulate
from pipeline.training.shapes import META, OnShapes
from pipeline.training.sharding import fully_sharded, replicated
from pipeline.training.step_operations import counted_steps, flops_per_step

ORDER = {"backbone": 0, "warmup": 0, "joint": 1, "finetune": 2}  # what a stage adds to its seed for the order of its examples
HELD = ("optimizer", "accumulation", "ema", "sharding", "execution")
FIT = ("steps", "objective", "validate_every", *HELD)
MASKS = ("masking", "seed", "buckets")
AS_ITS_DEFAULTS: dict[str, Any] = {"optimizer": adamw, "accumulation": 1, "ema": 0.0, "sharding": replicated, "execution": eager}
LOOKED_AT = 16  # examples from which the cost of a forward pass is reckoned


class CostModel:
    """The stages of one configuration.

    Args:
        texts: resolved text of each stage.
        corpus: what it learns from.
        backbone, refined: whole, on the meta device.
        processes: that train together, each on a device of its own.

    Attributes:
        layer, taps: the split, and layers below it whose entering states are stored.
        live: stages that are set to run the trunk live, here or in another process.
        assumed: what is not known, in words.
    """

    def __init__(
        self, texts: Mapping[str, str], corpus: Corpus, backbone: BackboneModel, refined: RefinedLM, processes: int = 1
    ) -> None:
        self.texts, self.corpus, self.backbone, self.refined, self.processes = texts, corpus, backbone, refined, processes
        tail, taps = self.arguments("extract", "tail_layers", "taps")
        self.layer = split_layer(layers := backbone.architecture["layers"], tail)
        self.taps = below_split(taps, layers, self.layer)
        self.live, self.assumed = list[str](), list[str]()

    def extraction(self) -> Cost:
        """The trunk over every draw, and what is stored of it."""
        draws, dtype, batch_size, buckets, store = self.arguments("extract", "draws", "dtype", "batch_size", "buckets", "store")
        tokens = {name: int(self.corpus.splits[name].lengths().sum()) for name in ("train", "validation")}
        work = draws * self.trunk_over("train", buckets) + self.trunk_over("validation", buckets)
        most = memory.peak(partial(self.trunk, batch_size, self.corpus.vocabulary.sequence))
        stored = tokens["train"] * draws + tokens["validation"]
        disk = 0 if store else stored * token_bytes(self.backbone.architecture["dim"], dtype, len(self.taps))
        loaded = count_parameters(self.backbone)
        taken = Memory(memory.weights(self.backbone), batch=most)
        return Cost("extract", loaded, 0, loaded, taken, beside=work, disk=disk)

    def training(self, stage: str, model: Model) -> Cost:
        """Every step and validation of a phase; nothing but sizes of one that takes no steps."""
        if model is self.backbone:
            freeze_except(model, *self.arguments(stage, "unfreeze"))  # finetune, which shares it, has frozen something else
        whole = self.backbone if model is self.backbone else self.refined
        parameters = count_parameters(whole), count_parameters(model, trained=True), count_parameters(model)
        sizes = Cost(stage, *parameters, Memory(memory.weights(model)))
        batch_size, seed = self.arguments(stage, "batch_size", "seed")
        fit = ginstate.arguments(f"stages.{stage}.run", "pipeline.training.loop.fit", FIT)
        if stage == "finetune" and fit is not None:
            (fit["steps"],) = self.arguments(stage, "steps")
        if fit is None or not fit["steps"]:
            return sizes
        steps, size, rows = fit["steps"], batch_size * fit["accumulation"], self.corpus.splits
        sizes = replace(sizes, steps=steps, epochs=steps * size / len(rows["train"]))
        if not self.has_fixed_shapes(stage, model):
            return sizes
        (masks, dtype), microbatches = self._masks(stage), own_microbatches(stage, fit["accumulation"], self.processes)
        holds = self._holds(model, fit)
        model = holds.model
        sizes = replace(sizes, epochs=sizes.epochs * masks.get("passes", 1))
        first = self._first(masks, size, batch_size, seed + ORDER[stage], steps)
        micro = [[self._on_shapes(batch, dtype) for batch in step] for step in first]
        validations = -(-steps // fit["validate_every"])
        looked_at = self._on_shapes(some(self.corpus.source("validation", masks), LOOKED_AT), dtype)
        beside = validations * len(rows["validation"]) * every_step_read(model, looked_at)
        self.live += [stage] if "live" in masks else []
        if masks.get("live"):
            seen = {"train": steps * size * masks.get("passes", 1), "validation": validations * len(rows["validation"])}
            beside += sum(n * self.trunk_over(name, masks["buckets"]) // len(rows[name]) for name, n in seen.items())
        widest = [self._widest("train", masks, batch_size, dtype)] * microbatches
        a_step, most = self._step(stage, model, micro, widest, fit, size)
        validation = self._validation_peak(stage, model, masks, dtype, fit["objective"])
        taken, host = self._taken(stage, holds, fit, most, validation, microbatches)
        return replace(
            sizes, parts=replace(taken, trunk=self._live_trunk(masks, batch_size)), host=host, flops_per_step=a_step,
            flops=steps * a_step, beside=beside, read=self._read(masks, steps * size) if dtype else 0,
            sent=steps * holds.sent(self.processes, microbatches),
        )  # fmt: skip

    def control(self, model: Model, batch: str, *, states: bool) -> Training:
        """Reckon what training a control takes, with what is frozen now.

        Args:
            model: that is trained.
            batch: the setting of controls that says how many are in a microbatch.
            states: it learns from states, as warmup and joint do, and not from tokens.
        """
        masks, dtype = self._masks("controls", states=states)
        batch_size, rates, seed = self.arguments("controls", batch, "rates", "seed")
        fit = ginstate.arguments("stages.controls.run", "pipeline.training.loop.fit", HELD) or AS_ITS_DEFAULTS
        accumulation = fit["accumulation"]
        holds, microbatches = self._holds(model, fit, len(rates)), own_microbatches("controls", accumulation, self.processes)
        model, widest = holds.model, [self._widest("train", masks, batch_size, dtype)] * microbatches
        sent, operations = holds.sent(self.processes, microbatches), 1
        if sent or states:
            step, *_ = self._first(masks, batch_size * accumulation, batch_size, seed, 1)  # as long as examples are, not the widest
            counter = flops.GradientCounter(model, Objective(model.n_steps), OnShapes())
            operations = max(sum(counter.count(self._on_shapes(each, dtype)) for each in step), 1)
        _run_as(fit["execution"], model)
        work = partial(accumulate, model, Objective(model.n_steps), widest, OnShapes(), sequences=batch_size)
        most = memory.peak(partial(work, seed=0, step=0, progress=1.0, statistics=False))
        validation = self._validation_peak("controls", model, masks, dtype, Objective)
        taken, host = self._taken("controls", holds, fit, most, validation, microbatches)
        # What each rate begins from.
        started = memory.size(weight for weight in model.parameters() if weight.requires_grad and len(rates) > 1)
        taken = replace(taken, weights=taken.weights + started, trunk=self._live_trunk(masks, batch_size))
        read = self._read(masks, batch_size * accumulation) if states else 0
        return Training(taken, host, sent / operations, read / operations)

    def trunk_over(self, name: str, buckets: Sequence[int]) -> int:
        """Operations of the trunk over every example of a split once."""
        padded = padded_lengths(self.corpus.splits[name].lengths(), buckets, self.corpus.vocabulary.sequence)
        lengths, rows = padded.unique(return_counts=True)
        return sum(n * flops.count(partial(self.trunk, 1, at)) for n, at in zip(rows.tolist(), lengths.tolist(), strict=True))

    def wire(self) -> float:
        """Mean bytes of an example's states, as a trunk in another process sends them to warmup."""
        masks, dtype = self._masks("warmup")
        assert dtype is not None
        padded = padded_lengths(self.corpus.splits["train"].lengths(), masks["buckets"], self.corpus.vocabulary.sequence)
        width = self.backbone.architecture["dim"] * (1 + len(self.taps))
        return float(padded.float().mean()) * width * dtype.itemsize

    def _holds(self, model: Model, fit: Mapping[str, Any], trials: int = 1) -> ProcessMemory:
        """What a process holds of a model that is trained with these settings of the loop, so many times."""
        shares = unwrap(fit["sharding"]) is unwrap(fully_sharded)
        return process_memory(model, fit["optimizer"], self.processes if shares else 1, trials)

    def _taken(
        self, stage: str, holds: ProcessMemory, fit: Mapping[str, Any], step: int, validation: int, microbatches: int
    ) -> tuple[Memory, int]:
        """Bytes of a process that trains, and of its device's host while it saves."""
        machine = ginstate.arguments(f"stages.{stage}.run", "pipeline.machine.runtime.Runtime", ("device",)) or {}
        average, on_host = bool(fit["ema"]), machine.get("device", "cpu") == "cpu"
        working = {"step": step, "validation": validation, "microbatches": microbatches}
        return holds.training(average=average, **working, on_host=on_host), 0 if on_host else holds.saving(average=average)

    def _read(self, masks: Mapping[str, Any], examples: int) -> int:
        """Bytes of stored states that steps read of so many examples."""
        if "live" in masks:
            return 0
        rows = self.corpus.splits["train"]
        (dtype,) = self.arguments("extract", "dtype")
        token = token_bytes(self.backbone.architecture["dim"], dtype, len(self.taps))
        return masks.get("passes", 1) * examples * int(rows.lengths().sum()) * token // len(rows)

    def arguments(self, stage: str, *names: str) -> list[Any]:
        """Read arguments of a stage's ``run``, whose settings are then in force."""
        config.load_text(self.texts[stage], stage)
        return [config.argument(f"stages.{stage}.run", name) for name in names]

    def _masks(self, stage: str, *, states: bool = False) -> tuple[dict[str, Any], torch.dtype | None]:
        """How a stage masks its examples, and the type of the states that come with them; the settings they need are in force.

        ``live`` is there if a trunk runs for every batch: True here, False in another process. Of controls some learn from
        ``states``, the others from tokens.
        """
        if stage == "backbone":
            return dict(zip(MASKS, self.arguments(stage, *MASKS), strict=True)), None
        self.arguments(stage)
        root = f"stages.{stage}.run"
        unrolled = ginstate.arguments(root, "pipeline.data.sources.unrolled", ("passes",)) or {}
        if stage == "finetune" or (stage == "controls" and not states):
            return ginstate.arguments(root, "pipeline.data.sources.tokens", (*MASKS, "draws")) or {}, None
        if live := ginstate.arguments(root, "pipeline.data.sources.live", (*MASKS, "draws", "dtype")):
            return {**live, **unrolled, "live": True}, STORED[live["dtype"]]
        if remote := ginstate.arguments(root, "pipeline.data.sources.remote", (*MASKS, "draws", "dtype")):
            return {**remote, **unrolled, "live": False}, STORED[remote["dtype"]]
        cached = ginstate.arguments(root, "pipeline.data.sources.cached", ("buckets",))
        if cached is None and ginstate.arguments(root, "pipeline.data.sources.streamed", ("near",)) is not None:
            cached = {"buckets": ()}  # of the whole sequence
        if cached is None:
            raise ConfigError(
                f"{stage}: its states come from none of sources.cached, streamed, live and remote; they cannot be planned"
            )
        masking, seed, draws, dtype = self.arguments("extract", "masking", "seed", "draws", "dtype")
        whole = torch.float32 if STORED[dtype].itemsize == 1 else STORED[dtype]
        return {"masking": masking, "seed": seed, "draws": draws, **cached, **unrolled}, whole

    def _first(self, masks: Mapping[str, Any], size: int, batch_size: int, seed: int, steps: int) -> list[list[Batch]]:
        """The microbatches of the steps over which training counts operations."""
        source = self.corpus.source("train", masks)
        try:
            order = DeterministicSampler(source.padded, size, seed)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        counted = map(order.step, range(counted_steps(size, steps)))
        return [[source.batch(*part) for part in zip(*(ids.split(batch_size) for ids in step), strict=True)] for step in counted]

    def _on_shapes(self, batch: Batch, states: torch.dtype | None) -> Batch:
        """The batch without its values, with states of this type if any."""
        moved = batch.to(META)
        if states is None:
            return moved
        taps = tuple(layer for layer in self.refined.taps.values() if layer < self.layer)  # stored, or from a live trunk
        shape = *batch.tokens.shape, (1 + len(taps)) * self.backbone.architecture["dim"]
        first, *later = (each.entered(torch.zeros(shape, dtype=states, device=META), taps) for each in moved.passes)
        return replace(first, later=tuple(later) or None)

    def _widest(self, split: str, masks: Mapping[str, Any], n: int, states: torch.dtype | None) -> Batch:
        return self._on_shapes(self.corpus.widest(split, masks, n), states)

    def _live_trunk(self, masks: Mapping[str, Any], rows: int) -> int:
        """Bytes of a trunk that runs beside training, as it is set to, and the most that it makes of a batch."""
        run = partial(self.trunk, rows, self.corpus.vocabulary.sequence)
        return memory.weights(self.backbone) + memory.peak(run) if masks.get("live") else 0

    def has_fixed_shapes(self, stage: str, model: Model) -> bool:
        """Whether its operations can be told from shapes; a guess is noted if not."""
        fixed = flops.has_fixed_shapes(model)
        if not fixed:
            self.assumed.append(f"{stage}: what the refiner computes depends on the tokens; its operations are left out")
        return fixed

    def _step(
        self, stage: str, model: Model, micro: list[list[Batch]], widest: list[Batch], fit: Mapping[str, Any], size: int
    ) -> tuple[int, int]:
        """Operations of an optimizer step, and the most bytes that what the widest one computes takes at once."""
        self.arguments(stage)
        with META:
            objective = loop.objective_of(model, fit["objective"])
        counter = flops.GradientCounter(model, objective, OnShapes())
        a_step = flops_per_step(micro, counter.count, objective, fit["steps"])
        _run_as(fit["execution"], model)
        gradient = partial(accumulate, model, objective, runtime=OnShapes(), sequences=size, seed=0)
        most = memory.peak(partial(gradient, micro=widest, step=0, progress=1.0, statistics=False))
        model.zero_grad()
        return a_step, most

    @torch.no_grad()
    def _validation_peak(
        self, stage: str, model: Model, masks: Mapping[str, Any], dtype: torch.dtype | None, objective: Callable[[int], Objective]
    ) -> int:
        """The most bytes that a validation batch takes at once."""
        (size,) = self.arguments(stage, "validation_batch_size")
        batch = self._widest("validation", masks, size, dtype)
        with META:
            made = loop.objective_of(model, objective)
        return memory.peak(lambda: made.losses(model, batch))

    @torch.no_grad()
    def trunk(self, rows: int, length: int) -> Tensor:
        """Run the layers below the split on shapes."""
        return tapped_trunk(self.backbone, torch.zeros(rows, length, dtype=torch.int64, device=META), None, self.layer, self.taps)


def _run_as(execution: Callable[[Model], Model], model: Model) -> None:
    """Run a model of shapes as in training; what is compiled is taken to need what it needs as written."""
    if unwrap(execution) is unwrap(checkpointed):
        checkpointed(model)
