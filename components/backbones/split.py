"""Cut a backbone at layer N-k: frozen trunk below, live tail above.

States entering the tail are all that training needs of the trunk; with k = 0 they are the final states.
"""

from components.backbones.backbone import BackboneModel


def split_layer(layers: int, tail: int) -> int:
    """First layer of a tail of ``tail`` layers.

    >>> split_layer(12, 2)
    10

    Raises:
        ValueError: the backbone has fewer layers than the tail asks for.
    """
    if not 0 <= tail <= layers:
        raise ValueError(f"a tail of {tail} layers cannot be cut from a backbone of {layers}")
    return layers - tail


def tail_of(backbone: BackboneModel, split: int) -> BackboneModel:
    """A model that holds the layers from ``split`` on, the embedding table, norm and head; weights are copied.

    Raises:
        ValueError: the split does not lie within the backbone.
    """
    if 0 <= split < backbone.first_layer:
        raise ValueError(f"the backbone holds layers {backbone.first_layer}.. only, a tail cannot begin at layer {split}")
    tail = backbone.cut(split)
    names = set(tail.state_dict())
    tail.load_state_dict({name: value for name, value in backbone.state_dict().items() if name in names})
    return tail
