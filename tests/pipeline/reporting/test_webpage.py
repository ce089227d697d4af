"""The page as a file: valid, by itself, and nothing of what comes from data is taken for HTML."""

import pytest

from pipeline.reporting.panels import Line, Panel
from pipeline.reporting.provenance import Provenance
from pipeline.reporting.refinement import Example, Refinement, Stage, Token
from pipeline.reporting.webpage import Chapter, Page, bar, render
from tests.support.handmade import value
from tests.support.html_page import elements, played, read

HOSTILE = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><b onclick="x()">', "</style><script>", "{{ 7 * 7 }}{% raw %}",
    "![a](http://far.example/x.png) [b](javascript:alert(1)) <http://far.example>", "\u2028&amp;lt; ]]> --> <!--",
)  # fmt: skip


def page(text="plain", width=0):
    token = Token(text, right=False, changed=True, shade=3)
    stages = [Stage("frozen backbone", [Token(text, given=True), token], text), Stage("step 1", [token] * 2, text)]
    return Page(
        Provenance(text, [(text, text, text)], [(text, text)], [(text, text)], text),
        text,
        [bar("joint", value(0.5))],
        [
            Chapter(
                "Results and controls",
                f"| a | b |\n|---|---|\n| {text} | **1** |\n",
                [Panel(text, "x", "y", [Line(text, [1], [2], "#123456")], caption=text)],
            )
        ],
        Refinement([Example(3, text, text, text, stages)], text, width),
        [text],
        [text],
    )


@pytest.mark.parametrize("width", [0, 2])
@pytest.mark.parametrize("text", HOSTILE)
def test_what_comes_from_data_is_text(text, width):
    plain, hostile = (read(render(page(content, width))) for content in ("plain", text))
    shapes = [[(e.tag, sorted(e.attributes)) for e in elements(root)] for root in (plain, hostile)]
    assert shapes[0] == shapes[1]
    assert text in hostile.text() and len(hostile.all("script")) == len(hostile.all("style")) == 1
    ((first, second), _) = played(hostile)[3].values()
    assert first == (text, {"given"}) and second == (text, {"wrong", "p3", "changed"})


def test_a_table_is_a_table_and_scrolls_by_itself():
    (holder, *_) = [e for e in read(render(page())).all("div", "wide") if e.all("strong")]
    assert [cell.text() for cell in holder.all("td")] == ["plain", "1"] and holder.all("table")


def test_a_page_without_examples_says_so_or_leaves_them_out():
    nothing = Provenance("", [], [], [], "")
    without = render(Page(nothing, "h", [], []))
    assert "data-player>" not in without and "<h1>slotloop</h1>" in without and "Nothing: every setting" in without
    assert "run: dvc repro evaluate" in render(Page(nothing, "h", [], [], Refinement([], "rule", 0)))


def test_a_page_of_several_runs_has_a_name_and_no_provenance():
    text = render(Page(None, "h", [], [Chapter("A chapter", "words")], name="a & b"))
    assert "<h1>slotloop: a &amp; b</h1>" in text and "<title>slotloop: a &amp; b</title>" in text
    assert 'id="provenance"' not in text and 'class="bars"' not in text and "The bar is the mean" not in text
    assert "The bar is the mean" in render(page()) and 'id="provenance"' in render(page())


@pytest.mark.parametrize(
    ("number", "longest", "shares"),
    [
        (value(0.5, 0.1), 1.0, (0.5, 0.4, 0.6)),
        (value(3.0, 1.0), 4.0, (0.75, 0.5, 1.0)),
        ({"mean": 0.2, "n": 1}, 1.0, (0.2, 0.2, 0.2)),
        (value(-0.5, 0.1), 1.0, (0.0, 0.0, 0.0)),
        (value(0.0, 0.0), 0.0, (0.0, 0.0, 0.0)),
    ],
)
def test_a_bar_is_its_share_of_the_longest(number, longest, shares):
    shown = bar("joint", number, longest)
    assert (shown.mean, shown.low, shown.high) == pytest.approx(shares) and shown.meaning
