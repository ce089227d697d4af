"""What the tests of depth and of breadth begin with."""

import pytest

from pipeline.corpora.prepared import Prepared
from pipeline.evaluation.assessment import load_models
from pipeline.models.backbones import Backbone
from pipeline.models.checkpoint import open_phases


@pytest.fixture
def trained(finished, runtime):
    """The finished run's models, frozen and joint, and its prepared data."""
    backbone = Backbone(finished / "data/backbone")
    models = load_models(backbone, open_phases({"joint": str(finished / "outputs/joint")}, backbone), runtime)
    return models, Prepared(finished / "data/prepared")
