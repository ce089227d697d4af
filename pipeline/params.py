"""params.yaml: sections, and their nested maps as dotted bindings with the line each stands on. The only door to YAML.

Read as YAML 1.2, the way DVC reads it: ``5e-4`` is a number, ``no`` is a word.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import ConfigError

_MACRO = re.compile(r"[A-Z][A-Z0-9_]*$")
_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?$")


@dataclass(frozen=True)
class Binding:
    """One setting by a user: where it stands, its dotted key, and its value as gin source."""

    origin: str
    key: str
    text: str


def read_params(path: Path, stages: Iterable[str]) -> dict[str, Any]:
    """Read params.yaml (YAML 1.2, as DVC does: ``5e-4`` is a number).

    Raises:
        ConfigError: missing or malformed file, unknown section, no preset.
    """
    try:
        loaded = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; run from the folder that holds it") from None
    except YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(loaded, Mapping) or not isinstance(loaded.get("preset"), str):
        raise ConfigError(f"{path} must hold a map with 'preset: <name>'")
    known = {"preset", "common", *stages}
    for name in loaded:
        if name not in known:
            raise ConfigError(f"{line(path, loaded, name)}: unknown section '{name}'{hint(name, known)}")
    return dict(loaded) | {"file": path, "lines": loaded}


def section(params: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """One section, empty if absent.

    Raises:
        ConfigError: it holds something else than ``gin`` and ``bindings``.
    """
    found = params.get(name) or {}
    where = line(params["file"], params["lines"], name) if name in params else str(params["file"])
    if not isinstance(found, Mapping) or set(found) - {"gin", "bindings"}:
        raise ConfigError(f"{where}: section '{name}' may hold 'gin' (a list of files) and 'bindings' (a map)")
    return found


def bindings(params: Mapping[str, Any], name: str) -> Iterator[Binding]:
    """Every binding of a section, in order."""
    yield from _leaves(section(params, name).get("bindings") or {}, (), f"{name}.bindings", params["file"])


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...], where: str, file: Path) -> Iterator[Binding]:
    for key, value in tree.items():
        origin = f"{line(file, tree, key)} {where}.{key}"
        if isinstance(value, Mapping) and not (path and _MACRO.match(str(key))):
            yield from _leaves(value, (*path, str(key)), f"{where}.{key}", file)
        else:
            yield Binding(origin, ".".join((*path, str(key))), _to_gin(value, origin))


def _to_gin(value: Any, origin: str) -> str:
    """A YAML value as gin source; strings that begin with @ or % are references and macros."""
    if isinstance(value, bool) or value is None:
        return repr(value)
    if isinstance(value, int):
        return repr(int(value))
    if isinstance(value, float):
        return repr(float(value))
    if isinstance(value, str):
        if value[:1] in ("@", "%") and len(value) > 1:
            return str(value)
        if _NUMBER.match(value):
            raise ConfigError(f"{origin}: '{value}' is a string that looks like a number; write it without quotes")
        return repr(str(value))
    if isinstance(value, list):
        return "[" + ", ".join(_to_gin(v, origin) for v in value) + "]"
    raise ConfigError(f"{origin}: cannot use a value of type {type(value).__name__}")


def line(file: Path, tree: Any, key: Any) -> str:
    """``file:line`` of a key."""
    position = getattr(tree, "lc", None)
    return f"{file}:{position.key(key)[0] + 1}" if position is not None and key in tree else str(file)


def hint(word: str, known: Iterable[str]) -> str:
    """The nearest known name, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if not near:  # same last word, other module
        near = [name for name in names if name.split(".")[-1] == word.split(".")[-1]][:1]
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(names[:20])}"
