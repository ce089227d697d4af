"""A preset for one's own data: what is written is what configure accepts; what is wrong is one line, and nothing is written."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.planning import own_data
from pipeline.planning.own_data import Request, look_at
from pipeline.settings.ginfiles import parse_value
from stages.__main__ import main
from tests.conftest import ROOT
from tests.pipeline.planning.test_own_backbone import CAUSAL, CHAT, MASKS, model

SUMS = [{"question": f"What is {i} + {i + 1}?", "answer": f"{i} + {i + 1} = {2 * i + 1}\n#### {2 * i + 1}"} for i in range(80)]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder of gin files, params.yaml and raw data of its own."""
    shutil.copytree(ROOT / "gin", tmp_path / "gin")
    (tmp_path / "params.yaml").write_text("preset: sudoku4\n")
    (tmp_path / "data/raw").mkdir(parents=True)
    lines("mine.jsonl", SUMS, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(name, rows, folder):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def presets(project):
    return {path.name: path.read_bytes() for path in (project / "gin/presets").iterdir()}


def test_what_is_written_is_accepted_by_configure_and_says_how_to_train(project, capsys):
    before = presets(project)
    assert main(["new", "mine", "--train", "mine.jsonl"]) == 0
    told = capsys.readouterr().out
    assert "question (text, 14 to 16 bytes)" in told and "| warmup " in told
    assert told.rstrip().endswith("dvc exp run -S preset=mine")
    text = (project / "gin/presets/mine.gin").read_text()
    assert text.startswith("# Examples of 'mine.jsonl': ") and "Result: not run yet" in text
    assert f"jsonl.QuestionAnswers.train = '{project}/mine.jsonl'\n" in text
    assert {name: data for name, data in presets(project).items() if name != "mine.gin"} == before
    (project / "params.yaml").write_text("preset: mine\n")
    assert main(["configure"]) == 0
    assert main(["new", "mine", "--train", "mine.jsonl"]) == 2 and (project / "gin/presets/mine.gin").read_text() == text
    assert "gin/presets/mine.gin is there already; choose another name, or replace it: --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(("config", "base"), [(CAUSAL, "gsm8k_smol"), (MASKS, "gsm8k_llada")])
def test_over_a_pretrained_model_what_is_written_is_accepted_without_its_weights(project, capsys, config, base):
    (project / "model").mkdir()
    longer = {**config, "max_position_embeddings": 128, "max_sequence_length": 128}
    model(project / "model", longer, eos_token="<end>", pad_token="<pad>", chat_template=CHAT)
    assert main(["new", "mine", "--train", "mine.jsonl", "--backbone", "model"]) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert "in the chat template of the model" in told and "tokens (of model)" in told and "| joint " in told
    assert f"include 'gin/presets/{base}.gin'" in (project / "gin/presets/mine.gin").read_text()


def test_settings_of_the_workspace_are_those_that_the_preset_is_checked_with(project, capsys):
    (project / "params.yaml").write_text("preset: sudoku4\ncommon: {bindings: {sudoku.Sudoku.train: 100}}\n")
    assert main(["new", "mine", "--train", "mine.jsonl"]) == 2
    assert "params.yaml:2" in capsys.readouterr().err and not (project / "gin/presets/mine.gin").exists()


def test_a_file_of_the_raw_folder_keeps_its_name_within_it(project):
    (project / "mine.jsonl").rename(project / "data/raw/mine.jsonl")
    for name in ("mine.jsonl", "data/raw/mine.jsonl", str(project / "data/raw/mine.jsonl")):
        assert look_at(Request("mine", name)).corpus.train == "mine.jsonl"


MISTAKES = {
    "no name": ([], "new takes one name"),
    "two names": (["a", "b", "--train", "mine.jsonl"], "new takes one name"),
    "a name with a slash": (["a/b", "--train", "mine.jsonl"], "a preset's name is a letter"),
    "a name with dots": (["..", "--train", "mine.jsonl"], "a preset's name is a letter"),
    "a shipped preset": (["sudoku4", "--train", "mine.jsonl"], "gin/presets/sudoku4.gin is there already"),
    "what all presets share": (["defaults", "--train", "mine.jsonl", "--overwrite"], "is what all presets share"),
    "no file": (["mine"], "--train is missing"),
    "no such file": (["mine", "--train", "yours.jsonl"], "yours.jsonl does not exist, neither here nor in data/raw"),
    "no such test file": (["mine", "--train", "mine.jsonl", "--test", "t.jsonl"], "t.jsonl does not exist, neither here"),
    "a folder": (["mine", "--train", "data"], "data holds raw; expected train.npy or train.safetensors"),
    "an empty file": (["mine", "--train", "empty.jsonl"], "empty.jsonl holds no examples"),
    "a list": (["mine", "--train", "list.jsonl"], "a name that ends with .json: list.json"),
    "unknown fields": (["mine", "--train", "other.jsonl"], "none that are known (first, 'second field'); say which are prompt and"),
    "one template": (["mine", "--train", "mine.jsonl", "--prompt", "{question}"], "--response is missing"),
    "a field that is not there": (
        ["mine", "--train", "mine.jsonl", "--prompt={q}", "--response={answer}"],
        'mine.jsonl:1: "q" must be a non-empty string, got None (80 of 80 rows are like that',
    ),
    "braces in a template": (["mine", "--train", "mine.jsonl", "--prompt={{x}}", "--response={answer}"], "a template names fields"),
    "numbers for answers": (["mine", "--train", "numbers.jsonl"], '"answer" must be a non-empty string, got 0 (80 of 80 rows'),
    "too few": (["mine", "--train", "few.jsonl"], "examples are too few to hold some out"),
    "no such model": (["mine", "--train", "mine.jsonl", "--backbone", "no_package:x.gguf"], "no package 'no_package' is installed"),
    "no model in a folder": (["mine", "--train", "mine.jsonl", "--backbone", "data"], "data holds no config.json"),
    "a model for puzzles": (["mine", "--train", "grids.csv", "--backbone", "data"], "--backbone is for text"),
    "a test of other puzzles": (["mine", "--train", "grids.csv", "--test", "mine.jsonl"], "mine.jsonl does not; expected the same"),
    "no text in UTF-8": (
        ["mine", "--train", "mine.jsonl", "--prompt=\udcff{question}", "--response={answer}"],
        "--prompt is not text",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(project, capsys, mistake):
    (project / "empty.jsonl").write_text("\n")
    (project / "list.jsonl").write_text(json.dumps(SUMS))
    lines("other.jsonl", [{"first": "a", "second field": "b"}], project)
    lines("numbers.jsonl", [{**row, "answer": i} for i, row in enumerate(SUMS)], project)
    lines("few.jsonl", SUMS[:2], project)
    (project / "grids.csv").write_text("puzzle,solution\n..32.....21....4,1432234142133124\n")
    before, (words, message) = presets(project), MISTAKES[mistake]
    assert main(["new", *words]) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1 and "Traceback" not in error
    assert presets(project) == before


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1, max_size=12)


@given(WORDS, WORDS, WORDS, WORDS)
@settings(max_examples=15)
def test_any_words_in_templates_fields_and_names_of_files_are_read_back_by_gin(tmp_path_factory, before, after, one, other):
    """Braces doubled, quotes, line breaks, what gin would take for a reference: settings say what was said."""
    folder = tmp_path_factory.mktemp("any")
    file = folder / f"{one.replace('/', '_').replace(chr(0), '_').strip('.') or 'x'}.jsonl"
    lines(file.name, [{"a": f"{i}{other}", "b": f"{i}"} for i in range(40)], folder)
    prompt, response = (f"{word.replace('{', '{{').replace('}', '}}')}{{{name}}}" for word, name in ((before, "a"), (after, "b")))
    try:
        data = look_at(Request("mine", str(file), prompt=prompt, response=response))
    except UserError as refused:
        assert any(part in str(refused) for part in ("reserved token", "non-empty string", "zero", "no text"))  # of a row, by name
        return
    text = data.preset(data.batch, Request("mine", str(file), prompt=prompt, response=response).command()).written()
    values = dict(line.split(" = ", 1) for line in text.split("\n\n", 1)[1].splitlines())
    read = {name.rpartition(".")[2]: parse_value(value).literal for name, value in values.items() if name.startswith("jsonl.")}
    assert (read["prompt"], read["response"], read["train"]) == (prompt, response, str(file))


def test_a_step_is_halved_until_its_memory_fits_the_machine(monkeypatch):
    """Memory of a stage that takes 1 GB an example, on a machine of 10 GB of which 6 may be taken."""
    data = SimpleNamespace(batch=16, preset=lambda batch, made_by: SimpleNamespace(written=lambda: f"{batch} by {made_by}"))
    monkeypatch.setattr(own_data, "_resolved", lambda name, text, settings: {"warmup": text})

    def plan(texts):
        return SimpleNamespace(costs=[SimpleNamespace(stage="joint", memory=10**9 * int(texts["warmup"].split()[0]))])

    monkeypatch.setattr(own_data.planning, "plan", plan)
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 10**6, "SC_PAGE_SIZE": 10**4}.get)
    text, _, told = own_data._fitting(data, Request("mine", "mine.jsonl"), None)
    assert (
        text == "4 by mine --train mine.jsonl" and told == "4 examples a step: joint takes 4.0 GB at most, this machine has 10.0 GB"
    )
    monkeypatch.setattr(own_data, "ROOM", 0.05)
    assert "THIS MAY NOT FIT" in own_data._fitting(data, Request("mine", "mine.jsonl"), None)[2]
