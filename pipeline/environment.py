"""What a report of a fault needs to say of the surroundings; places, addresses and values of variables stay out of it."""

import hashlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from pipeline.data.shard_writer import free_bytes
from pipeline.errors import UserError
from pipeline.settings import config, params
from pipeline.tracking.revision import revision, without_places

OURS = "slotloop"
VARIABLE = re.compile(r"(SLOTLOOP|CUDA|OMP|MKL|DVC|PYTORCH)_")
PROCESSOR = Path("/proc/cpuinfo")


def described(settings: Path) -> str:
    """Describe code, Python, packages, devices, disk, variables that are set, and settings; a line each.

    Args:
        settings: params.yaml of the workspace; where there is none, nothing is said of settings.
    """
    rows = [("code", _code()), ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    rows += [("packages", ", ".join(_packages())), ("processor", processor()), ("memory", _memory())]
    rows += [("device", device) for device in _devices()]
    rows += [("disk", f"{free_bytes(Path()) / 1e9:.1f} GB free here")]
    rows += [("variables", ", ".join(sorted(filter(VARIABLE.match, os.environ))) or "none of ours")]
    rows += list(_settings(settings)) if settings.is_file() else [("settings", f"no {settings} in this folder")]
    return "\n".join(f"{name:<10} {value}" for name, value in rows)


def _code() -> str:
    """The project's version, and the commit of the current folder."""
    here = revision()
    changed = ", with changes" if here["changed"] else ""
    return f"{OURS} {importlib.metadata.version(OURS)}, commit {here['revision'][:12] or 'unknown'}{changed}"


def _packages() -> Iterator[str]:
    """Every package that the project names, also of extras, with its version here."""
    required = importlib.metadata.requires(OURS) or []
    for name in sorted({re.split(r"[\s\[<>=!~;]", line)[0].lower() for line in required} - {OURS}):
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue


def processor() -> str:
    """Name the processor where the system tells it, how many of its cores this process may use, and torch's threads on them."""
    model = re.search(r"^model name\s*:\s*(.+)$", PROCESSOR.read_text(), re.MULTILINE) if PROCESSOR.is_file() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model[1] if model else platform.processor() or 'unknown'}, {cores} cores, torch's threads {torch.get_num_threads()}"


def _memory() -> str:
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB"


def _devices() -> list[str]:
    """Accelerators by name, memory and compute capability."""
    if not torch.cuda.is_available():
        return [f"no CUDA device is visible; torch was built for {torch.version.cuda or 'the processor alone'}"]
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    version = torch.version.cuda
    return [f"{one.name}, {one.total_memory / 1e9:.1f} GB, capability {one.major}.{one.minor}, CUDA {version}" for one in devices]


def _settings(path: Path) -> Iterator[tuple[str, str]]:
    """Preset and digest of all stages' settings; where they do not resolve, what is wrong with them."""
    try:
        given = params.read(path, params.SECTIONS)
        texts = config.resolve_all(params.SECTIONS, given)
    except UserError as error:
        yield "settings", f"do not resolve: {without_places(str(error))}"
        return
    digest = hashlib.sha256("\0".join(texts[stage] for stage in sorted(texts)).encode()).hexdigest()
    yield "settings", f"preset {given.preset}, digest {digest[:12]}"
