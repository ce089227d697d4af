"""Generated answers: judged as numbers and as published, and never by a reference that has lost its result."""

import json
from dataclasses import replace

import pytest

from components.inference.answers import Answers
from components.inference.approximate_prefix import approximate_prefix, approximate_surroundings
from pipeline.corpora.prepared import Prepared
from pipeline.evaluation import answering
from pipeline.models.backbones import Backbone
from pipeline.reporting.lost_references import without_result
from pipeline.text import prompt_template
from stages.__main__ import main

ANSWERS = {"items": 8, "passes": 4}


class Cut(Prepared):
    """Prepared data as a shorter sequence leaves it: of some examples the answer ends before these characters from its end."""

    missing: dict[int, int]

    def split(self, name):
        whole = super().split(name)
        split = replace(whole, tokens=whole.tokens.clone(), response=whole.response.clone(), valid=whole.valid.clone())
        for row, characters in self.missing.items():
            last = int(split.response[row].nonzero().max()) - characters  # a digit is a token; the end is one too
            split.tokens[row, last:] = self.vocabulary.pad_id
            split.response[row, last:] = split.valid[row, last:] = False
        return split


@pytest.fixture
def answered(text, runtime):
    """``answered(missing, **settings)``: metrics, lines and lost references of the frozen backbone, where answers are cut."""
    frozen = {"frozen": Backbone(text / "data/backbone").model().eval()}

    def answered(missing, **settings):
        data = Cut(text / "data/prepared")
        data.missing = missing
        return answering.answered(data, frozen, Answers(**ANSWERS | settings), 4, runtime)

    return answered


@pytest.mark.parametrize(
    ("missing", "settings", "lost"),
    [
        ({}, {}, {}),
        ({0: 0}, {}, {"test": {"lost": 1, "cut": 1, "references": 8}}),  # only the end is missing: the number may go on
        ({0: 1, 7: 1}, {}, {"test": {"lost": 2, "cut": 2, "references": 8}}),  # 15 would be read as 1
        ({0: 3, 7: 4, 9: 3}, {}, {"test": {"lost": 2, "cut": 2, "references": 8}}),  # the tenth is not asked
        ({0: 3}, {"split": "validation", "items": 2}, {"validation": {"lost": 1, "cut": 1, "references": 2}}),
        ({}, {"patterns": {"word": ("[a-z]+", 0)}, "reference": "word"}, {"test": {"lost": 8, "cut": 0, "references": 8}}),
        ({1: 0}, {"reference": "flexible"}, {"test": {"lost": 1, "cut": 1, "references": 8}}),
        ({1: 0}, {"patterns": {"first": (r"\d+", 0)}, "reference": "first"}, {}),  # in front of what was cut
    ],
)
def test_references_without_a_result_are_counted_and_never_met(answered, capsys, missing, settings, lost):
    _, lines, counts = answered(missing, **settings)
    assert counts == lost
    assert [line["expected"] for line in lines].count(None) == sum(split["lost"] for split in lost.values())
    for line in lines:
        (result,) = line["generated"].values()
        assert line["expected"] is not None or not any([*result["right"].values(), *result["exact_match"].values()])
    lines = [line for line in capsys.readouterr().out.splitlines() if "references of split" in line]
    assert lines == [f"answers: {line}" for line in without_result(lost)]


def test_an_answer_that_repeats_a_reference_without_result_is_not_right(answered, monkeypatch):
    """Every model writes the references themselves."""
    monkeypatch.setattr(answering, "generated", lambda model, split, *rest: (split.tokens, split.tokens[:, 0].double()))
    metrics, _, _ = answered({0: 1, 3: 3})
    shares = {**metrics["frozen"], **metrics["frozen"]["exact_match"]}
    assert {name: shares[name]["mean"] for name in ("strict", "flexible", "strict-match", "flexible-extract")} == {
        "strict": 0.75, "flexible": 0.75, "strict-match": 0.75, "flexible-extract": 0.75,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text_of_answer", "right", "published"),
    [
        ("#### 1.00", True, False),
        ("#### $1", True, False),
        ("#### 1", True, True),
        ("#### 1.", True, True),
        ("#### 10", False, False),
    ],
)
def test_results_are_compared_as_numbers_and_published_as_texts(answered, text, monkeypatch, text_of_answer, right, published):
    encoding, _ = prompt_template.read(text / "data/prepared")
    written = [*encoding.encode(text_of_answer), encoding.id("end")]

    def generated(model, split, *rest):
        tokens = split.tokens.clone()
        for row in tokens.unbind():
            first = int(split.response[0].nonzero().min())
            row[first : first + len(written)] = tokens.new_tensor(written)
        return tokens, tokens[:, 0].double()

    monkeypatch.setattr(answering, "generated", generated)
    _, lines, _ = answered({}, items=1)  # 0 + 1 = 1
    ((result,),) = (line["generated"].values() for line in lines)
    assert (result["right"]["strict"], result["exact_match"]["strict-match"]) == (right, published)


def test_lost_references_stand_on_top_of_the_report(text, tmp_path, monkeypatch):
    monkeypatch.chdir(text)
    monkeypatch.setenv("SLOTLOOP_SCRATCH", str(tmp_path / "scratch"))
    evaluation, report = tmp_path / "evaluate", tmp_path / "report"
    own = ["answers.Answers.patterns={'word': ('[a-z]+', 0)}", "answers.Answers.reference='word'"]
    assert main(["evaluate", *own, "--out", str(evaluation)]) == 0
    counts = json.loads((evaluation / "metrics.json").read_text())["lost_references"]
    assert main(["report", f"report.run.evaluation='{evaluation}'", "--out", str(report)]) == 0
    (line,) = without_result(counts)
    page = (report / "report.md").read_text()
    assert page.index(f"**{line}**") < page.index("| model")
    whole = json.loads((text / "outputs/evaluate/metrics.json").read_text())
    assert "lost_references" not in whole and "references of split" not in (text / "outputs/report/report.md").read_text()


@pytest.mark.parametrize("prefix", [approximate_prefix, approximate_surroundings])
def test_an_approximate_prefix_answers_in_blocks_and_is_named(answered, prefix):
    """With a pass a block nothing is approximated: the answers are those of reading everything."""
    plain, exact, _ = answered({}, blocks=4)
    metrics, lines, _ = answered({}, blocks=4, prefix=prefix)
    assert [line["generated"] for line in lines] == [line["generated"] for line in exact]
    assert metrics["frozen"] == {**plain["frozen"], "approximation": prefix.__name__} and "approximation" not in plain["frozen"]


def test_what_is_kept_is_asked_in_the_models_place(answered):
    asked = []

    def prefix(model, batch, blocks):
        asked.append(blocks)
        return approximate_prefix(model, batch, blocks)

    answered({}, blocks=2, prefix=prefix)
    assert asked == [2, 2]  # eight examples, four a batch
