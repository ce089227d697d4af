"""The report: a table from handmade metrics, bold only where the interval is clear of zero, findings good and bad."""

import pytest

from pipeline.errors import DataError
from pipeline.markdown import cell, markdown
from pipeline.reporting import (
    decodes_table,
    differences_table,
    findings,
    report,
    results_table,
    retention,
    steps_csv,
    steps_table,
    whole_answers,
)


def value(mean, half=0.01, n=30):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def model(exact, nll, by_step=(1.0,), decode=None):
    measure = {"exact": value(exact), "nll": value(nll), "token_accuracy": value(0.5)}
    measure |= {"decode_8": {"exact": value(decode), "token_accuracy": value(0.5)}} if decode is not None else {}
    steps = {f"{k}_by_step": [value(x) for x in by_step] for k in ("nll", "exact", "token_accuracy")}
    return {"test": measure, "exact": value(exact), "nll": value(nll), **steps}


def pair(exact, nll, half=0.01):
    return {"test": {"exact": value(exact, half), "nll": value(nll, half), "token_accuracy": value(0, half)}}


@pytest.fixture
def metrics():
    return {
        "headline": "test",
        "frozen": model(0.25, 1.5, decode=0.35),
        "warmup": model(0.75, 0.5, by_step=(1.0, 0.75, 0.5), decode=0.8),
        "differences": {"warmup - frozen": pair(0.5, -1.0)},
    }


TRAINED = {
    "warmup": {"flops": 2e12, "steps": 5},
    "joint": {"flops": 1e12, "steps": 5},
    "control_warmup": {"flops": 4e12, "steps": 9},
}


def cells(table):
    return [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()]


def test_steps_are_a_column_per_refined_model(metrics):
    metrics["joint"] = model(0.9, 0.4, by_step=(0.75, 0.5))
    text = steps_csv(metrics, ["frozen", "warmup", "joint"], "nll")
    assert text == "step,warmup,joint\n1,1.0,0.75\n2,0.75,0.5\n3,0.5,\n"


@pytest.mark.parametrize(
    ("mean", "low", "high", "shown"),
    [
        (0.96, 0.943, 0.975, ".960 [.943, .975]"),
        (1.0, 0.9, 1.0, "1.000 [.900, 1.000]"),
        (-0.05, -0.1, 0.0, "-.050 [-.100, .000]"),
        (10.25, 10.0, 20.5, "10.250 [10.000, 20.500]"),
    ],
)
def test_a_cell_is_a_mean_with_its_interval(mean, low, high, shown):
    assert cell({"mean": mean, "low": low, "high": high, "n": 9}) == shown


def test_markdown_lines_up():
    lines = markdown([["a", "long name"], ["longer", "b"]]).splitlines()
    assert lines == ["| a      | long name |", "|--------|-----------|", "| longer | b         |"]


def test_the_results_table_has_a_row_a_model(metrics):
    table = cells(results_table(metrics, ["frozen", "warmup"], ["test"], TRAINED))
    assert table[0] == ["model", "training TFLOP", "test exact", "test nll", "test tokens right"]
    assert table[2] == ["frozen", "0.00", ".250 [.240, .260]", "1.500 [1.490, 1.510]", ".500 [.490, .510]"]
    assert table[3][:3] == ["warmup", "2.00", ".750 [.740, .760]"]


def test_decoded_answers_have_a_table_of_their_own(metrics):
    table = cells(decodes_table(metrics, ["frozen", "warmup"]))
    assert table[0] == ["model", "test, 8 passes: exact", "test, 8 passes: tokens right"]
    assert table[2] == ["frozen", ".350 [.340, .360]", ".500 [.490, .510]"] and table[3][1] == ".800 [.790, .810]"


