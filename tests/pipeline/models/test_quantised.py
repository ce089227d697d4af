"""A trunk in eight or four bits: as many bytes, states close by and of each token alone; tails stay what they were."""

import copy

import pytest
import torch
from torch import nn

from components.backbones.selfcheck import selfcheck
from components.batch import Batch
from components.objective.objective import Objective
from components.training.freezing import freeze_except
from pipeline.errors import ConfigError
from pipeline.models.pretrained import Source, build
from pipeline.models.quantised import OnShapes, quantise
from pipeline.planning import memory
from pipeline.training import flops
from tests.support.checkpoints import LAYERS, LAYOUTS, VOCAB, wide, written
from tests.support.optional import needs

needs("transformers", "bitsandbytes")
ERROR = {8: 0.1, 4: 0.6}  # of the states' size, at most: two layers of large random weights


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config, shapes = LAYOUTS["llada"]
    return written(tmp_path_factory.mktemp("llada"), *wide(config, shapes()))


def source(folder, **changed):
    return Source(**{"path": str(folder), "dtype": "fp32", "tail_layers": 1} | changed)


def tokens(rows=4, length=12):
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bits", (8, 4))
@torch.no_grad()
def test_states_are_close_and_of_each_sequence_alone(checkpoint, bits):
    plain, packed = build(source(checkpoint)), build(source(checkpoint, trunk_bits=bits))
    assert selfcheck(packed, causal=False)["split"] == 0.0
    split, ids = LAYERS - 1, tokens()
    expected, states = plain.trunk(ids, None, split), packed.trunk(ids, None, split)
    assert 0 < (states - expected).norm() / expected.norm() < ERROR[bits]
    other = torch.cat([ids[:1], tokens(3).flip(0)])
    assert torch.equal(packed.trunk(other, None, split)[0], states[0])


@pytest.mark.parametrize("bits", (8, 4))
@torch.no_grad()
def test_only_the_trunks_linear_layers_are_packed(checkpoint, bits):
    plain, packed = build(source(checkpoint)), build(source(checkpoint, trunk_bits=bits))
    whole = dict(plain.model.named_parameters())
    for name, weight in packed.model.named_parameters():
        if (".layers.0." in name or ".layers.1." in name) and whole[name].ndim == 2:
            assert weight.numel() * weight.element_size() == whole[name].numel() * bits // 8, name
            layer = packed.model.get_submodule(name.removesuffix(".weight"))
            held = layer(torch.eye(whole[name].shape[1])).T
            assert 0 < (held - whole[name]).norm() / whole[name].norm() < {8: 0.01, 4: 0.1}[bits], name
        else:
            assert torch.equal(weight, whole[name]), name


@pytest.mark.parametrize("bits", (8, 4))
def test_a_tail_is_not_packed_and_no_tail_begins_within(checkpoint, bits):
    tail = build(source(checkpoint, trunk_bits=bits), LAYERS - 1)
    assert all(weight.dtype is torch.float32 for weight in tail.parameters())
    with pytest.raises(ConfigError, match=r"layers below 2 are in . bits .* begins at layer 1; raise .*tail_layers to 2"):
        build(source(checkpoint, trunk_bits=bits), 1)
    with pytest.raises(ConfigError, match="a tail of 3 layers leaves none of 3"):
        build(source(checkpoint, trunk_bits=bits, tail_layers=LAYERS))


@pytest.mark.parametrize("bits", (8, 4))
def test_on_shapes_it_takes_as_many_bytes_and_operations(checkpoint, bits):
    packed, shapes = build(source(checkpoint, trunk_bits=bits)), build(source(checkpoint, trunk_bits=bits), load=False)
    assert memory.weights(shapes) == memory.weights(packed)
    plain = build(source(checkpoint), load=False)
    ids = torch.empty(2, 12, dtype=torch.int64, device="meta")
    assert counted(shapes, ids) == counted(plain, ids) > 0


@pytest.mark.parametrize("bits", (8, 4))
@torch.no_grad()
def test_copies_share_what_is_packed_and_say_the_same(checkpoint, bits):
    packed = build(source(checkpoint, trunk_bits=bits))
    copied, ids = copy.deepcopy(packed), tokens()
    expected = packed.trunk(ids, None, LAYERS - 1)
    assert torch.equal(copied.trunk(ids, None, LAYERS - 1), expected) and bool(torch.isfinite(expected).all())
    own, other = (model.model.model.layers[0].mlp.up_proj.weight for model in (packed, copied))
    assert own is other


@pytest.mark.parametrize("bits", (8, 4))
def test_a_gradient_takes_the_operations_of_the_plain_model(checkpoint, bits):
    ids, every = tokens(), torch.ones(4, 12, dtype=torch.bool)
    batch = Batch(ids, ids, every, every.float(), None, None)
    plain, packed = build(source(checkpoint)), build(source(checkpoint, trunk_bits=bits))
    for model in (plain, packed):
        freeze_except(model, ["model.model.layers.2"])
    assert flops.of_gradient(packed, Objective(1), batch) == flops.of_gradient(plain, Objective(1), batch) > 0


def counted(model, ids):
    return flops.count(lambda: model.trunk(ids, None, LAYERS - 1))


def test_packed_layers_are_not_trained(checkpoint):
    packed = build(source(checkpoint, trunk_bits=4))
    with pytest.raises(ValueError, match=r"'model.model.layers.\*' would train 'self_attn.q_proj.weight', which is quantised"):
        freeze_except(packed, ["model.model.layers.*"])
    assert freeze_except(packed, ["model.model.layers.2"]).trainable > 0


def test_experts_that_one_tensor_holds_are_not_called_packed(tmp_path):
    config, shapes = LAYOUTS["llada_moe"]
    with pytest.raises(ConfigError, match=r"only \d+% of the trunk's weights lie in linear layers"):
        build(source(written(tmp_path, config, shapes()), trunk_bits=8))


def test_rows_of_less_than_a_block_are_refused_in_four_bits(tmp_path):
    config, shapes = LAYOUTS["llada"]
    folder = written(tmp_path, config, shapes())
    with pytest.raises(ConfigError, match=r"whole blocks of 64 weights, the trunk has rows of 16; use 8 bits"):
        build(source(folder, trunk_bits=4))
    assert build(source(folder, trunk_bits=8)).architecture["layers"] == LAYERS


def test_without_the_library_a_mend_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"pip install 'slotloop\[bits\]'"):
        quantise([nn.Sequential(nn.Linear(4, 4))], 8)


def test_a_shape_stands_for_its_layer():
    with torch.device("meta"):
        block = nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32))
    quantise([block], 4)
    assert isinstance(block[0], OnShapes) and block[0].weight.numel() == 1024
    assert block(torch.empty(3, 64, device="meta")).shape == (3, 32)
