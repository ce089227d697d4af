"""The site of the guides: it is built without a warning, fetches nothing, and has every page in its menu, none of them long."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from ruamel.yaml import YAML

from tests.conftest import ROOT
from tests.support.dvc import PATIENCE

PAGES = sorted((ROOT / "docs").rglob("*.md"))
LONG = {  # whole files of code, and tables
    "extending.md": 260,
    "evaluation.md": 265,
    "performance.md": 240,
    "data.md": 280,
}


class Fetched(HTMLParser):
    """Addresses that a browser would fetch by itself; what a reader may click on is none."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        names = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}
        if tag in names and (address := given.get(names[tag])):
            self.addresses += [address] * (tag != "link" or given.get("rel") not in ("canonical", "next", "prev"))
        self.addresses += re.findall(r"url\(([^)]+)\)", given.get("style") or "")


def fetched(text):
    parser = Fetched()
    parser.feed(text)
    return parser.addresses


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, and what was said."""
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout + done.stderr


def test_the_site_builds_without_a_warning(site):
    folder, said = site
    assert "WARNING" not in said and "ERROR" not in said
    for page in PAGES:
        name = page.relative_to(ROOT / "docs").with_suffix(".html")
        assert (folder / str(name).replace("README", "index")).is_file(), name
    assert (folder / "notebook.ipynb").is_file()


def test_nothing_is_fetched_from_elsewhere(site):
    folder, _ = site
    pages = sorted(folder.rglob("*.html"))
    addresses = [address for page in pages for address in fetched(page.read_text())]
    assert len(pages) >= len(PAGES) and len(addresses) > len(pages)
    assert [address for address in addresses if re.match(r"(\w+:)?//", address)] == []
    for style in folder.rglob("*.css"):
        assert re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^)\"']+", style.read_text()) == []


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ('<script src="https://a.org/x.js"></script>', ["https://a.org/x.js"]),
        ('<link rel="stylesheet" href="//fonts.org/f.css">', ["//fonts.org/f.css"]),
        ('<img src="report.png"><a href="https://b.org">b</a>', ["report.png"]),
        ('<p style="background: url(http://c.org/i.png)">', ["http://c.org/i.png"]),
        ('<link rel="next" href="phases.html">', []),
    ],
)
def test_what_a_browser_fetches_is_seen(text, addresses):
    assert fetched(text) == addresses


def test_the_menu_has_every_page_once():
    def pages(entry):
        return [entry] if isinstance(entry, str) else [page for part in entry for page in pages(next(iter(part.values())))]

    menu = pages(YAML(typ="safe").load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(menu) == sorted(str(page.relative_to(ROOT / "docs")) for page in PAGES)
    assert menu[:6] == ["index.md", "phases.md", "deep_supervision.md", "slots.md", "recipes.md", "troubleshooting.md"]


def test_no_page_is_long():
    lengths = {page.relative_to(ROOT / "docs").as_posix(): len(page.read_text().splitlines()) for page in PAGES}
    assert {name: length for name, length in lengths.items() if length > LONG.get(name, 210)} == {}
    assert len((ROOT / "README.md").read_text().splitlines()) <= 240


def test_troubleshooting_names_what_the_doctor_says():
    said, known = (
        set(re.findall(r"\*\*([a-z ]+)\*\*", (ROOT / f"docs/{page}.md").read_text())) for page in ("troubleshooting", "doctor")
    )
    assert said == known and len(said) >= 15
