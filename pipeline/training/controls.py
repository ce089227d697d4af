"""The controls: what the same compute buys when it is spent otherwise. Each is a phase of as many operations as those that it is
compared with; an optional one whose training loop is None is off, and leaves a model of no steps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from components.backbones.backbone import BackboneModel
from components.refiners.core import Core
from pipeline.data.batches import Sources
from pipeline.machine.runtime import Runtime
from pipeline.models import checkpoint
from pipeline.models.backbones import Backbone
from pipeline.models.lora import Lora
from pipeline.models.model_folder import ModelFolder
from pipeline.training import lora_phase, phase
from pipeline.training.train_state import TrainState

Fit = Callable[..., TrainState]


@dataclass(frozen=True, kw_only=True)
class Controls:
    """What all controls share; each method trains one.

    Attributes:
        out: folder of all.
        base: the backbone.
        phases: warmup and joint, whose operations are spent.
        states: hidden states of a split, for what is trained over the frozen trunk.
        examples: token ids of a split, for what is trained from the first layer on.
        rates: multipliers of each one's learning rates; of several the best on validation is taken.
        batch_size: sequences of a microbatch over the trunk's states.
        backbone_batch_size: of one from the first layer on.
        validation_batch_size: sequences that are validated together.
        seed: of masks and order in warmup.
        runtime: where they compute.
    """

    out: Path
    base: Backbone
    phases: Mapping[str, ModelFolder]
    states: Sources
    examples: Sources
    rates: Sequence[float]
    batch_size: int
    backbone_batch_size: int
    validation_batch_size: int
    seed: int
    runtime: Runtime

    def adapter(self, make: Callable[..., Core], fit: Fit | None) -> None:
        """Train a refiner without recursion, of as many parameters as warmup trains, for warmup's operations.

        Args:
            make: makes it from ``dim`` and ``parameters``.
            fit: the training loop; None = off.
        """
        name, warmup = "controls/optional/adapter", self.phases["warmup"]
        if fit is None:
            return self._skip(name)
        sources = partial(self.states, backbone=self.base)
        examples, sized = sources("train"), partial(make, parameters=warmup.metrics()["parameters"]["trainable"])
        model = phase.with_new_refiner(
            name, self.base.model(examples.layer), sized, examples, self.batch_size, self.seed, self.runtime
        )
        shared = self._settings(fit, self.batch_size, [warmup])
        save = partial(checkpoint.save_model, self._folder(name), model, self.base)
        phase.run_phase(
            name, model, sources, self._folder(name), save, self.runtime, unfreeze=["refiner"], seed=self.seed, **shared
        )

    def lora(self, lora: Lora, fit: Fit | None) -> None:
        """Train adapters in the frozen backbone for warmup's and joint's operations; ``fit``: the training loop; None = off."""
        name = "controls/optional/lora"
        if fit is None:
            return self._skip(name)
        save = partial(checkpoint.save_model, self._folder(name), self._whole, self.base)
        lora_phase.run_lora(
            name, lora, self._whole, partial(self.examples, backbone=self.base), self._folder(name), save, self.runtime,
            compared_with=self.phases["warmup"], seed=self.seed + 1,
            **self._settings(fit, self.backbone_batch_size, [*self.phases.values()]),
        )  # fmt: skip

    def refiner_lora(self, lora: Lora, states: Sources, fit: Fit | None) -> None:
        """Train warmup's refiner on, together with adapters in the layers below it, for joint's operations.

        Args:
            lora: which adapters.
            states: of a split: hidden states, with adapters in the layers above the trunk, or token ids, with adapters in all.
            fit: the training loop; None = off.
        """
        name, warmup = "controls/optional/refiner_lora", self.phases["warmup"]
        if fit is None:
            return self._skip(name)
        sources = partial(states, backbone=self.base)
        model = checkpoint.load_refined(warmup, self.base, "warmup", sources("train").layer)
        save = partial(checkpoint.save_model, self._folder(name), model, self.base, warmup)
        lora_phase.run_lora(
            name, lora, model, sources, self._folder(name), save, self.runtime, compared_with=warmup, seed=self.seed + 1,
            **self._settings(fit, self.batch_size, [self.phases["joint"]]),
        )  # fmt: skip

    def backbone(self, unfreeze: Sequence[str], fit: Fit) -> None:
        """Train what ``unfreeze`` names of the backbone for warmup's and joint's operations; after what needs it as it was."""
        name = "controls/backbone"
        save = partial(checkpoint.save_model, self._folder(name), self._whole, self.base)
        phase.run_phase(
            name, self._whole, partial(self.examples, backbone=self.base), self._folder(name), save, self.runtime,
            unfreeze=unfreeze, seed=self.seed + 1, **self._settings(fit, self.backbone_batch_size, [*self.phases.values()]),
        )  # fmt: skip

    def warmup(self, unfreeze: Sequence[str], fit: Fit) -> None:
        """Continue warmup for joint's operations."""
        name, sources = "controls/warmup", partial(self.states, backbone=self.base)
        model = checkpoint.load_refined(self.phases["warmup"], self.base, "warmup", sources("train").layer)
        save = partial(checkpoint.save_model, self._folder(name), model, self.base, self.phases["warmup"])
        phase.run_phase(
            name, model, sources, self._folder(name), save, self.runtime,
            unfreeze=unfreeze, seed=self.seed + 1, **self._settings(fit, self.batch_size, [self.phases["joint"]]),
        )  # fmt: skip

    @cached_property
    def _whole(self) -> BackboneModel:
        return self.base.model()

    def _folder(self, name: str) -> Path:
        return self.out / name.removeprefix("controls/")

    def _settings(self, fit: Fit, batch_size: int, matched: Sequence[ModelFolder]) -> dict[str, Any]:
        """Arguments of ``run_phase`` that are said in the same way for each."""
        return {
            "fit": fit, "batch_size": batch_size, "validation_batch_size": self.validation_batch_size, "matched": matched,
            "rates": self.rates,
        }  # fmt: skip

    def _skip(self, name: str) -> None:
        """Leave the backbone as a model of no steps, of which nothing is stored a second time."""
        frozen = self._whole.requires_grad_(False)
        phase.skipped(name, self._folder(name), partial(checkpoint.save_model, self._folder(name), frozen, self.base))
