"""The page that compares runs: its numbers against the files, its curves, its refusals; in a browser where there is one."""

import json
import os
import re
import shutil
from types import SimpleNamespace

import pytest

from pipeline.errors import DataError
from pipeline.files import sha256
from pipeline.reporting import comparison
from pipeline.reporting.compared_runs import Run
from pipeline.reporting.comparison import compare
from pipeline.reporting.markdown import cell
from stages.__main__ import main
from tests.conftest import run_stages
from tests.pipeline.reporting.test_browser import CHROMIUM, visited
from tests.support.handmade import cells, model, value
from tests.support.html_page import elements, read


@pytest.fixture(scope="module")
def second(finished, tmp_path_factory):
    """Another run of the same data: warmup with another learning rate, and what follows it."""
    folder = tmp_path_factory.mktemp("second") / "other <b>|*run*"
    shutil.copytree(finished, folder, symlinks=True)
    (folder / "params.yaml").write_text("preset: smoke\ncommon: {bindings: {WARMUP_LR: 1e-2}}\n")
    run_stages(folder, ("warmup", "joint", "finetune", "controls", "evaluate"))
    return folder


@pytest.fixture(scope="module")
def page(finished, second, tmp_path_factory):
    out = tmp_path_factory.mktemp("page")
    return compare([str(finished), str(second)], out), (out / "index.html").read_text()


def rows_of(root, chapter):
    (section,) = [e for e in root.all("section") if e.attributes["id"] == chapter]
    return [[c.text() for c in row.all("td")] for row in section.all("tr") if row.all("td")]


def test_the_page_is_one_file_and_what_comes_from_names_is_text(page):
    _, text = page
    root = read(text)
    assert not root.all("script")[0].attributes and not root.all("b") and "other <b>|*run*" in root.text()
    places = [e.attributes[key] for e in elements(root) for key in ("src", "href") if key in e.attributes]
    assert all(place.startswith(("#", "data:,")) for place in places) and re.findall(r"url\((?!#)", text) == []
    assert "provenance" not in {e.attributes.get("id") for e in elements(root)} and len(text) < 1_500_000


def test_its_numbers_are_those_of_the_files(page, finished, second):
    root = read(page[1])
    measured = {
        folder.name: json.loads((folder / "outputs/evaluate/metrics.json").read_text())["models"] for folder in (finished, second)
    }
    rows = rows_of(root, "results-side-by-side")
    assert len(rows) == sum(map(len, measured.values()))
    for name, run, nll, accuracy, _, n in rows:
        of = measured[run][name]
        assert (nll, accuracy, n) == (cell(of["nll"]), cell(of["token_accuracy"]), str(of["nll"]["n"]))
    for name, run, difference, _, paired, _ in rows_of(root, "what-sets-the-runs-apart"):
        mean = measured[second.name][name]["nll"]["mean"] - measured[finished.name][name]["nll"]["mean"]
        assert run == second.name and float(difference.split(" ")[0]) == pytest.approx(mean, abs=5e-4) and "[" in paired


def test_settings_that_differ_are_listed_and_no_others(page):
    rows = rows_of(read(page[1]), "settings-that-differ")
    assert rows == [["optim.adamw.lr", "warmup", "0.004", "0.01"]]


def test_what_is_said_names_each_model_once(page, finished, second):
    said, text = page
    (first, *_) = [line for line in said if line.startswith("frozen")]
    assert f"frozen: {second.name} has the very model of {finished.name}" in first
    assert sorted(line.split(":")[0] for line in said) == sorted(
        {"frozen", "warmup", "joint", "control_backbone", "control_warmup"}
    )
    assert all(line in read(text).text() for line in said)


def test_curves_lie_over_each_other(page, finished, second):
    titles = [e.text() for e in read(page[1]).all("figcaption")]
    assert "warmup: loss of the last step" in titles and "warmup: validation loss" in titles
    assert "joint: recursion steps" in titles
    for figure in read(page[1]).all("figure"):
        assert [e.text() for e in figure.all("li")] == [finished.name, second.name]


def record(folder, number, stage, taken, *, metrics, status="completed", settings=None):
    """A record as a run of a stage leaves it, of so many seconds."""
    place = folder / f".tracking/{stage}-{number}"
    (place / "files").mkdir(parents=True)
    written = sha256(folder / f"outputs/{stage}/config.gin") if settings is None else settings
    facts = {"began": 1000.0 + number, "order": number, "written": written}
    (place / "record.json").write_text(json.dumps(facts))
    (place / "end.json").write_text(json.dumps({"status": status}))
    (place / "files/metrics.json").write_bytes(metrics)
    os.utime(place / "end.json", (0, facts["began"] + taken))


