"""What the controls will take: those that are always there, and those that are switched on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import unwrap
from typing import Any

from torch import Tensor

from components.backbones.backbone import BackboneModel
from components.model import Model
from components.refined_lm import RefinedLM
from components.refiners.core import Core
from components.training.freezing import count_parameters, freeze_except
from pipeline.data import sources
from pipeline.models.lora import TRAINED
from pipeline.planning.cost import Cost, Memory, Training
from pipeline.planning.cost_model import CostModel
from pipeline.settings import config
from pipeline.training.lora_phase import REFINER
from pipeline.training.shapes import META

Optional = tuple[Model, Sequence[Tensor]]  # a control as it is evaluated: whole, and the weights that it does not share


@dataclass(frozen=True)
class ControlCosts:
    """The controls of one configuration.

    Args:
        cost_model: of the same configuration.
        continued: warmup's model, of which what its control trains is not frozen.
    """

    cost_model: CostModel
    continued: RefinedLM

    def optional(self) -> dict[str, Optional]:
        """Build the controls that are switched on, by the name that evaluation knows them by."""
        backbone, refined, controls = self.cost_model.backbone, self.cost_model.refined, dict[str, Optional]()
        if self._is_on("lora"):
            controls["control_lora"] = backbone, self._merged(backbone)
        if self._is_on("refiner_lora"):
            own = [*refined.refiner.parameters(), *self._merged(self._below())]
            controls["control_refiner_lora"] = refined, own
        if self._is_on("adapter"):
            adapter = self._adapter()
            controls["control_adapter"] = RefinedLM(backbone, adapter), [*adapter.parameters()]
        return controls

    def cost(self, warmup: int, joint: int) -> Cost:
        """Reckon all of them together, each for the operations of what it is compared with, once for every learning rate that is
        tried; the memory is that of the largest.

        Args:
            warmup, joint: operations of these phases.
        """
        backbone, continued = self.cost_model.backbone, self.continued
        runs, added = list[tuple[int, Training]](), 0  # operations of each, and what it takes
        if self._is_on("adapter"):
            model = RefinedLM(continued.backbone, self._adapter())
            with _training(model, [REFINER]):
                runs.append((warmup, self.cost_model.control(model, "batch_size", states=True)))
            added += count_parameters(model.refiner)
        if self._is_on("refiner_lora"):
            everywhere = self._below() is backbone
            model = self.cost_model.refined if everywhere else continued
            training, adapters = self._with_adapters(model, [*TRAINED, REFINER], "batch_size", states=not everywhere)
            runs.append((joint, training))
            added += count_parameters(model.refiner) + adapters
        if self._is_on("lora"):
            training, adapters = self._with_adapters(backbone, TRAINED, "backbone_batch_size", states=False)
            runs.append((warmup + joint, training))
            added += adapters
        if freeze_except(backbone, self._argument("unfreeze_backbone")).trainable:  # a table of embeddings has nothing to train on
            runs.append((warmup + joint, self.cost_model.control(backbone, "backbone_batch_size", states=False)))
        if self.cost_model.has_fixed_shapes("controls", continued):
            runs.append((joint, self.cost_model.control(continued, "batch_size", states=True)))
        return self._summed(runs, added)

    def _summed(self, runs: Sequence[tuple[int, Training]], added: int) -> Cost:
        """All runs together, the memory of the largest."""
        backbone, continued, rates = self.cost_model.backbone, self.continued, len(self._argument("rates"))
        whole = count_parameters(backbone) + count_parameters(self.cost_model.refined)
        loaded, trained = (sum(count_parameters(m, trained=which) for m in (backbone, continued)) for which in (False, True))
        largest = max((training.memory for _, training in runs), key=lambda memory: memory.total, default=Memory())
        return Cost(
            "controls", whole + added, trained + added, loaded + added, largest,
            max((training.host for _, training in runs), default=0), flops=rates * sum(spent for spent, _ in runs),
            read=round(rates * sum(spent * training.read for spent, training in runs)),
            sent=round(rates * sum(spent * training.sent for spent, training in runs)),
        )  # fmt: skip

    def _with_adapters(self, model: Model, trains: Sequence[str], batch: str, *, states: bool) -> tuple[Training, int]:
        """What training takes with adapters in a model, and how many parameters these have."""
        below = model.backbone if isinstance(model, RefinedLM) else model
        adapted = self._argument("lora")(below, count_parameters(self.continued, trained=True), self._argument("seed"))
        with _training(model, trains):
            training = self.cost_model.control(model, batch, states=states)
        adapted.remove()
        return training, adapted.parameters()

    def _adapter(self) -> Core:
        parameters = count_parameters(self.continued, trained=True)
        with META:
            adapter: Core = self._argument("adapter")(dim=self.continued.refiner.dim, parameters=parameters)
        return adapter

    def _merged(self, below: BackboneModel) -> list[Tensor]:
        """The plain layers that adapters are merged into."""
        layers, _ = self._argument("lora").sizes(below, 1)
        return [layer.weight.new_empty(layer.weight.shape) for layer in layers.values()]

    def _below(self) -> BackboneModel:
        """The layers that adapters beside a refiner are in: all, or those above the trunk."""
        everywhere = unwrap(self._argument("refiner_lora_states")) is unwrap(sources.tokens)
        return self.cost_model.backbone if everywhere else self.continued.backbone

    def _is_on(self, name: str) -> bool:
        return self._argument(f"fit_{name}") is not None

    def _argument(self, name: str) -> Any:
        config.load_text(self.cost_model.texts["controls"], "controls")
        return config.argument("stages.controls.run", name)


@contextmanager
def _training(model: Model, trains: Sequence[str]) -> Iterator[None]:
    """Within the block what is named alone is trained."""
    before = {id(parameter): parameter.requires_grad for parameter in model.parameters()}
    freeze_except(model, trains)
    try:
        yield
    finally:
        for parameter in model.parameters():
            parameter.requires_grad_(before[id(parameter)])
