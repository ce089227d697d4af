"""What leaves the machine of the code's whereabouts."""

import subprocess

import pytest

from pipeline.tracking.revision import revision, without_places


@pytest.fixture
def repository(tmp_path, monkeypatch):
    for name in ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"):
        monkeypatch.setenv(name, "test")
    for name in ("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "test@localhost")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("committed")
    for command in ("init -q -b trunk", "add file", "commit -q -m one", "remote add origin https://me:s3cret@example.org/a/b.git"):
        subprocess.run(["git", *command.split()], check=True)
    return tmp_path


def test_commit_branch_and_address_without_credentials(repository):
    found = revision()
    assert len(found.pop("revision")) == 40
    assert found == {"branch": "trunk", "repository": "https://example.org/a/b.git", "changed": False}


def test_that_files_differ_is_told_but_never_how(repository):
    (repository / "file").write_text("a change")
    (repository / "untracked").touch()
    found = revision()
    assert found["changed"] and "a change" not in str(found)


def test_without_a_repository_or_without_git_there_is_nothing_to_tell(tmp_path, monkeypatch):
    nothing = {"revision": "", "branch": "", "repository": "", "changed": False}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert revision() == nothing
    monkeypatch.setenv("PATH", "")
    assert revision() == nothing


def test_places_are_shortened_and_names_that_begin_alike_are_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert without_places(f"{tmp_path}/a {tmp_path}x '/home/me' /home/me2") == f"./a {tmp_path}x '~' /home/me2"
    monkeypatch.setenv("HOME", "/")
    assert without_places("/usr") == "/usr"
