"""Folders that stages hand on, damaged by accident, edited, or exchanged: refused in one line, or without influence on any result.

Every stage that reads what was damaged runs in this process, its training loop replaced by one that looks at all it is given.
"""

import copy
import hashlib
import json
import random
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from pipeline.command_line import SECTIONS
from pipeline.errors import UserError
from pipeline.files import REFUSALS
from pipeline.inference.exported import load_inference_model
from pipeline.reporting import figures
from pipeline.settings import config, params
from pipeline.training.train_state import TrainState
from stages import extract
from tests.conftest import ROOT, TRAINING, run_stages, workspace
from tests.support.json_fields import leaves, set_field
from tests.support.once import made_once, shared_folder
from tests.support.resealing import PHASES

# What is read beside dvc.yaml's stages.
BESIDE = {
    "export": ["data/backbone", "data/prepared", "outputs/joint", "outputs/evaluate/metrics.json"],
    "generate": ["data/backbone", "data/prepared", "outputs/joint"],
    "exported": ["exported"],
}
RECORDS = ("config.gin", "config.yaml", "samples.jsonl", "validation.csv", "report")  # of what was done: no stage reads them
CHAIN = ("data/prepared", "data/backbone", "data/shards", *(f"outputs/{name}" for name in PHASES), "outputs/evaluate")
UNREAD = {  # a card is its owner's to edit; a phase that is switched off is neither evaluated nor drawn
    "data/shards/metrics.json", "exported/README.md", "outputs/finetune/model.safetensors", "outputs/finetune/curves.csv",
}  # fmt: skip
FIRST = (("backbone", "data/prepared"), ("extract", "data/backbone"))  # inputs that nothing else there was made from
SIZE = {"limit": 2, "samples": 2, "decodes": {}, "halts": {}}  # of an evaluation


# Reading: what a stage makes of its inputs, as a hash


def hashed(value):
    """A hash of tensors, files and numbers, in whatever they are nested."""
    digest = hashlib.sha256()

    def add(value):
        if isinstance(value, torch.Tensor):
            digest.update(
                f"{value.dtype}{tuple(value.shape)}".encode() + value.detach().flatten().view(torch.uint8).numpy().tobytes()
            )
        elif isinstance(value, Path):
            for file in sorted(file for file in value.rglob("*") if file.is_file()):
                digest.update(str(file.relative_to(value)).encode() + file.read_bytes())
        elif isinstance(value, dict):
            add(sorted((str(key), inner) for key, inner in value.items()) if len(value) else "{}")
        elif isinstance(value, list | tuple):
            digest.update(f"[{len(value)}".encode())
            any(map(add, value))
        else:
            digest.update(repr(value).encode())

    add(value)
    return digest.hexdigest()


def looking(seen, run, budget=None, **_):
    """In place of a training loop: all weights, every row of two epochs, and how long it would train."""
    rows = torch.arange(len(run.train.source.padded))
    batches = [run.train.source.batch(rows, torch.full_like(rows, epoch)) for epoch in range(2)]
    batches += [batch for _, batch in run.validation()]
    seen += [run.model.state_dict(), run.model.n_steps, [vars(batch) for batch in batches], budget]
    run.save()
    return TrainState(steps=1)


def first_block(seen, plan, out, store):
    """In place of an extraction: its plan and the states of its first batch."""
    part = plan.parts()[0]
    seen += [{key: value for key, value in plan.plan().items() if key not in ("backbone", "prepared")}, part.file]
    seen += [next(plan.blocks(part, Silent(), []))]


class Silent:
    """A progress bar that shows nothing."""

    def advance(self, count):
        pass