def test_training_compute_adds_up_along_the_chain(metrics):
    metrics |= {"joint": metrics["warmup"], "control_warmup": metrics["warmup"]}
    table = cells(results_table(metrics, ["frozen", "warmup", "joint", "control_warmup"], ["test"], TRAINED))
    assert [row[1] for row in table[2:]] == ["0.00", "2.00", "3.00", "6.00"]


def test_exact_is_left_out_where_nobody_gets_it(metrics):
    for name in ("frozen", "warmup"):
        metrics[name]["test"]["exact"] = value(0.01)
    table = cells(results_table(metrics, ["frozen", "warmup"], ["test"], TRAINED))
    assert table[0] == ["model", "training TFLOP", "test nll", "test tokens right"]


@pytest.mark.parametrize(
    ("mean", "half", "bold"), [(0.5, 0.1, True), (-0.5, 0.1, True), (0.05, 0.1, False), (-0.05, 0.1, False), (0.1, 0.1, False)]
)
def test_a_difference_is_bold_where_its_interval_is_clear_of_zero(metrics, mean, half, bold):
    metrics["differences"] = {"a - b": pair(mean, 0.0, half)}
    _, _, (name, exact, nll) = cells(differences_table(metrics, ["test"]))
    assert name == "a - b" and exact.startswith("**") == exact.endswith("**") == bold and not nll.startswith("**")


def test_the_steps_table_leaves_blanks_after_the_last_step(metrics):
    table = cells(steps_table(metrics, ["frozen", "warmup"]))
    assert table[0] == ["model", "metric", "step 1", "step 2", "step 3"]
    assert table[2] == ["frozen", "exact", "1.000", "", ""]
    assert table[5] == ["warmup", "exact", "1.000", "0.750", "0.500"]


@pytest.fixture
def whole(metrics):
    """Generated answers and likelihood too."""
    none, gain = value(0, 0), value(0.2, 0.1)
    for name, steps, strict, apart in (("frozen", 1, 0.25, none), ("warmup", 4, 0.45, gain)):
        minus = {"strict": apart, "flexible": value(0.05, 0.1)}
        metrics[name]["answers"] = {
            "strict": value(strict), "flexible": value(0.5), "minus_frozen": minus, "function_evaluations": 32.0,
            "recursion_steps": steps,
        }  # fmt: skip
        metrics[name]["likelihood"] = {
            "answer_nll": value(150.0), "answer_nll_per_token": value(1.5), "standard_error": 2.5, "samples": 8,
            "answer_nll_by_step": [value(150.0 - k) for k in range(steps)],
            "minus_frozen": {"answer_nll": value(-3.0), "standard_error": 0.25},
        }  # fmt: skip
    return metrics


def test_generated_answers_have_a_table(whole):
    found = whole_answers(whole, ["frozen", "warmup"])
    table = cells(found["Generated answers"].partition("\n\n")[2])
    assert table[0] == ["model", "flexible", "flexible - frozen", "strict", "strict - frozen", "function evaluations"]
    assert table[2][3:] == [".250 [.240, .260]", ".000 [.000, .000]", "32 x 1"]
    assert table[3][2] == ".050 [-.050, .150]" and table[3][4:] == ["**.200 [.100, .300]**", "32 x 4"]


def test_the_likelihood_has_a_table(whole):
    table = cells(whole_answers(whole, ["frozen", "warmup"])["Likelihood of whole answers"].partition("\n\n")[2])
    assert table[3] == [
        "warmup", "150.000 [149.990, 150.010] ± 2.500", "1.500 [1.490, 1.510]", "**-3.000 [-3.010, -2.990]** ± 0.250",
        "150.00, 149.00, 148.00, 147.00",
    ]  # fmt: skip


def test_without_whole_answers_nothing_is_said_of_them(metrics):
    assert whole_answers(metrics, ["frozen", "warmup"]) == {}


