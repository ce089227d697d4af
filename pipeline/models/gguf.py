"""GGUF files, as llama.cpp reads them, turned once into a checkpoint folder as any other; only door to ``gguf``.

transformers reads configuration, tokenizer and weights; what it gets wrong without a word (tensors that it has no place for and
scaled rotary positions are left out, tokens are added, digits split otherwise) is refused or put right here. It refuses to save
what it read, so that the weights are written here: plain numbers in the dtype asked for, tied tensors once.

A folder's name is the file's hash, the dtype and the version of transformers. It appears whole or not at all.
"""

import fcntl
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.errors import ConfigError, DataError
from pipeline.files import json_bytes, sha256, storing, synced
from pipeline.machine.file_hashes import content_hash
from pipeline.models.transformers import DTYPES, complete, transformers
from pipeline.tensor_files import write_tensors

SUFFIX, WEIGHTS, MANIFEST, TOKENIZER = ".gguf", "model.safetensors", "manifest.json", "tokenizer.json"
MAGIC = b"GGUF"
DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")  # vocabularies without numbers
BY_DIGITS = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}


def described(file: Path, cache: Path) -> Path:
    """Give the folder of all but the weights: configuration, tokenizer, chat template, and a card with the licence.

    Raises:
        ConfigError: ``gguf`` is not installed, or transformers does not know the architecture.
        DataError: the file is none, or is cut short.
    """
    return _folder(cache, file, "described", partial(_describe, file))


def checkpoint(file: Path, cache: Path, dtype: str) -> Path:
    """Give the checkpoint folder, its weights in ``dtype`` ("fp32", "bf16", "fp16").

    Raises:
        ConfigError, DataError: as ``described``; or a weight is missing or has no place.
    """
    return _folder(cache, file, dtype, partial(_convert, file, described(file, cache), dtype))


