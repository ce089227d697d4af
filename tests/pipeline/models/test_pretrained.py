"""Checkpoints in their original layouts load with every weight in its place, whole or from a layer on; what is wrong is refused."""

import hashlib
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from components.backbones.selfcheck import selfcheck
from components.backbones.shared_trunk import SharedTrunk
from components.backbones.taps import tapped_trunk
from components.batch import Batch
from components.nn.masters import widen
from components.nn.sharing import twin
from components.refined_lm import RefinedLM
from components.refiners.mlp_refiner import MLPRefiner
from components.refiners.tapped import Tapped
from pipeline import progress
from pipeline.errors import ConfigError, DataError
from pipeline.models import pretrained
from pipeline.models.pretrained import Source, build
from pipeline.models.transformers import transformers as library
from tests.support.checkpoints import LAYERS, LAYOUTS, LLADA, VOCAB, llada_weights, written
from tests.support.optional import needs

needs("transformers")


@pytest.fixture(params=sorted(LAYOUTS))
def checkpoint(request, tmp_path):
    config, shapes = LAYOUTS[request.param]
    return written(tmp_path, config, shapes())


def source(folder, **changed):
    return Source(**{"path": str(folder), "dtype": "fp32"} | changed)


def digests(tensors):
    return sorted(hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest() for t in tensors)


def plain_weights(folder):
    return {n: t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()}


def unfused(model):
    """The model's weights as the checkpoint holds them: fused experts taken apart."""
    for name, tensor in model.model.state_dict().items():
        if name.endswith("gate_up_proj"):
            yield from (half for expert in tensor for half in expert.chunk(2))
        elif name.endswith("experts.down_proj"):
            yield from tensor
        else:
            yield tensor


def test_every_weight_finds_its_place(checkpoint):
    model, held = build(source(checkpoint)), plain_weights(checkpoint)
    found = list(unfused(model))
    assert len(found) == len(held) >= 30
    assert digests(found) == digests(held.values())
    assert {"readout", "split", "padding"} <= set(selfcheck(model, causal=False))


@pytest.mark.parametrize("split", [1, 2, LAYERS])
def test_a_tail_reads_its_layers_alone_and_gives_the_same_states(checkpoint, split):
    whole, tail = build(source(checkpoint)), build(source(checkpoint), split)
    tokens = torch.randint(VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))
    nothing = torch.zeros_like(tokens, dtype=torch.bool)
    hidden = whole.trunk(tokens, None, split)
    cut = tail.states(Batch(tokens, tokens, nothing, nothing.float(), hidden=hidden))
    assert torch.equal(cut, whole.states(Batch(tokens, tokens, nothing, nothing.float())))
    sizes = [sum(p.numel() for p in model.parameters()) for model in (whole, tail)]
    block = sum(p.numel() for p in whole.layers.blocks[0].parameters())
    assert sizes[0] - sizes[1] == split * block
    assert not any(p.is_meta for p in tail.parameters())


def test_dream_is_shifted_by_one_and_llada_is_not(tmp_path):
    for name, shift in (("dream", 1), ("llada", 0)):
        (tmp_path / name).mkdir()
        model = build(source(written(tmp_path / name, LAYOUTS[name][0], LAYOUTS[name][1]())))
        tokens = torch.arange(6)[None]
        nothing = torch.zeros_like(tokens, dtype=torch.bool)
        logits = model.readout(model.states(Batch(tokens, tokens, nothing, nothing.float())))
        plain = model.model(input_ids=tokens).logits
        torch.testing.assert_close(logits[:, shift:], plain[:, : 6 - shift])


@pytest.mark.parametrize("split", [2, LAYERS])
def test_taps_stand_where_the_last_states_stand_whole_and_cut(checkpoint, split):
    """Behind a shift of the logits, as Dream has it, too."""
    whole, tail = build(source(checkpoint)), build(source(checkpoint), split)
    dim = whole.architecture["dim"]
    tokens = torch.randint(VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))
    batch = Batch(tokens, tokens, torch.zeros_like(tokens, dtype=torch.bool), torch.zeros(2, 7))
    core = Tapped(dim, partial(MLPRefiner, chunk=4, ratio=2), (0, 1))
    core.init_weights(1.0, generator := torch.Generator().manual_seed(0))
    torch.nn.init.normal_(core.project.weight, generator=generator)
    read = []
    core.condition = lambda inputs, layout, condition=core.condition: read.append(inputs.taps) or condition(inputs, layout)
    with torch.no_grad():
        cached = batch.entered(tapped_trunk(whole, tokens, None, split, (0, 1)), (0, 1))
        ours, expected = RefinedLM(tail, core).states(cached), RefinedLM(whole, core).states(batch)
        entering = whole.embed(tokens), whole.trunk(tokens, None, 1)
    assert torch.equal(ours, expected)
    for layer, states in enumerate(entering):
        placed = torch.cat([states[:, :1], states[:, :-1]], 1) if whole.shift else states
        assert all(torch.equal(taps[layer], placed) for taps in read) and len(read) == 2


def test_a_pretrained_model_is_called_like_any_other(checkpoint):
    model = build(source(checkpoint))
    tokens = torch.randint(VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))
    nothing = torch.zeros_like(tokens, dtype=torch.bool)
    batch = Batch(tokens, tokens, nothing, nothing.float())
    carry, outputs = model.train()(model.initial_carry(batch), batch)
    assert torch.equal(outputs["logits"], model.readout(model.states(batch)))
    assert len(outputs["intermediate_logits"]) == carry.steps == 1
    assert set(model.eval()(carry, batch)[1]) == {"logits"}


