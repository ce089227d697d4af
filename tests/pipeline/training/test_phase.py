"""What every training phase shares: freezing by pattern, checks before training, metrics."""

import functools
import json
from functools import partial

import pytest
import torch

from components.backbones.tiny_lm import TinyLM
from components.objective.masking import exact_count
from components.refiners.refiner import SlotRefiner
from components.training.freezing import by_module, by_weight
from pipeline.data import sources
from pipeline.data.batches import LiveSource
from pipeline.errors import ConfigError, DataError
from pipeline.files import write_json
from pipeline.manifests import write_manifest
from pipeline.models.model_folder import UNFINISHED, ModelFolder, seal
from pipeline.training import phase
from pipeline.training.loop import as_it_is, fit
from stages import warmup
from stages.__main__ import main


@pytest.fixture
def model():
    lm = TinyLM(vocab=102, seq=6, dim=8, layers=2, heads=2)
    lm.init_weights(torch.Generator().manual_seed(0))
    return lm


@pytest.fixture
def run(model, rows, vocabulary, runtime, tmp_path):
    """``run(...)``: two steps over 20 rows; returns the folder and what was called to save."""

    def run(unfreeze=("",), batch_size=8, seed=0, **settings):
        saved = []
        source = LiveSource(rows(20), vocabulary, exact_count, 0, fingerprint="d" * 64)
        training = partial(fit, steps=2, validate_every=1)
        settings = {"fit": training, "unfreeze": unfreeze, "batch_size": batch_size, "seed": seed, **settings}

        def save():
            saved.append(1)
            write_manifest(tmp_path / "warmup/model.json", {"kind": "refined", "inputs": {"backbone": "b" * 64}})

        phase.run_phase("warmup", model, lambda split: source, tmp_path / "warmup", save, runtime, **settings)
        return tmp_path / "warmup", saved

    return run


def test_only_what_a_pattern_names_is_trained(run, model, capsys):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run(unfreeze=["blocks.1", "head"])
    changed = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    assert changed and all(name.startswith(("blocks.1.", "head.")) for name in changed)
    assert any(name.startswith("blocks.1.") for name in changed) and "head.weight" in changed
    assert "warmup: training\nblocks.1." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({}, "warmup: training"),
        ({"unfreeze": [""], "fit": as_it_is}, "warmup: nothing is trained"),
        ({"unfreeze": [], "fit": as_it_is}, "warmup: nothing is trained"),
        ({"unfreeze": ["head"], "fit": functools.wraps(as_it_is)(lambda run: as_it_is(run))}, "warmup: nothing is trained"),
    ],
)
def test_a_phase_that_trains_nothing_says_so(run, capsys, settings, first):
    run(**settings)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == first and any("Trainable parameters" in line for line in lines) == (first == "warmup: training")


def test_the_table_can_be_written_by_weight(run, capsys):
    run(unfreeze=["blocks.1"], table=by_weight)
    assert "blocks.1.attention.qkv.weight   " in capsys.readouterr().out