def _folder(cache: Path, file: Path, kind: str, write: Callable[[Path], None]) -> Path:
    """The folder that ``write`` fills, made by one process while others wait; a kill leaves nothing that counts."""
    digest = content_hash(file)
    version = importlib.metadata.version("transformers") if importlib.util.find_spec("transformers") else "none"
    folder = cache / f"{digest[:16]}-{kind}-transformers-{version}"
    if _whole(folder):
        return folder
    part = folder.with_name(folder.name + ".part")
    with storing(folder), _alone(folder):
        if not _whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            try:
                write(part)
                _finish(part, {"file": file.name, "bytes": file.stat().st_size, "sha256": digest})
                os.rename(part, folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
            synced(cache)
    return folder


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        with suppress(OSError):  # a file system without locks: the folder appears whole all the same
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _finish(part: Path, source: dict[str, Any]) -> None:
    files = {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in sorted(part.iterdir())}
    (part / MANIFEST).write_bytes(json_bytes({"source": source, "files": files}))
    for file in part.iterdir():
        synced(file)


def _whole(folder: Path) -> bool:
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["files"]
        return all((folder / name).stat().st_size == known["bytes"] for name, known in files.items())
    except (OSError, ValueError):
        return False


def _describe(file: Path, part: Path) -> None:
    reader = _reader(file)
    with _read_by_transformers(file, reader) as (library, where):
        config = library.AutoConfig.from_pretrained(**where)
        _check_positions(file, reader, config)
        config.save_pretrained(part)
        if (tokens := reader.fields.get("tokenizer.ggml.tokens")) is not None:
            library.AutoTokenizer.from_pretrained(**where).save_pretrained(part)
            _correct_tokenizer(part / TOKENIZER, len(tokens.data), _field(reader, "tokenizer.ggml.pre"))
    licence = _field(reader, "general.license")
    if isinstance(licence, str) and re.fullmatch(r"[\w.+-]+", licence):
        (part / "README.md").write_text(f"---\nlicense: {licence}\n---\n")


def _convert(file: Path, description: Path, dtype: str, part: Path) -> None:
    reader = _reader(file)
    with _read_by_transformers(file, reader) as (library, where):
        config = library.AutoConfig.from_pretrained(description)
        model, loading = library.AutoModelForCausalLM.from_pretrained(
            **where, config=config, dtype=DTYPES[dtype], ignore_mismatched_sizes=True, output_loading_info=True
        )
    complete(str(file), loading)
    by_place = {(value.data_ptr(), value.shape): (name, value) for name, value in reversed(model.state_dict().items())}
    weights = dict(sorted(by_place.values()))
    numbers, stored = sum(value.numel() for value in weights.values()), sum(int(tensor.n_elements) for tensor in reader.tensors)
    if numbers != stored:
        scaled = " (rope_freqs scales rotary positions)" if any("rope_freqs" in tensor.name for tensor in reader.tensors) else ""
        raise DataError(f"{file} holds {stored:,} numbers and transformers has a place for {numbers:,} of them{scaled}")
    for path in description.iterdir():
        if path.name != MANIFEST:
            shutil.copyfile(path, part / path.name)
    write_tensors(part / WEIGHTS, weights, {"format": "pt"})


def _reader(file: Path) -> Any:
    """The file's metadata and its tensors as they are stored, none of them read yet."""
    try:
        import gguf
    except ImportError:
        raise ConfigError(f"{file} needs the package gguf: pip install 'slotloop[gguf]'") from None
    with file.open("rb") as stream:
        start = stream.read(len(MAGIC))
    if start != MAGIC:
        raise DataError(f"{file} is not a GGUF file: it begins with {start!r}, not {MAGIC!r}; download it again")
    try:
        reader = gguf.GGUFReader(file)
    except Exception as error:  # of whatever the damage makes of a length or an offset
        raise DataError(f"{file} is cut short or damaged ({_first_line(error)}); download it again") from None
    if not isinstance(_field(reader, "general.architecture"), str):
        raise DataError(f"{file} does not name the architecture of its model (general.architecture); another conversion is needed")
    return reader


def _field(reader: Any, name: str) -> Any:
    """A value of the metadata; None if it is not there."""
    return reader.fields[name].contents() if name in reader.fields else None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


@contextmanager
def _read_by_transformers(file: Path, reader: Any) -> Iterator[tuple[Any, dict[str, str]]]:
    """The library, and where it finds the file: alone in a folder, for it would take what lies beside as the file's own."""
    library = transformers()
    with TemporaryDirectory() as folder:
        (Path(folder) / file.name).symlink_to(file.resolve())
        try:
            yield library, {"pretrained_model_name_or_path": folder, "gguf_file": file.name}
        except (ValueError, KeyError, NotImplementedError, TypeError, AttributeError, ImportError) as error:
            raise ConfigError(
                f"{file}: transformers {library.__version__} does not read the architecture "
                f"{_field(reader, 'general.architecture')!r} from GGUF "
                f"({_first_line(error)}); give the model's folder or its name on the hub"
            ) from None


def _check_positions(file: Path, reader: Any, config: Any) -> None:
    kind = _field(reader, f"{_field(reader, 'general.architecture')}.rope.scaling.type")
    read = (getattr(config.get_text_config(), "rope_parameters", None) or {}).get("rope_type", "default")
    if kind not in (None, "none", read):
        raise DataError(
            f"{file} scales its rotary positions ({kind!r}), which transformers does not read from GGUF; "
            "give the model's folder or its name on the hub"
        )


def _correct_tokenizer(path: Path, size: int, kind: Any) -> None:
    """Leave out tokens that the library adds to those of the file, and split numbers into digits as the vocabulary was learned.

    Else data would speak of ids that the model has not, and "  42" would be space, space, 4, 2 and not two spaces at once, 4, 2.
    """
    tokenizer = json.loads(path.read_bytes())
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["id"] < size]
    if kind in DIGITS:
        tokenizer["pre_tokenizer"] = BY_DIGITS
    path.write_text(json.dumps(tokenizer, ensure_ascii=False, indent=2), encoding="utf-8")
