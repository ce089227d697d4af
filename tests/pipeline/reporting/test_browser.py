"""The page in a browser without a network: its player steps, nothing is wider than the window, and no error is logged.

Skipped where there is no Chromium (Debian: ``apt-get install chromium``).
"""

import html
import json
import re
import shutil
import subprocess

import pytest

from tests.support.dvc import PATIENCE

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
FLAGS = (
    "--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=5000",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--log-level=0", "--dump-dom",
)  # fmt: skip
PLAY = """
const page = frame.contentDocument, window_ = frame.contentWindow, said = {};
const shown = () => page.querySelector("output").textContent;
const current = () => [...page.querySelectorAll(".stages")].map((list) => list.querySelectorAll(".current").length);
const player = page.querySelector("[data-player]");
const press = (key) => player.dispatchEvent(new window_.KeyboardEvent("keydown", {key, bubbles: true}));
said.width = page.documentElement.scrollWidth;
said.hidden = page.querySelector(".controls").hidden;
said.start = shown();
page.querySelector("[data-do=forward]").click(); said.forward = shown();
press("ArrowRight"); said.right = shown();
press("ArrowLeft"); said.left = shown();
page.querySelector("[data-do=back]").click(); page.querySelector("[data-do=back]").click(); said.back = shown();
const slider = page.querySelector("input[type=range]");
slider.value = slider.max; slider.dispatchEvent(new window_.Event("input")); said.slid = shown();
said.current = current();
press(" "); said.playing = page.querySelector("[data-do=play]").getAttribute("aria-pressed"); said.restarted = shown();
press(" "); said.paused = page.querySelector("[data-do=play]").getAttribute("aria-pressed");
press("x"); said.other = shown();
document.body.innerHTML = "<pre>" + JSON.stringify(said) + "</pre>";
"""


def visited(page, folder, width, script):
    """What the browser logs, and the document that a script made of a page in a window of this width."""
    frame = f'<iframe id="frame" style="border:0;width:{width}px;height:900px" srcdoc="{html.escape(page)}"></iframe>'
    code = f"<script>frame.onload = () => {{{script}}};</script>"
    (folder / "frame.html").write_text(f'<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">{frame}{code}')
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={max(500, width)},900"]
    ended = subprocess.run(
        [*command, f"file://{folder / 'frame.html'}"], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    return [line for line in ended.stderr.splitlines() if "CONSOLE" in line], ended.stdout


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("corpus", ["finished", "text"])
def test_the_player_steps_and_nothing_is_wider_than_the_window(request, tmp_path, corpus, width):
    page = (request.getfixturevalue(corpus) / "outputs/report/index.html").read_text()
    logged, document = visited(page, tmp_path, width, PLAY)
    assert logged == []
    said = json.loads(html.unescape(re.search(r"<pre>(.*)</pre>", document).group(1)))
    last = f"step {page.count('data-title=') // page.count('<article') - 1}"
    assert set(said.pop("current")) == {1}
    assert said == {
        "width": width, "hidden": False, "start": "frozen backbone", "forward": "step 1", "right": "step 2", "left": "step 1",
        "back": "frozen backbone", "slid": last, "playing": "true", "restarted": "frozen backbone", "paused": "false",
        "other": "frozen backbone",
    }  # fmt: skip


def test_without_script_all_steps_are_listed(finished, tmp_path):
    page = (finished / "outputs/report/index.html").read_text()
    bare = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    count = """document.body.innerHTML = "<pre>" + [...frame.contentDocument.querySelectorAll(".stages > li")].filter(
        (stage) => stage.getBoundingClientRect().height > 0).length + "," + frame.contentDocument.querySelector(".controls")
        .getBoundingClientRect().height + "</pre>";"""
    _, document = visited(bare, tmp_path, 1400, count)
    assert f"<pre>{page.count('data-title=')},0</pre>" in document
