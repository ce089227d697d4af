"""Results shared through a remote, a folder or S3: whoever has the commit computes only what they change. `make test-slow`."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.dvc import TEN, bind, committed_clone, content, dvc, git, kept_by_dvc, locked, ran
from tests.support.object_store import s3
from tests.support.once import shared_folder

pytestmark = pytest.mark.slow
LR = "{optim: {adamw: {lr: 5e-4}}}"


@dataclass
class Shared:
    """A clone that pushed what it computed, and the variables that its remote needs."""

    origin: Path
    variables: dict[str, str]

    def clone(self, folder: Path) -> Path:
        """What a colleague gets from git alone."""
        git(self.origin, "clone", "--quiet", str(self.origin), str(folder))
        return folder

    def dvc(self, folder: Path, *arguments: str) -> str:
        """Run dvc with the remote's variables."""
        return dvc(folder, *arguments, **self.variables)


@pytest.fixture(scope="module", params=["folder", "s3"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """A finished clone that pushed its results and its run cache."""
    base = tmp_path_factory.mktemp(request.param)
    with s3() if request.param == "s3" else contextlib.nullcontext(("", {})) as (address, variables):
        made = Shared(committed_clone(shared_folder(tmp_path_factory), base / "origin"), variables)
        url = "s3://results/slotloop" if address else str(base / "store")
        made.dvc(made.origin, "remote", "add", "--default", "store", url)
        if address:
            made.dvc(made.origin, "remote", "modify", "store", "endpointurl", address)
        git(made.origin, "commit", "--quiet", "--all", "--message", "remote")
        made.dvc(made.origin, "push", "--run-cache")
        yield made


def test_a_clone_that_pulls_runs_nothing(shared, tmp_path):
    folder = shared.clone(tmp_path / "clone")
    shared.dvc(folder, "pull")
    assert ran(shared.dvc(folder, "repro")) == []
    for part in ("data", "outputs", "build/config"):
        assert kept_by_dvc(folder / part) == kept_by_dvc(shared.origin / part)
    assert git(folder, "status", "--porcelain") == ""


def test_a_clone_without_the_data_runs_and_fetches_nothing(shared, tmp_path):
    folder = shared.clone(tmp_path / "clone")
    assert ran(shared.dvc(folder, "repro", "--pull", "--allow-missing")) == []
    assert {path.name for path in (folder / "data").iterdir()} == {"raw"}
    assert {name.rpartition("/")[2] for name in content(folder / "outputs")} == {".gitignore", "metrics.json"}


@pytest.mark.parametrize("shared", ["s3"], indirect=True)
def test_a_change_fetches_only_what_it_needs(shared, tmp_path):
    folder = shared.clone(tmp_path / "clone")
    bind(folder / "params.yaml", "joint", LR)
    assert ran(shared.dvc(folder, "repro", "--pull", "--allow-missing", "joint")) == ["configure", "joint"]
    assert {path.name for path in (folder / "data").iterdir()} == {"raw", "backbone", "shards"}
    assert set(content(folder / "outputs/warmup")) == {"metrics.json", "model.json", "model.safetensors"}
    assert set(content(folder / "outputs/evaluate")) == {"metrics.json"}
    assert locked(folder, "warmup") == locked(shared.origin, "warmup")
    assert not set(locked(folder, "joint").values()) & set(locked(shared.origin, "joint").values())


@pytest.mark.parametrize("shared", ["folder"], indirect=True)
def test_an_experiment_without_the_data_runs_what_its_setting_touches(shared, tmp_path):
    folder = shared.clone(tmp_path / "clone")
    output = shared.dvc(folder, "exp", "run", "--pull", "--allow-missing", "-S", "+joint.bindings.optim.adamw.lr=5e-4")
    assert ran(output) == ["configure", *TEN[TEN.index("joint") :]]
    assert not (folder / "outputs/warmup/config.gin").exists()
    old = locked(shared.origin, "joint")["outputs/joint/model.safetensors"]
    assert not (folder / ".dvc/cache/files/md5" / old[:2] / old[2:]).exists()
    new, old = (content(place / "outputs/controls/backbone") for place in (folder, shared.origin))
    assert new.pop("model.json") != old.pop("model.json") and new == old  # which names the joint phase that it is matched to


def test_the_run_cache_of_the_remote_restores_what_no_lock_file_names(shared, tmp_path):
    """Up to the shards: DVC does not push metrics that are kept in git, so a stage with metrics runs again elsewhere."""
    folder = shared.clone(tmp_path / "clone")
    (folder / "dvc.lock").unlink()
    shared.dvc(folder, "fetch", "--run-cache")
    assert ran(shared.dvc(folder, "repro", "--pull", "extract")) == []
    assert content(folder / "data") == content(shared.origin / "data")
