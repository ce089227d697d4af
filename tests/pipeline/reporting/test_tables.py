"""Tables from handmade metrics; bold only where the interval is clear of zero."""

import pytest

from pipeline.reporting import tables
from tests.support.handmade import cells, model, pair, retained, value

TRAINED = {
    "warmup": {"flops": 2e12, "steps": 5},
    "joint": {"flops": 1e12, "steps": 5},
    "control_warmup": {"flops": 4e12, "steps": 9},
}


def test_steps_are_a_column_per_refined_model(models):
    models["joint"] = model(0.9, 0.4, by_step=(0.75, 0.5))
    text = tables.steps_csv(models, "nll")
    assert text == "step,warmup,joint\n1,1.0,0.75\n2,0.75,0.5\n3,0.5,\n"


def test_the_results_table_has_a_row_a_model(models):
    table = cells(tables.results(models, ["test"], TRAINED))
    assert table[0] == ["model", "training TFLOP", "test exact", "test nll", "test tokens right"]
    assert table[2] == ["frozen", "0.00", ".250 [.240, .260]", "1.500 [1.490, 1.510]", ".500 [.490, .510]"]
    assert table[3][:3] == ["warmup", "2.00", ".750 [.740, .760]"]


def test_decoded_answers_have_a_table_of_their_own(models):
    table = cells(tables.decodes(models))
    assert table[0] == ["model", "test, 8 passes: exact", "test, 8 passes: tokens right"]
    assert table[2] == ["frozen", ".350 [.340, .360]", ".500 [.490, .510]"] and table[3][1] == ".800 [.790, .810]"


def test_a_table_of_decoded_answers_has_rows_or_is_words(models):
    for name in ("frozen", "warmup"):
        models[name]["test"] = {k: v for k, v in models[name]["test"].items() if not k.startswith("decode_")}
    assert tables.decodes(models) == "None was asked for.\n"


def test_training_compute_adds_up_along_the_chain(models):
    models |= {"joint": models["warmup"], "control_warmup": models["warmup"]}
    table = cells(tables.results(models, ["test"], TRAINED))
    assert [row[1] for row in table[2:]] == ["0.00", "2.00", "3.00", "6.00"]


def test_exact_is_left_out_where_nobody_gets_it(models):
    for name in ("frozen", "warmup"):
        models[name]["test"]["exact"] = value(0.01)
    table = cells(tables.results(models, ["test"], TRAINED))
    assert table[0] == ["model", "training TFLOP", "test nll", "test tokens right"]


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
