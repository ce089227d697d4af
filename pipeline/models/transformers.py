"""The only door to ``transformers``, and its account of what it loaded: a weight that it would fill with noise is an error."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from pipeline.errors import ConfigError, DataError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LEAST = (5, 2)  # below, transformers ignores config.is_causal = False, without a word


def transformers() -> Any:
    """Import the library only when a model needs it.

    Raises:
        ConfigError: it is not installed, or too old to be safe.
    """
    try:
        import transformers as library  # brings seconds, and only these models need it
    except ImportError:
        raise ConfigError("pretrained models need transformers: pip install 'slotloop[hf]'") from None
    version = tuple(int(part) for part in library.__version__.split(".")[:2])
    if version < LEAST:
        raise ConfigError(
            f"transformers {library.__version__} would run a bidirectional model causally without a word; "
            f"at least {'.'.join(map(str, LEAST))} is needed: pip install 'slotloop[hf]'"
        )
    library.utils.logging.disable_progress_bar()
    library.utils.logging.set_verbosity_error()  # what matters of its reports is an error here
    return library


def complete(path: str, loading: Mapping[str, Any], below: tuple[str, ...] = ()) -> None:
    """Raise DataError unless every weight was found and used, by transformers' own account of loading; ``below`` is left out."""
    for what in ("missing_keys", "mismatched_keys", "error_msgs"):
        if wrong := sorted(map(str, loading.get(what) or ())):
            raise DataError(f"{path}: {len(wrong)} weights are {what.split('_')[0]}, '{wrong[0]}' first; they would be noise")
    if unknown := sorted(key for key in loading["unexpected_keys"] if not key.startswith(below) and not _harmless(key)):
        raise DataError(f"{path} holds {len(unknown)} weights that the model has no place for, '{unknown[0]}' first")


def _harmless(key: str) -> bool:
    """Weights of tasks that are not asked for, and buffers that are computed."""
    return key.endswith(("rotary_emb.inv_freq", "position_ids")) or key.startswith(
        ("cls.seq_relationship", "bert.pooler", "pooler")
    )


def key_value_cache(model: type, config: Any) -> Callable[[], Any] | None:
    """How to make the library's cache for a model of this class, or None where it would not be exact.

    Rows of different lengths stand side by side in it, with gaps. That is exact where every layer looks back at all tokens and
    positions are told; a window of the last slots, or a state that is carried on, would count the gaps too.
    """
    if not {"past_key_values", "position_ids"} <= set(inspect.signature(model.forward).parameters):  # type: ignore[attr-defined]
        return None
    library = transformers()
    layers = library.DynamicCache(config=config).layers
    return partial(library.DynamicCache, config=config) if {type(x) for x in layers} == {library.cache_utils.DynamicLayer} else None
