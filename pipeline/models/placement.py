"""A model's weights on several devices, for one that fits on none: which maps are taken, and what of them is refused."""

from collections.abc import Mapping
from importlib.util import find_spec

import torch
from torch import nn

from pipeline.errors import ConfigError

DeviceMap = str | Mapping[str, str | int]
CHOSEN = ("auto", "balanced", "balanced_low_0", "sequential")  # by accelerate


def check(device_map: DeviceMap) -> None:
    """Refuse, before anything is loaded, what cannot be followed here.

    Args:
        device_map: a device, how accelerate is to choose, or module -> device.

    Raises:
        ConfigError: accelerate is not installed, or a device does not exist.
    """
    if find_spec("accelerate") is None:
        raise ConfigError("pretrained.model.device_map needs accelerate: pip install 'slotloop[hf]'")
    if isinstance(device_map, str) and device_map in CHOSEN:
        return
    for name in [device_map] if isinstance(device_map, str) else device_map.values():
        try:
            device = torch.device(f"cuda:{name}" if isinstance(name, int) else name)
        except RuntimeError:
            hint = "weights stay on devices, not on disk" if name == "disk" else f"use a device, or one of {', '.join(CHOSEN)}"
            raise ConfigError(f"pretrained.model.device_map names '{name}': {hint}") from None
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(
                f"pretrained.model.device_map names '{name}'; {torch.cuda.device_count()} CUDA devices are visible here"
            )


def check_ends(embeddings: nn.Module, output: nn.Module) -> None:
    """Raise ConfigError unless a model's two ends, which the refiner stands between, lie on one device."""
    first, last = (next(module.parameters()).device for module in (embeddings, output))
    if first != last:
        raise ConfigError(
            f"pretrained.model.device_map puts the embeddings on {first} and the output layer on {last}; the refiner works with "
            "both: give a map of modules that puts them on Runtime.device, and the layers where there is room"
        )
