"""A model on several devices: its hooks and ours live together, it stays where it is, and maps that cannot work are refused."""

import pytest
import torch
from torch import nn

from components.backbones.selfcheck import selfcheck
from pipeline.errors import ConfigError
from pipeline.models import placement
from pipeline.models.pretrained import Source, build
from tests.support.checkpoints import LAYERS, LAYOUTS, VOCAB, written
from tests.support.optional import needs

needs("transformers", "accelerate")
MAP = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers": "cpu", "model.norm": "cpu", "lm_head": "cpu"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config, shapes = LAYOUTS["llada"]
    return written(tmp_path_factory.mktemp("llada"), config, shapes())


def opened(checkpoint, device_map, first_layer=0):
    return build(Source(str(checkpoint), dtype="fp32", device_map=device_map), first_layer)


@pytest.mark.parametrize("device_map", ["cpu", "auto", MAP], ids=str)
@torch.no_grad()
def test_a_mapped_model_is_the_model(checkpoint, device_map):
    plain, mapped = build(Source(str(checkpoint), dtype="fp32")), opened(checkpoint, device_map)
    ids = torch.arange(24).reshape(2, 12) % VOCAB
    assert torch.equal(mapped.trunk(ids, None, 2), plain.trunk(ids, None, 2))
    assert opened(checkpoint, device_map, LAYERS - 1).first_layer == LAYERS - 1


def test_hooks_that_move_states_between_devices_do_not_hinder_the_cut(checkpoint):
    model = build(Source(str(checkpoint), dtype="fp32"))
    import accelerate  # brings seconds

    accelerate.dispatch_model(model.model, MAP, force_hooks=True)
    assert hasattr(model.model.model.norm, "_hf_hook")
    assert selfcheck(model, causal=False)["split"] == 0.0


def test_what_lies_on_several_devices_is_not_moved(checkpoint):
    model = build(Source(str(checkpoint), dtype="fp32"))
    model.model.model.layers[0].to("meta")
    model.to(torch.float64)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("device_map", "told"),
    [
        ("here", "names 'here': use a device, or one of auto"),
        ({**MAP, "lm_head": "disk"}, "names 'disk': weights stay on devices"),
        ({**MAP, "lm_head": 99}, r"names '99'; \d+ CUDA devices are visible here"),
    ],
)
def test_maps_that_cannot_be_followed_are_refused(checkpoint, device_map, told):
    with pytest.raises(ConfigError, match=told):
        opened(checkpoint, device_map)


def test_both_ends_lie_on_one_device():
    with pytest.raises(ConfigError, match="puts the embeddings on cpu and the output layer on meta"):
        placement.check_ends(nn.Embedding(3, 2), nn.Linear(2, 3, device="meta"))


def test_without_accelerate_a_mend_is_named(monkeypatch, checkpoint):
    monkeypatch.setattr(placement, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs accelerate: pip install 'slotloop\[hf\]'"):
        opened(checkpoint, "cpu")
