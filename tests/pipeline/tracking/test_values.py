"""Curves that stand in a run's metrics: those of evaluations, and of validations where no file of rows has them."""

import pytest

from pipeline.files import write_atomic, write_json
from pipeline.tracking import values


@pytest.mark.parametrize("folder", ["", "backbone", "optional/lora"])
@pytest.mark.parametrize(("rows", "search"), [(True, {}), (False, {}), (True, {"rates": []}), (False, {"rates": []})])
def test_validations_are_told_once_and_those_of_a_searchs_best_again(tmp_path, folder, rows, search):
    place = tmp_path / folder
    models = {"a": {"nll_by_step": [{"mean": 2.0}]}}
    write_json(place / "metrics.json", {"validation": [{"step": 4, "loss": 0.5}], "models": models, **search})
    if rows:
        write_atomic(place / "validation.csv", b"step,loss\n4,0.5\n")
    of_evaluation = (folder, "nll_by_step/a", [(0, 2.0)])
    of_validation = [] if rows and not search else [(folder, "validation/loss", [(4, 0.5)])]
    assert list(values.curves(tmp_path)) == [*of_validation, of_evaluation]
