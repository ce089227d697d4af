"""What a stage depends on: exactly the code that its settings reach, raw files of its corpus, its checkpoint, allowed modules."""

import shutil
import sys

import pytest

from pipeline.command_line import SECTIONS, STAGES
from pipeline.errors import DataError
from pipeline.machine.closure import imports, source_hash
from pipeline.settings import config, dependencies, params
from tests.conftest import ROOT

PRESETS = ("sudoku4", "concepts", "smoke", "gsm8k_smoke")


def text_of(tmp_path, stage, preset, bindings="{}"):
    (tmp_path / "params.yaml").write_text(f"preset: {preset}\ncommon: {{bindings: {bindings}}}\n")
    return config.resolve(stage, params.read(tmp_path / "params.yaml", SECTIONS)).text


def names(listing):
    return [line.rpartition(" ")[0] for line in listing.splitlines()]


@pytest.fixture
def files(tmp_path):
    """(stage, preset) -> files of this project that it depends on."""
    return lambda stage, preset: names(dependencies.code_listing(stage, text_of(tmp_path, stage, preset)))


def test_prepare_of_puzzles_depends_on_nothing_that_trains(files):
    listed = files("prepare", "sudoku4")
    assert {"pipeline/corpora/sudoku.py", "pipeline/corpora/prepared.py", "stages/prepare.py"} <= set(listed)
    assert not [name for name in listed if name.startswith(("pipeline/training/", "pipeline/data/", "components/refiners/"))]


def test_the_encoder_is_code_of_the_backbone_of_sentences(files):
    encoder = {"pipeline/models/sentence_encoder.py", "components/backbones/pooling.py"}
    assert encoder <= set(files("backbone", "concepts"))
    assert not encoder & set(files("backbone", "sudoku4")) and not encoder & set(files("prepare", "concepts"))


@pytest.mark.parametrize("preset", PRESETS)
def test_an_edit_of_the_refiner_never_runs_the_trunk_again(files, preset):
    assert "components/refiners/refiner.py" in files("warmup", preset)
    assert all("components/refiners/refiner.py" not in files(stage, preset) for stage in ("prepare", "backbone", "extract"))


@pytest.mark.parametrize("stage", STAGES)
def test_what_writes_into_outputs_is_listed_for_every_stage(files, stage):
    listed = set(files(stage, "smoke"))
    assert {f"stages/{stage}.py", "stages/__main__.py", "pipeline/settings/effective.py", "pipeline/settings/params.py"} <= listed
    beside = {name for name in listed if name.startswith(("pipeline/planning/", "pipeline/tracking/", "stages/"))}
    assert beside == {f"stages/{stage}.py", "stages/__main__.py"}


def test_the_lists_of_all_stages_are_those_of_each_and_the_launcher_is_followed_once(tmp_path, monkeypatch):
    texts = {stage: text_of(tmp_path, stage, "smoke") for stage in STAGES}
    each = {stage: dependencies.listing(stage, text) for stage, text in texts.items()}
    begun, closure = [], dependencies.closure
    monkeypatch.setattr(dependencies, "closure", lambda files, *rest: begun.append(set(files)) or closure(files, *rest))
    assert dependencies.listings(texts) == each
    assert begun.count({dependencies.LAUNCHER}) == 1 and len(begun) == 1 + len(STAGES)


def test_what_the_launcher_alone_leaves_out_counts_where_a_stage_reaches_it(files):
    assert "pipeline/tracking/clearml.py" in files("track", "smoke")


def test_files_that_are_left_out_exist():
    """A name that nothing answers to would leave nothing out, or hide that a file has moved."""
    for name in dependencies.BESIDE:
        assert (ROOT / name).is_dir() if name.endswith("/") else (ROOT / name).is_file(), name
    assert imports(ROOT / "stages/__main__.py", ROOT)


def test_every_line_is_a_name_and_the_hash_of_its_code(tmp_path):
    for line in dependencies.code_listing("warmup", text_of(tmp_path, "warmup", "sudoku4")).splitlines():
        name, _, digest = line.rpartition(" ")
        assert digest == source_hash(ROOT / name)