def reader(stage, monkeypatch, out):
    """A function that does a stage's work on the current folder, and returns a hash of what it read or wrote."""
    monkeypatch.setattr(figures, "_save", lambda figure, path: figures.plt.close(figure))  # a picture takes long to be drawn
    for name in ("losses", "by_step", "slots", "puzzles"):
        monkeypatch.setattr(figures, name, lambda *drawn: figures.seen.append(drawn[:-1]))
    if stage == "exported":
        return partial(answering, Path("exported"), Path("data/backbone"), Path("data/prepared"))
    if stage == "generate":
        return partial(answering, Path("outputs/joint"), Path("data/backbone"), Path("data/prepared"))
    config.load_text(config.resolve(stage, params.read(Path("params.yaml"), SECTIONS)).text, stage)
    work = config.stage_function(stage)

    cards = set()

    def read():
        shutil.rmtree(out, ignore_errors=True)
        seen = []
        monkeypatch.setattr(extract, "extract", partial(first_block, seen))
        monkeypatch.setattr(figures, "seen", seen, raising=False)
        fit = {"fit": partial(looking, seen)} if stage in ("backbone", "warmup", "joint", "finetune", "controls") else {}
        fit |= {"steps": 1} if stage == "finetune" else {"fit_backbone": fit["fit"]} if stage == "controls" else {}
        work(out=str(out), **fit, **(SIZE if stage == "evaluate" else {}))
        written = {"evaluate": ("trace.json", "samples.jsonl"), "report": ("report.md", "steps.csv")}.get(stage, ())
        seen += [(out / name).read_bytes() for name in written]
        if stage == "export":
            results = (out / "README.md").read_text().partition("## Results")[2]
            cards.update([results] if results else [])  # a card without results is right, one with others is not
            (out / "README.md").unlink(), (out / "export.json").unlink()
            seen += [out, len(cards)]
        seen += [json.loads((out / "metrics.json").read_text())["models"]] if stage == "evaluate" else []
        return hashed([str(value) if isinstance(value, tuple) else value for value in seen])

    return read


def answering(model, backbone, prepared):
    loaded = load_inference_model(model, backbone, prepared)
    prompt = "12../..../..4./..2." if loaded.backbone.vocabulary.rendering == "sudoku" else "What is 3 + 4?"
    canvas = loaded.prompts.canvas(prompt, None)
    return hashed([loaded.model.state_dict(), loaded.model.n_steps, canvas, loaded.prompts.text(canvas, range(4))])


def outcome(read, expected, folders):
    """How reading ends: "same", "refused", or what should not be."""
    try:
        return "same" if read() == expected else "accepted, with other results"
    except (UserError, OSError) as error:
        told = str(error).partition("\n  In call to configurable")[0]  # which the command line does not print
        known = isinstance(error, UserError) or error.errno in REFUSALS
        named = any(folder in told for folder in folders)
        return "refused" if known and named and "\n" not in told else f"refused without a good line: {told}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


# Damages: (kind, file or folder, what changes it)


def put(content, path):
    """Write a file, or take it away: None; a folder in its place: ()."""
    if content is None or content == ():
        path.unlink()
        return path.mkdir() if content == () else None
    path.unlink()
    return path.write_bytes(content)


def of_bytes(content, rng):
    """What happens to a file, as ``put`` takes it."""
    flipped, at = bytearray(content or b"\0"), rng.randrange(max(1, len(content)))
    flipped[at] ^= 1 << rng.randrange(8)
    yield "a bit flipped", bytes(flipped)
    yield "cut", content[: rng.randrange(max(1, len(content)))]
    yield "deleted", None
    yield "longer", content + rng.randbytes(3)
    yield "last byte lost", content[:-1]
    yield "emptied", b""
    yield "a folder", ()
    yield "filled with zeros", bytes(len(content))


def edited(value):
    """Other values in a field's place: the obvious one, another type, nothing."""
    if isinstance(value, bool):
        yield "turned", not value
    elif isinstance(value, int | float):
        yield "number + 1", value + 1
        yield "number - 1", value - 1
    elif isinstance(value, str):
        yield "string changed", value[:-1] + ("b" if value[-1:] == "a" else "a")
    elif isinstance(value, list | dict):
        yield "emptied", type(value)()
    yield "type changed", 3 if isinstance(value, str) else "3"
    yield "null", None


