"""Tables from handmade metrics; bold only where the interval is clear of zero."""

import pytest

from pipeline.reporting import tables
from tests.support.handmade import cells, depth, model, pair, restart, retained, value

COSTS = ["training TFLOP", "trained parameters", "FLOPs an answer", "cache bytes"]


def phase(flops, trainable, cache_bytes=0, **more):
    return {"flops": flops, "steps": 5, "parameters": {"trainable": trainable}, "cache_bytes": cache_bytes, **more}


TRIALS = [{"rate": 0.5, "best_loss": 1.25}, {"rate": 1.0, "best_loss": 1.125}, {"rate": 2.0, "best_loss": None}]
TRAINED = {
    "warmup": phase(2e12, 4000, 5_000_000),
    "joint": phase(1e12, 7000, 5_000_000),
    "finetune": phase(0.5e12, 90_000),
    "control_warmup": phase(4e12, 4000, 5_000_000),
    "control_adapter": phase(2e12, 3990, 5_000_000),
    "control_refiner_lora": phase(1e12, 8000, rate=1.0, rates=TRIALS, search_flops=3e12),
    "control_lora": phase(3e12, 4100, rate=1.0, rates=TRIALS[:2], search_flops=6e12),
}


def test_steps_are_a_column_per_refined_model(models):
    models["joint"] = model(0.9, 0.4, by_step=(0.75, 0.5))
    text = tables.steps_csv(models, "nll")
    assert text == "step,warmup,joint\n1,1.0,0.75\n2,0.75,0.5\n3,0.5,\n"


def test_the_results_table_has_a_row_a_model(models):
    table = cells(tables.results(models, ["test"], TRAINED))
    assert table[0] == ["model", *COSTS, "test exact", "test nll", "test tokens right"]
    frozen = ["frozen", "0.00", "0", "3 M", "0", ".250 [.240, .260]", "1.500 [1.490, 1.510]", ".500 [.490, .510]"]
    assert table[2] == frozen and table[3][:6] == ["warmup", "2.00", "4,000", "3 M", "5 M", ".750 [.740, .760]"]


def test_splits_of_several_solutions_have_a_column_for_any(models):
    plain = cells(tables.results(models, ["test"], TRAINED))
    for name, solved in (("frozen", 0.5), ("warmup", 0.875)):
        models[name]["test"]["solved"] = value(solved)
        models[name]["test"]["decode_8"]["solved"] = value(solved)
    table, decoded = cells(tables.results(models, ["test"], TRAINED)), cells(tables.decodes(models))
    assert table[0] == [*plain[0][:6], "test any solution", *plain[0][6:]] and table[2][6] == ".500 [.490, .510]"
    assert decoded[0][1:3] == ["test, 8 passes: exact", "test, 8 passes: any solution"] and decoded[3][2] == ".875 [.865, .885]"
    told = tables.several_solutions({"public": {"several": 124, "of": 500}})
    assert told == [
        "124 of the 500 puzzles of public have more than one solution: exact counts the listed one, 'any solution' any that keeps "
        "clues and rules."
    ]


def test_decoded_answers_have_a_table_of_their_own(models):
    table = cells(tables.decodes(models))
    assert table[0] == ["model", *(f"test, 8 passes: {what}" for what in ("exact", "tokens right", "FLOPs an answer"))]
    assert table[2] == ["frozen", ".350 [.340, .360]", ".500 [.490, .510]", "24 M"] and table[3][1] == ".800 [.790, .810]"


def test_a_table_of_decoded_answers_has_rows_or_is_words(models):
    for name in ("frozen", "warmup"):
        models[name]["test"] = {k: v for k, v in models[name]["test"].items() if not k.startswith("decode_")}
    assert tables.decodes(models) == "None was asked for.\n"


