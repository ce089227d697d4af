"""A preset as the text of a .gin file: a header in sentences, what it is made over, and its own bindings."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 130


@dataclass(frozen=True)
class PresetText:
    """What a preset file says.

    Attributes:
        header: paragraphs of its comment.
        imports: modules by their dotted names.
        base: preset that it includes.
        bindings: name and value, in order; ``effective.Source`` for what is no literal.
    """

    header: Sequence[str]
    imports: Sequence[str]
    base: str
    bindings: Sequence[tuple[str, object]]

    def written(self) -> str:
        """Write the file's text, one binding a line."""
        comment = [f"# {line}" for part in self.header for line in textwrap.wrap(part, WIDTH, break_on_hyphens=False)]
        modules = [module.rpartition(".") for module in sorted(set(self.imports))]
        lines = [*comment, "from __gin__ import dynamic_registration"]
        lines += [f"from {package} import {module}" for package, _, module in modules]
        lines += [f"include 'gin/presets/{self.base}.gin'", ""]
        return "\n".join([*lines, *(f"{name} = {value!r}" for name, value in self.bindings)]) + "\n"
