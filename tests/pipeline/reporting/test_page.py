"""The page: what it holds, and what is missing for it."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from pipeline.corpora.prepared import Vocabulary
from pipeline.errors import DataError
from pipeline.files import json_bytes
from pipeline.reporting.markdown import with_unit
from pipeline.reporting.page import optional, report
from pipeline.text.detokenise import text_renderer
from tests.conftest import run_stages
from tests.support.handmade import cells, retained
from tests.support.html_page import elements, played, read
from tests.support.resealing import reseal


def test_the_page_holds_its_tables_and_pictures(finished):
    page = (finished / "outputs/report/report.md").read_text()
    assert (finished / "outputs/report/table.md").read_text() in page
    for picture in ("losses", "steps", "slots", "puzzles"):
        assert f"({picture}.png)" in page and (finished / f"outputs/report/{picture}.png").is_file()
    assert "- joint - frozen: " in page and "- warmup: " in page
    health = page.partition("## Health\n\nNo finding.\n\nLooked for in the curves and validations of ")[2].partition(", and in")[0]
    assert set(health.split(", ")) == {"backbone", "warmup", "joint", "controls/backbone", "controls/warmup"}
    (chapter,) = [
        e for e in read((finished / "outputs/report/index.html").read_text()).all("section") if e.attributes["id"] == "health"
    ]
    assert "No finding." in chapter.text()
    assert "depths" not in page and not (finished / "outputs/report/depths.png").exists()


def test_the_page_is_one_file_that_needs_no_other(finished):
    """Nothing in it is fetched: it names addresses in text alone."""
    content = (finished / "outputs/report/index.html").read_bytes()
    assert content.startswith(b"<!DOCTYPE html>") and len(content) <= 1_500_000
    root = read(content.decode())
    places = [
        e.attributes[key] for e in elements(root) for key in ("src", "href", "data", "action", "poster") if key in e.attributes
    ]
    assert places and all(place.startswith(("#", "data:,")) for place in places)
    assert b"@import" not in content and re.findall(rb"url\((?!#)", content) == []
    names = [e.attributes["id"] for e in elements(root) if "id" in e.attributes]
    assert len(names) == len(set(names)) and {place[1:] for place in places if place.startswith("#")} <= set(names)


def test_the_player_of_puzzles_shows_what_the_samples_hold(finished):
    samples = [json.loads(line) for line in (finished / "outputs/evaluate/samples.jsonl").read_text().splitlines()]
    root = read((finished / "outputs/report/index.html").read_text())
    examples = played(root)
    kinds = {"more right": 1, "fewer right": -1, "as many right": 0}  # of the smoke preset no model solves a puzzle
    assert examples
    for number, stages in examples.items():
        sample = samples[number - 1]
        states = [*sample["models"]["frozen"], *sample["models"]["joint"]]
        assert list(stages) == ["frozen backbone", *(f"step {i + 1}" for i in range(len(states) - 1))]
        before = None
        for tokens, state in zip(stages.values(), (state.replace("/", "") for state in states), strict=True):
            prompt, answer = (sample[key].replace("/", "") for key in ("prompt", "answer"))
            assert "".join(text for text, _ in tokens) == state
            for i, (_, classes) in enumerate(tokens):
                assert ("given" in classes) == (prompt[i] != ".")
                assert "given" in classes or ("right" in classes) == (state[i] == answer[i])
                assert ("changed" in classes) == (before is not None and before[i] != state[i])
            before = state
        (article,) = [e for e in root.all("article") if e.attributes["id"] == f"example-{number}"]
        frozen, refined = (agreeing(sample["models"][name][-1], sample["answer"]) for name in ("frozen", "joint"))
        kind = next(kind for kind in kinds if kind in article.all("h3")[0].text())
        assert kinds[kind] == (refined > frozen) - (refined < frozen)


def agreeing(one, other):
    return sum(a == b for a, b in zip(one, other, strict=True))


def test_the_player_of_text_shows_the_tokens_of_the_trace(text):
    """With the headline's masks, which leave some of the answer to be seen."""
    trace = json.loads((text / "outputs/evaluate/trace.json").read_text())
    manifest = json.loads((text / "data/prepared/manifest.json").read_text())
    render = text_renderer(Vocabulary(**manifest["vocabulary"]), text / "data/prepared")
    examples = played(read((text / "outputs/report/index.html").read_text()))
    assert examples and trace["headline"]["ratio"] == 0.3
    for number, stages in examples.items():
        masked, models = trace["headline"]["masked"][number - 1], trace["headline"]["models"]
        states = [*models["frozen"][number - 1], *models["joint"][number - 1]]
        places = [i for i, hidden in enumerate(trace["response"][number - 1]) if hidden]
        for tokens, state in zip(stages.values(), states, strict=True):
            shown = [text.replace("↵", "") for text, _ in tokens]
            assert "".join(shown) == render([state["ids"][i] for i in places[: len(tokens)]])
            assert [("given" not in classes) for _, classes in tokens] == [masked[i] for i in places[: len(tokens)]]
            shades = [min(9, int(10 * state["probability"][i])) for i in places if masked[i]]
            assert [f"p{shade}" for shade in shades][: len(tokens)] == [
                next(name for name in classes if name[0] == "p") for _, classes in tokens if "given" not in classes
            ]


