"""Adapters in a frozen backbone: they begin as nothing, are merged to what the formula says, and are gone when they are removed."""

import sys

import pytest
import torch
from safetensors.torch import load_file

from components.backbones.tiny_lm import TinyLM
from components.batch import Batch
from components.training.freezing import freeze_except
from pipeline.corpora.prepared import Vocabulary
from pipeline.errors import ConfigError
from pipeline.models import lora
from pipeline.models.backbones import Backbone, save_backbone
from pipeline.models.checkpoint import load_model, save_model
from pipeline.models.lora import TRAINED, Lora
from pipeline.models.pretrained import Source, build
from tests.pipeline.models.test_architectures_of_transformers import KINDS
from tests.pipeline.models.test_architectures_of_transformers import backbone as of_kind
from tests.support.checkpoints import DIM, LAYERS, LAYOUTS, MLP, SEQ, VOCAB, tied, wide, written
from tests.support.optional import needs

needs("transformers", "peft")
EACH = {"llada": 4 * 2 * DIM + 3 * (DIM + MLP), "llada_moe": 4 * 2 * DIM, "dream": 2 * 2 * DIM + 2 * 24 + 3 * (DIM + MLP)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``folder(layout)``: a checkpoint, written once."""
    made = {}

    def folder(layout):
        if layout not in made:
            made[layout] = tmp_path_factory.mktemp(layout)
            if layout == "tied":
                tied(made[layout])
            else:
                config, shapes = LAYOUTS[layout]
                written(made[layout], config, shapes())
        return str(made[layout])

    return folder


@pytest.fixture
def model_of(folder):
    def model_of(layout="llada", first_layer=0, dtype="fp32"):
        objective = "next token" if layout == "tied" else "masked diffusion"
        return build(Source(folder(layout), objective=objective, dtype=dtype), first_layer)

    return model_of


def batch(hidden=None):
    tokens = torch.randint(VOCAB, (2, 12), generator=torch.Generator().manual_seed(1))
    nothing = torch.zeros_like(tokens, dtype=torch.bool)
    return Batch(tokens, tokens, nothing, nothing.float(), None, hidden)


@torch.no_grad()
def logits(model, hidden=None):
    return model.readout(model.states(batch(hidden)))


def moved(adapted):
    """The adapters somewhere else than where they begin, as training leaves them."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in adapted.model.named_parameters():
        if ".lora_" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return adapted


CASES = [("llada", 0, "fp32"), ("llada", 0, "bf16"), ("llada", 2, "fp32"), ("llada_moe", 0, "fp32"), ("dream", 1, "bf16"),
         ("tied", 0, "fp32"), ("tied", 0, "bf16")]  # fmt: skip


@pytest.mark.parametrize(("layout", "first_layer", "dtype"), CASES)
def test_it_begins_as_the_frozen_model_and_leaves_no_trace(model_of, layout, first_layer, dtype):
    model, state = model_of(layout, first_layer, dtype), torch.get_rng_state()
    hidden = torch.randn(2, 12, DIM, generator=torch.Generator().manual_seed(2)) if first_layer else None
    before, weights = logits(model, hidden), {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(2):  # a second time over what the first one left
        adapted = Lora()(model, 3915, seed=0)
        assert torch.equal(logits(model, hidden), before)
        added = {name: p for name, p in model.named_parameters() if ".lora_" in name}
        assert {p.dtype for p in added.values()} == {torch.float32}
        assert freeze_except(model, TRAINED).trainable == adapted.parameters() == sum(p.numel() for p in added.values())
        assert not torch.equal(logits(moved(adapted).model, hidden), before)
        adapted.remove()
        assert torch.equal(logits(model, hidden), before)
        after = model.state_dict()
        assert list(after) == list(weights) and all(torch.equal(value, weights[name]) for name, value in after.items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("layout", EACH)
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_merged_weights_are_what_the_formula_says(model_of, layout, rank):
    model = model_of(layout)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = moved(Lora(rank, alpha=7.0)(model, 0, seed=3))
    inside = {name: value.clone() for name, value in model.named_parameters() if ".lora_" in name}
    expected = logits(model)
    with adapted.merged():
        after = {name: value.clone() for name, value in model.state_dict().items()}
        again = logits(model)
    torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(model), expected)  # the adapters are back
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert list(after) == list(before) and len(changed) == len(adapted.layers) and len(inside) == 2 * len(changed)
    for name in changed:
        stem = name.removesuffix(".weight")
        a, b = (inside[f"{stem}.lora_{side}.default.weight"].double() for side in "AB")
        by_hand = before[name].double() + 7.0 / rank * torch.einsum("or,ri->oi", b, a)
        assert a.shape[0] == rank and (after[name] - by_hand).abs().max() < 1e-6


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"GPT-2"}))
def test_no_architecture_passes_an_adapter_by(kind):
    """A model that reads a layer's weight without calling the layer would train nothing there, without a word."""
    model = of_kind(KINDS[kind])
    adapted = moved(Lora(2)(model, 0, seed=0))
    freeze_except(model, TRAINED)
    model.readout(model.states(batch())).square().sum().backward()
    silent = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not silent and all(p.grad is None for name, p in model.named_parameters() if ".lora_" not in name)
    expected = logits(model)
    with adapted.merged():
        torch.testing.assert_close(logits(model), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layout", EACH)
@pytest.mark.parametrize("parameters", [1, 500, 3915, 5000, 10**9])
def test_the_rank_is_the_nearest_in_trained_parameters(model_of, layout, parameters):
    each, most = LAYERS * EACH[layout], 8 if layout == "dream" else DIM  # the narrowest layer's rank
    nearest = min(range(1, most + 1), key=lambda rank: abs(rank * each - parameters))
    layers, rank = Lora().sizes(model_of(layout), parameters)
    assert rank == nearest and rank * sum(sum(layer.weight.shape) for layer in layers.values()) == rank * each


def test_what_it_tells_is_what_it_is(model_of):
    adapted = Lora(alpha=8.0, targets=("*.q_proj", "*.v_proj"))(model_of(), 400, seed=0)
    each = 2 * LAYERS * 2 * DIM
    assert adapted.facts() == {"rank": 2, "alpha": 8.0, "layers": 2 * LAYERS, "parameters": 2 * each, "compared_with": 400}
    assert str(adapted).startswith("LoRA of rank 2 in 6 linear layers, 384 parameters; 400 are trained")


def test_first_values_are_a_function_of_the_seed(model_of):
    def first(seed):
        torch.manual_seed(torch.randint(100, ()).item())
        return {name: p for name, p in Lora(3)(model_of(), 0, seed).model.named_parameters() if ".lora_" in name}

    one, same, other = first(0), first(0), first(1)
    for name, value in one.items():
        assert torch.equal(value, same[name]) and (".lora_B" in name) == torch.equal(value, other[name])
        bound = value.shape[1] ** -0.5
        assert value.abs().max() <= bound and (".lora_B" in name or value.abs().max() > 0.8 * bound)


@pytest.mark.parametrize(("layout", "dtype"), [("llada", "fp32"), ("llada", "bf16"), ("tied", "fp32")])
def test_what_is_saved_is_a_model_without_peft(model_of, folder, tmp_path, layout, dtype):
    model = model_of(layout, dtype=dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_backbone(tmp_path / "backbone", model, Vocabulary(VOCAB, VOCAB, 0, SEQ, "text", layout == "tied"))
    backbone = Backbone(tmp_path / "backbone")
    adapted = moved(Lora(2)(model, 0, seed=0))
    freeze_except(model, TRAINED)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    expected = logits(model)
    adapted.while_merged(lambda: save_model(tmp_path / "control", model, backbone))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable
    stored = load_file(tmp_path / "control/model.safetensors")
    assert set(stored) == {f"backbone.{path}.weight" for path in adapted.layers}
    for path, layer in adapted.layers.items():
        change = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 16.0  # alpha 32, rank 2
        value = stored[f"backbone.{path}.weight"]
        assert value.dtype is torch.float32  # in bfloat16 most of a small change would be gone
        torch.testing.assert_close(value, before[f"{path}.weight"].float() + change, rtol=1e-5, atol=1e-6)
    loaded = load_model(tmp_path / "control", backbone, "controls")
    if dtype == "fp32":
        torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-4)
    assert loaded.head.weight.data_ptr() == loaded.model.get_input_embeddings().weight.data_ptr() or layout != "tied"


REFUSED = [
    ({"targets": ("*.query",)}, r"'\*\.query' matches no linear layer of model\.model\.layers\.\*; there are mlp\.down_.*q_proj"),
    ({"targets": ("*", "model.lm_head")}, r"'model\.lm_head' matches no linear layer"),
    ({"targets": ("*.embed_tokens",)}, "matches no linear layer"),
    ({"targets": ("model.model.layers.9.*",)}, "matches no linear layer"),
    ({"targets": ()}, "names nothing"),
    ({"rank": 17}, r"lora\.Lora\.rank is 17, and 'model\.model\.layers\.0\.self_attn\.q_proj' has rank 16 itself; set 16 or less"),
    ({"rank": 1000, "targets": ("*.up_proj",)}, r"rank is 1000, and 'model\.model\.layers\.0\.mlp\.up_proj' has rank 16 itself"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
@pytest.mark.parametrize("how", [lambda made, model: made.check(model, 9), lambda made, model: made(model, 9, 0)])
def test_what_cannot_be_is_one_line(model_of, settings, message, how):
    model = model_of()
    before = list(model.state_dict())
    with pytest.raises(ConfigError, match=message) as caught:
        how(Lora(**settings), model)
    assert "\n" not in str(caught.value) and list(model.state_dict()) == before


def test_layers_of_another_kind_are_none():  # GPT-2's own Conv1D
    with pytest.raises(ConfigError, match=r"matches no linear layer .*; there are none"):
        Lora().check(of_kind(KINDS["GPT-2"]), 9)


def test_a_built_in_model_is_refused():
    with pytest.raises(ConfigError, match=r"adapts pretrained models, and the backbone is a TinyLM; set LORA_FIT = None"):
        Lora().check(TinyLM(vocab=10, seq=6, dim=8, layers=2, heads=2), 9)


@pytest.mark.parametrize("load", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_trunk_in_few_bits_is_adapted_above_it_alone(tmp_path, bits, load):
    if load:
        pytest.importorskip("bitsandbytes")
    config, shapes = LAYOUTS["llada"]
    written(tmp_path, *wide(config, shapes()))
    model = build(Source(str(tmp_path), dtype="fp32", trunk_bits=bits, tail_layers=1), load=load)
    with pytest.raises(ConfigError, match=r"merged into '.*\.layers\.0\..*', which is quantised; name layers above the trunk"):
        Lora().check(model, 9)
    adapted = Lora(targets=("model.model.layers.2.*",))(model, 9, 0)
    assert len(adapted.layers) == 7 and freeze_except(model, TRAINED).trainable == adapted.parameters()


def test_without_peft_it_says_which_extra(model_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"needs peft: pip install 'slotloop\[lora\]', or set LORA_FIT = None"):
        Lora()(model_of(), 9, 0)
    monkeypatch.setattr(lora, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs peft: pip install 'slotloop\[lora\]'"):
        Lora().check(model_of(), 9)
