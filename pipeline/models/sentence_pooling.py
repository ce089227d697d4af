"""What a sentence encoder's checkpoint says of how its states become an embedding: the ``modules.json`` of sentence-transformers.

Such a file lists what a text runs through: a Transformer, a Pooling, whose configuration lies in a folder of its own, and often a
Normalize. A checkpoint without one says nothing.
"""

import json
from pathlib import Path
from typing import Any

import torch

from components.backbones.pooling import Pooling, Unit, first, last, maximum, mean, mean_over_root
from pipeline.errors import ConfigError, DataError
from pipeline.models import hub

MODULES, SETTINGS = "modules.json", "config.json"
MODES = {"cls": first, "mean": mean, "max": maximum, "mean_sqrt_len": mean_over_root, "lasttoken": last}
EXPECTED = "expected a Transformer, then a Pooling, then at most a Normalize; choose another encoder"


def stated_pooling(path: str, revision: str | None) -> Pooling | None:
    """Read what the checkpoint says; None where it says nothing.

    Raises:
        ConfigError: embeddings are made in a way that is not known here.
        DataError: a file is malformed.
    """
    try:
        file = hub.file(path, revision, MODULES)
    except DataError:  # it has none; or it is on the hub, which cannot be reached: its folder is looked at when it is fetched
        return None
    modules, pooling = _json(file), None
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise DataError(f"{file} does not list modules; fetch {path} again")
    for number, module in enumerate(modules):
        kind = str(module.get("type")).rpartition(".")[2]
        if kind == "Transformer" and number == 0:
            continue
        if kind == "Pooling" and number == 1:
            pooling = _mode(path, hub.file(path, revision, f"{module.get('path')}/{SETTINGS}"))
        elif kind == "Normalize" and pooling is not None:
            pooling = Unit(pooling)
        else:
            raise ConfigError(f"{file} has a module {kind} in place {number + 1}, which is not computed here: {EXPECTED}")
    return pooling


def agreed_pooling(path: str, setting: Pooling | None, stated: Pooling | None) -> Pooling:
    """Choose what the checkpoint says, else what is set, else the mean.

    Raises:
        ConfigError: both say something, and not the same.
    """
    if setting is None or stated is None:
        return stated or setting or mean
    states = torch.rand(2, 5, 3, generator=torch.Generator("cpu").manual_seed(0), device="cpu") - 0.4
    attention = torch.tensor([[True] * 5, [True] * 3 + [False] * 2], device="cpu")
    if not torch.allclose(setting(states, attention), stated(states, attention), atol=1e-5):
        raise ConfigError(
            f"{path} embeds a sentence by {name_of(stated)} ({MODULES}), and sentence_encoder.model.pooling is {name_of(setting)}; "
            "set it to None, which takes what the checkpoint says"
        )
    return stated


def name_of(pooling: Pooling) -> str:
    """Write the name of a pooling as it is set.

    >>> name_of(Unit(first))
    'Unit(first)'
    """
    return f"Unit({name_of(pooling.pooling)})" if isinstance(pooling, Unit) else getattr(pooling, "__name__", repr(pooling))


def _mode(path: str, file: Path) -> Pooling:
    """The one pooling that a configuration switches on; the mean if none is, which is the library's default."""
    settings = _json(file)
    if not isinstance(settings, dict):
        raise DataError(f"{file} does not hold settings of a pooling; fetch {path} again")
    named = settings.get("pooling_mode") or [key for key, on in settings.items() if key.startswith("pooling_mode_") and on]
    keys = [named] if isinstance(named, str) else list(named)
    modes = [key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for key in keys] or ["mean"]
    if len(modes) > 1:
        raise ConfigError(
            f"{file} joins {' and '.join(modes)} to one embedding, which is not computed here; choose another encoder"
        )
    if modes[0] not in MODES:
        raise ConfigError(
            f"{file} pools by {modes[0]}, which is not computed here (but {', '.join(MODES)}); choose another encoder"
        )
    return MODES[modes[0]]


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(f"{file} is not valid JSON ({error}); fetch it again") from None