@pytest.fixture
def raw(tmp_path, monkeypatch):
    folder = tmp_path / "corpora"
    (folder / "gsm8k").mkdir(parents=True)
    monkeypatch.setenv("SLOTLOOP_RAW", str(folder))
    for name in ("train", "test"):
        (folder / f"gsm8k/{name}.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n' * 20)
    return folder


def test_raw_files_are_listed_by_name_wherever_they_lie(tmp_path, raw):
    text = text_of(tmp_path, "prepare", "gsm8k_smoke")
    before = dependencies.listing("prepare", text)
    assert [name for name in names(before) if name.startswith("raw/")] == ["raw/gsm8k/test.jsonl", "raw/gsm8k/train.jsonl"]
    assert str(tmp_path) not in before
    train = raw / "gsm8k/train.jsonl"
    train.write_text("".join(train.read_text().splitlines(keepends=True)[:10]))
    after = dependencies.listing("prepare", text)
    assert {line.split()[0] for line in {*before.splitlines()} ^ {*after.splitlines()}} == {"raw/gsm8k/train.jsonl"}
    shutil.move(raw, tmp_path / "moved")
    assert "raw/gsm8k/train.jsonl missing\n" in dependencies.listing("prepare", text)
    assert "raw/" not in dependencies.listing("warmup", text_of(tmp_path, "warmup", "gsm8k_smoke"))


def test_files_of_a_checkpoint_in_a_folder_are_listed(tmp_path):
    folder = tmp_path / "models/mine"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", ".hidden"):
        (folder / name).write_text("{}")
    text = text_of(tmp_path, "backbone", "concepts", f"{{sentence_encoder: {{model: {{path: '{folder}'}}}}}}")
    before = dependencies.listing("backbone", text)
    listed = [name for name in names(before) if name.startswith("checkpoint/")]
    assert listed == ["checkpoint/mine/config.json", "checkpoint/mine/model.safetensors"] and str(tmp_path) not in before
    (folder / "model.safetensors").write_text("[]")
    assert dependencies.listing("backbone", text) != before
    before = dependencies.listing("backbone", text)
    for name in ("1_Pooling", ".cache"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
    added = {*dependencies.listing("backbone", text).splitlines()} - {*before.splitlines()}
    assert [line.split()[0] for line in added] == ["checkpoint/mine/1_Pooling/config.json"]
    (folder / "config.json").unlink()  # a folder of something else
    assert "checkpoint/" not in dependencies.listing("backbone", text)


def test_a_pretrained_model_that_a_stage_has_trained_is_data_of_that_stage(tmp_path, monkeypatch):
    text = text_of(tmp_path, "extract", "gsm8k_smol_diffusion_smoke")
    monkeypatch.chdir(tmp_path)
    before = dependencies.listing("extract", text)
    folder = tmp_path / "data/backbone"  # as the stage before leaves it
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "model.json"):
        (folder / name).write_text("{}")
    assert dependencies.listing("extract", text) == before


def test_a_gguf_file_is_listed(tmp_path):
    file = tmp_path / "models/tiny.gguf"
    file.parent.mkdir()
    file.write_bytes(b"GGUF")
    text = text_of(tmp_path, "backbone", "gsm8k_qwen3", f"{{pretrained: {{model: {{path: '{file}'}}}}}}")
    before = dependencies.listing("backbone", text)
    assert [name for name in names(before) if name.startswith("checkpoint/")] == ["checkpoint/tiny.gguf"]
    assert str(tmp_path) not in before
    file.write_bytes(b"GGUG")
    assert dependencies.listing("backbone", text) != before
    file.unlink()  # the stage says so
    assert "checkpoint/" not in dependencies.listing("backbone", text)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A package of a user, with a corpus that imports another module of it and one of this project."""
    package = tmp_path / "site/mine"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "corpus.py").write_text("from .words import WORDS\nfrom pipeline.text import tables\nimport json\n")
    (package / "words.py").write_text("WORDS = ()\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("SLOTLOOP_ALLOW", "mine")
    yield package
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


def test_modules_that_the_environment_allows_are_listed_with_what_they_import(mine, monkeypatch):
    text = "from mine import corpus\nfrom torch import nn\n"
    before = dependencies.listing("warmup", text)
    assert {"mine.corpus", "mine.words", "pipeline/text/tables.py"} <= set(names(before))
    assert not [name for name in names(before) if name.startswith(("torch", "json"))]
    (mine / "words.py").write_text("WORDS = (1,)\n")
    after = dependencies.listing("warmup", text)
    assert {line.split()[0] for line in {*before.splitlines()} ^ {*after.splitlines()}} == {"mine.words"}
    monkeypatch.delenv("SLOTLOOP_ALLOW")
    assert not [name for name in names(dependencies.listing("warmup", text)) if name.startswith("mine")]


def test_a_module_that_is_not_there_is_left_to_the_settings_to_refuse(monkeypatch):
    monkeypatch.setenv("SLOTLOOP_ALLOW", "nowhere")
    assert not [
        name for name in names(dependencies.listing("warmup", "import nowhere\nimport nowhere.inner\n")) if "nowhere" in name
    ]


def test_outside_files_are_linked_for_dvc_to_see_and_links_follow_the_settings(tmp_path, raw):
    links = tmp_path / "links"
    texts = {"prepare": text_of(tmp_path, "prepare", "gsm8k_smoke")}
    for _ in range(2):
        dependencies.link_outside_files(texts, links)
        found = {str(link.relative_to(links)): link.resolve() for link in links.rglob("*.jsonl")}
        assert found == {f"raw/gsm8k/{name}.jsonl": (raw / f"gsm8k/{name}.jsonl").resolve() for name in ("train", "test")}
    (raw / "gsm8k/test.jsonl").unlink()
    dependencies.link_outside_files(texts, links)
    assert [link.name for link in links.rglob("*.jsonl")] == ["train.jsonl"]  # no link to nowhere, which would stop DVC
    dependencies.link_outside_files({"prepare": text_of(tmp_path, "prepare", "smoke")}, links)
    assert not links.exists()


def test_what_lies_in_data_raw_or_is_installed_needs_no_link(tmp_path, monkeypatch, raw):
    texts = {"prepare": text_of(tmp_path, "prepare", "gsm8k_smoke")}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    shutil.move(raw, tmp_path / "data/raw")
    monkeypatch.setenv("SLOTLOOP_RAW", "data/raw")
    dependencies.link_outside_files(texts, tmp_path / "links")
    assert not (tmp_path / "links").exists()
    monkeypatch.setenv("SLOTLOOP_RAW", str(shutil.move("data/raw", "env")))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "env"))
    (tmp_path / "data/raw").mkdir()
    dependencies.link_outside_files(texts, tmp_path / "links")
    assert not (tmp_path / "links").exists()


@pytest.mark.parametrize("place", ["data/raw", "other/raw"])
def test_in_an_experiments_folder_the_list_is_that_of_the_checkout(place, tmp_path, raw, monkeypatch, capsys):
    """Raw files and a checkpoint under relative paths that only the checkout has; nothing more is linked."""
    text = text_of(tmp_path, "prepare", "gsm8k_smoke")
    of_backbone = text_of(tmp_path, "backbone", "concepts", "{sentence_encoder: {model: {path: 'models/mine'}}}")
    checkout, folder = tmp_path / "checkout", tmp_path / "checkout/.dvc/tmp/exps/tmp1"
    for path in (folder, checkout / "models/mine", (checkout / place).parent):
        path.mkdir(parents=True)
    shutil.move(raw, checkout / place)
    (checkout / "models/mine/config.json").write_text("{}")
    monkeypatch.setenv("SLOTLOOP_RAW", place)
    monkeypatch.setenv("DVC_ROOT", str(checkout))
    monkeypatch.chdir(checkout)
    expected = dependencies.listing("prepare", text), dependencies.listing("backbone", of_backbone)
    assert "checkpoint/mine/config.json" in expected[1] and "missing" not in "".join(expected)
    monkeypatch.chdir(folder)
    assert (dependencies.listing("prepare", text), dependencies.listing("backbone", of_backbone)) == expected
    assert capsys.readouterr().out.count(f"it is read in {checkout}\n") == 2
    dependencies.link_outside_files({"prepare": text}, folder / "links")
    assert (folder / "links").exists() == (place != "data/raw")  # which DVC sees anyway


def test_an_experiment_whose_list_is_an_old_one_is_told_how_to_run(tmp_path, raw, monkeypatch):
    text = text_of(tmp_path, "prepare", "gsm8k_smoke")
    monkeypatch.setenv("DVC_STAGE", "prepare")
    (tmp_path / "prepare.code").write_text("raw/gsm8k/train.jsonl missing\n")
    (tmp_path / ".dvc/tmp/exps/tmp1").mkdir(parents=True)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path / ".dvc/tmp/exps/tmp1")
    with pytest.raises(DataError, match=r"; run the experiment again with: --copy-paths data/raw$"):
        dependencies.identity("prepare", text, str(tmp_path / "prepare.gin"))


def test_an_identity_follows_settings_and_dependencies(tmp_path, raw):
    text = text_of(tmp_path, "prepare", "gsm8k_smoke")
    first = dependencies.identity("prepare", text)
    assert dependencies.identity("prepare", text) == first != dependencies.identity("prepare", f"{text}\n")
    (raw / "gsm8k/test.jsonl").write_text("")
    assert dependencies.identity("prepare", text) != first


def test_under_dvc_what_changed_after_configure_is_refused(tmp_path, raw, monkeypatch):
    text = text_of(tmp_path, "prepare", "gsm8k_smoke")
    file = tmp_path / "prepare.gin"
    monkeypatch.setenv("DVC_STAGE", "prepare")
    dependencies.identity("prepare", text, str(file))  # no list beside it
    file.with_suffix(".code").write_text(dependencies.listing("prepare", text))
    dependencies.identity("prepare", text, str(file))
    (raw / "gsm8k/test.jsonl").write_text("")
    with pytest.raises(DataError, match=r"raw/gsm8k/test.jsonl changed after configure .* run: dvc repro --force configure"):
        dependencies.identity("prepare", text, str(file))
    monkeypatch.delenv("DVC_STAGE")
    dependencies.identity("prepare", text, str(file))  # outside DVC nothing is recorded
