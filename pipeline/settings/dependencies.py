"""What a stage's results depend on beside its settings and the data of other stages: one list for DVC and for unfinished work.

A line is ``name hash``. Of this project: every file that the resolved settings, the stage and the launcher reach, hashed without
comments and blank lines. From outside: the raw files that the corpus names (``raw/...``), the files of a pretrained model that lies
in a folder, or its GGUF file (``checkpoint/...``), and modules that the environment allows (by their dotted name). No line holds an
absolute path.
"""

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path

from pipeline.errors import ConfigError, DataError
from pipeline.machine import experiment, snapshots
from pipeline.machine.closure import beside, closure, gin_modules, imported_modules, imports, project_file, source_hash
from pipeline.machine.file_hashes import content_hash
from pipeline.models import hub
from pipeline.models.model_folder import DESCRIPTION
from pipeline.settings import config
from pipeline.settings.allowed_modules import allowed_by_environment
from pipeline.text.raw_files import RAW_DEFAULT, raw_folder

CODE = Path(__file__).resolve().parents[2]
LAUNCHER = "stages/__main__.py"
# What the launcher reaches without influence on what a stage writes: other stages, plans, records and help, signals, and this list.
BESIDE = (
    "pipeline/command_line.py", "pipeline/planning/", "pipeline/tracking/", "pipeline/settings/dependencies.py",
    "pipeline/settings/describe.py", "pipeline/settings/rehearsal.py", "pipeline/machine/launch.py", "pipeline/machine/process.py",
    "pipeline/machine/slurm.py",
)  # fmt: skip
LINKS = Path(RAW_DEFAULT) / "links-made-by-configure"


@dataclass(frozen=True)
class OutsideFile:
    """A file outside this project that a stage reads: its name in the list, and where it lies."""

    name: str
    path: Path


def identity(stage: str, text: str, config_file: str = "", place: Path = Path(), code: Path = CODE) -> str:
    """Identify a stage's work (see ``snapshots.key``).

    Args:
        stage: its name.
        text: resolved configuration.
        config_file: that configure wrote, with the list beside it; under DVC the list must still hold.
        place: folder that names in the configuration are relative to.
        code: folder that holds the packages.

    Raises:
        DataError: code or a raw file has changed since configure ran, so that DVC would record what did not run.
    """
    current = listing(stage, text, code)
    if config_file and "DVC_STAGE" in os.environ:
        _check_recorded(stage, Path(config_file).with_suffix(".code"), current)
    return snapshots.key(text, current, place)


def _check_recorded(stage: str, file: Path, current: str) -> None:
    recorded = file.read_text() if file.is_file() else current
    mend = "run: dvc repro --force configure, then dvc repro"
    if experiment.checkout() is not None:
        mend = f"run the experiment again with: --copy-paths {RAW_DEFAULT}"
    if changed := sorted(set(recorded.splitlines()) ^ set(current.splitlines())):
        raise DataError(
            f"{changed[0].rpartition(' ')[0]} changed after configure listed what stage {stage} depends on ({file}); {mend}"
        )


def listing(stage: str, text: str, code: Path = CODE) -> str:
    """List what a stage's results depend on, one line ``name hash`` each; loads the settings of prepare to ask its corpus."""
    return listings({stage: text}, code)[stage]


def listings(texts: Mapping[str, str], code: Path = CODE) -> dict[str, str]:
    """List what each stage's results depend on, see ``listing``; what the launcher reaches is followed once for all."""
    launcher = _launcher_files(code)
    return {stage: _code_lines(stage, text, code, launcher) + _outside_lines(stage, text) for stage, text in texts.items()}


def code_listing(stage: str, text: str, code: Path = CODE) -> str:
    """List the files of this project that a stage with these settings reaches, and those of the launcher."""
    return _code_lines(stage, text, code, _launcher_files(code))


def _launcher_files(code: Path) -> list[str]:
    others = [path.relative_to(code).as_posix() for path in (code / "stages").glob("*.py") if path.name != Path(LAUNCHER).name]
    return closure({LAUNCHER} if (code / LAUNCHER).is_file() else (), code, (*BESIDE, *others))