def test_costs_add_up_along_the_chain(models):
    """Compute and the search for a rate add up; parameters are those of the last phase; states are stored once."""
    names = ("joint", "finetune", "control_warmup", "control_adapter", "control_refiner_lora", "control_lora")
    models |= {name: models["warmup"] for name in names}
    table = {row[0]: row[1:5] for row in cells(tables.results(models, ["test"], TRAINED))[2:]}
    assert {name: row[0] for name, row in table.items()} == {
        "frozen": "0.00", "warmup": "2.00", "joint": "3.00", "finetune": "3.50", "control_warmup": "6.00",
        "control_adapter": "2.00", "control_refiner_lora": "3.00 (5.00 with search)",
        "control_lora": "3.00 (6.00 with search)",
    }  # fmt: skip
    assert [table[name][1] for name in ("joint", "finetune", "control_adapter")] == ["7,000", "90,000", "3,990"]
    assert {name for name, row in table.items() if row[3] == "0"} == {"frozen", "control_lora"}
    assert {row[3] for row in table.values()} == {"0", "5 M"}


def test_learning_rates_are_a_column_each_and_the_best_is_bold():
    searched = {name: TRAINED[name] for name in ("control_lora", "control_refiner_lora")}
    table = cells(tables.rates(searched))
    assert table[0] == ["model", "x 0.5", "x 1", "x 2", "TFLOP of all"]
    assert table[2] == ["control_lora", "1.2500", "**1.1250**", "", "6.00"]
    assert table[3] == ["control_refiner_lora", "1.2500", "**1.1250**", "not finite", "3.00"]


def test_exact_is_left_out_where_nobody_gets_it(models):
    for name in ("frozen", "warmup"):
        models[name]["test"]["exact"] = value(0.01)
    table = cells(tables.results(models, ["test"], TRAINED))
    assert table[0] == ["model", *COSTS, "test nll", "test tokens right"]


@pytest.mark.parametrize(
    ("mean", "half", "bold"), [(0.5, 0.1, True), (-0.5, 0.1, True), (0.05, 0.1, False), (-0.05, 0.1, False), (0.1, 0.1, False)]
)
def test_a_difference_is_bold_where_its_interval_is_clear_of_zero(mean, half, bold):
    pairs = {"a - b": pair(mean, 0.0, half)}
    _, _, (name, exact, nll) = cells(tables.differences(pairs, ["test"]))
    assert name == "a - b" and exact.startswith("**") == exact.endswith("**") == bold and not nll.startswith("**")


def test_the_steps_table_leaves_blanks_after_the_last_step(models):
    table = cells(tables.steps(models))
    assert table[0] == ["model", "metric", "step 1", "step 2", "step 3"]
    assert table[2] == ["frozen", "exact", "1.000", "", ""]
    assert table[5] == ["warmup", "exact", "1.000", "0.750", "0.500"]


def test_generated_answers_have_a_table(whole):
    table = cells(tables.answers(whole))
    patterns = ["flexible", "flexible - frozen", "strict", "strict - frozen"]
    assert table[0] == ["model", *patterns, "exact match, strict-match", "function evaluations"]
    assert table[2][3:] == [".250 [.240, .260]", ".000 [.000, .000]", ".200 [.190, .210]", "32 x 1"]
    assert table[3][2] == ".050 [-.050, .150]" and table[3][4:] == ["**.200 [.100, .300]**", ".400 [.390, .410]", "32 x 4"]


def test_the_likelihood_has_a_table(whole):
    table = cells(tables.likelihood(whole))
    assert table[3] == [
        "warmup", "150.000 [149.990, 150.010] ± 2.500", "1.500 [1.490, 1.510]", "**-3.000 [-3.010, -2.990]** ± 0.250",
        "150.00, 149.00, 148.00, 147.00",
    ]  # fmt: skip


@pytest.mark.parametrize(("lost", "shown"), [(0.3, "**.300 [.200, .400]**"), (0.05, ".050 [-.050, .150]")])
def test_forgetting_has_a_table(models, lost, shown):
    table = cells(tables.forgetting(retained(models, lost)))
    assert table[0] == ["model", "nll", "nll - frozen", "tokens right"]
    assert table[2][2] == ".000 [.000, .000]" and table[3][2] == shown


