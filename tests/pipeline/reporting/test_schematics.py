"""Diagrams of a recursion and of numbers in cells: what they show is in them as text, in the same bytes twice."""

import xml.etree.ElementTree as ElementTree

import pytest

from pipeline.reporting.panels import draw, pictures
from pipeline.reporting.schematics import Cells, Recursion


def texts(panel):
    return [e.text.strip() for e in ElementTree.fromstring(draw(panel, "n")).iter() if e.text and e.text.strip()]


def test_each_step_has_its_box_and_the_weight_of_its_loss():
    shown = texts(Recursion("t", [0.125, 0.0, 1.0], [3]))
    assert [word for word in shown if word in ("1", "2", "3", "0.125")] == ["1", "0.125", "2", "3", "1"]
    assert shown.count("none") == 1 and {"x L1", "x L3"} <= set(shown) and "x L2" not in shown


def arrows(panel):
    """Arrowheads: a path that is filled in the colour of gradients."""
    root = ElementTree.fromstring(draw(panel, "n"))
    return sum("fill: #c0504d" in (e.get("style") or "") for e in root.iter() if e.tag.endswith("path"))


@pytest.mark.parametrize(
    ("weights", "segments", "gradients"),
    [([1.0] * 4, [4], 3 + 4), ([1.0] * 4, [2, 2], 2 + 4), ([1.0] * 4, [1] * 4, 4), ([0.0, 0.0, 1.0], [3], 2 + 1), ([1.0], [1], 1)],
)
def test_gradients_flow_from_losses_and_between_steps_but_over_no_cut(weights, segments, gradients):
    assert arrows(Recursion("t", weights, segments)) == gradients


def test_of_many_steps_the_first_and_the_last_are_shown():
    shown = texts(Recursion("t", [1.0] * 64, [64]))
    assert {"1", "2", "3", "63", "64", "..."} <= set(shown) and "4" not in shown and "62" not in shown


def test_cells_hold_their_numbers_and_empty_ones_none():
    shown = texts(Cells("t", [[0.5, 0.0], [0.00025, 2.0]], "column", "row"))
    assert {"0.5", "0.00025", "2", "column", "row"} <= set(shown) and "0" not in shown
    assert {"1", "2"} <= set(texts(Cells("t", [[0.0, 0.0], [0.0, 0.0]], "column", "row")))


@pytest.mark.parametrize("panel", [Recursion("a title", [0.5, 1.0], [2]), Cells("a title", [[1.0]], "x", "y")])
def test_files_stand_alone_with_their_title_and_are_the_same_bytes_twice(panel):
    files = pictures(panel)
    assert files == pictures(panel) and set(files) == {".png", ".svg"}
    assert files[".png"].startswith(b"\x89PNG") and b"a title" in files[".svg"] and b"<dc:date>" not in files[".svg"]
    ElementTree.fromstring(files[".svg"])
