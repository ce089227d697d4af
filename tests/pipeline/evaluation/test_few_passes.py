"""Answers over the number of passes: each point is a decode of one row by itself, areas and intervals are those of a plain loop."""

import pytest
import torch

from components.inference import revising
from components.inference.answers import Answers
from components.inference.parallelism import Parallelism, accuracy_under_parallelism
from components.inference.sampling import Sampler, low_confidence_remasking
from pipeline.corpora.prepared import Prepared
from pipeline.errors import ConfigError
from pipeline.evaluation import evaluator, few_passes
from pipeline.evaluation.assessment import load_models
from pipeline.evaluation.compared import Compared
from pipeline.inference.predictor import predictor
from pipeline.models.backbones import Backbone
from pipeline.models.checkpoint import open_phases

ITEMS, PASSES = 14, (1, 2, 5)
OTHERS = {"same": Sampler(), "revised": Sampler(revise=revising.least_probable, revisions=2)}


@pytest.fixture
def data(finished):
    return Prepared(finished / "data/prepared")


@pytest.fixture
def models(finished, runtime):
    backbone = Backbone(finished / "data/backbone")
    return load_models(backbone, open_phases({"joint": str(finished / "outputs/joint")}, backbone), runtime)


@pytest.fixture
def curves(data, models, runtime):
    def curves(size=5, **settings):
        settings = {"items": ITEMS, "passes": PASSES, "split": "test_5", "others": OTHERS, **settings}
        return few_passes.curves(data, Compared(models, runtime), Parallelism(**settings), size)

    return curves


def by_itself(model, split, vocabulary, runtime, passes):
    """For each row alone: how many tokens are right, and of how many."""
    counts = []
    for row in range(len(split)):
        one = split.take(slice(row, row + 1))
        (batch,) = evaluator.batches(one, vocabulary, 1.0, 0, 1)
        predict = predictor(model, batch, vocabulary, runtime)
        tokens = low_confidence_remasking(predict, batch.tokens, vocabulary.mask_id, passes).tokens[0].tolist()
        hidden = one.response[0].tolist()
        counts.append((sum(a == b for a, b, h in zip(tokens, one.tokens[0].tolist(), hidden, strict=True) if h), sum(hidden)))
    return counts


def test_each_point_is_a_decode_of_each_row_by_itself(curves, data, models, runtime):
    metrics, split = curves(), data.split("test_5").take(slice(0, ITEMS))
    for name, model in models.items():
        points = metrics[name]["plain"]["points"]
        assert list(points) == ["1", "2", "5"]
        for passes in PASSES:
            counts, point = by_itself(model, split, data.vocabulary, runtime, passes), points[str(passes)]
            total = sum(n for _, n in counts)
            assert point["token_accuracy"]["mean"] == pytest.approx(sum(right for right, _ in counts) / total)
            assert point["exact"]["mean"] == pytest.approx(sum(right == n for right, n in counts) / ITEMS)
            assert point["tokens_per_pass"]["mean"] == pytest.approx(total / (ITEMS * passes)) and point["revised"]["mean"] == 0


def test_no_number_depends_on_the_batch_size(curves):
    assert curves(size=1) == curves(size=5) == curves(size=600)


def test_differences_are_paired(curves):
    metrics = curves()
    for of_model in metrics.values():
        for sampler, curve in of_model.items():
            keys = {"minus_frozen", *(["minus_plain"] if sampler != "plain" else [])}
            for passes, point in curve["points"].items():
                assert {key for key in point if key.startswith("minus")} == keys
                for key, other in (("minus_frozen", metrics["frozen"][sampler]), ("minus_plain", of_model["plain"])):
                    for score in ("exact", "token_accuracy") if key in point else ():
                        apart = point[score]["mean"] - other["points"][passes][score]["mean"]
                        assert point[key][score]["mean"] == pytest.approx(apart, abs=1e-12)
            assert {key for key in curve if key.startswith("aup_")} == {f"aup_{key}" for key in keys}
        same, plain = of_model["same"], of_model["plain"]
        assert same["aup"] == plain["aup"]
        assert {v for value in same["aup_minus_plain"].values() for k, v in value.items() if k != "n"} == {0.0}


def test_what_is_revised_is_counted(curves):
    for of_model in curves().values():
        points = of_model["revised"]["points"]
        assert points["1"] == of_model["same"]["points"]["1"] and points["2"]["revised"]["mean"] == 0
        assert points["5"]["revised"]["mean"] == 3  # one a pass, where something is decided and the last pass has not come


