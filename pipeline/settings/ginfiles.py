"""Reading .gin text without executing it: imports, includes, names. Done first, with gin's own parser, so that a file from a
stranger is refused before anything of it runs.
"""

import difflib
import importlib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from tokenize import TokenError
from typing import Any

from gin import config_parser

from pipeline.errors import ConfigError
from pipeline.files import absence
from pipeline.settings.allowed_modules import MORE_ALLOWED, allowed, is_allowed
from pipeline.settings.params import MACRO_NAME, hint

BOUND_ONLY = "stages"  # may be imported to bind what they take, and not be referred to: that would run them
MACRO = "gin.macro"

Key = tuple[str, str, str]  # scope, selector, parameter: gin's own key of a binding


class Name(str):
    """A reference or macro that was read but not looked up."""


class _Names(config_parser.ParserDelegate):
    """Reads a text without importing or resolving anything; remembers what it refers to."""

    def __init__(self) -> None:
        self.references: list[str] = []
        self.macros: list[str] = []

    def configurable_reference(self, scoped_name: str, evaluate: bool) -> Name:
        self.references.append(scoped_name)
        return Name(f"@{scoped_name}")

    def macro(self, scoped_name: str) -> Name:
        self.macros.append(scoped_name)
        return Name(f"%{scoped_name}")


@dataclass(frozen=True)
class Statement:
    """One binding in a .gin file: ``file:line``, and its dotted key (a macro's name alone)."""

    origin: str
    key: str


@dataclass(frozen=True)
class Scan:
    """What a .gin file and its includes would do.

    Attributes:
        imports: alias -> import line.
        names: (file, name) of everything that they bind.
        references: (file, name) of everything that they refer to.
        bindings: of the file itself, in order.
        included: of its includes.
        macros: names of the macros that they use.
        files: the file and its includes.
    """

    imports: dict[str, str]
    names: list[tuple[str, str]]
    references: list[tuple[str, str]]
    bindings: list[Statement]
    included: list[Statement]
    macros: set[str]
    files: list[Path]


def scan(file: Path, root: Path, outer: tuple[Path, ...] = ()) -> Scan:
    """Read a .gin file and what it includes.

    Raises:
        ConfigError: the file or an include does not exist, is malformed, includes itself, or imports what is not allowed.
    """
    if not file.is_file():
        raise ConfigError(f"gin file '{file}' {absence(file)}")
    if file in outer:
        raise ConfigError(f"{file} includes itself, through {' and '.join(map(str, outer))}")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not text: {error.reason}") from None
    return _scan_text(text, file, root, outer)


def check_text(text: str, origin: str) -> None:
    """Read a text that stands alone, as configure writes it: what it imports and names is allowed, and nothing is bound twice.

    Raises:
        ConfigError: it is malformed, includes a file, or names or imports what it may not.
    """
    _check_text(text, origin, allowed())


@cache
def _check_text(text: str, origin: str, allowed: tuple[str, ...]) -> None:
    namespace([_scan_text(text, Path(origin), None, ())])


def namespace(scans: Iterable[Scan]) -> "Namespace":
    """Join what texts import; every name that they use must be among it.

    Raises:
        ConfigError: a name is none that they may use.
    """
    scans = list(scans)
    names = Namespace({alias: line for scan in scans for alias, line in scan.imports.items()})
    for scan in scans:
        for origin, name in scan.names:
            names.check(origin, name)
        for origin, name in scan.references:
            names.check(origin, name, reference=True)
    return names


def _scan_text(text: str, file: Path, root: Path | None, outer: tuple[Path, ...]) -> Scan:
    """Read the text of ``file``, and what it includes from ``root``; None = it may include nothing."""
    statements, references, macros = _statements(text, file)
    result = Scan({}, [], [], [], [], {*macros}, [file])
    lines: dict[str, int] = {}
    for statement in statements:
        if isinstance(statement, config_parser.ImportStatement):
            if statement.module.split(".")[0] == "__gin__":
                continue
            if not is_allowed(statement.module):
                where = f"{file}:{statement.location.line_num}"
                listed = f"{', '.join(allowed())} (and what the environment variable {MORE_ALLOWED} lists)"
                near = difflib.get_close_matches(statement.module, allowed(), n=1, cutoff=0.8)
                meant = f"; did you mean '{near[0]}'?" if near else ""
                raise ConfigError(f"{where}: may not import '{statement.module}'{meant}; allowed are {listed}")
            result.imports[statement.bound_name()] = statement.format()
        elif isinstance(statement, config_parser.IncludeStatement):
            if root is None:
                raise ConfigError(f"{file}:{statement.location.line_num}: a text that configure wrote includes no other")
            included = scan(root / statement.filename, root, (*outer, file))
            result.imports.update(included.imports)
            result.names.extend(included.names)
            result.references.extend(included.references)
            result.files.extend(included.files)
            result.included.extend([*included.included, *included.bindings])
            result.macros.update(included.macros)
        elif isinstance(statement, config_parser.BindingStatement):
            result.names.append((str(file), statement.selector))
            key = "/".join(filter(None, (statement.scope, statement.selector)))
            key = f"{key}.{statement.arg_name}" if statement.arg_name else key
            origin = f"{file}:{statement.location.line_num}"
            if lines.setdefault(key, statement.location.line_num) != statement.location.line_num:
                raise ConfigError(f"{origin}: '{key}' is bound twice; also in line {lines[key]}")
            result.bindings.append(Statement(origin, key))
    result.references.extend((str(file), reference) for reference in references)
    return result