def test_a_refiner_without_slots_has_a_page_without_their_picture(copy_of):
    """Of the refiners only the slot refiner measures slots and gates."""
    for file in (copy_of / "outputs").rglob("curves.csv"):
        header, *rows = (line.split(",") for line in file.read_text().splitlines())
        columns = [i for i, name in enumerate(header) if not name.startswith(("slot/", "gate/"))]
        file.write_text("".join(",".join(row[i] for i in columns) + "\n" for row in (header, *rows)))
    reseal(copy_of)
    shutil.rmtree(copy_of / "outputs/report")
    run_stages(copy_of, ("report",))
    assert "(steps.png)" in (page := (copy_of / "outputs/report/report.md").read_text())
    assert "slots.png" not in page and not (copy_of / "outputs/report/slots.png").exists()


def test_answers_in_few_passes_have_a_section_and_a_picture(copy_of):
    own = {"items": 12, "passes": [1, 3], "split": "test_5"}
    on = [f"parallelism.Parallelism.{name}={value!r}" for name, value in own.items()]
    text = "preset: smoke\nevaluate: {bindings: {parallelism.Parallelism.others: {again: '@again/sampling.Sampler()'}, "
    (copy_of / "params.yaml").write_text(
        text + "again/sampling.Sampler.revise: '@revising.below_threshold', PARALLELISM: '@parallelism.Parallelism'}}\n"
    )
    run_stages(copy_of, ("evaluate",), *on)
    run_stages(copy_of, ("report",))
    page = (copy_of / "outputs/report/report.md").read_text()
    section = page[page.index("## Few passes") : page.index("## After each recursion step")]
    assert "1 pass, 11 tokens each" in section and "| frozen: again - plain" in section
    assert "(parallelism.png)" in page and (copy_of / "outputs/report/parallelism.png").is_file()
    metrics = json.loads((copy_of / "outputs/evaluate/metrics.json").read_text())["models"]
    assert set(metrics["joint"]["parallelism"]) == {"plain", "again"} and "parallelism" not in metrics["joint"]["test_5"]


def test_restarts_that_were_asked_for_have_a_table_and_a_picture(copy_of):
    run_stages(copy_of, ("evaluate",), "BREADTH=@breadth.Breadth", "breadth.Breadth.restarts=(1, 3)")
    run_stages(copy_of, ("report",))
    page = (copy_of / "outputs/report/report.md").read_text()
    assert "\n## With restarts\n" in page and "(breadth.png)" in page and (copy_of / "outputs/report/breadth.png").is_file()
    section = page.partition("## With restarts\n")[2].partition("\n## ")[0]
    assert [row[1:3] for row in cells(section) if row[0] == "joint"] == [
        [rule, restarts] for rule in ("change", "majority", "probability") for restarts in ("1", "3")
    ]


def test_depths_that_were_asked_for_have_a_table_and_a_picture(copy_of):
    run_stages(copy_of, ("evaluate",), "DEPTHS=(1, 2, 8)")
    run_stages(copy_of, ("report",))
    page = (copy_of / "outputs/report/report.md").read_text()
    assert "\n## At any number of recursion steps\n" in page and "(depths.png)" in page
    assert (copy_of / "outputs/report/depths.png").is_file() and "\n| joint          | **4** | " in page
    section = page.partition("## At any number of recursion steps\n")[2].partition("\n## ")[0]
    assert [row[1] for row in cells(section) if row[0] == "joint"] == ["1", "2", "**4**", "8"]


