import importlib.metadata

import pytest
import torch

from pipeline import environment
from stages.__main__ import main
from tests.conftest import ROOT


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """What is described of a folder with these settings, by its first words; several of one name as a list."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gin").symlink_to(ROOT / "gin")

    def read(settings="preset: smoke\n"):
        (tmp_path / "params.yaml").write_text(settings)
        return dict(line.split(maxsplit=1) for line in environment.described(tmp_path / "params.yaml").splitlines())

    return read


def test_versions_are_those_that_are_installed(rows):
    packages = dict(pair.split() for pair in rows()["packages"].split(", "))
    assert packages["torch"] == torch.__version__ and packages["dvc"] == importlib.metadata.version("dvc")
    assert "slotloop" not in packages and rows()["code"].startswith(f"slotloop {importlib.metadata.version('slotloop')}, commit ")


def test_the_digest_is_that_of_the_settings(rows):
    alone, again, other = rows(), rows("preset: smoke\ncommon: {}\n"), rows("preset: smoke\ncommon: {bindings: {SEED: 1}}\n")
    assert alone["settings"].startswith("preset smoke, digest ") and alone["settings"] == again["settings"] != other["settings"]


def test_a_mistake_in_the_settings_is_told_and_all_else_stays(rows):
    wrong = rows("preset: smoke\ncommon: {bindings: {SEEED: 1}}\n")
    assert "do not resolve" in wrong["settings"] and "SEEED" in wrong["settings"] and wrong["python"] == rows()["python"]


def test_no_value_of_a_variable_and_no_place_is_told(rows, monkeypatch, tmp_path):
    monkeypatch.setenv("SLOTLOOP_RAW", "/home/somebody/private")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    told = rows()
    assert "SLOTLOOP_RAW" in told["variables"].split(", ")
    for word in ("somebody", "secret", "WANDB", str(tmp_path)):
        assert not any(word in value for value in told.values())


def test_a_folder_without_settings_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["env"]) == 0
    assert "settings   no params.yaml in this folder" in capsys.readouterr().out.splitlines()


def test_devices_are_told_by_name(monkeypatch):
    class Properties:
        name, total_memory, major, minor = "A card", 80e9, 9, 0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    assert environment._devices() == [f"A card, 80.0 GB, capability 9.0, CUDA {torch.version.cuda}"] * 2
