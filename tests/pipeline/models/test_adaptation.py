"""A causal model that is to fill masks: attention opened, states read a place later, trained, left as a checkpoint, read again."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from components.batch import Batch
from components.nn.masters import widen
from components.training.freezing import freeze_except
from pipeline.corpora.prepared import Vocabulary
from pipeline.errors import ConfigError, DataError
from pipeline.files import sha256
from pipeline.models import backbones
from pipeline.models.backbones import Backbone, save_backbone
from pipeline.models.pretrained import Source, build, check_trainable
from tests.support import checkpoints, gguf_files
from tests.support.checkpoints import LAYERS, SEQ, VOCAB
from tests.support.optional import needs

transformers = pytest.importorskip("transformers")
needs("safetensors")
WORDS = Vocabulary(VOCAB, VOCAB - 1, 0, SEQ, "text")
LAYOUTS = ("llama", *sorted(checkpoints.LAYOUTS))


@pytest.fixture(scope="module")
def source_of(tmp_path_factory):
    """``source_of(layout)``: a tiny checkpoint; of a causal llama with tied weights, one whose states are read a place later."""
    folders = {}

    def source_of(layout, **changed):
        if layout not in folders:
            folder = folders[layout] = tmp_path_factory.mktemp(layout)
            if layout == "llama":
                gguf_files.llama(VOCAB).save_pretrained(folder)
            else:
                config, shapes = checkpoints.LAYOUTS[layout]
                checkpoints.written(folder, config, shapes())
        shift = {"shift": 1} if layout == "llama" else {}
        return Source(**{"path": str(folders[layout]), "dtype": "fp32", **shift, **changed})

    return source_of


def batch(tokens, attention=None, hidden=None):
    nothing = torch.zeros_like(tokens, dtype=torch.bool)
    return Batch(tokens, tokens, nothing, nothing.float(), attention, hidden)


def words(rows=2, length=9):
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(5))


def trained(source, patterns=("",)):
    """The model with float32 masters that some steps have moved, each by its own noise."""
    model = build(source)
    freeze_except(model, patterns)
    chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    widen(model, chosen)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.01)
    return model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [False, True])
def test_opened_a_token_changes_the_states_before_it_and_closed_it_does_not(source_of, attention, padded):
    tokens, other = words(), words()
    other[:, 6] = (other[:, 6] + 1) % VOCAB
    valid = torch.arange(9) < torch.tensor([[9], [7]]) if padded else None
    for objective, shift in (("masked diffusion", 1), ("next token", None)):
        model = build(source_of("llama", attention=attention, objective=objective, shift=shift))
        before, after = (model.states(batch(ids, valid)) for ids in (tokens, other))
        changed = (before != after).any(-1)[:, :6]
        assert bool(changed.all()) if objective == "masked diffusion" else not bool(changed.any())


def test_a_state_is_read_at_the_token_that_it_predicted_when_the_model_was_causal(source_of):
    """What was learned of the next token stays where it is wanted: with attention closed again, every place says what it said."""
    opened, causal = build(source_of("llama")), build(source_of("llama", objective="next token", shift=None))
    assert (opened.shift, causal.shift) == (1, 0)
    tokens = words()
    with torch.no_grad():
        said = causal.model(input_ids=tokens).logits
        opened.model.config.is_causal = True
        assert torch.equal(opened.readout(opened.states(batch(tokens)))[:, 1:], said[:, :-1])


def test_where_the_first_token_alone_is_seen_the_second_is_predicted_as_by_the_causal_model(source_of):
    opened, causal = build(source_of("llama")), build(source_of("llama", objective="next token", shift=None))
    tokens, first = words(), torch.arange(9).expand(2, 9) < 1
    logits = opened.readout(opened.states(batch(tokens, first)))
    torch.testing.assert_close(logits[:, 1], causal.model(input_ids=tokens).logits[:, 0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_what_was_trained_comes_back_bit_for_bit_whole_and_cut(source_of, tmp_path, layout, dtype):
    model, tokens = trained(source_of(layout, dtype=dtype)), words()
    save_backbone(tmp_path, model, WORDS)
    backbone = Backbone(tmp_path)
    whole = backbone.model()
    expected = model.states(batch(tokens))
    assert torch.equal(whole.states(batch(tokens)), expected) and whole.dtype == model.dtype
    assert whole.shift == model.shift == backbone.architecture["source"]["shift"] == (layout in ("llama", "dream"))
    for layer in (1, 2, LAYERS):
        tail = backbone.model(layer)
        assert torch.equal(tail.states(batch(tokens, hidden=whole.trunk(tokens, None, layer))), expected)
        assert not any(parameter.is_meta for parameter in tail.parameters()) and tail.cut(LAYERS).first_layer == LAYERS
        block = sum(p.numel() for p in whole.layers.blocks[0].parameters())
        assert sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in tail.parameters()) == layer * block


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_its_file_holds_float32_masters_and_tied_tensors_once(source_of, tmp_path, dtype):
    model = trained(source_of("llama", dtype=dtype))
    save_backbone(tmp_path, model, WORDS)
    stored = load_file(tmp_path / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float32} and "lm_head.weight" not in stored
    assert sum(value.numel() for value in stored.values()) == sum(p.numel() for p in model.parameters())
    masters = dict(model.model.named_parameters())
    assert set(masters) == set(stored) and all(torch.equal(value, masters[name]) for name, value in stored.items())


def test_of_a_part_that_was_trained_the_rest_is_stored_as_it_was(source_of, tmp_path):
    model = trained(source_of("llama", dtype="bf16"), ("model.model.layers.2",))
    save_backbone(tmp_path, model, WORDS)
    stored = load_file(tmp_path / "model.safetensors")
    wide = {name for name, value in stored.items() if value.dtype == torch.float32}
    assert wide == {name for name in stored if ".layers.2." in name} and len(wide) == 9 < len(stored)
    assert torch.equal(Backbone(tmp_path).model().states(batch(words())), model.states(batch(words())))


def test_its_fingerprint_is_that_of_the_trained_weights(source_of, tmp_path):
    source = source_of("llama")
    for name, model in {"as it is": build(source), "one": trained(source), "other": trained(source, ("model.lm_head",))}.items():
        save_backbone(tmp_path / name, model, WORDS)
    as_it_is, one, other = (Backbone(tmp_path / name) for name in ("as it is", "one", "other"))
    assert len({made.fingerprint for made in (as_it_is, one, other)}) == len({made.digest for made in (as_it_is, one, other)}) == 3
    assert one.fingerprint == sha256(tmp_path / "one/model.safetensors") and one.description["selfcheck"]["split"] == 0
    assert one.files == ("model.safetensors", "config.json") and as_it_is.files == ()
    assert one.description["files"] == as_it_is.description["files"]  # what it came as
    assert {path.name for path in (tmp_path / "as it is").iterdir()} == {"model.json"}


def test_it_needs_nothing_of_where_it_came_from_and_the_library_reads_it_by_itself(source_of, tmp_path):
    gone = shutil.copytree(source_of("llama").path, tmp_path / "origin")
    model = trained(replace(source_of("llama"), path=str(gone)))
    save_backbone(tmp_path / "backbone", model, WORDS)
    shutil.rmtree(gone)
    tokens = words()
    logits = model.model(input_ids=tokens).logits
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "backbone", dtype=torch.float32).eval()
    assert torch.equal(Backbone(tmp_path / "backbone").model().model(input_ids=tokens).logits, logits)
    assert torch.equal(plain(input_ids=tokens, use_cache=False).logits, logits)
    assert str(tmp_path).encode() not in (tmp_path / "backbone/config.json").read_bytes()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_damaged_file_of_it_is_refused_with_the_stage_to_run(source_of, tmp_path, name, damage):
    save_backbone(tmp_path, trained(source_of("llama")), WORDS)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if damage == "changed":
        (tmp_path / name).write_bytes(content[:-9] + b" " + content[-8:])
    state = "is damaged" if damage == "changed" else "is listed in the manifest but does not exist"
    with pytest.raises(DataError, match=rf"{name} {state}.*; run dvc repro backbone"):
        Backbone(tmp_path)


@pytest.mark.parametrize(
    ("layout", "changed", "message"),
    [
        (
            "llama",
            {"objective": "next token"},
            "^pretrained.model.shift = 1 is of 'masked diffusion', not of 'next token': leave",
        ),
        ("llama", {"objective": "masked language model"}, "not of 'masked language model': leave it out$"),
        (
            "llada",
            {"shift": 1},
            r"^the states of .* stand 0 places behind their tokens, not 1: leave pretrained\.model\.shift",
        ),
        ("llada_moe", {"shift": 1}, "stand 0 places behind their tokens, not 1"),
        ("dream", {"shift": 0}, "stand 1 places behind their tokens, not 0"),
    ],
)
def test_a_shift_that_a_model_cannot_have_is_refused(source_of, layout, changed, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build(source_of(layout, **changed), load=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["Mamba", "FalconMamba", "Rwkv"])
def test_a_model_that_cannot_be_opened_is_refused_before_any_weight_is_read(tmp_path, kind):
    getattr(transformers, f"{kind}Config")(hidden_size=16, num_hidden_layers=2, vocab_size=VOCAB).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=rf"cannot look both ways, .*: .*{kind}ForCausalLM .* = 'next token'"):
        build(Source(str(tmp_path), shift=1), load=False)


def test_a_model_that_was_not_opened_is_told_before_it_is_trained(source_of):
    model = build(source_of("llama"))
    model.model.config.is_causal = True
    with pytest.raises(ConfigError, match=r"cannot be a backbone: it is causal: the first token does not see the last$"):
        backbones.check_sound(model)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"trunk_bits": 8}, "trunk_bits is 8, and the backbone stage is to train the model: packed weights are not trained"),
        ({"trunk_bits": 4}, r"trunk_bits is 4, .*; leave it out, or take the model as it is: BACKBONE_FIT: '@loop\.as_it_is'$"),
        ({"remote_code": True}, "remote_code is True, .*: its code would not come with what is saved; leave it out"),
    ],
)
def test_what_would_not_stand_alone_is_not_trained(source_of, changed, message):
    model = build(source_of("llama"), load=False)
    model.architecture["source"] |= changed
    with pytest.raises(ConfigError, match=rf"^pretrained\.model\.{message}"):
        check_trainable(model)
