"""A rehearsal on shapes: every model that the settings describe is built on the meta device, without memory and without weights.

Heads that do not divide a width, a refiner of another width, a tail deeper than the backbone, a module path that matches nothing:
all of it shows here, before a backbone was trained for hours.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from components.backbones.backbone import BackboneModel
from components.backbones.pretrained_lm import PretrainedLM
from components.backbones.split import split_layer, tail_of
from components.backbones.taps import below_split
from components.model import Model
from components.objective.nested import check_draws
from components.refined_lm import RefinedLM
from components.training.freezing import count_parameters, freeze_except
from pipeline.corpora.corpus import Corpus
from pipeline.data import sources
from pipeline.data.batches import NO_GRID
from pipeline.data.store import check_url
from pipeline.errors import ConfigError
from pipeline.machine.runtime import device_of
from pipeline.models.backbones import check_causal
from pipeline.models.pretrained import check_trainable
from pipeline.settings import config, ginstate
from pipeline.settings.evaluation_rehearsal import check_evaluation, check_generation, check_halts
from pipeline.settings.unrolled_passes import check_passes
from pipeline.training import execution, loop

FROM_SCRATCH = 1e-3  # learning rates from here on are those of new weights
COMPUTING = ("backbone", "extract", "warmup", "joint", "finetune", "controls", "evaluate", "generate")
RUNNING = ("pipeline.data.sources.live", "pipeline.data.sources.remote")  # the trunk, for every batch
AUGMENTING = (*RUNNING, "pipeline.data.sources.tokens")
RUNTIME = "pipeline.machine.runtime.Runtime"
WARMUP = "components.training.optim.warmup_cosine"  # a schedule that may be bound


def rehearse(texts: Mapping[str, str], shape: tuple[int, int] | None = None) -> dict[str, Model]:
    """Build every training stage's model as it will be trained, what is frozen included.

    Args:
        texts: resolved text of each stage.
        shape: token ids and sequence length, where they are known better than from the corpus' settings.

    Returns:
        The models by stage, on the meta device.

    Raises:
        ConfigError: something does not fit together; names the stage.
    """
    models: dict[str, Model] = {}
    with torch.device("meta"), _NoInitialisation():
        with _stage("prepare", texts):
            corpus = _argument("prepare", "corpus")
            vocab, seq = shape or corpus.shape()
        with _stage("backbone", texts):
            backbone = models["backbone"] = _argument("backbone", "model")(vocab=vocab, seq=seq)
            check_causal(backbone, corpus.causal)
            if isinstance(backbone, PretrainedLM) and _takes_steps("backbone", "fit"):
                check_trainable(backbone)
            _freeze("backbone", backbone)
            _check_rows("backbone", corpus)
        with _stage("extract", texts):
            split = split_layer(layers := backbone.architecture["layers"], _argument("extract", "tail_layers"))
            taps = below_split(_argument("extract", "taps"), layers, split)
            for layer in taps:
                backbone.entrance(layer)
            check_draws(masking := _argument("extract", "masking"), _argument("extract", "draws"))
            check_url(_argument("extract", "store"))
        with _stage("controls", texts):
            _freeze("controls", backbone, "unfreeze_backbone", "fit_backbone")
            _check_rows("controls", corpus, "fit_backbone", "backbone_batch_size")
        for stage in ("warmup", "joint", "finetune", "controls"):
            with _stage("warmup", texts):
                refiner = _argument("warmup", "refiner")(dim=backbone.architecture["dim"])
            with _stage(stage, texts):
                model = RefinedLM(backbone if stage == "finetune" else tail_of(backbone, split), refiner)
                norms = stage in ("warmup", "joint") and _argument(stage, "layer_norms")
                _freeze(stage, model, layer_norms=norms)
                _check_rows(stage, corpus)
                model.check_taps(_taps(stage, taps, layers, split))
                check_passes(stage, model, masking, trains=_takes_steps(stage, "fit"))
                models[stage] = model
        with _stage("controls", texts):
            _check_controls(backbone, models["warmup"], split, corpus)
    with _stage("evaluate", texts):
        check_evaluation(corpus, models["finetune"])
        check_halts(models["warmup"])
    if "generate" in texts:
        with _stage("generate", texts):
            check_generation(corpus, remembers=models["warmup"].remembers)
    for stage in (stage for stage in COMPUTING if stage in texts):
        with _stage(stage, texts):
            _check_device(stage)
            _check_augment(stage, corpus)
    return models


def _check_device(stage: str) -> None:
    """Raise ConfigError if no machine has the stage's device; whether this one has it shows where the stage runs."""
    if bound := ginstate.arguments(f"stages.{stage}.run", RUNTIME, ["device"]):
        try:
            device_of(bound["device"])
        except ConfigError as error:
            raise ConfigError(f"{stage}: {error}") from None