def test_seconds_are_those_of_the_record_with_these_results(copy_of, finished):
    metrics = (copy_of / "outputs/warmup/metrics.json").read_bytes()
    record(copy_of, 1, "warmup", 111.0, metrics=metrics)
    record(copy_of, 2, "warmup", 12.0, metrics=metrics)
    record(copy_of, 3, "warmup", 13.0, metrics=b"{}")  # of other results
    record(copy_of, 4, "warmup", 14.0, metrics=metrics, status="failed")
    record(copy_of, 5, "warmup", 15.0, metrics=metrics, settings="other")
    runs = comparison.read_runs([str(copy_of), str(finished)])
    assert runs[0].seconds == {"warmup": 12.0} and runs[1].seconds == {}
    rows = {(row[0], row[1]): row for row in cells(comparison.cost_table(runs))}
    steps, flops, parameters, _, seconds = rows["warmup", "copy"][2:7]
    taken = json.loads(metrics)
    assert (steps, seconds, rows["warmup", finished.name][6]) == ("6", "12", "")
    assert (flops, parameters) == (f"{taken['flops'] / 1e12:.2f}", f"{taken['parameters']['trainable']:,}")


def test_the_command_prints_what_can_be_said_and_refuses_in_one_line(copy_of, finished, capsys, monkeypatch):
    monkeypatch.chdir(copy_of)
    assert main(["compare", ".", str(finished), "--out", "runs/compared"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert f"warmup: {finished.name} has the very model of copy" in said and said[-1] == "compare: wrote runs/compared/index.html"
    assert (copy_of / "runs/compared/index.html").is_file()
    assert main(["compare", "."]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: compare needs two runs at least, got 1") and printed.err.count("\n") == 1


def test_embeddings_are_compared_by_their_cosine(tmp_path, monkeypatch):
    def of(mean):
        return {"cosine": value(mean), "cosine_by_step": [value(mean - 0.1), value(mean)]}

    runs = [handmade("a", frozen=of(0.5), warmup=of(0.6)), handmade("b", frozen=of(0.5), warmup=of(0.5))]
    monkeypatch.setattr(comparison, "read_runs", lambda names: runs)
    assert compare(["a", "b"], tmp_path)[1] == "warmup: b is worse than a (-.100 [-.114, -.086])"
    assert "2 runs on test: cosine" in (tmp_path / "index.html").read_text()


def handmade(name, headline="test", **models):
    content = {"headline": headline, "models": models, "evaluated": {}}
    return Run(name, "", "smoke", SimpleNamespace(content=content, inputs={}, digest="d" * 64))


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({"headline": "test_5"}, {"headline": "test_18"}, "a compares models by test_5, b by test_18"),
        ({}, {"frozen": {"cosine": {}}}, "one predicts embeddings"),
        ({"frozen": {"cosine": {}}}, {}, "one predicts embeddings"),
        ({"headline": "mask_30"}, {"headline": "mask_30 "}, "a compares models by mask_30, b by mask_30 "),
        ({}, {"frozen": None, "mine": model(0.5, 1.0)}, "a and b have no model in common"),
    ],
)
def test_runs_without_a_common_headline_are_refused_in_one_line(one, other, message, tmp_path, monkeypatch):
    runs = []
    for name, given in (("a", one), ("b", other)):
        models = {"frozen": model(0.5, 1.0), **given}
        headline = models.pop("headline", "test")
        runs.append(handmade(name, headline, **{key: of for key, of in models.items() if of is not None}))
    monkeypatch.setattr(comparison, "read_runs", lambda names: runs)
    with pytest.raises(DataError) as refused:
        compare(["a", "b"], tmp_path)
    assert message in str(refused.value) and "\n" not in str(refused.value) and not list(tmp_path.iterdir())


def test_exact_answers_are_compared_where_any_run_has_some(tmp_path, monkeypatch):
    runs = [
        handmade(name, frozen=model(*given) | {"token_accuracy": value(0.5)})
        for name, given in (("a", (0.0, 1.0)), ("b", (0.9, 0.2)))
    ]
    monkeypatch.setattr(comparison, "read_runs", lambda names: runs)
    assert compare(["a", "b"], tmp_path) == ["frozen: b is better than a (.900 [.886, .914])"]
    bars = comparison.bars(runs, "exact")
    assert [(bar.label, bar.meaning, bar.mean) for bar in bars] == [("frozen", "a", 0.0), ("frozen", "b", 0.9)]
    assert bars[0].colour != bars[1].colour


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [400, 1400])
def test_in_a_browser_nothing_is_wider_than_the_window(page, tmp_path, width):
    script = 'document.body.innerHTML = "<pre>" + frame.contentDocument.documentElement.scrollWidth + "</pre>";'
    logged, document = visited(page[1], tmp_path, width, script)
    assert logged == [] and f"<pre>{width}</pre>" in document
