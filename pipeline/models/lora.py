"""LoRA on a pretrained backbone, through peft, and its merging into plain weights. The only door to that library.

Notable: the adapters are float32 whatever the backbone's precision, and their first values are a function of the seed. What is
saved are plain weights, in float32 too: added to a bfloat16 weight, most of a small change would round away.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from components import noise
from components.backbones.backbone import BackboneModel
from components.backbones.pretrained_lm import PretrainedLM
from components.ranges import PositiveFloat, PositiveInt
from pipeline.errors import ConfigError
from pipeline.models.quantised import OnShapes

ADAPTER = "default"  # peft's name for the one adapter that a layer has
TRAINED = ("*.lora_[AB]",)  # module paths of what is trained of an adapted model
STREAM = 0x10FA  # of the noise that the adapters begin from
MISSING = "LoRA needs peft: pip install 'slotloop[lora]', or set LORA_FIT = None, which leaves that control out"


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters in the linear layers of a pretrained model's blocks: W x + (alpha / rank) B A x, with A and B trained.

    B begins at zero, so that an adapted model begins as the frozen one, bit for bit. Embeddings and head are never adapted.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021), section 4.1.

    Args:
        rank: of every product B A; None = the one whose parameters come nearest to a number that they are compared with.
        alpha: the strength of an adapter is alpha / rank.
        targets: paths of linear layers, ``*`` and ``?`` allowed: "*.q_proj", "model.model.layers.2?.*", "*" (all of the blocks').
    """

    rank: PositiveInt | None = None
    alpha: PositiveFloat = 32.0
    targets: Sequence[str] = ("*",)

    def sizes(self, model: BackboneModel, parameters: int) -> tuple[dict[str, nn.Linear], int]:
        """Choose the linear layers that are adapted, by path, and the rank: nearest to ``parameters``, or as set.

        Raises:
            ConfigError: no pretrained model; targets that match no linear layer, or a quantised one; a rank above a layer's own.
        """
        layers = self._targeted(model)
        most = {path: min(layer.in_features, layer.out_features) for path, layer in layers.items()}
        narrow = min(most, key=lambda path: most[path])
        if self.rank is None:
            each = sum(layer.in_features + layer.out_features for layer in layers.values())
            return layers, max(1, min(most[narrow], round(parameters / each)))
        if self.rank > most[narrow]:
            raise ConfigError(
                f"lora.Lora.rank is {self.rank}, and '{narrow}' has rank {most[narrow]} itself; set {most[narrow]} or less, None "
                "(as many parameters as warmup trains), or leave that layer out: lora.Lora.targets"
            )
        return layers, self.rank

    def check(self, model: BackboneModel, parameters: int) -> None:
        """Check all that could fail later, without importing peft, which takes seconds.

        Raises:
            ConfigError: as ``sizes``; or peft is not installed.
        """
        self.sizes(model, parameters)
        if find_spec("peft") is None:
            raise ConfigError(MISSING)

    def __call__(self, model: BackboneModel, parameters: int, seed: int) -> "Adapted":
        """Put adapters into ``model``, until they are removed.

        Args:
            model: whose own weights stay as they are.
            parameters: that a model trains which this one is compared with.
            seed: of the adapters' first values.

        Raises:
            ConfigError: as ``check``.
        """
        layers, rank = self.sizes(model, parameters)
        library = _library()
        config = library.LoraConfig(r=rank, lora_alpha=self.alpha, target_modules=list(layers))
        library.inject_adapter_in_model(config, model, ADAPTER, low_cpu_mem_usage=True)  # adapters without values, in float32
        adapted = Adapted(model, {path: model.get_submodule(path) for path in layers}, rank, self.alpha, parameters)
        adapted.begin(seed)
        return adapted

    def _targeted(self, model: BackboneModel) -> dict[str, nn.Linear]:
        if not isinstance(model, PretrainedLM):
            raise ConfigError(f"LoRA adapts pretrained models, and the backbone is a {type(model).__name__}; set LORA_FIT = None")
        blocks = f"model.{model.layers.parts.layers}."
        linear: dict[str, Any] = {
            path: layer
            for path, layer in model.named_modules()
            if path.startswith(blocks) and isinstance(layer, nn.Linear | OnShapes)
        }
        chosen = {path: layer for path, layer in linear.items() if any(fnmatchcase(path, target) for target in self.targets)}
        for target in self.targets:
            if not any(fnmatchcase(path, target) for path in linear):
                there = ", ".join(sorted({path.removeprefix(blocks).partition(".")[2] for path in linear})) or "none"
                raise ConfigError(f"lora.Lora.targets: '{target}' matches no linear layer of {blocks}*; there are {there}")
        if not chosen:
            raise ConfigError("lora.Lora.targets names nothing; name linear layers ('*': all of them), or set LORA_FIT = None")
        for path, layer in chosen.items():
            if not layer.weight.is_floating_point():
                raise ConfigError(
                    f"lora.Lora.targets: LoRA would be merged into '{path}', which is quantised; name layers above the trunk"
                )
        return chosen


