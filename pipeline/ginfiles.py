"""Reading .gin text without executing it: imports, includes, names. Done first, with gin's own parser, so that a file from a
stranger is refused before anything of it runs.
"""

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gin import config_parser

from pipeline.errors import ConfigError
from pipeline.params import MACRO

ALLOWED = ("components", "pipeline", "stages", "torch")


class Name(str):
    """A reference or macro that was read but not looked up."""


class _Names(config_parser.ParserDelegate):
    """Reads a text without importing or resolving anything."""

    def configurable_reference(self, scoped_name: str, evaluate: bool) -> Name:
        return Name(f"@{scoped_name}")

    def macro(self, scoped_name: str) -> Name:
        return Name(f"%{scoped_name}")


def imports(file: Path, root: Path) -> dict[str, str]:
    """Module alias -> import line of a .gin file and of what it includes.

    Raises:
        ConfigError: the file or an include does not exist, is malformed, or imports what is not allowed.
    """
    if not file.is_file():
        raise ConfigError(f"gin file '{file}' does not exist")
    found: dict[str, str] = {}
    try:
        with file.open(encoding="utf-8") as text:
            statements = list(config_parser.ConfigParser(text, _Names()))
    except SyntaxError as error:
        raise ConfigError(f"{file}:{error.lineno}: {error.msg}") from None
    for statement in statements:
        if isinstance(statement, config_parser.ImportStatement):
            if statement.module.startswith("__gin__"):
                continue
            if statement.module.split(".")[0] not in ALLOWED:
                raise ConfigError(f"{file}: may not import '{statement.module}'; allowed are {', '.join(ALLOWED)}")
            found[statement.bound_name()] = statement.format()
        elif isinstance(statement, config_parser.IncludeStatement):
            found |= imports(root / statement.filename, root)
    return found


def parse_value(text: str) -> Any:
    """A literal, with references and macros as ``Name``.

    Raises:
        SyntaxError: not a gin value.
    """
    parser = config_parser.ConfigParser(f"x = {text}", _Names())
    value = parser.parse_statement().value
    if parser.parse_statement() is not None:
        raise SyntaxError(f"more than one value in {text!r}")
    return value


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
        found = self.module(target[0])
        for name in target[1:]:
            found = getattr(found, name, None)
        return found if callable(found) else None

    def is_parameter(self, path: tuple[str, ...]) -> bool:
        """Whether a path is a macro, or names a parameter of a function or class."""
        _, target, parameter = self.split(".".join(path))
        if not target:
            return len(path) == 1 and MACRO.match(path[0]) is not None
        function = self.find(target)
        return function is not None and parameter in inspect.signature(function).parameters

    def selector(self, target: tuple[str, ...]) -> str:
        """gin's full name of a configurable."""
        return ".".join([self.module(target[0]).__name__, *target[1:]])

    def names(self) -> list[str]:
        """Everything that the imports make configurable."""
        return [
            f"{alias}.{name}"
            for alias in self.lines
            for name, value in vars(self.module(alias)).items()
            if not name.startswith("_") and callable(value) and getattr(value, "__module__", "") == self.module(alias).__name__
        ]

    def module(self, alias: str) -> Any:
        """The module that an alias means."""
        words = self.lines[alias].split()
        return importlib.import_module(f"{words[1]}.{words[3]}" if words[0] == "from" else words[1])
