"""A backbone in half precision, part of which is trained: float32 in the model, its moments, average, snapshots and file; the same
bits as the backbone before it is trained; and what training does to it is what it does in float32.
"""

import copy
import signal
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from itertools import count

import pytest
import torch
from safetensors.torch import load_file, save_file

from components.batch import Batch
from components.nn.masters import widen
from components.objective.objective import Objective
from components.refined_lm import RefinedLM
from components.refiners.refiner import SlotRefiner
from components.training.freezing import freeze_except
from components.training.optim import adamw, muon
from pipeline.corpora.prepared import Vocabulary
from pipeline.machine import snapshots
from pipeline.machine.process import Interrupted
from pipeline.machine.runtime import Runtime
from pipeline.models import pretrained
from pipeline.models.backbones import Backbone, save_backbone
from pipeline.models.checkpoint import load_model, load_refined, save_model
from pipeline.models.model_folder import ModelFolder
from pipeline.training.loop import fit
from pipeline.training.train_state import TrainRun
from tests.support import checkpoints
from tests.support.optional import needs

needs("transformers")

TINY = ("llada", "llada_moe", "dream", "tied")
MIXTURES = {
    "tail": (["refiner", "backbone.model.model.layers.2"], False),
    "inside a layer": (["refiner", "backbone.model.model.layers.2.mlp"], True),
    "norms": (["refiner"], True),
    "attention": (["backbone.model.model.layers.1.self_attn"], False),
    "head": (["refiner", "backbone.model.lm_head"], False),
    "whole": ([""], False),
}
AUTOCAST = {"fp32": nullcontext, "bf16": partial(torch.autocast, "cpu", torch.bfloat16)}


@pytest.fixture(scope="module")
def source_of(tmp_path_factory):
    """``source_of(layout, dtype)``: a tiny checkpoint whose numbers bfloat16 holds exactly, so that it is one model in any type."""
    folders = {}

    def source_of(layout, dtype="bf16"):
        if layout not in folders:
            folder = folders[layout] = tmp_path_factory.mktemp(layout)
            if layout == "tied":
                checkpoints.tied(folder)
            else:
                config, shapes = checkpoints.LAYOUTS[layout]
                checkpoints.written(folder, config, shapes())
            for file in folder.glob("*.safetensors"):
                rounded = {name: value.bfloat16().float() for name, value in load_file(file).items()}
                save_file(rounded, file, metadata={"format": "pt"})
        return pretrained.Source(
            str(folders[layout]), objective="next token" if layout == "tied" else "masked diffusion", dtype=dtype
        )

    return source_of


@pytest.fixture(scope="module")
def backbone_of(source_of, tmp_path_factory):
    """``backbone_of(layout, dtype)``: that checkpoint as the stage leaves it."""

    def backbone_of(layout, dtype="bf16"):
        folder = tmp_path_factory.mktemp("backbone")
        vocabulary = Vocabulary(checkpoints.VOCAB, checkpoints.VOCAB - 1, 0, checkpoints.SEQ, "text", layout == "tied")
        save_backbone(folder, pretrained.build(source_of(layout, dtype)), vocabulary)
        return Backbone(folder)

    return backbone_of


def refined(backbone, first_layer=0):
    model = RefinedLM(backbone.model(first_layer), SlotRefiner(checkpoints.DIM, heads=2, steps=2))
    model.refiner.init_weights(1.0, torch.Generator().manual_seed(0))
    return model


