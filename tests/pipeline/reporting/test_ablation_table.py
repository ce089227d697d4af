"""Tables of ablations: curves over passes, from metrics whose numbers are known."""

import json

import pytest

from pipeline.reporting import ablation_table
from tests.pipeline.test_ablation import interval

EXACT = {"default": {"1": (0.6, 0.7), "4": (0.7, 0.8)}, "no memory": {"1": (0.6, 0.7), "4": (0.5, 0.58)}}
TOKENS = {name: {passes: (0.9, 0.8) for passes in points} for name, points in EXACT.items()}


def places(folder, exact=EXACT, tokens=TOKENS, sampler="plain"):
    """Workspaces of two seeds, in which every variant was evaluated over passes."""
    for seed in (0, 1):
        for name, points in exact.items():
            values = {
                passes: {"exact": {"mean": of_seeds[seed]}, "token_accuracy": {"mean": tokens[name][passes][seed]}}
                for passes, of_seeds in points.items()
            }
            models = {"frozen": {}, ablation_table.folder_name(name): {"parallelism": {sampler: {"points": values}}}}
            place = folder / f"seed-{seed}" / "outputs" / f"{ablation_table.folder_name(name)}-evaluated"
            place.mkdir(parents=True)
            (place / "metrics.json").write_text(json.dumps({"models": models}))
    return [folder / "seed-0", folder / "seed-1"]


def lines(points):
    row = {"variant": "default", "metric": "exact", "parameters": 1, "steps": 1, "difference": {"mean": 0.0}, "verdict": ""}
    one = {"mean": 0.5, "low": 0.4, "high": 0.6}
    text = ablation_table.table([{**row, "validation": one, "test": one}], points, 2).split("\n\n")[-1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_every_variant_has_a_line_of_its_scores_and_one_of_its_differences_to_the_default(tmp_path):
    points = ablation_table.few_passes(places(tmp_path), list(EXACT))
    assert [(row["variant"], row["sampler"], row["metric"], [*row["passes"]]) for row in points] == [
        (name, "plain", "exact", ["1", "4"]) for name in EXACT
    ]
    assert points[1]["passes"]["4"] == {"test": interval(0.5, 0.58), "difference": interval(-0.2, -0.22)}
    table = lines(points)
    assert table[0] == ["variant", "test exact, by passes", "1", "4"]
    assert [line[:2] for line in table[2:]] == [["default", ""], ["no memory", ""], ["", "- default"]]
    assert table[-1][2:] == [".000 [.000, .000]", "**-.210 [-.337, -.083]**"]


def test_where_no_answer_is_right_tokens_are_compared_and_another_sampler_is_named(tmp_path):
    nothing = {name: {"1": (0.0, 0.0)} for name in EXACT}
    points = ablation_table.few_passes(places(tmp_path, exact=nothing, sampler="revising"), list(EXACT))
    assert points[0]["metric"] == "token_accuracy" and points[0]["passes"]["1"]["test"] == interval(0.9, 0.8)
    assert [line[0] for line in lines(points)[2:]] == ["default, revising", "no memory, revising", ""]


@pytest.mark.parametrize("unmeasured", [{}, {"parallelism": {}}])
def test_without_curves_there_is_no_second_table(tmp_path, unmeasured):
    folders = places(tmp_path)
    file = tmp_path / "seed-1/outputs/no_memory-evaluated/metrics.json"
    file.write_text(json.dumps({"models": {"frozen": {}, "no_memory": unmeasured}}))
    assert ablation_table.few_passes(folders, list(EXACT)) == []
    assert lines([])[0][0] == "variant" and "by passes" not in lines([])[0][1]
