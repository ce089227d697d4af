"""Links of the documents: the page, the heading and the picture that each names exist, on a disk as on the site."""

import re
from functools import cache

import pytest

from tests.conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
OUTSIDE = ("https://semver.org", "https://huggingface.co/")  # what a reader may be sent to; nothing of it is needed to read on


def prose(text):
    """Its text without code, where brackets mean something else."""
    return re.sub(r"`[^`\n]+`", "``", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


@cache
def anchors(page):
    """Of its headings, as a repository's pages spell them, and those that are written out."""
    lines = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", lines, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings} | {
        *re.findall(r'<a id="(.+?)"', lines)
    }


def links(page):
    """Text and target of every link and picture."""
    return re.findall(r"!?\[([^\]]*)\]\(([^)\s]+)\)", prose(page.read_text()))


def wrong(page, target):
    """What is wrong with a link, or nothing."""
    if "://" in target:
        return "" if target.startswith(OUTSIDE) else "leads outside"
    path, _, anchor = target.partition("#")
    aim = (page.parent / path).resolve() if path else page
    if not aim.is_file():
        return "there is no such file"
    if "docs" in page.relative_to(ROOT).parts and not aim.is_relative_to(ROOT / "docs"):
        return "leaves the site"
    return "there is no such heading" if anchor and anchor not in anchors(aim) else ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    assert [(target, fault) for _, target in links(page) if (fault := wrong(page, target))] == []


def test_there_are_pages_and_links():
    assert len(PAGES) >= 25 and sum(len(links(page)) for page in PAGES) >= 150


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        ("phases.md", ""),
        ("slots.md#taps", ""),
        ("#where-next", ""),
        ("phase.md", "there is no such file"),
        ("slots.md#tap", "there is no such heading"),
        ("../README.md", "leaves the site"),
        ("https://example.org/a.png", "leads outside"),
    ],
)
def test_a_link_that_leads_nowhere_is_seen(target, fault):
    assert wrong(ROOT / "docs/index.md", target) == fault


def test_every_picture_is_shown_somewhere():
    shown = {(page.parent / target).resolve() for page in PAGES for _, target in links(page)}
    assert {path for path in (ROOT / "docs").iterdir() if path.suffix in (".png", ".gif", ".svg")} <= shown
