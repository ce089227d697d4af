"""Diagrams: SVG that stands in a page beside others, with the same bytes from the same data."""

import xml.etree.ElementTree as ElementTree

import pytest

from pipeline.reporting.figures import plt
from pipeline.reporting.panels import Line, Panel, draw

LINE = Line("a", [1, 10, 100], [0.5, 0.25, 0.75], "#2b5c8a", low=[0.4, 0.2, 0.7], high=[0.6, 0.3, 0.8], ringed=[1])
PANEL = Panel("a title", "steps", "share right", [LINE], xscale="log")


def test_a_panel_is_svg_whose_text_is_text_and_the_same_bytes_twice():
    text = draw(PANEL, "one")
    assert text == draw(PANEL, "one") and text.startswith("<svg") and text.endswith("</svg>")
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert ">share right</text>" in text and "<metadata" not in text and "<!DOCTYPE" not in text


def test_panels_on_one_page_share_no_name():
    names = [{e.get("id") for e in ElementTree.fromstring(draw(PANEL, name)).iter()} - {None} for name in ("one", "two")]
    assert all(names) and not names[0] & names[1]


def test_what_a_panel_refers_to_is_in_it():
    root = ElementTree.fromstring(draw(PANEL, "one"))
    ids = {element.get("id") for element in root.iter()}
    links = {v.removeprefix("#") for e in root.iter() for k, v in e.attrib.items() if k.endswith("href")}
    clips = {e.get("clip-path")[5:-1] for e in root.iter() if e.get("clip-path")}
    assert links and clips and links | clips <= ids


@pytest.mark.parametrize("label", ["$x^2$ & <b>", "a_b $", '"quoted" \\frac', "<script>alert(1)</script>"])
def test_a_label_is_shown_as_it_is(label):
    texts = [e.text for e in ElementTree.fromstring(draw(Panel("t", label, "y", [LINE]), "n")).iter() if e.text]
    assert label in texts


def test_other_data_gives_another_panel_and_style_does_not_leak():
    before = dict(plt.rcParams)
    other = Panel("a title", "steps", "share right", [Line("a", [1, 2], [3, 4], "#2b5c8a", dash="dashed", marker="")])
    assert draw(other, "one") != draw(PANEL, "one") and dict(plt.rcParams) == before