def test_an_evaluation_of_other_models_is_refused(copy_of, monkeypatch):
    monkeypatch.chdir(copy_of)
    run_stages(copy_of, ("warmup",), "warmup.run.seed=5")
    with pytest.raises(
        DataError, match=r"outputs/evaluate belongs to warmup .*, but outputs/warmup holds .*; run dvc repro evaluate"
    ):
        report(
            copy_of / "out",
            Path("outputs/evaluate"),
            Path("data/shards"),
            {"backbone": "data/backbone", "warmup": "outputs/warmup"},
            runtime={},
        )


def test_a_control_that_is_on_and_a_search_are_told(copy_of):
    """The control without recursion stands in the table and among the differences; what was tried has a section."""
    on = ("ADAPTER_FIT=@without_recursion/loop.fit", "CONTROL_RATES=[0.5, 1.0]")
    run_stages(copy_of, ("controls",), *on)
    run_stages(copy_of, ("evaluate", "report"))
    page = (copy_of / "outputs/report/report.md").read_text()
    trained = json.loads((copy_of / "outputs/controls/optional/adapter/metrics.json").read_text())
    assert f"one block without recursion in the refiner's place, of {trained['parameters']['trainable']:,} parameters" in page
    assert "\n- warmup - control_adapter: " in page and "\n## Learning rates\n" in page
    best = min(trial["best_loss"] for trial in trained["rates"])
    assert f"**{best:.4f}**" in page and [trial["rate"] for trial in trained["rates"]] == [0.5, 1.0]
    stored = json.loads((copy_of / "data/shards/metrics.json").read_text())["bytes"]
    rows = {row[0]: row[1:] for row in cells((copy_of / "outputs/report/table.md").read_text())}
    assert rows["control_adapter"][3] == rows["warmup"][3] == with_unit(stored) and rows["control_backbone"][3] == "0"
    evaluated = json.loads((copy_of / "outputs/evaluate/metrics.json").read_text())["models"]
    assert rows["control_adapter"][2] == with_unit(evaluated["control_adapter"]["flops_per_answer"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.unlink(), r"data/shards/index\.json does not exist; .*run dvc repro extract"),
        (lambda file: file.write_bytes(file.read_bytes()[:-9]), r"data/shards/index\.json"),
        (
            lambda file: file.write_bytes(other_index(file)),
            r"outputs/warmup belongs to extract .*, but data/shards holds .*repro warmup",
        ),
    ],
)
def test_states_that_are_not_those_that_were_read_are_refused(copy_of, monkeypatch, change, message):
    monkeypatch.chdir(copy_of)
    change(copy_of / "data/shards/index.json")
    with pytest.raises(DataError, match=message):
        report(copy_of / "out", Path("outputs/evaluate"), Path("data/shards"), {"warmup": "outputs/warmup"}, runtime={})


def other_index(file):
    """An index of other shards, whole in itself."""
    index = json.loads(file.read_bytes())
    index["shards"][0]["bytes"] += 1
    content = json_bytes({key: value for key, value in index.items() if key != "fingerprint"})
    return json_bytes({**index, "fingerprint": hashlib.sha256(content).hexdigest()})


def test_without_a_search_or_more_controls_nothing_is_told_of_them(finished):
    page = (finished / "outputs/report/report.md").read_text()
    assert "Learning rates" not in page and "control_adapter" not in page and "control_refiner_lora" not in page


def test_without_an_evaluation_the_stage_is_named(tmp_path):
    with pytest.raises(DataError, match=r"metrics.json does not exist; it is written by stage evaluate: run dvc repro evaluate"):
        report(tmp_path / "out", tmp_path, tmp_path, {}, runtime={})


def test_a_section_is_there_for_what_was_asked(models):
    assert optional(models) == {}
    assert list(optional(retained(models, 0.3))) == ["Forgetting"]


def test_sections_on_whole_answers_are_named(whole):
    assert list(optional(whole)) == ["Generated answers", "Likelihood of whole answers"]
