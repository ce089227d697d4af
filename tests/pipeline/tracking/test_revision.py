"""What leaves the machine of the code's whereabouts."""

import subprocess

import pytest

from pipeline.errors import UserError
from pipeline.tracking.revision import revision, to_clone, without_places


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


def git(*arguments):
    subprocess.run(["git", *arguments], check=True)


def pushed():
    """The remote has the commit, as far as is known here."""
    git("update-ref", "refs/remotes/origin/trunk", "HEAD")


def test_what_another_machine_can_clone(repository):
    pushed()
    source = to_clone()
    assert source == {"revision": revision()["revision"], "branch": "trunk", "repository": "https://example.org/a/b.git"}


@pytest.mark.parametrize(
    ("names", "shown"), [(["file"], r"1 files differ .* \(file\)"), (list("abcd"), r"4 files differ .* \(a, b, c \.\.\.\)")]
)
def test_files_that_a_clone_would_lack_are_named(repository, names, shown):
    pushed()
    for name in names:
        (repository / name).write_text("a change")
    with pytest.raises(UserError, match=f"{shown}: commit them"):
        to_clone()


def test_files_that_git_ignores_do_not_matter(repository):
    (repository / ".gitignore").write_text("/outputs/\n")
    git("add", ".gitignore")
    git("commit", "-q", "-m", "two")
    pushed()
    (repository / "outputs").mkdir()
    (repository / "outputs/model").touch()
    assert to_clone()["revision"] == revision()["revision"]


@pytest.mark.parametrize("address", ["", "/home/me/b", "../b"])
def test_a_remote_that_others_cannot_reach_is_none(repository, address):
    git("remote", "remove", "origin")
    if address:
        git("remote", "add", "origin", address)
    pushed()
    with pytest.raises(UserError, match="no remote 'origin' that another machine could clone"):
        to_clone()


def test_a_commit_that_was_not_pushed_is_refused(repository):
    with pytest.raises(UserError, match=r"commit [0-9a-f]{12} is on no branch of the remote 'origin' .*: git push"):
        to_clone()
    git("update-ref", "refs/remotes/other/trunk", "HEAD")
    with pytest.raises(UserError, match="git push"):
        to_clone()


def test_without_a_commit_there_is_nothing_to_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(UserError, match="no commit here"):
        to_clone()


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