def test_layer_norms_are_trained_when_asked(run, model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run(unfreeze=["head"], layer_norms=True)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    assert changed == {"head.weight"} | {name for name in before if "norm" in name}


def test_a_pattern_that_matches_nothing_is_refused_before_training(run):
    with pytest.raises(ConfigError, match=r"warmup: no module matches 'blokcs.1'; the nearest are blocks.1"):
        run(unfreeze=["blokcs.1"])


def test_a_batch_larger_than_the_data_is_refused(run):
    with pytest.raises(ConfigError, match=r"a step of 21 rows needs at least as many training examples, there are 20"):
        run(batch_size=21)


def test_metrics_hold_the_fit_and_the_parameters(run, model):
    folder, saved = run(unfreeze=["head"])
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["steps"] == 2 and metrics["flops"] > 0 and [v["step"] for v in metrics["validation"]] == [1, 2]
    assert metrics["parameters"] == {"total": sum(p.numel() for p in model.parameters()), "trainable": 102 * 8}
    assert len(saved) >= 1 and metrics["best_step"] in (1, 2)


def finished_phase(folder, name, flops):
    """What a phase of so many operations leaves."""
    write_manifest(folder / "model.json", {"kind": "refined"})
    write_json(folder / "metrics.json", {"flops": flops})
    seal(folder, name, {})
    return folder


def test_the_operations_of_matched_phases_take_the_place_of_steps(run, tmp_path):
    def spent(**flops):
        matched = [ModelFolder(finished_phase(tmp_path / name, name, count), name) for name, count in flops.items()]
        return ModelFolder(run(matched=matched)[0], "warmup", "warmup").metrics()["flops"]

    one = spent(backbone=1)
    assert spent(backbone=one, joint=3 * one) == 4 * one
    made = ModelFolder(tmp_path / "warmup", "warmup").manifest.inputs
    expected = {name: ModelFolder(tmp_path / name, name).manifest.digest for name in ("backbone", "joint")}
    assert made == {"prepare": "d" * 64, **expected, "backbone": "b" * 64}  # what the model itself names counts


def test_operations_that_were_changed_are_refused_before_training(run, tmp_path):
    joint = finished_phase(tmp_path / "joint", "joint", 7)
    (joint / "metrics.json").write_text('{"flops": 70}')
    with pytest.raises(DataError, match=r"joint/metrics.json is damaged: .* run dvc repro joint"):
        run(matched=[ModelFolder(joint, "joint")], fit=lambda *_, **__: pytest.fail("trained"))


def test_a_phase_is_sealed_with_all_that_it_wrote(run):
    folder, _ = run()
    manifest = ModelFolder(folder, "warmup", "warmup").manifest
    assert set(manifest.hashes) == {"metrics.json", "curves.csv"} and manifest.writer == "warmup"
    assert manifest.inputs == {"prepare": "d" * 64, "backbone": "b" * 64}
    for name in manifest.hashes:
        assert manifest.verify(name).is_file()


def test_the_seed_orders_the_examples(run, model):
    start = {name: value.clone() for name, value in model.state_dict().items()}
    ended = []
    for seed in (0, 0, 1):
        model.load_state_dict(start)
        run(seed=seed)
        ended.append(model.head.weight.detach().clone())
    assert torch.equal(ended[0], ended[1]) and not torch.equal(ended[0], ended[2])


def test_a_folder_is_marked_until_its_phase_has_ended(run, tmp_path):
    seen = []

    def killed(training, **_):
        seen.append((training.out / UNFINISHED).exists())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(fit=killed)
    folder, _ = run()
    assert seen == [True] and not (folder / UNFINISHED).exists() and (folder / "metrics.json").exists()
    (folder / UNFINISHED).touch()
    phase.skipped("warmup", folder, lambda: None)
    assert not (folder / UNFINISHED).exists()


def test_a_skipped_phase_took_no_step(tmp_path):
    folder = tmp_path / "finetune"
    folder.mkdir()
    (folder / "validation.csv").write_text("step,loss\n1,1\n")  # of an earlier run, in which it was on
    phase.skipped("finetune", folder, lambda: write_manifest(folder / "model.json", {"kind": "refined"}))
    assert ModelFolder(folder, "finetune", "finetune").metrics()["flops"] == 0
    assert json.loads((tmp_path / "finetune/metrics.json").read_text())["steps"] == 0
    assert (tmp_path / "finetune/curves.csv").read_text() == "step,loss\n"
    assert not (folder / "validation.csv").exists()


def test_of_several_processes_the_first_alone_writes_a_skipped_phase(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    phase.skipped("finetune", tmp_path / "finetune", lambda: pytest.fail("saved"))
    assert not (tmp_path / "finetune").exists()


def test_a_refiner_of_another_width_is_refused_by_warmup(copy_of, runtime, monkeypatch):
    monkeypatch.chdir(copy_of)
    states = partial(sources.cached, shards="data/shards")
    settings = {"states": states, "fit": fit, "unfreeze": ["refiner"], "layer_norms": False}
    with pytest.raises(ConfigError, match=r"warmup: the refiner refines states of width 32, the backbone's are 16 wide"):
        warmup.run(
            out="elsewhere",
            backbone="data/backbone",
            refiner=lambda dim: SlotRefiner(dim=32, heads=2),
            table=by_module,
            batch_size=8,
            validation_batch_size=8,
            seed=0,
            runtime=runtime,
            **settings,
        )


def test_refiner_heads_that_do_not_fit_are_refused_by_warmup(copy_of, monkeypatch, capsys):
    monkeypatch.chdir(copy_of)
    assert main(["warmup", "refiner.SlotRefiner.heads=3"]) == 2
    assert "error: warmup: heads must divide dim, got dim 16 and heads 3" in capsys.readouterr().err


@pytest.mark.parametrize("padded", [False, True])
def test_hidden_rms_is_over_tokens_and_not_over_padding(model, vocabulary, rows, runtime, padded):
    split = rows(5)
    if padded:
        split = type(split)(**{**vars(split), "valid": torch.arange(6).expand(5, 6) < 4})
    source = LiveSource(split, vocabulary, exact_count, 0)
    batch = source.batch(torch.arange(5), torch.zeros(5, dtype=torch.long))
    states = model.states(batch).detach()
    kept = states[:, :4] if padded else states
    assert phase.hidden_rms(model, source, 5, runtime) == pytest.approx(float(kept.square().mean().sqrt()), rel=1e-5)