def test_areas_and_their_intervals_are_those_of_a_plain_loop(data, curves, models, runtime):
    """Resample whole groups, compute every point anew, the best accuracy too."""
    passes = (1, 4)
    metrics, split = curves(passes=passes, others={}), data.split("test_5").take(slice(0, ITEMS))
    counts = {(name, p): by_itself(model, split, data.vocabulary, runtime, p) for name, model in models.items() for p in passes}
    groups = sorted(set(split.group.tolist()))
    members = [[i for i, group in enumerate(split.group.tolist()) if group == g] for g in groups]
    picks = torch.randint(len(groups), (2000, len(groups)), generator=evaluator.resamples()).tolist()
    areas = {name: [] for name in models}
    for pick in [list(range(len(groups))), *picks]:
        rows = [i for group in pick for i in members[group]]
        total = sum(counts["frozen", 1][i][1] for i in rows)
        accuracy = {key: 100 * sum(of[i][0] for i in rows) / total for key, of in counts.items()}
        rates = [total / (len(rows) * p) for p in passes]
        for name in models:
            curve = torch.tensor([rates, [accuracy[name, p] for p in passes]], dtype=torch.float64)
            best = torch.tensor(max(accuracy.values()), dtype=torch.float64)
            areas[name].append(float(accuracy_under_parallelism(*curve, best)))
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    for name in models:
        value, drawn = metrics[name]["plain"]["aup"]["token_accuracy"], torch.tensor(areas[name], dtype=torch.float64)
        assert [value["mean"], value["low"], value["high"]] == pytest.approx([drawn[0].item(), *drawn[1:].quantile(ends).tolist()])
        apart, less = (
            metrics[name]["plain"]["aup_minus_frozen"]["token_accuracy"],
            torch.tensor(areas["frozen"], dtype=torch.float64),
        )
        expected = [(drawn - less)[0].item(), *(drawn - less)[1:].quantile(ends).tolist()]
        assert [apart["mean"], apart["low"], apart["high"]] == pytest.approx(expected) and apart["n"] == ITEMS


@pytest.fixture
def of_text(text, runtime, monkeypatch):
    """``of_text(change)``: curves of the frozen backbone, whose answers are the references after ``change``."""
    prepared = Prepared(text / "data/prepared")
    frozen = {"frozen": Backbone(text / "data/backbone").model().eval()}

    def of_text(change=None, items=6, **settings):
        def fill(models, batches, *rest):
            parts = [
                {"tokens": batch.targets, "evaluations": batch.masked.sum(1), "revised": batch.masked.sum(1) * 0}
                for batch in batches
            ]
            for part in parts:
                change(part["tokens"])
            return {"frozen": parts}

        if change is not None:
            monkeypatch.setattr(evaluator, "fill", fill)
        settings = Parallelism(items=items, passes=(1, 2), **settings)
        return few_passes.curves(prepared, Compared(frozen, runtime), settings, 4)["frozen"]["plain"]

    return of_text


def test_results_of_texts_are_read_by_pattern(of_text):
    right = of_text(lambda tokens: None, results=Answers())["points"]["1"]
    assert {name: right[name]["mean"] for name in ("strict", "flexible", "exact", "token_accuracy")} == dict.fromkeys(
        ("strict", "flexible", "exact", "token_accuracy"), 1.0
    )
    wrong = of_text(lambda tokens: tokens.fill_(5), results=Answers())["points"]["1"]
    assert wrong["strict"]["mean"] == wrong["flexible"]["mean"] == 0 and wrong["token_accuracy"]["mean"] < 1


def test_a_model_of_text_has_its_curve(of_text):
    curve = of_text(results=Answers())
    assert set(curve["aup"]) == {"exact", "token_accuracy", "strict", "flexible"} and set(curve["points"]) == {"1", "2"}
    assert "strict" not in of_text()["aup"]


def test_what_has_no_curve_is_told(curves, data, models, runtime):
    with pytest.raises(ConfigError, match=r"parallelism.Parallelism.results is for text corpora; set it to None"):
        curves(results=Answers())
    causal = type("Causal", (), {"vocabulary": type("Of", (), {"causal": True})(), "split": data.split})()
    causal.vocabulary.__dict__.update({**data.vocabulary.__dict__, "causal": True})
    causal.folder = data.folder
    with pytest.raises(
        ConfigError, match=r"evaluate.run.parallelism fills masks, and a causal backbone has none: set PARALLELISM = None"
    ):
        few_passes.curves(causal, Compared(models, runtime), Parallelism(), 5)
