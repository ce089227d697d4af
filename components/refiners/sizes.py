"""Sizes of the slot refiner by name, for Python; the same stand in ``gin/sizes/`` for settings. Heads go by their width: so a size
fits any backbone."""

from typing import Any

from components.refiners.refiner import SlotRefiner

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"blocks": 1, "head_width": 16, "mlp_ratio": 2, "delta_ratio": 2},
    "base": {"blocks": 2, "head_width": 32, "mlp_ratio": 4, "delta_ratio": 4},
    "large": {"blocks": 4, "head_width": 64, "mlp_ratio": 4, "delta_ratio": 8},
}


def create_slot_refiner(dim: int, size: str = "tiny", **changes: Any) -> SlotRefiner:
    """Make a slot refiner of a named size; fill its weights with ``init_weights``.

    >>> create_slot_refiner(64, "base", steps=6).n_steps
    6

    Args:
        dim: width of the backbone's hidden states.
        size: blocks, widths of heads, MLPs and delta network.
        changes: other arguments of ``SlotRefiner``; they go before the size's.

    Raises:
        ValueError: no such size, or sizes that do not fit ``dim``.
    """
    if size not in SIZES:
        raise ValueError(f"a slot refiner is {', '.join(SIZES)}, got size '{size}'")
    settings: dict[str, Any] = {"heads": None, **SIZES[size]}
    if changes.get("heads") is not None:
        settings["head_width"] = None
    return SlotRefiner(dim, **settings | changes)