@lru_cache(maxsize=256)
def _statements(text: str, file: Path) -> tuple[list[Any], list[str], list[str]]:
    """Parse a text with gin's own parser, which looks nothing up: statements, and the names of references and macros. Each stage
    reads the same files of a preset.
    """
    delegate = _Names()
    try:
        return list(config_parser.ConfigParser(text, delegate)), delegate.references, delegate.macros
    except SyntaxError as error:
        raise ConfigError(f"{file}:{error.lineno}: {' '.join(error.msg.split())}") from None
    except TokenError as error:
        raise ConfigError(f"{file}:{error.args[1][0]}: {error.args[0]}") from None
    except RecursionError:
        raise ConfigError(f"{file}: values are nested too deeply") from None


@dataclass(frozen=True)
class Value:
    """A value that was read and not looked up: literal with ``Name`` for references and macros, and the names of both."""

    literal: Any
    references: list[str]
    macros: list[str]


def parse_value(text: str) -> Value:
    """Read one gin value from text.

    Raises:
        SyntaxError: not a gin value.
    """
    delegate = _Names()
    parser = config_parser.ConfigParser(f"x = {text}", delegate)
    try:
        value = parser.parse_statement().value
        rest = parser.parse_statement()
    except TokenError as error:
        raise SyntaxError(str(error.args[0])) from None
    except RecursionError:
        raise SyntaxError("values are nested too deeply") from None
    if rest is not None:
        raise SyntaxError(f"more than one value in {text!r}")
    return Value(value, delegate.references, delegate.macros)


class Namespace:
    """The modules that a stage's .gin files import, and what a dotted key means among them."""

    def __init__(self, lines: Mapping[str, str]) -> None:
        self.lines = dict(lines)

    @property
    def header(self) -> str:
        """Import statements, to put before a binding."""
        return "from __gin__ import dynamic_registration\n" + "".join(f"{line}\n" for line in self.lines.values())

    def split(self, key: str) -> tuple[tuple[str, ...], tuple[str, ...], str]:
        """Scopes, configurable (module alias first; empty for a macro) and parameter of a dotted key.

        Leading names that no file imports are scopes, if an imported module follows.
        """
        *before, rest = key.split("/")
        scopes, words = [part for text in before for part in text.split(".")], rest.split(".")
        start = next((i for i, word in enumerate(words) if word in self.lines and len(words) - i >= 3), 0)
        return (*scopes, *words[:start]), tuple(words[start:-1]), words[-1]

    def find(self, target: tuple[str, ...]) -> Any:
        """The function or class that a dotted name means, or None."""
        if len(target) < 2 or target[0] not in self.lines:
            return None
        value = self.module(target[0])
        for name in target[1:]:
            value = getattr(value, name, None)
            if inspect.ismodule(value) and not is_allowed(value.__name__):
                return None
        return value if callable(value) and is_allowed(getattr(value, "__module__", "")) else None

    def check(self, origin: str, name: str, *, reference: bool = False) -> None:
        """Raise ConfigError unless a name that a text uses is one that it may use: not a module behind a module, for example."""
        target = tuple(name.split("/")[-1].split("."))
        if not reference and (len(target) < 2 or target[0] not in self.lines):
            return
        value = self.find(target)
        if value is None:
            known = hint(".".join(target), self.names())
            raise ConfigError(f"{origin}: nothing configurable is called '{'.'.join(target)}'{known}")
        if reference and value.__module__.split(".")[0] == BOUND_ONLY:
            raise ConfigError(f"{origin}: '{name}' would run a stage; a value cannot be that")

    def is_parameter(self, path: tuple[str, ...]) -> bool:
        """Whether a path is a macro, or names a parameter of a function or class."""
        _, target, parameter = self.split(".".join(path))
        if not target:
            return len(path) == 1 and MACRO_NAME.match(path[0]) is not None
        function = self.find(target)
        return function is not None and parameter in inspect.signature(function).parameters

    def key(self, key: str) -> Key:
        """gin's own key of a dotted key that exists."""
        scopes, target, parameter = self.split(key)
        return ("/".join(scopes), self.selector(target), parameter) if target else (parameter, MACRO, "value")

    def selector(self, target: tuple[str, ...]) -> str:
        """gin's full name of a configurable."""
        return ".".join([self.module(target[0]).__name__, *target[1:]])

    def names(self) -> list[str]:
        """List everything that the imports make configurable."""
        return [
            f"{alias}.{name}"
            for alias in self.lines
            for name, value in vars(self.module(alias)).items()
            if not name.startswith("_") and callable(value) and getattr(value, "__module__", "") == self.module(alias).__name__
        ]

    def module(self, alias: str) -> Any:
        """The module that an alias means.

        Raises:
            ConfigError: it does not exist, or fails when it is imported.
        """
        words = self.lines[alias].split()
        name = f"{words[1]}.{words[3]}" if words[0] == "from" else words[1]
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(f"cannot import '{name}', which a gin file names: {error}") from None
