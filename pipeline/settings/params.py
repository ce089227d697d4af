"""params.yaml: sections, and their nested maps as dotted bindings with the line each stands on. The only door to YAML.

Read as YAML 1.2, the way DVC reads it: ``5e-4`` is a number, ``no`` is a word.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import ConfigError
from pipeline.files import write_atomic

STAGES = ("prepare", "backbone", "extract", "warmup", "joint", "finetune", "controls", "evaluate", "report")  # in their order
SECTIONS = (*STAGES, "generate", "export", "ablate", "track")  # what params.yaml configures
MACRO_NAME = re.compile(r"[A-Z][A-Z0-9_]*$")
_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?$")


@dataclass(frozen=True)
class Binding:
    """One setting by a user: where it stands, its dotted key, and its value as gin source."""

    origin: str
    key: str
    text: str


@dataclass(frozen=True)
class Params:
    """A params.yaml, read: the preset's name, and the sections as they stand in the file."""

    file: Path
    preset: str
    sections: Mapping[str, Any]

    def files(self, section: str) -> list[tuple[str, str]]:
        """Further gin files of a section: (origin, path).

        Raises:
            ConfigError: ``gin`` is not a list of names.
        """
        names = self._part(section, "gin", list, "a list of gin files")
        origin = f"{self._line(section)} {section}.gin"
        if wrong := [name for name in names if not isinstance(name, str)]:
            raise ConfigError(f"{origin}: expected a list of gin files, got {type(wrong[0]).__name__} in it")
        return [(origin, str(name)) for name in names]

    def bindings(self, section: str, is_parameter: Callable[[tuple[str, ...]], bool]) -> list[Binding]:
        """Every binding of a section, in order.

        Args:
            section: its name.
            is_parameter: whether a path names a parameter: a map below it is then a value, not more path.

        Raises:
            ConfigError: ``bindings`` is not a map or without end, a value has no form in gin, or one key is bound twice.
        """
        tree = self._part(section, "bindings", Mapping, "a map of bindings")
        by_key: dict[str, Binding] = {}
        try:
            for binding in _leaves(tree, (), f"{section}.bindings", self.file, is_parameter):
                if binding.key in by_key:
                    raise ConfigError(f"{binding.origin}: bound twice; also at {by_key[binding.key].origin}")
                by_key[binding.key] = binding
        except RecursionError:
            raise ConfigError(f"{self._line(section)} {section}.bindings: values are nested too deeply") from None
        return list(by_key.values())

    def preset_line(self) -> str:
        """Where the preset is named."""
        return self._line("preset")

    def _line(self, name: str) -> str:
        return _line(self.file, self.sections, name)

    def _part(self, section: str, name: str, kind: Any, expected: str) -> Any:
        content = self.sections.get(section) or {}
        where = f"{self._line(section)} {section}"
        if not isinstance(content, Mapping) or set(content) - {"gin", "bindings"}:
            raise ConfigError(f"{where}: a section may hold 'gin' (a list of files) and 'bindings' (a map), nothing else")
        part = content.get(name)
        if part is None:
            return kind() if kind is list else {}
        if not isinstance(part, kind):
            raise ConfigError(f"{where}.{name}: expected {expected}, got {part!r}")
        return part


def read(path: Path, stages: Iterable[str]) -> Params:
    """Read and check params.yaml, with the line of each section.

    Raises:
        ConfigError: missing or malformed file, unknown section, no preset.
    """
    try:
        loaded = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; run from the folder that holds it") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; it has to be a file that holds 'preset: <name>'") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8: {error.reason} at byte {error.start}") from None
    except (YAMLError, ValueError, TypeError, AttributeError, LookupError, AssertionError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split()) or type(error).__name__}") from None
    if not isinstance(loaded, Mapping) or not isinstance(loaded.get("preset"), str):
        raise ConfigError(f"{path} must hold a map with 'preset: <name>'")
    known = {"preset", "common", *stages}
    for name in loaded:
        if name not in known:
            raise ConfigError(f"{_line(path, loaded, name)}: unknown section '{name}'{hint(str(name), known)}")
    return Params(path, str(loaded["preset"]), loaded)


def dump(tree: Mapping[str, Any]) -> str:
    """A nested map as YAML, one value a line where it can be."""
    yaml, text = YAML(typ="safe", pure=True), StringIO()
    yaml.default_flow_style, yaml.width = False, 1_000_000
    yaml.dump(tree, text)
    return text.getvalue()


def hint(word: str, known: Iterable[str]) -> str:
    """The nearest known name, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if not near:  # same last word, other module
        near = [name for name in names if name.split(".")[-1] == word.split(".")[-1]][:1]
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(names[:20])}"


def _leaves(
    tree: Mapping[str, Any], path: tuple[str, ...], where: str, file: Path, is_parameter: Callable[[tuple[str, ...]], bool]
) -> Iterator[Binding]:
    for key, value in tree.items():
        origin = f"{_line(file, tree, key)} {where}.{key}"
        if not isinstance(key, str):
            raise ConfigError(f"{origin}: a name was expected, got {key!r}")
        longer = (*path, key)
        if isinstance(value, Mapping) and not is_parameter(longer):
            yield from _leaves(value, longer, f"{where}.{key}", file, is_parameter)
        else:
            yield Binding(origin, ".".join(longer), _to_gin(value, origin))


def _to_gin(value: Any, origin: str) -> str:
    """A YAML value as gin source; strings that begin with @ or % are references and macros."""
    if isinstance(value, bool) or value is None:
        return repr(value)
    if isinstance(value, int):
        return repr(int(value))
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise ConfigError(f"{origin}: expected a finite number, got {value}")
        return repr(float(value))
    if isinstance(value, str):
        if re.fullmatch(r"[@%][\w./]+(\(\))?", value):
            return str(value)
        if _NUMBER.match(value):
            raise ConfigError(f"{origin}: '{value}' is a string that looks like a number; write it without quotes")
        return repr(str(value))
    if isinstance(value, list):
        return "[" + ", ".join(_to_gin(item, origin) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_to_gin(k, origin)}: {_to_gin(v, origin)}" for k, v in value.items()) + "}"
    raise ConfigError(f"{origin}: cannot use a value of type {type(value).__name__}")


def _line(file: Path, tree: Any, key: Any) -> str:
    """``file:line`` of a key."""
    places = getattr(getattr(tree, "lc", None), "data", None) or {}
    return f"{file}:{places[key][0] + 1}" if key in places else str(file)


def with_bindings(file: Path, out: Path, bindings: Mapping[str, Mapping[str, Any]], preset: str = "") -> None:
    """Write the settings of ``file`` to ``out`` with further bindings over them, by section, and another preset if one is given."""
    yaml = YAML()
    document = yaml.load(file.read_text())
    document["preset"] = preset or document["preset"]
    for section, further in bindings.items():
        tree = document.setdefault(section, {})
        tree["bindings"] = {**(tree.get("bindings") or {}), **further}
    stream = StringIO()
    yaml.dump(document, stream)
    write_atomic(out, stream.getvalue().encode())