def of_json(content, rng, most):
    """Edits of one field each, written as its stage would write them."""
    whole = json.loads(content)
    edits = []
    for path in filter(None, leaves(whole)):
        holder = whole
        for key in path[:-1]:
            holder = holder[key]
        edits += [(kind, path, new) for kind, new in edited(holder[path[-1]]) if new != holder[path[-1]]]
        edits += [("key removed", path, leaves)] if isinstance(holder, dict) else []
    for kind, path, new in rng.sample(edits, min(most, len(edits))):
        changed = copy.deepcopy(whole)
        set_field(changed, path, new)
        yield f"{kind} ({'.'.join(map(str, path))})", (json.dumps(changed, indent=1, sort_keys=True) + "\n").encode()


def file_damages(folder, parts, most, kinds):
    """Bytes of every file below the parts of a workspace, and fields of every JSON file."""
    rng = random.Random(0)
    for file in sorted(file for part in parts for file in (folder / part).rglob("*") if file.is_file()):
        content, name = file.read_bytes(), str(file.relative_to(folder))
        if "report" in file.parts:
            continue
        chosen = list(of_bytes(content, rng))
        start = rng.randrange(len(chosen))
        yield from ((what, name, partial(put, new)) for what, new in (chosen * 2)[start : start + kinds] if new != content)
        if file.suffix == ".json":
            yield from ((what, name, partial(put, new)) for what, new in of_json(content, rng, most) if new != content)


def replaced(source, path):
    """Put a copy of another file or folder in its place."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(source, path) if source.is_dir() else shutil.copy(source, path)


def exchanges(folder):
    """Folders and files of one phase in the place of another's, of the same run."""
    models = ["data/backbone", *(part for part in CHAIN if part.startswith("outputs/") and "evaluate" not in part)]
    for one in models:
        for other in models:
            if one != other:
                yield f"is {other}", one, partial(replaced, folder / other)
    for name in ("model.json", "model.safetensors", "metrics.json", "curves.csv"):
        for one, other in zip(models, (*models[1:], models[0]), strict=True):
            if (folder / one / name).read_bytes() != (folder / other / name).read_bytes():
                yield f"is {other}'s", f"{one}/{name}", partial(replaced, folder / other / name)


def of_another_run(folder, other):
    """Each folder, and each file, of a run with another seed."""
    for part in CHAIN:
        names = [str(file.relative_to(folder)) for file in sorted((folder / part).rglob("*")) if file.is_file()]
        differing = [name for name in names if (other / name).read_bytes() != (folder / name).read_bytes()]
        yield from (("another run's file", name, partial(replaced, other / name)) for name in differing)
        if any(Path(name).name not in RECORDS for name in differing):
            yield "another run's folder", part, partial(replaced, other / part)


# Every damage before every stage that reads it


def readers_of(place):
    """Stages that read a file or folder, by dvc.yaml."""
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    deps = {stage: entry["deps"] for stage, entry in stages.items() if stage in TRAINING} | BESIDE
    return [stage for stage, of in deps.items() if any(f"{place}/".startswith(f"{d}/") or d.startswith(f"{place}/") for d in of)]


def judge(folder, damages, stages, monkeypatch, capfd, out):
    """What was not right, and how often each kind of damage was refused by all who read it, by some, or meant nothing."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SLOTLOOP_READERS", "0")
    kept, results, amiss = out / "kept", {}, []
    for stage in stages:
        concerned = [(number, damage) for number, damage in enumerate(damages) if stage in readers_of(damage[1])]
        read = reader(stage, monkeypatch, out / "made") if concerned else None
        expected = read() if concerned else None
        for number, (kind, place, change) in concerned:
            if kind == "another run's folder" and (stage, place) in FIRST:
                continue  # nothing was made from what was there before, and DVC tells that it changed
            replaced_by = folder / place
            (shutil.copytree if replaced_by.is_dir() else shutil.copy2)(replaced_by, kept)
            change(replaced_by)
            ended = outcome(read, expected, [part for part in (*CHAIN, "exported")])
            for path in (replaced_by, out / "made"):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            shutil.move(kept, replaced_by)
            results.setdefault(number, []).append(ended)
            amiss += [f"{stage}: {place}: {kind}: {ended}"] if ended not in ("same", "refused") else []
        assert read is None or read() == expected
    capfd.readouterr()
    return amiss, results


def summary(damages, results):
    """Damages by what was damaged and how that ended; what no stage read meant nothing."""
    ends = {number: "refused" if "refused" in results.get(number, ()) else "harmless" for number in range(len(damages))}
    return Counter((Path(damages[number][1]).name, end) for number, end in ends.items())


def with_export(finished, folder):
    for part in ("data", "outputs"):
        shutil.copytree(finished / part, folder / part)
    run_stages(folder, ("export",), "export.run.out='exported'")
    return folder


@pytest.fixture
def puzzles(finished, tmp_path):
    """A finished run on puzzles of one's own, its joint model exported beside."""
    return with_export(finished, workspace(tmp_path / "puzzles", "smoke"))


