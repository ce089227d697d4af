"""Trained models on disk: exact round trips, frozen weights stored once, and what does not belong together refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from components.backbones.tiny_lm import TinyLM
from components.batch import Batch
from components.nn.masters import widen
from components.refined_lm import RefinedLM
from components.refiners.delta import Clamped
from components.refiners.entry import Normed
from components.refiners.refiner import SlotRefiner
from components.training.freezing import freeze_except
from pipeline.errors import DataError
from pipeline.files import sha256
from pipeline.manifests import write_manifest
from pipeline.models.backbones import Backbone, save_backbone
from pipeline.models.checkpoint import load_model, load_refined, save_model
from pipeline.models.model_folder import ModelFolder
from tests.support.cores import RESIDUAL, made


def lm(seed):
    model = TinyLM(vocab=102, seq=6, dim=16, layers=3, heads=2)
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


@pytest.fixture
def backbone(tmp_path, vocabulary):
    save_backbone(tmp_path / "backbone", lm(0), vocabulary)
    return Backbone(tmp_path / "backbone")


@pytest.fixture
def other(tmp_path, vocabulary):
    save_backbone(tmp_path / "other", lm(1), vocabulary)
    return Backbone(tmp_path / "other")


@pytest.fixture
def refined(backbone):
    """A refiner with literal design and sizes of its own, over the tail from layer 1; layer 2 was trained."""
    refiner = SlotRefiner(
        dim=16,
        heads=2,
        steps=3,
        blocks=2,
        delta_ratio=2,
        slots=[("context", "context", 8), ("mood", "state", 4), ("refinement", "change", 4), ("doubt", "variance", 2)],
        entry=Normed,
        injection=None,
        update=Clamped(scale=0.2),
    )
    refiner.init_weights(1.5, torch.Generator().manual_seed(2))
    model = RefinedLM(backbone.model(1), refiner)
    freeze_except(model, ["refiner", "backbone.blocks.2.out"])
    with torch.no_grad():
        model.backbone.blocks["2"].out.weight.add_(1e-3)
    return model


@pytest.fixture
def trained_on(backbone):
    model = backbone.model()
    freeze_except(model, ["blocks.2.out", "norm"])
    with torch.no_grad():
        model.blocks["2"].out.weight.add_(1e-3)
        model.norm.weight.mul_(1.01)
    return model


def equal(one, other):
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_a_refined_model_comes_back_exactly(refined, backbone, tmp_path):
    save_model(tmp_path / "m", refined, backbone)
    loaded = load_model(tmp_path / "m", backbone, "joint", first_layer=1)
    assert isinstance(loaded, RefinedLM) and loaded.refiner.architecture == refined.refiner.architecture
    assert equal(loaded.state_dict(), refined.state_dict())


def test_a_backbone_trained_on_comes_back_exactly(trained_on, backbone, tmp_path):
    save_model(tmp_path / "m", trained_on, backbone)
    loaded = load_model(tmp_path / "m", backbone, "controls")
    assert isinstance(loaded, TinyLM) and equal(loaded.state_dict(), trained_on.state_dict())


def test_a_model_of_the_tail_comes_back_over_the_whole_backbone(refined, backbone, tmp_path):
    save_model(tmp_path / "m", refined, backbone)
    whole = load_model(tmp_path / "m", backbone, "joint").state_dict()
    assert equal({name: whole[name] for name in refined.state_dict()}, refined.state_dict())
    below = {name: value for name, value in backbone.model().state_dict().items() if name.startswith("blocks.0.")}
    assert below and all(torch.equal(whole[f"backbone.{name}"], value) for name, value in below.items())


@pytest.mark.parametrize("kind", ["refined", "trained_on"])
def test_over_a_loaded_backbone_the_same_weights_come_back_and_it_keeps_its_own(request, backbone, tmp_path, kind):
    save_model(tmp_path / "m", request.getfixturevalue(kind), backbone)
    base = backbone.model()
    shared = load_model(tmp_path / "m", backbone, "joint", base=base)
    assert equal(shared.state_dict(), load_model(tmp_path / "m", backbone, "joint").state_dict())
    assert equal(base.state_dict(), backbone.model().state_dict())
    own, tensors = getattr(shared, "backbone", shared), dict(base.named_parameters())
    assert own is not base and all(p is tensors[n] for n, p in own.named_parameters() if n.startswith("blocks.0."))
    assert dict(own.named_parameters())["blocks.2.out.weight"] is not tensors["blocks.2.out.weight"]


def test_over_a_loaded_backbone_in_half_precision_what_was_trained_is_as_it_is_read(backbone, tmp_path):
    """Masters take twice the memory and are rounded wherever they are read; whoever only reads them needs them rounded."""
    model = backbone.model().bfloat16()
    freeze_except(model, ["blocks.2.out"])
    widen(model, [parameter for parameter in model.parameters() if parameter.requires_grad])
    with torch.no_grad():
        dict(model.named_parameters())["blocks.2.out.weight"].add_(1e-3)  # less than a step of most of its numbers
    save_model(tmp_path / "m", model, backbone)
    read = load_model(tmp_path / "m", backbone, "joint", base=backbone.model().bfloat16())
    assert load_file(tmp_path / "m/model.safetensors")["backbone.blocks.2.out.weight"].dtype == torch.float32
    assert read.get_parameter("blocks.2.out.weight").dtype == torch.bfloat16
    tokens = torch.arange(12).view(2, 6)
    seen = Batch(tokens, tokens, tokens > 3, (tokens > 3).float())
    assert torch.equal(model.readout(model.states(seen)), read.readout(read.states(seen)))


def test_only_the_refiner_and_what_was_trained_is_stored(refined, trained_on, backbone, tmp_path):
    save_model(tmp_path / "refined", refined, backbone)
    save_model(tmp_path / "trained_on", trained_on, backbone)
    stored = set(load_file(tmp_path / "refined/model.safetensors"))
    assert {n for n in stored if not n.startswith("refiner.")} == {"backbone.blocks.2.out.weight"}
    assert {f"refiner.{name}" for name in refined.refiner.state_dict()} <= stored
    assert set(load_file(tmp_path / "trained_on/model.safetensors")) == {"backbone.blocks.2.out.weight", "backbone.norm.weight"}


def test_an_untouched_backbone_stores_nothing_and_comes_back(backbone, tmp_path):
    save_model(tmp_path / "m", backbone.model().requires_grad_(False), backbone)
    assert load_file(tmp_path / "m/model.safetensors") == {}
    assert equal(load_model(tmp_path / "m", backbone, "controls").state_dict(), backbone.model().state_dict())


def test_what_an_earlier_phase_trained_is_stored_again_though_this_one_froze_it(refined, backbone, tmp_path):
    save_model(tmp_path / "joint", refined, backbone)
    model = load_refined(tmp_path / "joint", backbone, "joint", 0)
    assert not any(weight.requires_grad for weight in model.parameters())
    save_model(tmp_path / "off", model, backbone, ModelFolder(tmp_path / "joint", "joint"))
    assert equal(*(load_file(tmp_path / name / "model.safetensors") for name in ("joint", "off")))
    freeze_except(model, ["backbone.blocks.0.out"])
    save_model(tmp_path / "finetune", model, backbone, ModelFolder(tmp_path / "joint", "joint"))
    more = set(load_file(tmp_path / "finetune/model.safetensors")) - set(load_file(tmp_path / "joint/model.safetensors"))
    assert more and all(name.startswith("backbone.blocks.0.out.") for name in more)
    assert equal(load_model(tmp_path / "finetune", backbone, "finetune").state_dict(), model.state_dict())


def test_nothing_is_read_of_the_backbone(refined, backbone, tmp_path):
    (backbone.folder / "model.safetensors").unlink()
    save_model(tmp_path / "m", refined, backbone)
    assert (tmp_path / "m/model.json").is_file()


def test_the_same_model_gives_the_same_bytes(refined, backbone, tmp_path):
    for name in ("a", "b"):
        save_model(tmp_path / name, refined, backbone)
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in ("model.json", "model.safetensors"))


def test_a_model_over_another_backbone_is_refused(refined, backbone, other, tmp_path):
    save_model(tmp_path / "m", refined, backbone)
    message = rf"m belongs to backbone {backbone.digest[:12]}, but .*other holds {other.digest[:12]}; run dvc repro joint"
    with pytest.raises(DataError, match=message):
        load_model(tmp_path / "m", other, "joint")


@pytest.mark.parametrize("position", [3, 500, -1])
def test_damaged_weights_are_refused(refined, backbone, tmp_path, position):
    save_model(tmp_path / "m", refined, backbone)
    content = bytearray((tmp_path / "m/model.safetensors").read_bytes())
    content[position] ^= 1
    (tmp_path / "m/model.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"model.safetensors is damaged: .* run dvc repro warmup"):
        load_model(tmp_path / "m", backbone, "warmup")


def test_a_refiner_that_another_version_described_is_refused(refined, backbone, tmp_path):
    save_model(tmp_path, refined, backbone)
    description = json.loads((tmp_path / "model.json").read_text())
    del description["refiner"]["update"]
    write_manifest(tmp_path / "model.json", description)
    with pytest.raises(
        DataError,
        match=r"describes no model that this version can build: .* lacks update; .*run dvc repro warmup$",
    ):
        load_model(tmp_path, backbone, "warmup")


def test_a_missing_model_names_the_stage(backbone, tmp_path):
    with pytest.raises(DataError, match=r"model.json does not exist; it is written by stage warmup: run dvc repro warmup"):
        load_model(tmp_path, backbone, "warmup")


def test_a_model_trained_below_the_first_layer_is_refused(refined, backbone, tmp_path):
    save_model(tmp_path / "m", refined, backbone)
    with pytest.raises(DataError, match=r"m holds 'backbone.blocks.2.out.weight', which a model from layer 3 on does not have"):
        load_model(tmp_path / "m", backbone, "joint", first_layer=3)


def test_a_model_to_train_on_needs_a_refiner(trained_on, backbone, tmp_path):
    save_model(tmp_path / "m", trained_on, backbone)
    with pytest.raises(DataError, match=r"m holds a backbone without a refiner; expected the model of stage warmup"):
        load_refined(tmp_path / "m", backbone, "warmup", 0)


def test_a_model_to_train_on_holds_the_tail_alone(refined, backbone, tmp_path):
    save_model(tmp_path / "m", refined, backbone)
    model = load_refined(tmp_path / "m", backbone, "warmup", 1)
    assert isinstance(model, RefinedLM) and model.backbone.first_layer == 1 and equal(model.state_dict(), refined.state_dict())


@pytest.mark.parametrize("name", RESIDUAL)
def test_every_core_comes_back_exactly(name, backbone, tmp_path):
    model = RefinedLM(backbone.model(), made(RESIDUAL[name]))
    save_model(tmp_path / "m", model, backbone)
    loaded = load_model(tmp_path / "m", backbone, "warmup")
    assert loaded.refiner.architecture == model.refiner.architecture and equal(loaded.state_dict(), model.state_dict())
    tokens = torch.randint(100, (2, 6), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens, tokens, tokens > 50, (tokens > 50).float())
    assert torch.equal(loaded.states(batch), model.states(batch))


def put_right(folder, weights):
    """Write other weights, and their hash into the description: what no accident does."""
    save_file(weights, folder / "model.safetensors")
    description = json.loads((folder / "model.json").read_text())
    description["sha256"]["model.safetensors"] = sha256(folder / "model.safetensors")
    write_manifest(folder / "model.json", description)


@pytest.mark.parametrize("count", [1, 3, None])
def test_weights_of_the_refiner_that_are_not_there_are_never_made_up(refined, backbone, tmp_path, count):
    save_model(tmp_path / "m", refined, backbone)
    weights = load_file(tmp_path / "m/model.safetensors")
    left_out = [name for name in sorted(weights) if name.startswith("refiner.")][:count]
    put_right(tmp_path / "m", {name: value for name, value in weights.items() if name not in left_out})
    with pytest.raises(DataError, match=rf"lacks {len(left_out)} weights of the model, '{left_out[0]}' first; run dvc repro joint"):
        load_model(tmp_path / "m", backbone, "joint")


def test_weights_that_are_not_finite_are_refused(refined, backbone, tmp_path):
    save_model(tmp_path / "m", refined, backbone)
    weights = load_file(tmp_path / "m/model.safetensors")
    weights[name := "backbone.blocks.2.out.weight"][0, 0] = float("nan")
    put_right(tmp_path / "m", weights)
    with pytest.raises(DataError, match=rf"model.safetensors: weight '{name}' holds numbers that are not finite"):
        load_model(tmp_path / "m", backbone, "joint")