def test_a_missing_weight_is_an_error_and_not_noise(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    shapes = next(make() for known, make in LAYOUTS.values() if known == config)
    lost = sorted(name for name in shapes if "1" in name and "norm" in name)[0]
    written(checkpoint, config, shapes, drop={lost})
    with pytest.raises(DataError, match="weights are missing"):
        build(source(checkpoint))


def test_a_weight_without_a_place_is_an_error(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    shapes = next(make() for known, make in LAYOUTS.values() if known == config)
    written(checkpoint, config, {**shapes, "model.transformer.blocks.0.extra.weight": (3,)})
    with pytest.raises(DataError, match="no place for"):
        build(source(checkpoint))


def test_what_the_native_class_does_not_do_is_refused(tmp_path):
    written(tmp_path, {**LLADA, "alibi": True}, llada_weights())
    with pytest.raises(DataError, match="alibi = True, and only False"):
        build(source(tmp_path))


def test_other_objectives_are_refused(checkpoint):
    with pytest.raises(ConfigError, match="must be one of masked diffusion, masked language model, next token, got 'diffusion'"):
        Source("x", objective="diffusion")
    with pytest.raises(ConfigError, match="fills masks; its objective is 'masked diffusion', not 'next token'"):
        build(source(checkpoint, objective="next token"))


def test_code_of_a_checkpoint_runs_only_if_asked_for(tmp_path):
    """A class of its own beside the weights, which leaves a file behind when it is imported."""
    transformers = library()
    config = transformers.LlamaConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, vocab_size=VOCAB, max_position_embeddings=32
    )
    config.auto_map = {"AutoModelForCausalLM": "modeling_own.Own"}
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    mark = tmp_path / "it_ran"
    (tmp_path / "modeling_own.py").write_text(
        "from transformers import LlamaForCausalLM\n"
        f"open({str(mark)!r}, 'w').close()\n"
        "class Own(LlamaForCausalLM):\n    pass\n"
    )  # fmt: skip
    assert build(source(tmp_path)).architecture["class"] == "LlamaForCausalLM" and not mark.exists()
    assert build(source(tmp_path, remote_code=True)).architecture["class"] == "Own" and mark.exists()


def test_shapes_alone_take_no_memory(checkpoint):
    model = build(source(checkpoint), 1, load=False)
    assert all(p.is_meta for p in model.parameters()) and model.first_layer == 1
    assert model.cut(2).first_layer == 2


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_models_that_share_a_trunk_compute_what_they_compute_whole(checkpoint, dtype):
    """Bit for bit from every split on, padded, with a layer of its own in float32 masters; and by the very tensors."""
    frozen = build(source(checkpoint, dtype=dtype)).requires_grad_(False)
    other = twin(frozen)
    last = {name: weight + 0.01 for name, weight in other.named_parameters() if f"layers.{LAYERS - 1}." in name}
    other.load_state_dict(last, strict=False, assign=True)
    widen(other, [weight for name, weight in other.named_parameters() if name in last])
    tokens = torch.randint(VOCAB, (2, 8), generator=torch.Generator().manual_seed(0))
    attention = torch.arange(8) < torch.tensor([[8], [5]])
    batch = Batch(tokens, tokens, tokens < 9, (tokens < 9).float(), attention)
    trunk = SharedTrunk(frozen, {"frozen": frozen, "other": twin(frozen)})
    assert trunk.split == LAYERS and set(trunk.above) == {"frozen", "other"}
    with torch.no_grad():
        for model in (frozen, other):
            whole = model.states(batch)
            for split in range(1, LAYERS if model is other else LAYERS + 1):
                above = model.above(split)
                states = above.states(replace(batch, hidden=frozen.trunk(tokens, attention, split)))
                assert torch.equal(states, whole) and torch.equal(above.readout(states), model.readout(whole))
                assert {id(tensor) for tensor in above.parameters()} < {id(tensor) for tensor in model.parameters()}
        assert not torch.equal(other.states(batch), frozen.states(batch))


@pytest.mark.parametrize("layer", range(LAYERS))
def test_a_trunk_is_shared_below_the_first_layer_that_was_trained(checkpoint, layer):
    frozen, joint = build(source(checkpoint)), build(source(checkpoint))
    tensors = frozen.state_dict(keep_vars=True)
    joint.load_state_dict({n: t for n, t in tensors.items() if f"layers.{layer}." not in n}, strict=False, assign=True)
    trunk = SharedTrunk(frozen, {"frozen": frozen, "joint": joint})
    assert (trunk.split, set(trunk.above)) == (layer, {"frozen", "joint"} if layer else set())


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"config\.json"):
        build(source(tmp_path))
    assert Path(tmp_path).exists()


def test_loading_and_selfcheck_show_life(tmp_path, monkeypatch, capsys, racing_clock):
    config, shapes = LAYOUTS[sorted(LAYOUTS)[0]]
    folder = written(tmp_path, config, shapes())
    base = pretrained.transformers().PreTrainedModel
    load, check = base.from_pretrained.__func__, pretrained.selfcheck

    def slowly(work):
        def after_a_while(*args, **named):
            progress.tick()
            return work(*args, **named)

        return after_a_while

    monkeypatch.setattr(base, "from_pretrained", classmethod(slowly(load)))
    monkeypatch.setattr(pretrained, "selfcheck", slowly(check))
    pretrained.describe_pretrained(build(source(folder)))
    shown = capsys.readouterr().err
    assert re.search(rf"^load {folder}: \d+ s so far$", shown, re.MULTILINE)
    assert re.search(rf"^selfcheck {folder}: \d+ s so far$", shown, re.MULTILINE)
