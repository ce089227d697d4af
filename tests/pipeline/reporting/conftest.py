"""Two models and what sets them apart."""

import pytest

from tests.pipeline.reporting.handmade import model, pair


@pytest.fixture
def metrics():
    return {
        "headline": "test",
        "frozen": model(0.25, 1.5, decode=0.35),
        "warmup": model(0.75, 0.5, by_step=(1.0, 0.75, 0.5), decode=0.8),
        "differences": {"warmup - frozen": pair(0.5, -1.0)},
    }
