"""The controls that can be switched on: what they train, for how many operations, and what they leave where they are off."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from components.objective.masking import exact_count
from components.refined_lm import RefinedLM
from components.refiners.adapter import Adapter
from components.refiners.refiner import SlotRefiner
from components.training.optim import adamw
from pipeline.corpora.prepared import Vocabulary
from pipeline.data.batches import LiveSource
from pipeline.errors import ConfigError
from pipeline.files import write_json
from pipeline.models.backbones import Backbone, save_backbone
from pipeline.models.checkpoint import load_model, open_phases, save_model
from pipeline.models.lora import Lora
from pipeline.models.model_folder import seal
from pipeline.models.pretrained import Source, build
from pipeline.training.controls import Controls
from pipeline.training.loop import fit
from tests.support.checkpoints import DIM, LAYERS, LAYOUTS, VOCAB, written
from tests.support.optional import needs

needs("transformers", "peft")
WORDS = Vocabulary(VOCAB, VOCAB - 1, VOCAB - 2, 6, "text")
TAIL = 2  # the first layer above the trunk
FIT = partial(fit, optimizer=partial(adamw, lr=5e-3), validate_every=2, log_every=2)
EACH = 4 * 2 * DIM + 3 * (DIM + 24)  # parameters of a rank in a layer: four square matrices, and three of the MLP


@pytest.fixture
def backbone(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    config, shapes = LAYOUTS["llada"]
    written(tmp_path / "checkpoint", config, shapes())
    save_backbone(tmp_path / "backbone", build(Source(str(tmp_path / "checkpoint"), dtype="fp32")), WORDS)
    return Backbone(tmp_path / "backbone")


@pytest.fixture
def phases(backbone, tmp_path):
    """Warmup's model, untrained, and joint's: each of so many operations."""
    model = RefinedLM(backbone.model(TAIL), SlotRefiner(DIM, heads=2, steps=2))
    model.refiner.init_weights(1.0, torch.Generator().manual_seed(3))
    model.requires_grad_(False)
    trainable = sum(parameter.numel() for parameter in model.refiner.parameters())
    for name, flops in (("warmup", 30_000_000), ("joint", 20_000_000)):
        save_model(tmp_path / name, model, backbone)
        write_json(tmp_path / name / "metrics.json", {"flops": flops, "steps": 9, "parameters": {"trainable": trainable}})
        seal(tmp_path / name, name, {})
    return open_phases({name: tmp_path / name for name in ("warmup", "joint")}, backbone)


@pytest.fixture
def states(rows):
    """Hidden states of a split, from the trunk."""

    def states(split, *, backbone):
        return LiveSource(rows(20), WORDS, exact_count, 0, trunk=backbone.trunk, layer=TAIL)

    return states


@pytest.fixture
def tokens(rows):
    return lambda split, *, backbone: LiveSource(rows(20), WORDS, exact_count, 0)


@pytest.fixture
def controls(backbone, phases, states, tokens, runtime, tmp_path):
    def controls(**settings):
        sizes = {"batch_size": 4, "backbone_batch_size": 5, "validation_batch_size": 8, "seed": 0, "rates": (1.0,)}
        places = {"out": tmp_path / "controls", "base": backbone, "phases": phases, "states": states, "examples": tokens}
        return Controls(**{**places, **sizes, "runtime": runtime, **settings})

    return controls


def left(tmp_path, name):
    """Metrics and stored weights of a control."""
    folder = tmp_path / "controls" / name
    return json.loads((folder / "metrics.json").read_text()), load_file(folder / "model.safetensors")


def test_an_adapter_without_recursion_has_warmups_parameters_and_operations(controls, backbone, phases, tmp_path):
    controls().adapter(Adapter, FIT)
    metrics, stored = left(tmp_path, "optional/adapter")
    compared = phases["warmup"].metrics()["parameters"]["trainable"]
    assert compared - (2 * DIM + 1) < metrics["parameters"]["trainable"] <= compared
    assert abs(metrics["flops"] - 30_000_000) <= metrics["flops_per_step"] / 2 and metrics["steps"] > 9
    assert {name.partition(".")[0] for name in stored} == {"refiner"}
    model = load_model(tmp_path / "controls/optional/adapter", backbone, "controls", TAIL)
    assert isinstance(model.refiner, Adapter) and model.n_steps == 1
    losses = [entry["loss"] for entry in metrics["validation"]]
    assert losses[-1] < losses[0]


def test_an_adapter_that_cannot_be_so_small_is_refused(controls):
    few = partial(Adapter, heads=2)
    with pytest.raises(ConfigError, match=r"^controls/optional/adapter: an adapter of width 16 needs at least"):
        controls().adapter(lambda dim, parameters: few(dim, parameters=100), FIT)


@pytest.mark.parametrize(("where", "layers"), [("states", 1), ("tokens", LAYERS)])
def test_refiner_and_adapters_are_trained_together_for_joints_operations(
    controls, backbone, phases, tmp_path, states, tokens, where, layers
):
    controls().refiner_lora(Lora(rank=2), {"states": states, "tokens": tokens}[where], FIT)
    metrics, stored = left(tmp_path, "optional/refiner_lora")
    refiner = phases["warmup"].metrics()["parameters"]["trainable"]
    assert metrics["parameters"]["trainable"] == refiner + 2 * layers * EACH and metrics["lora"]["layers"] == 7 * layers
    assert abs(metrics["flops"] - 20_000_000) <= metrics["flops_per_step"] / 2
    before = {f"backbone.{name}": value for name, value in backbone.model().state_dict().items()}
    merged = {name: value for name, value in stored.items() if name.startswith("backbone.")}
    assert len(merged) == 7 * layers and {int(name.split(".")[4]) for name in merged} == set(range(LAYERS - layers, LAYERS))
    for name, value in merged.items():
        assert torch.linalg.matrix_rank((value - before[name]).double(), atol=1e-6) == 2, name
    began = load_file(phases["warmup"].weights)
    changed = {name for name, value in began.items() if name.startswith("refiner.") and not torch.equal(value, stored[name])}
    assert "refiner.delta_out.weight" in changed
    loaded = load_model(tmp_path / "controls/optional/refiner_lora", backbone, "controls")
    assert "lora" not in "".join(loaded.state_dict()) and loaded.n_steps == 2
    of_it = {"warmup": phases["warmup"].path, "control_refiner_lora": tmp_path / "controls/optional/refiner_lora"}
    assert set(open_phases(of_it, backbone)) == set(of_it)


@pytest.mark.parametrize("name", ["adapter", "lora", "refiner_lora"])
def test_switched_off_a_control_is_a_model_of_no_steps_that_stores_nothing(controls, backbone, tmp_path, states, name):
    given = {"adapter": [Adapter], "lora": [Lora()], "refiner_lora": [Lora(), states]}[name]
    getattr(controls(rates=(0.5, 2.0)), name)(*given, None)
    assert left(tmp_path, f"optional/{name}") == ({"steps": 0, "flops": 0}, {})
    files = {file.name for file in (tmp_path / "controls/optional" / name).iterdir()}
    assert files == {"model.json", "model.safetensors", "metrics.json", "curves.csv"}
    loaded = load_model(tmp_path / "controls/optional" / name, backbone, "controls").state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in backbone.model().state_dict().items())


def test_lora_leaves_the_backbone_to_the_control_that_trains_it_on(controls, backbone, phases, tmp_path):
    together, alone = controls(), controls(out=tmp_path / "controls/alone")
    together.lora(Lora(rank=1), FIT)
    together.backbone([""], FIT)
    alone.backbone([""], FIT)
    (_, stored), (_, expected) = left(tmp_path, "backbone"), left(tmp_path, "alone/backbone")
    assert list(stored) == list(expected) and all(torch.equal(value, expected[name]) for name, value in stored.items())
    assert left(tmp_path, "optional/lora")[0]["flops"] == pytest.approx(50_000_000, rel=0.2)


def test_every_control_tries_the_rates(controls, tmp_path):
    controls(rates=(0.1, 1.0)).warmup(["refiner"], FIT)
    metrics, _ = left(tmp_path, "warmup")
    assert [trial["rate"] for trial in metrics["rates"]] == [0.1, 1.0]
    assert metrics["search_flops"] == 2 * metrics["flops"]
    assert metrics["best_loss"] == min(trial["best_loss"] for trial in metrics["rates"])
