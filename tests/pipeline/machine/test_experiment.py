"""Experiments in folders of their own: what only the checkout has is found there, and nothing else is."""

from pathlib import Path

import pytest

from pipeline.machine import experiment


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout, as a stage sees it from a folder of an experiment in it."""
    folder = tmp_path / "checkout/.dvc/tmp/exps/tmp1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "checkout"))
    return tmp_path / "checkout"


def written(path, text="here"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("place", ["", "elsewhere", "checkout", "checkout/sub", "checkout/.dvcx/tmp"])
@pytest.mark.parametrize("root", ["checkout", None])
def test_only_a_folder_below_dvcs_own_is_an_experiments(place, root, tmp_path, monkeypatch):
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / place)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    if root:
        monkeypatch.setenv("DVC_ROOT", str(tmp_path / root))
    assert experiment.checkout() is None


def test_the_checkout_is_found_behind_links_too(checkout, tmp_path, monkeypatch):
    assert experiment.checkout() == checkout
    (tmp_path / "link").symlink_to(checkout)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "link"))
    assert experiment.checkout() == checkout


@pytest.mark.parametrize(
    ("here", "there", "expected"),
    [
        (True, False, "here"),
        (True, True, "here"),  # what the experiment has is what it was queued with
        (False, True, "there"),
        (False, False, "here"),  # whoever reads it says that it is missing, by the name it was given
    ],
)
def test_what_an_experiment_has_itself_comes_first(here, there, expected, checkout):
    path = Path("models/mine/config.json")
    for exists, place in ((here, path), (there, checkout / path)):
        if exists:
            written(place)
    assert experiment.beside(path) == (path if expected == "here" else checkout / path)


def test_an_absolute_path_is_taken_as_it_is(checkout, tmp_path):
    assert experiment.beside(tmp_path / "x") == tmp_path / "x"
    assert experiment.beside(written(tmp_path / "y")) == tmp_path / "y"


def test_a_missing_file_is_linked_once_and_told_once(checkout, capsys):
    path = Path("data/raw/gsm8k/train.jsonl")
    written(checkout / path, "one")
    assert experiment.link_missing(path) == path and path.read_text() == "one"
    assert capsys.readouterr().out == f"{path} is not in this experiment's folder; it is read in {checkout}\n"
    assert experiment.link_missing(path) == path and capsys.readouterr().out == ""
    written(checkout / path, "two")
    assert path.read_text() == "two"


def test_nothing_is_linked_that_is_nowhere(checkout, capsys):
    assert experiment.link_missing(Path("data/raw/x")) == Path("data/raw/x")
    assert not Path("data").exists() and capsys.readouterr().out == ""