@pytest.mark.parametrize(("lost", "half", "told"), [(0.3, 0.1, True), (0.05, 0.1, False), (-0.3, 0.1, False)])
def test_forgetting_has_a_table_and_is_a_finding_where_it_is_clear(metrics, lost, half, told):
    for name, apart in (("frozen", value(0, 0)), ("warmup", value(lost, half))):
        metrics[name]["retention"] = {
            "prompt_nll": value(2.0),
            "prompt_token_accuracy": value(0.5),
            "minus_frozen": {"prompt_nll": apart, "prompt_token_accuracy": value(0)},
        }
    table = cells(retention(metrics, ["frozen", "warmup"])["What the backbone knew"].partition("\n\n")[2])
    assert table[0] == ["model", "nll", "nll - frozen", "tokens right"] and table[3][2].strip("*") == cell(value(lost, half))
    said = [line for line in findings(metrics, {}, ["frozen", "warmup"]) if "forgotten" in line]
    assert said == (
        [f"warmup: has forgotten, nll of prompts' tokens is {cell(value(lost, half))} above the frozen backbone's"] if told else []
    )


def test_without_a_look_nothing_is_said_of_forgetting(metrics):
    assert retention(metrics, ["frozen"]) == {}


@pytest.mark.parametrize(
    ("exact", "half", "verdict"), [(0.5, 0.1, "better"), (-0.5, 0.1, "worse"), (0.05, 0.1, "not distinguishable")]
)
def test_a_finding_judges_each_difference_on_exact(metrics, exact, half, verdict):
    metrics["differences"] = {"a - b": pair(exact, 0.0, half)}
    assert findings(metrics, {}, ["frozen"])[0].startswith(f"a - b: {verdict} on test exact (")


@pytest.mark.parametrize(("nll", "verdict"), [(-0.5, "better"), (0.5, "worse"), (0.0, "not distinguishable")])
def test_a_finding_judges_on_nll_where_nobody_is_exact(metrics, nll, verdict):
    """Lower is better."""
    for name in ("frozen", "warmup"):
        metrics[name]["exact"] = value(0.01)
    metrics["differences"] = {"a - b": pair(0.0, nll)}
    assert findings(metrics, {}, ["frozen"])[0].startswith(f"a - b: {verdict} on test nll (")


@pytest.mark.parametrize(
    ("by_step", "line"),
    [
        ((1.0, 0.75, 0.5), "warmup: nll falls with every recursion step"),
        ((1.0, 0.5, 0.6), "warmup: more steps are not always better"),
    ],
)
def test_a_finding_says_whether_steps_help(metrics, by_step, line):
    metrics["warmup"]["nll_by_step"] = [value(x) for x in by_step]
    assert findings(metrics, {}, ["frozen", "warmup"])[1:] == [line]  # the frozen backbone has one step: nothing to say


@pytest.mark.parametrize(
    ("last", "lines"),
    [
        (0.29, ["warmup: gate/context ends at 0.29, outside 0.3..0.7: this slot is closing"]),
        (0.71, ["warmup: gate/context ends at 0.71, outside 0.3..0.7: this slot is taking over"]),
        (0.5, []),
    ],
)
def test_a_finding_warns_of_gates_that_close_or_take_over(metrics, last, lines):
    curves = {"warmup": {"step": [0, 1], "gate/context": [0.5, last], "gate/confidence": [0.1, 0.6]}}
    assert findings(metrics, curves, ["frozen"])[1:] == lines


def test_the_page_holds_its_tables_and_pictures(finished):
    page = (finished / "outputs/report/report.md").read_text()
    assert (finished / "outputs/report/table.md").read_text() in page
    for picture in ("losses", "steps", "slots", "puzzles"):
        assert f"({picture}.png)" in page and (finished / f"outputs/report/{picture}.png").is_file()
    assert "- joint - frozen: " in page and "- warmup: " in page


def test_without_an_evaluation_the_stage_is_named(tmp_path):
    with pytest.raises(DataError, match=r"metrics.json does not exist; it is written by stage evaluate: run dvc repro evaluate"):
        report(tmp_path / "out", tmp_path, {})
