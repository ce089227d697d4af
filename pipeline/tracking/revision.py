"""What of a run's surroundings may leave the machine: the code's commit, branch and address, without credentials or places."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import UserError

SHOWN = 3  # files that are named at most


def revision() -> dict[str, Any]:
    """Commit, branch and address of the code in the current folder; whether files differ from it, but never how."""
    return {
        "revision": _git("rev-parse", "HEAD"),
        "branch": _git("branch", "--show-current"),
        "repository": without_credentials(_git("remote", "get-url", "origin")),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def without_credentials(address: str) -> str:
    """A repository's address without users, passwords and tokens; "" if it is a place on this machine.

    >>> without_credentials("https://me:token@example.org:8443/a/b.git?private_token=t")
    'https://example.org:8443/a/b.git'
    >>> without_credentials("git@example.org:a/b.git"), without_credentials("ssh://me@example.org/a/b.git")
    ('example.org:a/b.git', 'ssh://example.org/a/b.git')
    >>> without_credentials("/home/me/b"), without_credentials("file:///home/me/b"), without_credentials("../b")
    ('', '', '')
    """
    parts = urlsplit(address)
    if parts.scheme in ("http", "https", "ssh", "git"):
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return match[1] if (match := re.fullmatch(r"[^/@]+@([^/@]+:.+)", address)) else ""


def to_clone() -> dict[str, str]:
    """Find the commit, branch and address from which another machine can clone what is here, as ``revision`` names them.

    Raises:
        UserError: there is no commit; files differ from it; no remote that others can reach, or it has not got the commit.
    """
    here = revision()
    if not here["revision"]:
        raise UserError("there is no commit here that another machine could clone: this is no git repository, or an empty one")
    looks = (("diff", "--name-only", "HEAD"), ("ls-files", "--others", "--exclude-standard"))
    differing = [file for look in looks for file in _git(*look).splitlines()]
    if differing:
        named = ", ".join(differing[:SHOWN]) + (" ..." if len(differing) > SHOWN else "")
        raise UserError(f"{len(differing)} files differ from the commit that another machine would clone ({named}): commit them")
    if not (address := clonable(_git("remote", "get-url", "origin"))):
        raise UserError("there is no remote 'origin' that another machine could clone: git remote add origin ADDRESS, git push")
    if not _git("branch", "--remotes", "--contains", "HEAD", "--list", "origin/*"):
        raise UserError(f"commit {here['revision'][:12]} is on no branch of the remote 'origin' that is known here: git push")
    return {"revision": here["revision"], "branch": here["branch"], "repository": address}


def clonable(address: str) -> str:
    """A repository's address without passwords and tokens, with the user of ssh; "" if it is a place on this machine.

    >>> clonable("https://me:token@example.org/a/b.git"), clonable("git@example.org:a/b.git")
    ('https://example.org/a/b.git', 'git@example.org:a/b.git')
    >>> clonable("ssh://git:secret@example.org/a/b.git"), clonable("/home/me/b")
    ('ssh://git@example.org/a/b.git', '')
    """
    bare, parts = without_credentials(address), urlsplit(address)
    if parts.scheme == "ssh" and parts.username:
        return bare.replace("ssh://", f"ssh://{parts.username}@", 1)
    return address if bare and not parts.scheme else bare


def without_places(text: str) -> str:
    """Without the absolute paths of this workspace and of home, which say whose they are."""
    for place, shown in ((Path.cwd(), "."), (Path(os.environ.get("DVC_ROOT", ".")).resolve(), "."), (Path("~").expanduser(), "~")):
        if len(place.parts) > 1:
            text = re.sub(rf"{re.escape(str(place))}(?![\w.-])", shown, text)
    return text


def _git(*arguments: str) -> str:
    """What git prints; "" where there is no git, no repository or no answer."""
    if shutil.which("git") is None:
        return ""
    done = subprocess.run(["git", "--no-optional-locks", *arguments], capture_output=True, check=False)
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""
