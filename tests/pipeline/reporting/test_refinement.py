"""Which examples are played, and what their steps say, against traces small enough to read."""

import pytest

from pipeline.reporting import refinement
from pipeline.reporting.refinement import Traced
from pipeline.text.rendering import is_reference


def state(ids, certain=0.95):
    return {"ids": ids, "probability": [certain] * len(ids)}


def trace(pairs, target=(1, 2, 3, 4)):
    """A trace of one example a pair: what the frozen backbone says, and what each step of the refined model says."""
    return {
        "tokens": [list(target)] * len(pairs),
        "response": [[False, True, True, True]] * len(pairs),
        "models": {
            "frozen": [[state(frozen)] for frozen, _ in pairs],
            "joint": [[state(ids) for ids in steps] for _, steps in pairs],
        },
    }


RIGHT, WRONG, WORSE = [1, 2, 3, 4], [1, 2, 3, 0], [1, 0, 0, 0]
MENDED, BROKEN, UNSOLVED, SOLVED = (WRONG, [RIGHT]), (RIGHT, [WRONG]), (WRONG, [WRONG]), (RIGHT, [RIGHT])


def chosen(pairs, **more):
    played = refinement.refinement({**trace(pairs), **more}, "joint", is_reference, str)
    return [(example.number, example.kind) for example in played.examples]


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([SOLVED, MENDED, UNSOLVED, BROKEN], [(2, "mended"), (4, "broken"), (3, "unsolved")]),
        ([MENDED] * 7, [(i, "mended") for i in range(1, 6)]),
        ([BROKEN] * 3 + [UNSOLVED] * 3 + [SOLVED], [(1, "broken"), (2, "broken"), (4, "unsolved"), (5, "unsolved")]),
        ([SOLVED, SOLVED], [(1, "solved")]),
        ([(WORSE, [WRONG]), (WRONG, [WORSE]), (WORSE, [WORSE])], [(1, "more right"), (2, "fewer right"), (3, "as many right")]),
        ([(WORSE, [WRONG]), SOLVED], [(1, "unsolved")]),
    ],
)
def test_examples_are_the_first_of_each_kind(pairs, expected):
    assert chosen(pairs) == expected


def test_a_rule_says_what_is_hidden_and_what_right_means():
    whole = refinement.refinement(trace([MENDED]), "joint", is_reference, str).rule
    assert whole.startswith("The whole answer is hidden") and "joint right" in whole and "its whole answer is" in whole
    content = trace([(WORSE, [WRONG])])
    content["headline"] = {"ratio": 0.3, "masked": content["response"], "models": content["models"]}
    assert refinement.refinement(content, "joint", is_reference, str).rule.startswith("30% of every answer is hidden")


def test_a_solution_that_is_not_the_reference_can_be_right():
    """As puzzles of several solutions are judged."""
    played = refinement.refinement(trace([(WRONG, [WORSE])]), "joint", lambda tokens, split: tokens[:, 1] == 0, str)
    assert [example.kind for example in played.examples] == ["mended"]


def test_a_step_says_what_changed_what_is_right_and_how_sure_it_is():
    content = trace([(WORSE, [[1, 2, 0, 0], RIGHT])])
    content["models"]["joint"][0][1]["probability"] = [1.0, 0.55, 1.0, 0.0]
    (example,) = refinement.refinement(content, "joint", is_reference, str).examples
    assert [stage.title for stage in example.stages] == ["frozen backbone", "step 1", "step 2"]
    first, second, third = (stage.tokens for stage in example.stages)
    assert [token.given for token in first] == [True, False, False, False] and not any(token.changed for token in first)
    assert [token.text for token in second] == ["1", "2", "0", "0"] and [token.changed for token in second] == [
        False,
        True,
        False,
        False,
    ]
    assert [token.changed for token in third] == [False, False, True, True] and all(token.right for token in third)
    assert [token.shade for token in third[1:]] == [5, 9, 0]
    assert example.stages[0].words == "0 of 3 right, mean confidence 0.95"
    assert example.stages[2].words == "2 changed, 3 of 3 right, mean confidence 0.52"


def test_text_is_spelled_and_its_end_shown_once():
    content = trace([(WRONG, [[1, 2, 9, 4]])], target=(1, 2, 9, 9))
    content["pieces"] = {"0": " no", "1": "How?", "2": " so", "3": " x", "4": "\n", "9": "<end>"}
    (example,) = refinement.refinement(content, "joint", is_reference, None).examples
    assert example.question == "How?" and example.answer == " so<end>"
    assert [token.text for token in example.stages[0].tokens] == [" so", " x"]
    assert [token.text for token in example.stages[1].tokens] == [" so", "<end>"]


def test_text_without_its_spelling_is_not_played():
    assert refinement.refinement(trace([MENDED]), "joint", is_reference, None).examples == []


def test_long_answers_show_fewer_examples_and_at_least_one(monkeypatch):
    monkeypatch.setattr(refinement, "MOST_TOKENS", 17)  # two examples have two stages of four tokens each
    assert chosen([MENDED] * 4) == [(1, "mended"), (2, "mended")]
    monkeypatch.setattr(refinement, "MOST_TOKENS", 3)
    assert chosen([MENDED] * 4) == [(1, "mended")]


def test_what_the_headline_masks_is_shown_where_it_was_traced():
    content = trace([MENDED])
    part = {"ratio": 0.5, "masked": [[False, False, False, True]], "models": trace([BROKEN])["models"]}
    assert Traced.of(content).masked == content["response"] and Traced.of(content).ratio == 1.0
    (example,) = refinement.refinement({**content, "headline": part}, "joint", is_reference, str).examples
    assert example.kind == "broken" and [token.given for token in example.stages[0].tokens] == [True, True, True, False]
