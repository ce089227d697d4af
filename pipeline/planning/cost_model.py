"""What a stage will take, reckoned on shapes: models without weights, batches drawn as training will draw them, and operations
counted by the very code that training counts with. From prepared data the numbers are those that ``metrics.json`` will hold.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
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
from pipeline.evaluation import evaluator
from pipeline.planning import memory
from pipeline.planning.corpus import Corpus, some
from pipeline.planning.cost import Cost
from pipeline.planning.forward_costs import depths_read, every_step_read, last_step_read, restarts_read
from pipeline.settings import config, ginstate
from pipeline.training import flops, loop
from pipeline.training.gradients import accumulate
from pipeline.training.shapes import META, OnShapes

ORDER = {"backbone": 0, "warmup": 0, "joint": 1, "finetune": 2}  # what a stage adds to its seed for the order of its examples
FIT = ("steps", "objective", "optimizer", "accumulation", "validate_every")
MASKS = ("masking", "seed", "buckets")
OPTIONAL = {"finetune", "control_adapter", "control_lora", "control_refiner_lora"}  # models that may be switched off
LOOKED_AT = 16  # examples from which the cost of a forward pass is reckoned


class CostModel:
    """The stages of one configuration.

    Args:
        texts: resolved text of each stage.
        corpus: what it learns from.
        backbone, refined: whole, on the meta device.

    Attributes:
        layer, taps: the split, and layers below it whose entering states are stored.
        live: stages that are set to run the trunk live.
        assumed: what is not known, in words.
    """

    def __init__(self, texts: Mapping[str, str], corpus: Corpus, backbone: BackboneModel, refined: RefinedLM) -> None:
        self.texts, self.corpus, self.backbone, self.refined = texts, corpus, backbone, refined
        tail, taps = self._arguments("extract", "tail_layers", "taps")
        self.layer = split_layer(layers := backbone.architecture["layers"], tail)
        self.taps = below_split(taps, layers, self.layer)
        self.live, self.assumed = list[str](), list[str]()

    def extraction(self) -> Cost:
        """The trunk over every draw, and what is stored of it."""
        draws, dtype, batch_size, buckets = self._arguments("extract", "draws", "dtype", "batch_size", "buckets")
        tokens = {name: int(self.corpus.splits[name].lengths().sum()) for name in ("train", "validation")}
        work = draws * self.trunk_over("train", buckets) + self.trunk_over("validation", buckets)
        most = memory.peak(partial(self._trunk, batch_size, self.corpus.vocabulary.sequence))
        stored = tokens["train"] * draws + tokens["validation"]
        disk = stored * token_bytes(self.backbone.architecture["dim"], dtype, len(self.taps))
        loaded = count_parameters(self.backbone)
        return Cost("extract", loaded, 0, loaded, memory.weights(self.backbone) + most, beside=work, disk=disk)

    def training(self, stage: str, model: Model) -> Cost:
        """Every step and validation of a phase; nothing but sizes of one that takes no steps."""
        if model is self.backbone:
            freeze_except(model, *self._arguments(stage, "unfreeze"))  # finetune, which shares it, has frozen something else
        whole = self.backbone if model is self.backbone else self.refined
        sizes = Cost(
            stage, count_parameters(whole), count_parameters(model, trained=True), count_parameters(model), memory.weights(model)
        )
        batch_size, seed = self._arguments(stage, "batch_size", "seed")
        fit = ginstate.arguments(f"stages.{stage}.run", "pipeline.training.loop.fit", FIT)
        if stage == "finetune" and fit is not None:
            (fit["steps"],) = self._arguments(stage, "steps")
        if fit is None or not fit["steps"]:
            return sizes
        steps, size, rows = fit["steps"], batch_size * fit["accumulation"], self.corpus.splits
        sizes = replace(sizes, steps=steps, epochs=steps * size / len(rows["train"]))
        if not self._has_fixed_shapes(stage, model):
            return sizes
        model, (masks, dtype) = memory.in_training(model), self._masks(stage)
        sizes = replace(sizes, epochs=sizes.epochs * masks.get("passes", 1))
        first = self._first(masks, size, batch_size, seed + ORDER[stage])
        micro = [[self._on_shapes(batch, dtype) for batch in step] for step in first]
        validations = -(-steps // fit["validate_every"])
        looked_at = self._on_shapes(some(self.corpus.source("validation", masks), LOOKED_AT), dtype)
        beside = validations * len(rows["validation"]) * every_step_read(model, looked_at)
        if masks.get("live"):
            self.live.append(stage)
            seen = {"train": steps * size * masks.get("passes", 1), "validation": validations * len(rows["validation"])}
            beside += sum(n * self.trunk_over(name, masks["buckets"]) // len(rows[name]) for name, n in seen.items())
        widest = [self._widest("train", masks, batch_size, dtype)] * fit["accumulation"]
        a_step, most = self._step(stage, model, micro, widest, fit, size)
        validation = self._validation_peak(stage, model, masks, dtype, fit["objective"])
        whole_memory = memory.training(model, memory.moments(model, fit["optimizer"]), most, validation)
        whole_memory += self._live_trunk(masks, batch_size)
        return replace(sizes, memory=whole_memory, flops_per_step=a_step, flops=steps * a_step, beside=beside)

    def control_memory(self, model: Model, masks_of: str, batch: str) -> int:
        """Bytes that training a control takes, with what is frozen now: also the most that a step or a validation holds.

        Args:
            model: that is trained.
            masks_of: the stage as whose its examples are masked, and whose states it reads: "controls" reads none.
            batch: the setting of controls that says how many are in a microbatch.
        """
        masks, dtype = self._masks(masks_of)
        batch_size, rates = self._arguments("controls", batch, "rates")
        model, widest = memory.in_training(model), [self._widest("train", masks, batch_size, dtype)]
        work = partial(accumulate, model, Objective(model.n_steps), widest, OnShapes(), sequences=batch_size)
        most = memory.peak(partial(work, seed=0, step=0, progress=1.0, statistics=False))
        fit = ginstate.arguments("stages.controls.run", "pipeline.training.loop.fit", ("optimizer",)) or {"optimizer": adamw}
        validation = self._validation_peak("controls", model, masks, dtype, Objective)
        whole = memory.training(model, memory.moments(model, fit["optimizer"]), most, validation)
        started = memory.size(weight for weight in model.parameters() if weight.requires_grad and len(rates) > 1)
        return whole + started + self._live_trunk(masks, batch_size)  # started: what each rate begins from

    def evaluation(
        self, trained: Mapping[str, Model], optional: Mapping[str, tuple[Model, Sequence[Tensor]]], *, with_finetune: bool
    ) -> Cost:
        """Every model on every measure, decode, answer and likelihood. They share the weights that no phase trained, and in looks
        at the same masked examples what runs below the split. What halting rules cost is left out.

        Args:
            trained: model of each phase, what it does not train frozen.
            optional: controls that are switched on: whole, and what they do not share with the backbone.
            with_finetune: it takes steps.
        """
        names = ("models", "measures", "decodes", "answers", "likelihood", "parallelism", "forgetting", "batch_size", "seed")
        models, measures, decodes, answers, likelihood, parallelism, forgetting, size, seed = self._arguments("evaluate", *names)
        depths, breadth, headline = self._arguments("evaluate", "depths", "breadth", "headline")
        own_steps = self.refined.n_steps
        self.refined.set_steps(*self._arguments("evaluate", "recursion_steps"))  # what training takes was reckoned before
        off = OPTIONAL - {*optional, *(("finetune",) if with_finetune else ())}
        compared = [name for name in models if name not in off]
        whole = {"control_backbone": self.backbone} | {name: model for name, (model, _) in optional.items()}
        evaluated = Counter([self.backbone, *(whole.get(name, self.refined) for name in compared)])
        if not self._has_fixed_shapes("evaluate", self.refined):
            del evaluated[self.refined]
        cut = bool(self.layer) and self.backbone.n_steps == 1
        below = len([n for n in compared if n == "control_adapter" or n not in {"finetune", *whole}])  # run the frozen one's trunk
        shared = below if cut and self.refined in evaluated else 0
        looks = [(split, ratio, len(self.corpus.splits[split])) for split, ratio in measures.values()]
        twice = looks.copy() if self.refined.remembers else []  # after a pass with all masked
        written = [(split, passes, examples) for split, passes, _, examples in decodes.values()]
        written += [] if parallelism is None else parallelism().decodes()
        causal, alone = self.corpus.vocabulary.causal, list[tuple[str, float, int]]()
        if answers is not None:
            split, passes, items = (generated := answers()).split, generated.passes, generated.items
            if causal:  # every token is read once, and read out once
                alone.append((split, 1.0, min(items, len(self.corpus.splits[split]))))
            else:
                written.append((split, passes, items))
        if likelihood is not None:  # half of an answer is masked on average
            bound = likelihood()
            looks.append((bound.split, 1.0 if causal else 0.5, bound.items * (1 if causal else bound.samples)))
        if forgetting is not None:  # a look at as many tokens, in other places
            looks.append((*forgetting, len(self.corpus.splits[forgetting[0]])))
        work, sequence = 0, self.corpus.vocabulary.sequence
        spared = shared * flops.count(partial(self._trunk, 1, sequence)) if shared else 0
        for (split, ratio, examples), saved in [*((look, spared) for look in looks), *((look, 0) for look in alone)]:
            batch = self._looked_at(split, ratio, seed)
            of_all = sum(every_step_read(model, batch.to(META), n) for model, n in evaluated.items())
            work += examples * (of_all - saved)
        split, ratio = measures[headline]
        batch, rows = self._looked_at(split, ratio, seed), len(self.corpus.splits[split])
        if depths:
            work += rows * sum(depths_read(model, batch.to(META), depths, n) for model, n in evaluated.items())
        if breadth is not None:
            each = ((restarts := breadth()).steps or own_steps, restarts.restarts[-1])
            work += rows * sum(restarts_read(model, batch.to(META), *each, n) for model, n in evaluated.items())
        for split, ratio, examples in twice:
            again = (every_step_read(self.refined, self._looked_at(split, share, seed).to(META)) for share in (1.0, ratio))
            work += examples * evaluated[self.refined] * sum(again)
        for split, passes, examples in written:
            batch, rows = self._looked_at(split, 1.0, seed), min(examples, len(self.corpus.splits[split]))
            work += passes * rows * sum(last_step_read(model, batch.to(META), n) for model, n in evaluated.items())
        of = {"control_backbone": self.backbone, "control_warmup": trained["controls"], **trained}
        own = [tensor for name in compared for tensor in (optional[name][1] if name in optional else memory.own(of[name]))]
        states = [self._trunk(size, sequence)] if shared else []
        loaded = count_parameters(self.backbone) + sum(tensor.numel() for tensor in own)
        return Cost("evaluate", loaded, 0, loaded, memory.weights(self.backbone) + memory.size([*own, *states]), beside=work)

    def _looked_at(self, split: str, ratio: float, seed: int) -> Batch:
        """A few of its examples with this share of each answer masked."""
        rows = self.corpus.splits[split].take(slice(0, LOOKED_AT))
        return next(evaluator.batches(rows, self.corpus.vocabulary, ratio, seed, LOOKED_AT))

    def trunk_over(self, name: str, buckets: Sequence[int]) -> int:
        """Operations of the trunk over every example of a split once."""
        padded = padded_lengths(self.corpus.splits[name].lengths(), buckets, self.corpus.vocabulary.sequence)
        lengths, rows = padded.unique(return_counts=True)
        return sum(n * flops.count(partial(self._trunk, 1, at)) for n, at in zip(rows.tolist(), lengths.tolist(), strict=True))

    def _arguments(self, stage: str, *names: str) -> list[Any]:
        """Of a stage's ``run``, whose settings are then in force."""
        config.load_text(self.texts[stage], stage)
        return [config.argument(f"stages.{stage}.run", name) for name in names]

    def _masks(self, stage: str) -> tuple[dict[str, Any], torch.dtype | None]:
        """How a stage masks its examples, and the type of the states that come with them; the settings they need are in force."""
        if stage == "backbone":
            return dict(zip(MASKS, self._arguments(stage, *MASKS), strict=True)), None
        self._arguments(stage)
        root = f"stages.{stage}.run"
        unrolled = ginstate.arguments(root, "pipeline.data.sources.unrolled", ("passes",)) or {}
        if stage in ("finetune", "controls"):
            return ginstate.arguments(root, "pipeline.data.sources.tokens", (*MASKS, "draws")) or {}, None
        if live := ginstate.arguments(root, "pipeline.data.sources.live", (*MASKS, "draws", "dtype")):
            return {**live, **unrolled, "live": True}, STORED[live["dtype"]]
        if (cached := ginstate.arguments(root, "pipeline.data.sources.cached", ("buckets",))) is None:
            raise ConfigError(f"{stage}: its states come from neither sources.cached nor sources.live; they cannot be planned")
        masking, seed, draws, dtype = self._arguments("extract", "masking", "seed", "draws", "dtype")
        whole = torch.float32 if STORED[dtype].itemsize == 1 else STORED[dtype]
        return {"masking": masking, "seed": seed, "draws": draws, **cached, **unrolled}, whole

    def _first(self, masks: Mapping[str, Any], size: int, batch_size: int, seed: int) -> list[list[Batch]]:
        """The microbatches of the steps over which training counts operations."""
        source = self.corpus.source("train", masks)
        try:
            order = DeterministicSampler(source.padded, size, seed)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        steps = (zip(*(part.split(batch_size) for part in order.step(step)), strict=True) for step in range(loop.COUNTED))
        return [[source.batch(*part) for part in step] for step in steps]

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
        run = partial(self._trunk, rows, self.corpus.vocabulary.sequence)
        return memory.weights(self.backbone) + memory.peak(run) if masks.get("live") else 0

    def _has_fixed_shapes(self, stage: str, model: Model) -> bool:
        """Whether its operations can be told from shapes; a guess is noted if not."""
        fixed = flops.has_fixed_shapes(model)
        if not fixed:
            self.assumed.append(f"{stage}: what the refiner computes depends on the tokens; its operations are left out")
        return fixed

    def _step(
        self, stage: str, model: Model, micro: list[list[Batch]], widest: list[Batch], fit: Mapping[str, Any], size: int
    ) -> tuple[int, int]:
        """Operations of an optimizer step, and the most bytes that what the widest one computes takes at once."""
        self._arguments(stage)
        with META:
            objective = loop.objective_of(model, fit["objective"])
        counter = flops.GradientCounter(model, objective, OnShapes())
        a_step = loop.flops_per_step(micro, counter.count, objective, fit["steps"])
        gradient = partial(accumulate, model, objective, runtime=OnShapes(), sequences=size, seed=0)
        most = memory.peak(partial(gradient, micro=widest, step=0, progress=1.0, statistics=False))
        model.zero_grad()
        return a_step, most

    @torch.no_grad()
    def _validation_peak(
        self, stage: str, model: Model, masks: Mapping[str, Any], dtype: torch.dtype | None, objective: Callable[[int], Objective]
    ) -> int:
        """The most bytes that a validation batch takes at once."""
        (size,) = self._arguments(stage, "validation_batch_size")
        batch = self._widest("validation", masks, size, dtype)
        with META:
            made = loop.objective_of(model, objective)
        return memory.peak(lambda: made.losses(model, batch))

    @torch.no_grad()
    def _trunk(self, rows: int, length: int) -> Tensor:
        return tapped_trunk(self.backbone, torch.zeros(rows, length, dtype=torch.int64, device=META), None, self.layer, self.taps)
