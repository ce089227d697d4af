"""A preset for data of one's own: looked at, proposed by stated rules, checked as configure does, and written in one go."""

import dataclasses
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.errors import ConfigError, DataError
from pipeline.files import absence, write_atomic
from pipeline.planning import fleet, plan_report
from pipeline.planning import plan as planning
from pipeline.planning.own_backbone import own_backbone
from pipeline.planning.own_embeddings import own_embeddings
from pipeline.planning.own_puzzles import grid_size, own_puzzles
from pipeline.planning.own_text import own_text
from pipeline.planning.preset_text import PresetText
from pipeline.settings import config, params
from pipeline.text import survey
from pipeline.text.raw_files import raw_folder
from pipeline.text.vector_files import SUFFIXES

PRESETS = Path("gin") / "presets"
NAME = re.compile(r"[A-Za-z]\w{0,59}")
ROOM = 0.6  # of the machine's memory that a stage may take


class OwnData(Protocol):
    """Interface of data that a preset can be proposed for: what was seen of them, how many a step takes, and the preset's text."""

    @property
    def seen(self) -> Sequence[str]: ...

    @property
    def batch(self) -> int: ...

    def preset(self, batch: int, made_by: str) -> PresetText: ...


@dataclass(frozen=True)
class Request:
    """What a person says of their data: the preset's name, files, templates and backbone; "" where nothing is said."""

    name: str
    train: str
    test: str = ""
    prompt: str = ""
    response: str = ""
    backbone: str = ""

    def command(self) -> str:
        """Write these words as a command line has them."""
        flags = [(flag, getattr(self, flag)) for flag in ("train", "test", "prompt", "response", "backbone")]
        words = [word for flag, value in flags if value for word in (f"--{flag}", shlex.quote(value))]
        return " ".join([self.name, *(word.replace("\n", "\\n") for word in words)])


def write_preset(request: Request, *, overwrite: bool) -> None:
    """Look at the data, tell what was seen, and write the preset once configure and the plan accept it.

    Raises:
        ConfigError: the name is none or taken, or what is proposed does not fit the settings in params.yaml.
        DataError: the data cannot be read.
    """
    target = _target(request.name, overwrite=overwrite)
    settings = params.read(Path("params.yaml"), params.SECTIONS)
    data = look_at(request)
    print("\n".join(f"new: {line}" for line in data.seen), flush=True)
    text, texts, fit = _fitting(data, request, settings)
    print(f"new: {fit}\n", flush=True)
    print(plan_report.summary(planning.plan(texts), fleet.fleet(texts["warmup"]), Path()))
    write_atomic(target, text.encode())
    print(f"\nnew: wrote {target}, checked as configure does; train, compare and report: dvc exp run -S preset={request.name}")


def look_at(request: Request) -> OwnData:
    """Tell what kind of data it is, and look at it.

    Raises:
        ConfigError: what is said of it does not go together.
        DataError: it cannot be read.
    """
    for flag in ("train", "test", "prompt", "response", "backbone"):
        try:
            getattr(request, flag).encode()
        except UnicodeEncodeError:
            raise ConfigError(f"--{flag} is not text in UTF-8: {getattr(request, flag)!r:.100}") from None
    templates = survey.given_templates(request.prompt, request.response)
    train = place(request.train, "--train")
    test = place(request.test, "--test") if request.test else None
    if train.is_dir() or train.suffix in SUFFIXES:
        if templates or request.backbone:
            raise ConfigError(f"--prompt, --response and --backbone are for text, and {train} is of embeddings; leave them out")
        return own_embeddings(train, test)
    size = grid_size(train) if train.is_file() and templates is None else None
    if size is not None and request.backbone:
        raise ConfigError(f"--backbone is for text, and {train} holds puzzles of {size}x{size} cells; leave it out")
    if size is not None:
        return own_puzzles(train, test, size)
    return own_text(train, test, templates, own_backbone(request.backbone) if request.backbone else None)


def place(given: str, flag: str) -> Path:
    """Find the file or folder that a flag names: as a shell would, else in the raw folder.

    Raises:
        ConfigError: no path is given.
        DataError: it is in neither place.
    """
    if not given.strip():
        raise ConfigError(f"{flag} is missing: the file of your examples, such as {flag} mine.jsonl")
    here, raw = Path(given), raw_folder() / given
    if here.exists() or raw.exists():
        return here if here.exists() else raw
    raise DataError(f"{here} {absence(here)}, neither here nor in {raw_folder()}; name a file of examples: {flag} FILE")


def _target(name: str, *, overwrite: bool) -> Path:
    if not NAME.fullmatch(name):
        raise ConfigError(f"a preset's name is a letter and up to 59 letters, digits or '_', got {name!r:.100}")
    if not PRESETS.is_dir():
        raise ConfigError(
            f"{PRESETS} {absence(PRESETS, 'folder')}; run from the project's folder, which holds gin/ and params.yaml"
        )
    target = PRESETS / f"{name}.gin"
    if os.path.lexists(target) and not overwrite:
        raise ConfigError(f"{target} is there already; choose another name, or replace it: --overwrite")
    if name == "defaults":
        raise ConfigError(f"{target} is what all presets share; choose another name")
    return target


def _fitting(data: OwnData, request: Request, settings: params.Params) -> tuple[str, Mapping[str, str], str]:
    """The preset whose plan fits this machine: examples of a step are halved until it does. Its text, resolved, and why."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    batch = data.batch
    while True:
        text = data.preset(batch, request.command()).written()
        texts = _resolved(request.name, text, settings)
        costs = {cost.stage: cost.memory for cost in planning.plan(texts).costs}
        most = max(costs, key=lambda stage: costs[stage])
        takes = f"{batch} examples a step: {most} takes {costs[most] / 1e9:.1f} GB at most, this machine has {memory / 1e9:.1f} GB"
        if costs[most] <= ROOM * memory or "'cuda" in texts["warmup"]:
            return text, texts, takes
        if batch == 1:
            return text, texts, f"{takes}: THIS MAY NOT FIT (docs/backbones.md says what takes less)"
        batch //= 2


def _resolved(name: str, text: str, settings: params.Params) -> dict[str, str]:
    """Resolve and check every stage's settings as if the preset were there and chosen; nothing is written beside it."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree("gin", Path(folder) / "gin")
        (Path(folder) / PRESETS / f"{name}.gin").unlink(missing_ok=True)
        write_atomic(Path(folder) / PRESETS / f"{name}.gin", text.encode())
        chosen = dataclasses.replace(settings, preset=name)
        try:
            return config.resolve_all(params.SECTIONS, chosen, Path(folder))
        except ConfigError as error:
            raise ConfigError(str(error).replace(f"{folder}{os.sep}", "")) from None