class Adapted:
    """A backbone with adapters in it; its own weights are untouched.

    Args:
        model: that holds them.
        layers: the adapted layers by path, of peft's own class.
        rank: of each.
        alpha: strength times rank.
        compared: parameters that the model trains which this one is compared with.
    """

    def __init__(self, model: BackboneModel, layers: Mapping[str, Any], rank: int, alpha: float, compared: int) -> None:
        self.model, self.layers, self.rank, self.alpha, self.compared = model, dict(layers), rank, alpha, compared

    @torch.no_grad()
    def begin(self, seed: int) -> None:
        """Give the adapters their first values: A uniform within 1 / sqrt(columns), as a linear layer begins; B zero."""
        generator = torch.Generator().manual_seed(noise.key(seed, STREAM))
        for layer in self.layers.values():
            weight, a, b = layer.base_layer.weight, layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
            bound = 1 / math.sqrt(layer.in_features)
            drawn = torch.empty(a.weight.shape).uniform_(-bound, bound, generator=generator)
            a.weight = nn.Parameter(drawn.to(weight.device))
            b.weight = nn.Parameter(torch.zeros(b.weight.shape, device=weight.device))

    def parameters(self) -> int:
        """Count the parameters of the adapters."""
        return sum(layer.lora_A[ADAPTER].weight.numel() + layer.lora_B[ADAPTER].weight.numel() for layer in self.layers.values())

    def facts(self) -> dict[str, Any]:
        """Tell what stands in ``metrics.json``: rank, strength, and both numbers of parameters, which are to be equal."""
        numbers = {"parameters": self.parameters(), "compared_with": self.compared}
        return {"rank": self.rank, "alpha": self.alpha, "layers": len(self.layers), **numbers}

    def __str__(self) -> str:
        return (
            f"LoRA of rank {self.rank} in {len(self.layers)} linear layers, {self.parameters():,} parameters; "
            f"{self.compared:,} are trained by what it is compared with"
        )

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Within the block the model has plain linear layers of W + (alpha / rank) B A, in float32, and no others are trainable."""
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.model.requires_grad_(False)
        for path, layer in self.layers.items():
            self.model.set_submodule(path, _plain(layer.base_layer, layer.get_delta_weight(ADAPTER)))
        try:
            yield
        finally:
            for path, layer in self.layers.items():
                self.model.set_submodule(path, layer)
            for parameter in trainable:
                parameter.requires_grad_(True)

    def while_merged(self, work: Callable[[], None]) -> None:
        """Do something, save the model as a rule, while it is made of plain layers."""
        with self.merged():
            work()

    def remove(self) -> None:
        """Take the adapters out of the model again."""
        for path, layer in self.layers.items():
            self.model.set_submodule(path, layer.base_layer)
        del self.model.peft_config  # the library's own note


@torch.no_grad()
def _plain(layer: nn.Linear, change: Tensor) -> nn.Linear:
    """A linear layer with changed weights; bias and place as they are."""
    made = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    made.weight = nn.Parameter(layer.weight.float() + change)
    made.bias = layer.bias
    return made


def _library() -> Any:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it too, and it warns of what is not used here
    try:
        import peft  # brings seconds, and only this control needs it
    except ImportError:
        raise ConfigError(MISSING) from None
    return peft
