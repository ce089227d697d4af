"""The recipes by task: they say what the founding page recommends, fit every preset, and train so."""

import csv
import shutil

import pytest

from pipeline.command_line import SECTIONS
from pipeline.settings import config, params
from tests.conftest import ROOT, run_stages

WEIGHTS = {  # of each recursion step, worked out from the founding page by hand
    "reasoning": [0.15, 0.3, 0.45, 1.0],  # four H cycles, weight .6, linear decay
    "text": [0.3, 0.3, 1.0],  # three H cycles, weight .3, constant
    "quick": [0.5, 0.5, 1.0],  # three H cycles, weight .5
}
PRESETS = ("sudoku4", "sudoku6", "literal", "gsm8k", "gsm8k_smoke", "gsm8k_smol", "concepts", "recursive4")
TRAINING = ("warmup", "joint")


def params_of(recipe, preset):
    return f"preset: {preset}\ncommon: {{gin: [gin/recipes/{recipe}.gin]}}\n"


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("recipe", WEIGHTS)
def test_a_recipe_fits_a_preset(tmp_path, recipe, preset):
    (tmp_path / "params.yaml").write_text(params_of(recipe, preset))
    texts = config.resolve_all(SECTIONS, params.read(tmp_path / "params.yaml", SECTIONS), root=ROOT)
    assert f"RECURSION_STEPS = {len(WEIGHTS[recipe])}" in texts["warmup"]
    assert all(f".weight = {0.6 if recipe == 'reasoning' else WEIGHTS[recipe][0]}" in texts[stage] for stage in TRAINING)


@pytest.fixture(params=WEIGHTS)
def trained(request, copy_of):
    """A recipe's name, and the workspace in which its phases ran at toy size."""
    (copy_of / "params.yaml").write_text(params_of(request.param, "smoke"))
    for stage in TRAINING:
        shutil.rmtree(copy_of / "outputs" / stage)
    run_stages(copy_of, TRAINING)
    return request.param, copy_of


def test_a_recipe_says_what_the_founding_page_says(trained):
    recipe, folder = trained
    weights = WEIGHTS[recipe]
    for stage in TRAINING:
        rows = list(csv.DictReader((folder / "outputs" / stage / "curves.csv").read_text().splitlines()))
        assert rows and all(f"loss/step_{k}" in rows[0] for k in range(len(weights)))
        assert f"loss/step_{len(weights)}" not in rows[0]
        for row in rows:
            expected = sum(weight * float(row[f"loss/step_{k}"]) for k, weight in enumerate(weights))
            assert float(row["loss"]) == pytest.approx(expected, rel=1e-5)