def _check_augment(stage: str, corpus: Corpus) -> None:
    """Raise ConfigError if a stage makes other grid puzzles of examples that are none."""
    root = f"stages.{stage}.run"
    readings = [ginstate.arguments(root, reader, ["augment"]) for reader in (AUGMENTING if stage != "backbone" else [root])]
    if getattr(corpus, "is_text", True) and any(reading is not None and reading["augment"] is not None for reading in readings):
        raise ConfigError(f"{stage}: {NO_GRID}")


def _check_rows(stage: str, corpus: Corpus, fit: str = "fit", batch_size: str = "batch_size") -> None:
    """Raise ConfigError if a step takes more examples than the settings of the corpus say that there will be."""
    if not hasattr(corpus, "training_examples") or not _takes_steps(stage, fit):
        return
    with ginstate.within(f"stages.{stage}.run", fit) as bindings:
        rows, have = _argument(stage, batch_size) * bindings.get("accumulation", 1), corpus.training_examples()
    if have is not None and rows > have:
        raise ConfigError(
            f"{stage}: a step of {rows} rows ({stage}.run.{batch_size} times loop.fit.accumulation) needs at least as many "
            f"training examples, and there will be {have} at most"
        )


def _takes_steps(stage: str, fit: str) -> bool:
    """Whether a stage trains: its loop is one that takes steps, and it is not switched off."""
    off = inspect.unwrap(_argument(stage, fit)) is not inspect.unwrap(loop.fit)
    return not (off or (stage == "finetune" and not _argument(stage, "steps")))


def _freeze(stage: str, model: Model, unfreeze: str = "unfreeze", fit: str = "fit", *, layer_norms: bool = False) -> None:
    """Freeze as the stage will and make its objective; if it takes steps, something must be left to train."""
    frozen = freeze_except(model, _argument(stage, unfreeze), layer_norms=layer_norms)
    rates = dict[str, float]()
    with ginstate.within(f"stages.{stage}.run", fit) as bindings:
        if frozen.trainable and "optimizer" in bindings:
            rates = _rates(bindings["optimizer"], model)
        _make_objective(stage, bindings, model)
    if trains := _takes_steps(stage, fit):
        _check_execution(stage, bindings, model)
    if trains and not frozen.trainable:
        raise ConfigError(
            f"{stage}: {stage}.run.{unfreeze} names nothing to train, and {fit} takes steps; name modules, or switch it off: "
            "@loop.as_it_is"
        )
    high = max((rate for name, rate in rates.items() if _is_pretrained(model, name)), default=0.0)
    if trains and high >= FROM_SCRATCH:
        print(
            f"configure: {stage} trains the pretrained model at a learning rate of {high:g} ({fit}), meant for weights that "
            "begin at random; 1e-6 to 1e-4 is usual",
            file=sys.stderr,
        )
    if trains and stage != "controls":  # whose steps follow from operations; a warm-up takes half of them at most
        _check_warmup(stage, bindings["steps"] if stage != "finetune" else _argument(stage, "steps"))


def _check_controls(backbone: BackboneModel, warmup: Model, split: int, corpus: Corpus) -> None:
    """What the controls that can be switched on would refuse, those that are on; and rates that are none."""
    rates, parameters = _argument("controls", "rates"), count_parameters(warmup, trained=True)
    if not rates or len(set(rates)) < len(rates):
        raise ConfigError(f"controls.run.rates must name each rate once, and at least one, got {list(rates)}; (1.0,) = no search")
    if _is_on("fit_adapter"):
        adapter = _argument("controls", "adapter")(dim=backbone.architecture["dim"], parameters=parameters)
        _check_loop("fit_adapter", RefinedLM(tail_of(backbone, split), adapter), corpus, "batch_size")
    if _is_on("fit_lora"):
        _argument("controls", "lora").check(backbone, parameters)
        _check_loop("fit_lora", backbone, corpus, "backbone_batch_size")
    if _is_on("fit_refiner_lora"):
        everywhere = inspect.unwrap(_argument("controls", "refiner_lora_states")) is inspect.unwrap(sources.tokens)
        _argument("controls", "lora").check(backbone if everywhere else tail_of(backbone, split), parameters)
        _check_loop("fit_refiner_lora", warmup, corpus, "batch_size")


