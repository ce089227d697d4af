"""The .gin files of each layer of settings, read and not executed; and what of a preset must have an effect somewhere."""

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.files import absence
from pipeline.settings.ginfiles import MACRO, Key, Namespace, Scan, scan
from pipeline.settings.params import Params, hint

UNUSED = "no stage uses this, or it is misspelt"


@dataclass(frozen=True)
class File:
    """A .gin file of a layer: the line that names it ("" for those that belong to the stage), its path, and what it would do."""

    origin: str
    path: Path
    scan: Scan


def files_of_layers(stage: str, params: Params, root: Path) -> dict[str, list[File]]:
    """Read the .gin files of each layer of a stage's settings; nothing of them is executed.

    Raises:
        ConfigError: as ``ginfiles.scan``; or there is no such preset.
    """
    named = {
        "preset": [("", _preset(params, root))],
        "stage file": [("", root / "gin" / f"{stage}.gin")],
        **{layer: [(origin, root / path) for origin, path in params.files(layer)] for layer in ("common", stage)},
    }
    layers: dict[str, list[File]] = {layer: [] for layer in named}
    for layer, files in named.items():
        for origin, path in files:
            try:
                layers[layer].append(File(origin, path, scan(path, root)))
            except ConfigError as error:
                have = [str(p.relative_to(root)) for p in (root / "gin").rglob("*.gin")]
                missing = "" if path.is_file() else hint(str(path).removeprefix(f"{root}/"), have)
                raise ConfigError(f"{origin + ': ' if origin else ''}{error}{missing}") from None
    return layers


def _preset(params: Params, root: Path) -> Path:
    folder = root / "gin" / "presets"
    file = folder / f"{params.preset}.gin"
    if not folder.is_dir():
        raise ConfigError(f"{folder} {absence(folder, 'folder')}; run from the project's folder, which holds gin/ and params.yaml")
    if not re.fullmatch(r"[\w-]{1,100}", params.preset) or not file.is_file():
        have = [p.stem for p in folder.glob("*.gin") if p.stem != "defaults"]
        raise ConfigError(f"{params.preset_line()}: unknown preset '{params.preset[:100]}'{hint(params.preset[:100], have)}")
    return file


def preset_claims(
    layers: Mapping[str, list[File]], names: Namespace, used: set[Key], mentioned: set[str], given: Container[tuple[str, str]]
) -> tuple[dict[str, tuple[bool, str]], dict[str, bool]]:
    """Check a preset: something uses its macros and refers to what it binds, and no stage's own file overrides it.

    Returns:
        ``claims`` and ``reached`` of ``config.Resolved``; ``given``: (selector, parameter) of what the stage passes itself.
    """
    claims, reached = {}, {}
    statements = [s for file in layers["preset"] for s in (*file.scan.included, *file.scan.bindings)]
    macros = frozenset(s.key for s in statements if names.key(s.key)[1] == MACRO)
    later = {names.key(s.key) for file in layers["stage file"] for s in (*file.scan.included, *file.scan.bindings)}
    for s in statements:
        key = names.key(s.key)
        if key[1] == MACRO:
            claims[s.origin] = s.key in mentioned, f"nothing uses the macro '{s.key}'{_nearest_macro(s.key, macros)}"
        else:
            name = s.key.rpartition(".")[0]
            works = key not in later if key in used else any(reference.endswith(name) for reference in mentioned)
            if key in used or key in later or key[1:] in given:
                reached[s.origin] = key in used and key not in later
            why = f"nothing refers to '{name}', or the stage's own gin file sets it afterwards"
            claims[s.origin] = works, f"'{s.key}' has no effect: {why}; bind it in params.yaml, or set the macro that stands there"
    return claims, reached


@cache
def _nearest_macro(name: str, macros: frozenset[str]) -> str:
    """The hint for a macro that nothing uses: looked for once and not for every stage, which took a tenth of configure's time."""
    return hint(name, macros - {name})
