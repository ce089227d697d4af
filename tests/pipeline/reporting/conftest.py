"""Two models and what sets them apart."""

import pytest

from tests.support.handmade import curve, model, pair, value


@pytest.fixture
def metrics():
    return {
        "headline": "test",
        "measures": ["test"],
        "models": {
            "frozen": model(0.25, 1.5, decode=0.35),
            "warmup": model(0.75, 0.5, by_step=(1.0, 0.75, 0.5), decode=0.8),
        },
        "differences": {"warmup - frozen": pair(0.5, -1.0)},
    }


@pytest.fixture
def models(metrics):
    return metrics["models"]


@pytest.fixture
def curves(models):
    """Answers over the number of passes, by two samplers."""
    models["frozen"]["parallelism"] = {"plain": curve(0.25, 0.5, 90.0), "careful": curve(0.25, 0.5, 91.0)}
    models["warmup"]["parallelism"] = {"plain": curve(0.5, 0.75, 120.0, 2.0), "careful": curve(0.5, 0.8, 130.0, -3.0)}
    return models


@pytest.fixture
def whole(models):
    """Generated answers and likelihood too."""
    none, gain = value(0, 0), value(0.2, 0.1)
    for name, steps, strict, apart in (("frozen", 1, 0.25, none), ("warmup", 4, 0.45, gain)):
        minus = {"strict": apart, "flexible": value(0.05, 0.1)}
        models[name]["answers"] = {
            "strict": value(strict), "flexible": value(0.5), "minus_frozen": minus,
            "exact_match": {"strict-match": value(strict - 0.05)}, "function_evaluations": value(32.0),
            "recursion_steps": steps,
        }  # fmt: skip
        models[name]["likelihood"] = {
            "answer_nll": value(150.0), "answer_nll_per_token": value(1.5), "standard_error": 2.5, "samples": 8,
            "answer_nll_by_step": [value(150.0 - k) for k in range(steps)],
            "minus_frozen": {"answer_nll": value(-3.0), "standard_error": 0.25},
        }  # fmt: skip
    return models