def _taps(stage: str, stored: Sequence[int], layers: int, split: int) -> Sequence[int]:
    """Layers whose entering states come with a stage's batches: those that extract stores, or that a live trunk hands on."""
    live = next(filter(None, (ginstate.arguments(f"stages.{stage}.run", source, ("taps",)) for source in RUNNING)), None)
    return stored if live is None else below_split(live["taps"], layers, split)


def _is_on(fit: str) -> bool:
    return _argument("controls", fit) is not None


def _check_loop(fit: str, model: Model, corpus: Corpus, batch_size: str) -> None:
    """Make the objective of an optional control, and count the rows of its steps."""
    with ginstate.within("stages.controls.run", fit) as bindings:
        _make_objective("controls", bindings, model, below=fit == "fit_refiner_lora")
    if fit == "fit_adapter" and _takes_steps("controls", fit):  # adapters are in layers, of which there is one at least
        _check_execution("controls", bindings, model)
    _check_rows("controls", corpus, fit, batch_size)


def _make_objective(stage: str, bindings: Mapping[str, Any], model: Model, *, below: bool = False) -> None:
    """Make the objective of a loop. Steps without gradient can keep it from what is trained ``below`` the refiner."""
    if "objective" not in bindings:
        return
    objective = bindings["objective"](model.n_steps)
    objective.check(model)
    if objective.lead is None or not isinstance(model, RefinedLM) or model.refiner.anchored:
        return
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad and not name.startswith("refiner.")]
    if trained or below:
        raise ConfigError(
            f"{stage}: objective.Objective.lead would keep the gradient from what is trained below the refiner "
            f"({trained[0] if trained else 'adapters'}), which sees its start in the first step alone; choose update "
            "@delta.Damped() or an injection, bind the lead in the section warmup alone, or set it to None here"
        )


def _check_execution(stage: str, bindings: Mapping[str, Any], model: Model) -> None:
    """Raise ConfigError if the model cannot be run as a loop is to run it."""
    try:
        execution.check(bindings.get("execution", execution.eager), model)
    except ConfigError as error:
        raise ConfigError(f"{stage}: {error}") from None


def _rates(optimizer: Callable[..., torch.optim.Optimizer], model: Model) -> dict[str, float]:
    """The peak learning rate of every weight that is trained, by name."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with _without_compiler():
        groups = optimizer(named.items()).param_groups
    rates = {id(parameter): group.get("peak", group["lr"]) for group in groups for parameter in group["params"]}
    return {name: rates[id(parameter)] for name, parameter in named.items()}


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Make optimizers without importing torch's compiler, which torch does to tell it to leave them alone: a third of configure."""
    whole = torch.optim.Optimizer.add_param_group
    torch.optim.Optimizer.add_param_group = getattr(whole, "__wrapped__", whole)  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.optim.Optimizer.add_param_group = whole  # type: ignore[method-assign]


def _is_pretrained(model: Model, name: str) -> bool:
    """Whether a weight comes from a pretrained model."""
    if isinstance(model, RefinedLM):
        return isinstance(model.backbone, PretrainedLM) and name.startswith("backbone.")
    return isinstance(model, PretrainedLM)


def _check_warmup(stage: str, steps: int) -> None:
    """Raise ConfigError if a warm-up that a setting asks for takes more than half of the run."""
    for call in ginstate.built(f"stages.{stage}.run"):
        if call.selector == WARMUP and "lr_warmup_steps" in call.bindings:
            rising, _ = ginstate.value_of(call.bindings["lr_warmup_steps"])
            if rising > steps // 2:
                raise ConfigError(
                    f"{stage}: optim.warmup_cosine.lr_warmup_steps is {rising}, and the run has {steps} steps; a warm-up takes "
                    f"half of a run at most: set {steps // 2} or less, or leave it out"
                )


def sizes(models: Mapping[str, Model]) -> str:
    """How many parameters each stage trains, in words."""
    return ", ".join(f"{stage} {count_parameters(model, trained=True):,}" for stage, model in models.items())


class _NoInitialisation(TorchFunctionMode):
    """Leaves out torch's initialisers: without memory they have nothing to fill, and on the meta device they import a compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def _stage(stage: str, texts: Mapping[str, str]) -> Iterator[None]:
    """The stage's settings are in force; what does not fit is told with its name."""
    config.load_text(texts[stage], stage)
    try:
        yield
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise ConfigError(f"{stage}: {str(error).splitlines()[0]}") from None


def _argument(stage: str, parameter: str) -> Any:
    return config.argument(f"stages.{stage}.run", parameter)