def _code_lines(stage: str, text: str, code: Path, launcher: Iterable[str]) -> str:
    modules = gin_modules(text)
    reached = {f"stages/{stage}.py", *filter(None, (project_file(module, code) for module in modules))}
    for path in _allowed_modules(modules).values():
        reached |= imports(path, code)
    files = {*closure(reached, code, [LAUNCHER]), *launcher}
    files |= {*beside(files, code)}
    return "".join(f"{name} {source_hash(code / name)}\n" for name in sorted(files))


def _outside_lines(stage: str, text: str) -> str:
    lines = [
        f"{file.name} {source_hash(file.path) if file.path.suffix == '.py' else content_hash(file.path)}\n"
        for file in outside_files(stage, text)
    ]
    return "".join(sorted(lines))


def outside_files(stage: str, text: str) -> list[OutsideFile]:
    """List the files outside this project that a stage with these settings reads."""
    modules = [OutsideFile(name, path) for name, path in _allowed_modules(gin_modules(text)).items()]
    return [*modules, *_checkpoint_files(text), *(_raw_files(text) if stage == "prepare" else [])]


def link_outside_files(stages: dict[str, str], folder: Path = LINKS) -> None:
    """Link into ``data/raw``, which configure depends on, what lies elsewhere: DVC then sees it change.

    What is installed with Python is left out: an environment comes and goes, and a link to nowhere stops DVC.

    Args:
        stages: resolved text of each.
        folder: of the links, made anew.
    """
    shutil.rmtree(folder, ignore_errors=True)
    raw, installed = Path(RAW_DEFAULT).resolve(), Path(sys.prefix).resolve()
    for file in (file for stage, text in stages.items() for file in outside_files(stage, text)):
        target, link, place = file.path.resolve(), folder / file.name, file.path.parent.resolve()
        seen_anyway = {raw, installed} & {place, *place.parents, *target.parents}
        if target.is_file() and not seen_anyway and not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)


def _raw_files(text: str) -> list[OutsideFile]:
    config.load_text(text, "prepare")
    corpus = config.argument("stages.prepare.run", "corpus")
    return [OutsideFile(f"raw/{name.lstrip('/')}", experiment.link_missing(raw_folder() / name)) for name in corpus.raw_files()]


def _checkpoint_files(text: str) -> Iterator[OutsideFile]:
    """GGUF files, and files of the folders of pretrained models (they hold a config.json), that a text names."""
    for name in snapshots.words_in(text):
        try:
            folder = hub.local(name)
        except (ConfigError, OSError, ValueError):  # no path at all, or of a package that is not installed: the stage says so
            continue
        if folder is not None and folder.is_file():
            yield OutsideFile(f"checkpoint/{folder.name}", folder)
        elif folder is not None and (folder / "config.json").is_file() and not _written_by_a_stage(folder):
            inside = (*folder.iterdir(), *folder.glob("*/config.json"))  # a sentence encoder's pooling has a folder of its own
            names = sorted(str(path.relative_to(folder)) for path in inside if path.is_file())
            shown = [name for name in names if not name.startswith(".")]
            yield from (OutsideFile(f"checkpoint/{folder.resolve().name}/{name}", folder / name) for name in shown)


def _written_by_a_stage(folder: Path) -> bool:
    """Tell whether a folder of this project holds a model of its own: data of another stage, which DVC watches."""
    return (folder / DESCRIPTION).is_file() and Path.cwd() in folder.absolute().parents


def _allowed_modules(modules: list[str]) -> dict[str, Path]:
    """Source files of the modules that the environment allows, and of those of the same packages that they import."""
    sources: dict[str, Path] = {}
    queue = [module for module in modules if allowed_by_environment(module)]
    while queue:
        module = queue.pop()
        if module in sources or (spec := _spec(module)) is None or spec.origin is None or not spec.origin.endswith(".py"):
            continue
        sources[module] = Path(spec.origin)
        queue += [name for name in imported_modules(sources[module], spec.parent or "") if _package(name) == _package(module)]
    return dict(sorted(sources.items()))


def _package(module: str) -> str:
    return module.partition(".")[0]


def _spec(module: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
