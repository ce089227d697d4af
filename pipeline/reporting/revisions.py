"""Read what a run left in a commit or an experiment, through DVC: nothing is checked out. The only door to ``dvc``'s Python side.

What DVC tracks comes from its cache, or from a remote where the cache lacks it.
"""

from collections.abc import Iterable
from pathlib import Path

from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.scm import resolve_rev

from pipeline.errors import DataError
from pipeline.files import write_atomic


def commit_of(name: str) -> str:
    """Find the commit of a git revision or of an experiment.

    Args:
        name: a branch, tag, hash, ``HEAD~2``, or the name that DVC gave an experiment.

    Raises:
        DataError: the current folder is in no repository of git and DVC, or it knows no such name.
    """
    try:
        with Repo() as repository:
            return str(resolve_rev(repository.scm, name))
    except DvcException as error:
        what = f"'{name}' is neither a folder of a run nor a revision: {' '.join(str(error).split())}"
        raise DataError(f"{what}; git log and dvc exp show list what there is") from None


def copy(commit: str, names: Iterable[str], into: Path) -> list[str]:
    """Copy files as they were in a commit; returns the names of those that it tracks but neither cache nor remote holds.

    Args:
        commit: full hash.
        names: of files, relative to the repository's root; what the commit does not have is left out.
        into: folder to write to.
    """
    files, lost = DVCFileSystem(rev=commit), []
    for name in names:
        if not files.exists(name):
            continue
        try:
            content: bytes = files.read_bytes(name)
        except (FileNotFoundError, DvcException):
            lost.append(name)
            continue
        write_atomic(into / name, content)
    return lost