def test_answers_in_few_passes_have_a_table_by_score(curves):
    exact, apart, tokens, _ = (cells(part) for part in tables.parallelism(curves).split("*\n\n")[1:])
    titles = ["2 passes, 6 tokens each", "10 passes, 1.2 tokens each"]
    assert exact[0] == ["model", "sampler", *titles, "AUP", "AUP - frozen", "AUP - plain"]
    assert [row[:2] for row in exact[2:6]] == [[m, s] for m in ("frozen", "warmup") for s in ("plain", "careful")]
    assert exact[4][2:5] == [".250 [.240, .260]", ".375 [.365, .385]", "60.000 [59.990, 60.010]"]
    assert exact[4][5:] == ["**2.000 [1.990, 2.010]**", ""] and exact[5][6] == "**-3.000 [-3.010, -2.990]**"
    assert apart[0] == ["difference", *titles] and apart[3][:2] == ["warmup: careful - plain", "**-3.000 [-3.010, -2.990]**"]
    assert tokens[5][4:] == ["130.000 [129.990, 130.010]", ".000 [-1.000, 1.000]", ".000 [-1.000, 1.000]"]


def test_one_sampler_is_compared_with_none(curves):
    for measured in curves.values():
        del measured["parallelism"]["careful"]
    table = tables.parallelism(curves)
    assert "AUP - plain" not in table and "paired" not in table and table.count("| model") == 2


def test_a_curve_of_exact_answers_is_left_out_where_nobody_gets_any(curves):
    assert tables.curve_scores(curves) == ["exact", "token_accuracy"]
    for measured in curves.values():
        for sampler in measured["parallelism"].values():
            for point in sampler["points"].values():
                point["exact"] = value(0.04)
    assert tables.curve_scores(curves) == ["token_accuracy"]


def test_difficulty_is_a_row_for_each_band(models):
    for name, shares in (("frozen", (0.25, 0.5)), ("warmup", (0.75, 1.0))):
        first, second = ({**value(share), "n": n} for share, n in zip(shares, (7, 5), strict=True))
        models[name]["by_difficulty"] = {"clues": {"32..35": first}, "guesses": {"0": first, "1": second}}
    rows = cells(tables.difficulty({name: models[name] for name in ("frozen", "warmup")}))
    assert [row[:2] for row in rows if "---" not in row[0]] == [
        ["of the puzzle", "n"], ["32..35 clues", "7"], ["0 guesses", "7"], ["1 guesses", "5"],
    ]  # fmt: skip
    assert rows[-1][2].startswith(".500 [") and rows[-1][3].startswith("1.000 [")


def test_restarts_are_rows_by_the_rule_that_chooses(models):
    models["warmup"]["breadth"] = {"change": [restart(1, 0.5), restart(4, 0.75)], "majority": [restart(4, 0.505, half=0.2)]}
    header, _, *rows = cells(tables.breadth(models))
    assert header == [
        "model", "chosen by", "restarts", "exact", "token accuracy", "nll", "exact - one", "nll - one", "FLOPs an answer"
    ]  # fmt: skip
    assert [row[:3] for row in rows] == [["warmup", "change", "1"], ["warmup", "change", "4"], ["warmup", "majority", "4"]]
    assert [row[6] for row in rows] == ["", "**.250 [.240, .260]**", ".005 [-.195, .205]"]
    assert [row[8] for row in rows] == ["1 M", "4 M", "4 M"]


def test_depths_are_rows_with_the_trained_number_bold(models):
    models["warmup"]["depths"] = [depth(1, 0.5, 1.0), depth(4, 0.75, 0.5), depth(64, 0.755, 0.4, half=0.2)]
    header, _, *rows = cells(tables.depths(models))
    assert header == [
        "model",
        "steps",
        "exact",
        "token accuracy",
        "nll",
        "exact - trained",
        "nll - trained",
        "change of state",
        "FLOPs an answer",
    ]
    assert [row[:2] for row in rows] == [["warmup", "1"], ["warmup", "**4**"], ["warmup", "64"]]
    assert [row[5:] for row in rows] == [
        ["**-.250 [-.260, -.240]**", "**.500 [.490, .510]**", "", "1 M"],
        ["", "", "0.2500", "4 M"],
        [".005 [-.195, .205]", "-.100 [-.300, .100]", "0.0156", "64 M"],
    ]  # fmt: skip