STAGES = [*TRAINING[1:], *BESIDE]


def test_a_sample_of_damages_is_refused_or_harmless(puzzles, tmp_path, monkeypatch, capfd):
    """A few of each kind, each before the first stage that reads it."""
    damages = [*file_damages(puzzles, (*CHAIN, "exported"), 2, 1), *exchanges(puzzles)][::5]
    first = {id(damage): (readers_of(damage[1]) or ["none"])[-1] for damage in damages}
    amiss, results = [], {}
    for stage in ("joint", "controls", "report", "generate", "exported"):
        chosen = [damage for damage in damages if first[id(damage)] == stage]
        wrong, some = judge(puzzles, chosen, [stage], monkeypatch, capfd, tmp_path)
        amiss += wrong
        results |= {id(chosen[number]): ends for number, ends in some.items()}
    assert not amiss, "\n".join(amiss)
    assert sum("refused" in ends for ends in results.values()) >= 15, results


@pytest.mark.slow
def test_no_damage_changes_a_result_unseen(puzzles, tmp_path_factory, tmp_path, monkeypatch, capfd):
    other = made_once(shared_folder(tmp_path_factory) / "other-seed", another_seed)
    damages = [*file_damages(puzzles, (*CHAIN, "exported"), 12, 3), *exchanges(puzzles), *of_another_run(puzzles, other)]
    amiss, results = judge(puzzles, damages, STAGES, monkeypatch, capfd, tmp_path)
    assert not amiss, f"{len(amiss)}: {amiss[:20]}"
    counts = summary(damages, results)
    print(len(damages), *(f"{name} {end}: {count}" for (name, end), count in sorted(counts.items())), sep="\n")
    assert len(damages) >= 300 and sum(count for (_, end), count in counts.items() if end == "refused") >= 300
    harmless = {damages[number][1] for number in range(len(damages)) if "refused" not in results.get(number, ())}
    assert {place for place in harmless if Path(place).name not in RECORDS} <= UNREAD


def another_seed(folder):
    workspace(folder, "smoke")
    (folder / "params.yaml").write_text("preset: smoke\ncommon: {bindings: {SEED: 1}}\n")
    run_stages(folder, TRAINING)


@pytest.mark.slow
def test_no_damage_to_prepared_text_changes_a_result_unseen(text, tmp_path, monkeypatch, capfd):
    """Tokenizer and words of the prompts, which puzzles do not have."""
    folder = tmp_path / "text"
    shutil.copytree(text, folder, symlinks=True)
    shutil.rmtree(folder / "outputs/report")
    monkeypatch.setenv("SLOTLOOP_RAW", str(folder / "raw"))
    damages = list(file_damages(folder, ("data/prepared",), 25, 8))
    amiss, results = judge(folder, damages, ["backbone", "evaluate", "generate"], monkeypatch, capfd, tmp_path)
    assert not amiss, f"{len(amiss)}: {amiss[:20]}"
    counts = summary(damages, results)
    print(len(damages), *(f"{name} {end}: {count}" for (name, end), count in sorted(counts.items())), sep="\n")
    assert len(damages) >= 90 and {name for name, end in counts if end == "harmless"} <= set(RECORDS)