def batch(seed=0, rows=2, seq=10):
    g = torch.Generator().manual_seed(seed)
    targets = torch.randint(1, checkpoints.VOCAB - 1, (rows, seq), generator=g)
    masked = torch.rand(rows, seq, generator=g) < 0.5
    masked[:, 0] = True
    tokens = torch.where(masked, checkpoints.VOCAB - 1, targets)
    attention = torch.arange(seq) < torch.tensor([seq, seq - 3] * (rows // 2))[:, None]
    masked &= attention
    return Batch(tokens, targets, masked, masked.float(), attention)


class Batches:
    """Ten microbatches, over and over."""

    seed = 0

    def steps(self, first, accumulation):
        for step in count(first):
            yield [batch(i % 10) for i in range(step * accumulation, (step + 1) * accumulation)]

    def sequences(self, accumulation):
        return accumulation * len(batch())

    def state_dict(self, step, accumulation):
        return {"step": step}

    def load_state_dict(self, state, accumulation):
        pass


def trained_on(model, runtime, out, save=lambda: None, **settings):
    given = {"steps": 50, "optimizer": partial(adamw, lr=1e-3, backbone_lr=5e-6, weight_decay=0.0), "ema": 0.99, "log_every": 100}
    run = TrainRun("half", model, Batches(), lambda: enumerate([batch(99)]), out, save, runtime)
    return fit(run, objective=Objective, **{**given, **settings})


def noted(model, into):
    """What a save sees: the averaged weights."""
    into.update(copy.deepcopy(model.state_dict()))


def below(model, prefix="backbone."):
    return {name: p for name, p in model.named_parameters() if name.startswith(prefix) and p.requires_grad}


@pytest.mark.parametrize(
    ("layout", "mixture", "precision"),
    [  # every pair of two of them
        (layout, mixture, list(AUTOCAST)[(i + j + (j > 2)) % 2])
        for i, layout in enumerate(TINY)
        for j, mixture in enumerate(MIXTURES)
    ],
)
def test_whatever_is_trained_the_untrained_model_is_the_backbone_bit_for_bit(source_of, layout, mixture, precision):
    patterns, norms = MIXTURES[mixture]
    frozen, one = pretrained.build(source_of(layout)), batch()
    with torch.no_grad(), AUTOCAST[precision]():
        expected = frozen.readout(frozen.states(one))
    model = RefinedLM(copy.deepcopy(frozen), SlotRefiner(checkpoints.DIM, heads=2, steps=2))
    model.refiner.init_weights(1.0, torch.Generator().manual_seed(0))
    freeze_except(model, patterns, layer_norms=norms)
    widen(model, [p for p in model.parameters() if p.requires_grad])
    with torch.no_grad(), AUTOCAST[precision]():
        found = [model.readout(state.hidden) for state in model.steps(one)]
    assert all(logits.dtype == expected.dtype and torch.equal(logits, expected) for logits in found)
    Objective(2).gradient(model.train(), one, sequences=len(one), autocast=AUTOCAST[precision])
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad or "refiner" in name else torch.bfloat16), name
        assert parameter.grad is None or (parameter.grad.dtype == torch.float32 and parameter.requires_grad)
    assert any(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


@pytest.mark.parametrize("layout", TINY)
def test_cached_states_give_what_the_live_trunk_gives(source_of, layout):
    whole, tail, one = pretrained.build(source_of(layout)), pretrained.build(source_of(layout), 2), batch()
    for model in (whole, tail):
        freeze_except(model, ["model.model.layers.2.mlp"], layer_norms=True)
        widen(model, [p for p in model.parameters() if p.requires_grad])
    cached = replace(one, hidden=whole.trunk(one.tokens, one.attention, 2))
    assert cached.hidden.dtype == torch.bfloat16 and torch.equal(tail.states(cached), whole.states(one))


@pytest.mark.parametrize("precision", AUTOCAST)
def test_at_a_small_rate_every_weight_moves_as_in_float32(backbone_of, tmp_path, precision):
    """At 5e-6, where of weights in bfloat16 801 of 10,336 moved even in 200 steps, and their average never did."""
    moved = {}
    for dtype in ("bf16", "fp32"):
        model, runtime = refined(backbone_of("llada", dtype)), Runtime(precision=precision, threads=1)
        freeze_except(model, ["refiner", "backbone.model.model.layers.2"])
        before = {name: p.detach().float().clone() for name, p in model.named_parameters()}
        averaged = {}
        with runtime.in_force():
            trained_on(model, runtime, tmp_path / dtype, partial(noted, model, averaged), steps=50)
        after = below(model)
        assert len(after) == 9 and all(p.dtype == torch.float32 for p in after.values())
        moved[dtype] = torch.cat([(after[name].detach() - before[name]).flatten() for name in after])
        moved[f"{dtype} average"] = torch.cat([(averaged[name] - before[name]).flatten() for name in after])
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad or torch.equal(parameter.float(), before[name]), name
    assert len(moved["bf16"]) == 2 * 16 + 4 * 16 * 16 + 3 * 16 * 24
    for which in ("", " average"):
        half, single = moved[f"bf16{which}"], moved[f"fp32{which}"]
        assert int((half != 0).sum()) == len(half)
        assert torch.nn.functional.cosine_similarity(half, single, dim=0) > 0.99
        assert half.abs().mean() == pytest.approx(single.abs().mean().item(), rel=0.05)


@pytest.mark.parametrize("chosen", [adamw, muon])
def test_moments_average_snapshots_and_file_hold_float32(backbone_of, runtime, tmp_path, monkeypatch, chosen):
    monkeypatch.setenv("SLOTLOOP_SCRATCH", str(tmp_path / "scratch"))
    backbone = backbone_of("llada")
    model = refined(backbone)
    freeze_except(model, ["refiner", "backbone.model.model.layers.2"])
    made = []

    def optimizer(named):
        made.append(chosen(named, lr=1e-3, backbone_lr=5e-6))
        return made[0]

    with pytest.raises(RuntimeError, match="look"), snapshots.workspace("half", "k" * 64):
        save = partial(save_model, tmp_path / "m", model, backbone)
        trained_on(model, runtime, tmp_path, save, steps=4, save_every=2, optimizer=optimizer)
        raise RuntimeError("look")
    moments = [value for state in made[0].state.values() for value in state.values()]
    snapshot = load_file(max((tmp_path / "scratch").rglob("state.safetensors")))
    stored = load_file(tmp_path / "m/model.safetensors")
    assert {value.dtype for value in [*moments, *snapshot.values(), *stored.values()] if value.is_floating_point()} == {
        torch.float32
    }
    names = {name for name in stored if name.startswith("backbone.")}
    assert names == set(below(model)) and len(names) == 9 and any(key.startswith("average/") for key in snapshot)


@pytest.mark.parametrize(("layout", "over_loaded"), [*zip(TINY, [False, True] * 2, strict=True), ("tied", False)])
def test_a_saved_model_comes_back_with_its_masters_or_over_a_loaded_backbone_as_they_are_read(
    backbone_of, runtime, tmp_path, layout, over_loaded
):
    backbone = backbone_of(layout)
    model = refined(backbone)
    freeze_except(model, ["refiner", "backbone.model.lm_head", "backbone.model.model.layers.2.mlp"], layer_norms=True)
    trained_on(model, runtime, tmp_path, partial(save_model, tmp_path / "m", model, backbone), steps=3, ema=0.0)
    base = backbone.model() if over_loaded else None
    loaded = load_model(tmp_path / "m", backbone, "joint", base=base)
    expected = model.state_dict()
    if over_loaded:
        assert {v.dtype for name, v in loaded.state_dict().items() if name.startswith("backbone.")} == {torch.bfloat16}
        expected = {name: v.bfloat16() if name.startswith("backbone.") else v for name, v in expected.items()}
    assert {name: value.dtype for name, value in loaded.state_dict().items()} == {name: v.dtype for name, v in expected.items()}
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    if layout == "tied":
        own = dict(loaded.named_parameters(remove_duplicate=False))
        assert own["backbone.model.lm_head.weight"] is own["backbone.model.model.embed_tokens.weight"]
    for autocast in AUTOCAST.values():
        with torch.no_grad(), autocast():
            one, other = (m.eval().readout(m.states(batch())) for m in (model, loaded))
        assert torch.equal(one, other)
    if base is not None:
        assert {p.dtype for p in base.parameters()} == {torch.bfloat16}
        assert all(torch.equal(a, b) for a, b in zip(base.parameters(), backbone.model().parameters(), strict=True))


def test_a_later_phase_goes_on_from_float32_and_hands_it_on(backbone_of, runtime, tmp_path):
    """joint trains the last layer, finetune another: neither is rounded on the way."""
    backbone = backbone_of("llada")
    joint = refined(backbone, 2)
    freeze_except(joint, ["refiner", "backbone.model.model.layers.2"])
    widen(joint, [p for p in joint.parameters() if p.requires_grad])
    with torch.no_grad():
        for parameter in below(joint).values():
            parameter.add_(1e-5)
    save_model(tmp_path / "joint", joint, backbone)
    finetuned = load_refined(tmp_path / "joint", backbone, "joint", 0)
    freeze_except(finetuned, ["refiner", "backbone.model.model.layers.1"])
    save = partial(save_model, tmp_path / "finetune", finetuned, backbone, ModelFolder(tmp_path / "joint", "joint"))
    trained_on(finetuned, runtime, tmp_path, save, steps=3, ema=0.0)
    first, second = (load_file(tmp_path / f"{phase}/model.safetensors") for phase in ("joint", "finetune"))
    last = {name for name in first if ".layers.2." in name}
    assert len(last) == 9 and all(torch.equal(first[name], second[name]) for name in last)
    assert all(value.dtype == torch.float32 for value in second.values())
    assert any(not torch.equal(value, value.bfloat16().float()) for name, value in first.items() if name in last)
    assert sum(".layers.1." in name for name in second) == 9


@pytest.mark.parametrize("precision", AUTOCAST)
def test_a_resumed_run_ends_with_the_same_bits(backbone_of, tmp_path, monkeypatch, precision):
    monkeypatch.setenv("SLOTLOOP_SCRATCH", str(tmp_path / "scratch"))
    backbone, runtime = backbone_of("dream"), Runtime(precision=precision, threads=1)
    settings = {"steps": 8, "validate_every": 3, "accumulation": 2, "ema": 0.9}

    def ended_at(last):
        return lambda step, steps: (signal.raise_signal(signal.SIGTERM) if step == last else None) or 1.0 - 0.05 * step

    def run(out, last=-1):
        model = refined(backbone)
        freeze_except(model, ["refiner", "backbone.model.model.layers.2.mlp"], layer_norms=True)
        save = partial(save_model, out / "m", model, backbone)
        with runtime.in_force(), snapshots.workspace("half", "k" * 64):
            return trained_on(model, runtime, out, save, schedule=ended_at(last), **settings), model.state_dict()

    whole, expected = run(tmp_path / "whole")
    with pytest.raises(Interrupted, match="after step 5 of 8"):
        run(tmp_path / "parts", last=4)
    parts, found = run(tmp_path / "parts")
    assert asdict(parts) == asdict(whole) and all(torch.equal(value, expected[name]) for name, value in found.items())
    for file in ("m/model.safetensors", "curves.csv"):
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
