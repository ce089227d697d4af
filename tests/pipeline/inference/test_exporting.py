"""Exported models: say what the trained one says, stand alone, tell what they are, and are refused when anything has changed."""

import json
import os
import shutil

import pytest
import torch

from pipeline import files
from pipeline.errors import ConfigError, DataError
from pipeline.files import sha256
from pipeline.inference import exported as exported_models
from pipeline.inference.exporting import export, push
from pipeline.inference.generation import Generator
from pipeline.manifests import write_manifest
from pipeline.models import hub
from pipeline.models.backbones import Backbone
from pipeline.models.checkpoint import save_model
from tests.support.trained import PUZZLE, puzzles, texts

WRITTEN = {"model.json", "model.safetensors", "backbone/model.json", "backbone/model.safetensors", "export.json", "README.md"}
OF_TEXT = {"tokenizer.json", "prompt_template.json"}


def exported(folder, out="exported", model="outputs/joint"):
    parts = (folder / part for part in (model, "data/backbone", "data/prepared", "outputs/evaluate"))
    return export(*parts, folder / out)


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A workspace of each kind with an exported model."""
    found = {"puzzles": puzzles(tmp_path_factory.mktemp("puzzles")), "texts": texts(tmp_path_factory.mktemp("texts"))}
    for folder in found.values():
        exported(folder)
    yield found
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def copied(made, tmp_path):
    """An exported text model that may be damaged, and nothing else beside it."""
    shutil.copytree(made["texts"] / "exported", tmp_path / "exported")
    return tmp_path / "exported"


@pytest.mark.parametrize(("kind", "prompt"), [("puzzles", PUZZLE), ("texts", "How many?")])
def test_it_says_what_the_trained_model_says_wherever_it_lies(made, runtime, tmp_path, monkeypatch, kind, prompt):
    folder = made[kind]
    trained = Generator(
        folder / "outputs/joint", backbone=f"{folder}/data/backbone", prepared=f"{folder}/data/prepared", runtime=runtime
    )
    shutil.copytree(folder / "exported", tmp_path / "anywhere/mine")
    monkeypatch.chdir(tmp_path / "anywhere")
    assert Generator("mine", runtime=runtime)(prompt) == trained(prompt)


def test_it_holds_weights_json_tokenizer_and_card_and_no_pickle(made):
    assert names(made["puzzles"] / "exported") == WRITTEN and names(made["texts"] / "exported") == WRITTEN | OF_TEXT


def test_the_same_model_gives_the_same_bytes_and_no_path_of_this_machine(made, tmp_path):
    folder = made["texts"]
    exported(folder, "other/exported")
    for name in sorted(names(folder / "exported")):
        content = (folder / "exported" / name).read_bytes()
        assert content == (folder / "other/exported" / name).read_bytes(), name
        assert str(folder).encode() not in content and os.uname().nodename.encode() not in content


def test_the_card_takes_results_of_the_very_model_and_not_of_its_folders_name(made, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(made["puzzles"], folder)
    (folder / "outputs/joint").rename(folder / "outputs/called_otherwise")
    exported(folder, "renamed", "outputs/called_otherwise")
    assert ".900 [.800, 1.000]" in (folder / "renamed/README.md").read_text()
    (folder / "outputs/called_otherwise").rename(folder / "outputs/joint")
    metrics = json.loads((folder / "outputs/evaluate/metrics.json").read_text())
    for evaluated in ({"joint": "0" * 64}, {}, {"other": metrics["evaluated"]["joint"]}, None):
        changed = metrics | {"evaluated": evaluated}
        if evaluated is None:
            changed.pop("evaluated")  # what an earlier version wrote
        write_manifest(folder / "outputs/evaluate/metrics.json", changed)
        exported(folder, "again")
        assert "## Results" not in (folder / "again/README.md").read_text()


def test_the_card_says_what_it_is_and_how_well_it_does(made):
    card = (made["puzzles"] / "exported/README.md").read_text()
    assert card.startswith(
        "---\nlibrary_name: slotloop\n---\n\n# exported\n\nA refiner (SlotRefiner, 3 recursion steps) over the built-in"
    )
    backbone = json.loads((made["puzzles"] / "exported/backbone/model.json").read_text())
    assert backbone["fingerprint"] in card and "test_5, on test (30 examples)" in card and ".900 [.800, 1.000]" in card
    assert "Generator(" in card and all(digest in card for digest in manifest(made["puzzles"] / "exported")["sha256"].values())
    assert "## Results" not in (made["texts"] / "exported/README.md").read_text()


def test_the_example_of_the_card_runs(made, runtime):
    folder = made["puzzles"] / "exported"
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(code.replace("path/of/this/folder", str(folder)), found := {})
    assert len(found["answer"].tokens) == 16


def test_a_card_that_was_rewritten_is_no_damage(copied, runtime):
    (copied / "README.md").write_text("mine")
    assert Generator(copied, runtime=runtime)("How many?").evaluations > 0


@pytest.mark.parametrize("name", sorted((WRITTEN | OF_TEXT) - {"README.md"}))
def test_a_damaged_or_missing_file_is_told(copied, name):
    path = copied / name
    content = path.read_bytes()
    for damaged in (content[:-3], content[: len(content) // 2] + b"x" + content[len(content) // 2 + 1 :], b"\xff", b""):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="copy it again, or: python -m stages export"):
            Generator(copied)
    if name != "export.json":
        path.unlink()
        with pytest.raises(DataError, match=rf"{name} is missing; copy it again"):
            Generator(copied)


OWN = ["README.md", "model.json", "model.safetensors", "export.json", "backbone/model.json", "backbone/model.safetensors"]


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("content", ["mine", '{"files": {"README.md": "mine"}}'])
def test_a_file_of_ones_own_is_never_replaced(made, tmp_path, name, content):
    """Nothing else is written either."""
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(content)
    if name == "export.json" and content != "mine":
        (tmp_path / "model.json").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"is there, and no export wrote it; export to another folder \(--out DIR\)"):
        exported(made["puzzles"], tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("make", [os.mkdir, lambda path: os.symlink("nowhere", path)])
def test_a_folder_or_link_in_the_way_is_never_replaced(made, tmp_path, make):
    make(tmp_path / "README.md")
    with pytest.raises(ConfigError, match=r"README.md is there, and no export wrote it"):
        exported(made["puzzles"], tmp_path)
    assert names(tmp_path) == set()


def test_an_export_goes_over_an_older_one_and_beside_what_is_not_its_own(made, copied):
    (copied / "notes.txt").write_text("mine")
    (copied / "model.safetensors").write_bytes(b"damaged")
    exported(made["puzzles"], copied)
    assert {name: (copied / name).read_bytes() for name in WRITTEN - {"README.md"}} == {
        name: (made["puzzles"] / "exported" / name).read_bytes() for name in WRITTEN - {"README.md"}
    }
    assert (copied / "notes.txt").read_text() == "mine"


def test_a_card_that_was_rewritten_is_not_replaced(made, copied):
    (copied / "README.md").write_text("mine")
    with pytest.raises(ConfigError, match=r"README.md is there, and no export wrote it"):
        exported(made["texts"], copied)
    assert (copied / "README.md").read_text() == "mine"


@pytest.mark.parametrize("lost", ["export.json", "README.md", "model.json"])
def test_an_export_that_was_killed_is_done_again(made, copied, lost):
    (copied / lost).unlink()
    exported(made["texts"], copied)
    assert (copied / lost).is_file()


def test_weights_of_an_export_are_hashed_once(copied, monkeypatch):
    hashed = []
    for module in (files, exported_models):
        monkeypatch.setattr(module, "sha256", lambda file: hashed.append(file.name) or sha256(file))
    Generator(copied)
    assert hashed.count("model.safetensors") == 2  # the model's and its backbone's


@pytest.mark.parametrize("content", ["[]", "{}", '{"sha256": {}}', '{"sha256": 3}', '{"sha256": {"model.json": "a"}}'])
def test_a_manifest_that_lists_too_little_is_told(copied, content):
    (copied / "export.json").write_text(content)
    with pytest.raises(DataError, match=r"export.json is not what an export wrote; copy it again"):
        Generator(copied)
    if content.startswith("{") and "3" not in content:
        write_manifest(copied / "export.json", json.loads(content))
        with pytest.raises(DataError, match="does not list what an exported model needs"):
            Generator(copied)


def manifest(folder):
    return json.loads((folder / "export.json").read_text())


def forge(folder, name, change):
    """Change a description and make the hashes agree: what no accident does."""
    description = json.loads((folder / name).read_text())
    change(description)
    write_manifest(folder / name, description)
    over = json.loads((folder / "model.json").read_text())
    over["inputs"]["backbone"] = json.loads((folder / "backbone/model.json").read_text())["digest"]
    write_manifest(folder / "model.json", over)
    held = manifest(folder)
    held["sha256"] |= {file: sha256(folder / file) for file in ("model.json", "backbone/model.json")}
    write_manifest(folder / "export.json", held)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.json", lambda d: d["refiner"].update(later=1)),
        ("model.json", lambda d: d["refiner"].update(core="Later")),
        ("backbone/model.json", lambda d: d["architecture"].update(heads=3)),
        ("backbone/model.json", lambda d: d["architecture"].update(dim=32)),
        ("backbone/model.json", lambda d: d["vocabulary"].update(later=1)),
        ("backbone/model.json", lambda d: d.pop("architecture")),
    ],
)
def test_a_model_of_another_version_is_told(copied, name, change):
    forge(copied, name, change)
    with pytest.raises(DataError, match="describes no model that this version can build"):
        Generator(copied)


def test_code_of_a_stranger_does_not_run_unasked(copied):
    forge(copied, "backbone/model.json", lambda d: d["architecture"].update(source={"path": "theirs", "remote_code": True}))
    with pytest.raises(ConfigError, match=r"would run code that comes with theirs; read it, then bind .*remote_code = True"):
        Generator(copied)
    with pytest.raises(DataError):  # on it goes, and there is no such folder
        Generator(copied, remote_code=True)


def test_a_backbone_that_was_trained_on_is_exported_too(tmp_path, runtime):
    folder = puzzles(tmp_path)
    backbone = Backbone(folder / "data/backbone")
    model = backbone.model()
    with torch.no_grad():
        model.head.weight.mul_(2.0)
    save_model(folder / "outputs/controls/backbone", model, backbone)
    exported(folder, model="outputs/controls/backbone")
    assert "The built-in TinyLM, a masked-diffusion model, trained on" in (folder / "exported/README.md").read_text()
    plain, sharper = Generator(folder / "data/backbone", runtime=runtime), Generator(folder / "exported", runtime=runtime)
    assert sharper(PUZZLE).confidence[0] > plain(PUZZLE).confidence[0]


def test_what_stands_alone_is_not_exported(made):
    for model in ("data/backbone", "exported"):
        with pytest.raises(DataError, match="stands alone already"):
            exported(made["texts"], "again", model)
    with pytest.raises(DataError, match=r"nothing holds no model \(.*nothing/model.json does not exist\); train one"):
        exported(made["texts"], "again", "nothing")


def test_what_is_read_is_not_written_over(made):
    with pytest.raises(ConfigError, match=r"outputs/joint is read here; export to another folder"):
        exported(made["texts"], "outputs/joint")


def test_a_model_of_another_backbone_is_refused(made, tmp_path):
    with pytest.raises(DataError, match="belongs to backbone"):
        Generator(made["texts"] / "outputs/joint", backbone=str(made["puzzles"] / "data/backbone"))


def test_a_push_sends_what_the_export_wrote_and_nothing_that_lies_beside_it(copied, monkeypatch):
    (copied / "notes.txt").write_text("mine")
    sent = []
    monkeypatch.setattr(hub, "push", lambda folder, files, repository: sent.append((folder, set(files), repository)) or "address")
    assert push(copied, "someone/model") == f"pushed {len(WRITTEN | OF_TEXT)} files to someone/model: address"
    assert sent == [(copied, WRITTEN | OF_TEXT, "someone/model")]
