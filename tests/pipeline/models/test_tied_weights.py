"""A model whose head is its embedding table: one tensor everywhere, in counts, checkpoints and what is loaded from them."""

import pytest
import torch
from safetensors.torch import load_file

from components.refined_lm import RefinedLM
from components.refiners.refiner import SlotRefiner
from components.training.freezing import freeze_except
from pipeline.corpora.prepared import Vocabulary
from pipeline.models import pretrained
from pipeline.models.backbones import Backbone, save_backbone
from pipeline.models.checkpoint import load_model, save_model
from tests.support import checkpoints

pytest.importorskip("transformers")
EMBEDDING, HEAD = "backbone.model.model.embed_tokens.weight", "backbone.model.lm_head.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return pretrained.Source(str(checkpoints.tied(tmp_path_factory.mktemp("tied"))), objective="next token", dtype="fp32")


@pytest.fixture(scope="module")
def backbone(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    vocabulary = Vocabulary(checkpoints.VOCAB, checkpoints.VOCAB, 0, checkpoints.SEQ, "text", True)
    save_backbone(folder, pretrained.build(source), vocabulary)
    return Backbone(folder)


@pytest.mark.parametrize("load", [True, False])
@pytest.mark.parametrize("first_layer", [0, 2])
def test_a_shared_tensor_counts_once_on_shapes_too(source, load, first_layer):
    model = pretrained.build(source, first_layer, load=load)
    assert model.head.weight is model.model.get_input_embeddings().weight
    storages = {(name, p.numel()) for name, p in model.named_parameters()}
    assert freeze_except(model, [""]).total == sum(size for _, size in storages)
    assert sum("embed_tokens" in name or "lm_head" in name for name, _ in storages) == 1


@pytest.mark.parametrize("over_loaded", [False, True])
@pytest.mark.parametrize("refined", [False, True])
def test_trained_whole_it_is_stored_once_and_comes_back_tied(backbone, tmp_path, refined, over_loaded):
    model = backbone.model()
    if refined:
        model = RefinedLM(model, SlotRefiner(checkpoints.DIM, heads=2))
        model.refiner.init_weights(1.0, torch.Generator().manual_seed(0))
    freeze_except(model, [""])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    save_model(tmp_path / "m", model, backbone)
    stored = load_file(tmp_path / "m/model.safetensors")
    assert (EMBEDDING in stored) and HEAD not in stored
    base = backbone.model() if over_loaded else None
    loaded = load_model(tmp_path / "m", backbone, "finetune", base=base)
    under = loaded.backbone if refined else loaded
    assert under.head.weight is under.model.get_input_embeddings().weight
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    if base is not None:
        assert all(torch.equal(a, b) for a, b in zip(base.parameters(), backbone.model().parameters(), strict=True))


def test_layer_norms_of_transformers_are_unfrozen(backbone):
    model = backbone.model()
    freeze_except(model, ["model.model.layers.2.mlp"], layer_norms=True)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    norms = {name for name, _ in model.named_parameters() if "norm" in name}
    assert norms and names == norms | {name for name, _ in model.named_parameters() if ".layers.2.mlp." in name}
