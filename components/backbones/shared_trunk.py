"""SharedTrunk: the lowest layers of several models over one backbone, where they are the backbone's own: run once for all of them.

A state that enters layer n is the same tensor, bit for bit, whichever of these models is asked for it, and a model that goes on
from there computes what it computes from the tokens (``tests/components/backbones``).
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from functools import cache

from components.backbones.backbone import BackboneModel
from components.backbones.taps import tapped_trunk
from components.batch import Batch
from components.model import Model
from components.refined_lm import RefinedLM


class SharedTrunk:
    """The layers that models over a backbone have in common with it.

    Args:
        frozen: the backbone.
        models: by name, the backbone itself among them; weights that they have not trained are its very tensors.

    Attributes:
        split: first layer that is not shared, where most layers need not run again; 0 = no layer is shared.
        above: by name the models that share what lies below ``split``, each from there on. It runs batches ``with_states``.
        taps: layers below ``split`` whose entering states one of these models reads.
    """

    def __init__(self, frozen: BackboneModel, models: Mapping[str, Model]) -> None:
        layers = 0 if frozen.n_steps > 1 else frozen.architecture["layers"]  # the layers of a recursion are steps of its own
        self.frozen = frozen
        names = cache(lambda split: set(frozen.above(split).state_dict()))
        first = {name: _first_own_layer(model, frozen, layers, names) for name, model in models.items()}
        self.split = max(range(layers + 1), key=lambda split: split * (sum(own >= split for own in first.values()) - 1))
        self.above = {name: _above(models[name], self.split) for name, own in first.items() if 0 < self.split <= own}
        read = {layer for model in self.above.values() if isinstance(model, RefinedLM) for layer in model.stored_taps}
        self.taps = tuple(sorted(read))

    def with_states(self, batch: Batch) -> Batch:
        """Run the shared layers: the batch comes back with the states that enter ``split``."""
        return batch.entered(tapped_trunk(self.frozen, batch.tokens, batch.attention, self.split, self.taps), self.taps)


def _first_own_layer(model: Model, frozen: BackboneModel, layers: int, names: Callable[[int], set[str]]) -> int:
    """The lowest layer that a model does not share with the backbone, or whose heads it reads; 0 if it differs outside the layers.

    ``names``: of the weights from a layer on.
    """
    backbone = _backbone(model)
    tensors = frozen.state_dict(keep_vars=True)
    own = {name for name, tensor in backbone.state_dict(keep_vars=True).items() if tensor is not tensors[name]}
    if own & names(layers):
        return 0
    own_layer = bisect_left(range(layers + 1), True, key=lambda split: not own <= names(split)) - 1
    return min([own_layer, *(model.context_layers if isinstance(model, RefinedLM) else ())])


def _above(model: Model, split: int) -> Model:
    tail = _backbone(model).above(split)
    return RefinedLM(tail, model.refiner).eval() if isinstance(model, RefinedLM) else tail


def _backbone(model: Model) -> BackboneModel:
    backbone = model.backbone if isinstance(model, RefinedLM) else model
    assert isinstance(backbone, BackboneModel)
    return backbone
