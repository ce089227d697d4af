"""Put the page together: one file with its style, its script and its diagrams, which opens without a network.

The template, style and script are ``webpage.html``, ``.css`` and ``.js`` beside this file. What comes from data is escaped: by the
template, and in tables, which are markdown, by a parser that knows neither HTML nor links nor images. The only door to ``jinja2``
and ``markdown_it``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from pipeline.corpora.sudoku import BOXES
from pipeline.reporting.figures import MODELS, UNKNOWN
from pipeline.reporting.panels import Diagram, draw
from pipeline.reporting.provenance import Provenance
from pipeline.reporting.refinement import SHADES, Refinement, Token

HERE = Path(__file__).resolve().parent
MEANINGS = {
    "frozen": "the backbone alone", "warmup": "with the refiner", "joint": "and the last layers trained",
    "finetune": "and the whole backbone trained", "control_backbone": "no refiner: backbone trained on, same compute",
    "control_warmup": "warmup continued, same compute", "control_lora": "no refiner: low-rank adapters, same compute",
    "control_adapter": "one block, no recursion", "control_refiner_lora": "refiner and low-rank adapters",
}  # fmt: skip


@dataclass(frozen=True)
class Bar:
    """A model's headline: its label and meaning, its value in words, and mean and interval as shares of the longest bar."""

    label: str
    meaning: str
    words: str
    colour: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Chapter:
    """A part of the page: tables and text as markdown, diagrams above them."""

    title: str
    text: str
    panels: Sequence[Diagram] = ()


@dataclass(frozen=True)
class Page:
    """All that the page shows.

    Attributes:
        provenance: where its numbers come from; None = of several runs, which chapters tell.
        headline: what the bars compare, in a sentence.
        bars: a model each.
        chapters: in their order.
        refinement: examples that are played; None = none can be.
        warnings: what a reader has to know before all else.
        findings: what was seen, a line each.
        name: of what it shows; "" = the preset that was run.
    """

    provenance: Provenance | None
    headline: str
    bars: Sequence[Bar]
    chapters: Sequence[Chapter]
    refinement: Refinement | None = None
    warnings: Sequence[str] = ()
    findings: Sequence[str] = ()
    name: str = ""

    @property
    def title(self) -> str:
        """Name the project and what of it the page shows."""
        shown = self.name or (self.provenance.preset if self.provenance else "")
        return f"slotloop: {shown}" if shown else "slotloop"


def bar(name: str, value: Mapping[str, float], longest: float = 1.0, words: str = "{:.3f}") -> Bar:
    """Make a model's bar of a mean with its interval.

    Args:
        name: of the model.
        value: ``mean``, ``low`` and ``high``.
        longest: value that fills the track.
        words: format of a number.
    """
    mean, low, high = (value.get(end, value["mean"]) for end in ("mean", "low", "high"))
    shares = (min(1.0, max(0.0, end / longest)) if longest else 0.0 for end in (mean, low, high))
    said = f"{words.format(mean)} [{words.format(low)}, {words.format(high)}]"
    return Bar(name, MEANINGS.get(name, ""), said, MODELS.get(name, UNKNOWN), *shares)


def render(page: Page) -> str:
    """Write a page as HTML."""
    style, script = (Markup((HERE / f"webpage.{kind}").read_text(encoding="utf-8").strip()) for kind in ("css", "js"))
    text = _environment().get_template("webpage.html").render(page=page, style=style, script=script, shades=SHADES)
    return f"{text.strip()}\n"


@cache
def _environment() -> Environment:
    loader = FileSystemLoader(HERE)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["image", "link", "autolink", "html_inline"])
    reader.add_render_rule("table_open", lambda *_: '<div class="wide"><table>\n')
    reader.add_render_rule("table_close", lambda *_: "</table></div>\n")
    environment.filters |= {
        "markdown": lambda text: Markup(reader.render(text)),
        "drawn": lambda panel, name: Markup(draw(panel, name)),
        "slug": slug,
    }
    environment.globals |= {"look": _look, "box": _box}
    return environment


def _box(width: int) -> tuple[int, int]:
    """Rows and columns of a box in a grid."""
    return BOXES.get(width, (width, width))


def _look(token: Token) -> str:
    """Name the classes of a token."""
    if token.given:
        return "given"
    return f"{'right' if token.right else 'wrong'} p{token.shade}{' changed' if token.changed else ''}"


def slug(title: str) -> str:
    """Name a chapter for links within the page.

    >>> slug("Quality against steps, passes and FLOPs")
    'quality-against-steps-passes-and-flops'
    """
    return "-".join("".join(letter if letter.isalnum() else " " for letter in title.lower()).split())
