"""What to set where a stage does not fit: settings that are planned, the first with which it does, in the words of params.yaml."""

import contextlib
import json
import re

import gin
import pytest

from pipeline.command_line import SECTIONS
from pipeline.planning import plan as planning
from pipeline.planning.advice import SHARED, TWICE, advice, ways
from pipeline.planning.fleet import Fleet
from pipeline.settings import config, params
from tests.conftest import ROOT

SIZES = {"LAYERS": 6, "DIM": 32, "ACCUMULATION": 2}


@pytest.fixture
def advised(tmp_path):
    """``advised(share of the largest stage's memory)``: what is said of a device of that size, by stage, and its size."""
    file = tmp_path / "params.yaml"
    file.write_text(json.dumps({"preset": "smoke", "common": {"bindings": SIZES}}))
    with contextlib.chdir(tmp_path):
        (tmp_path / "gin").symlink_to(ROOT / "gin")
        read = params.read(file, SECTIONS)
        texts = config.resolve_all(SECTIONS, read)
        plan = planning.plan(texts, 2)
        largest = max(plan.costs, key=lambda cost: cost.memory)

        def advised(share, overrides=()):
            size = share * largest.memory
            head, *lines = [*advice(plan, Fleet(1e12, "", 2, size), texts, read, overrides)] or [""]
            assert head == "      what to set, in params.yaml under the bindings of the stage:" or not (head or lines)
            return {line.split(":")[0].strip(): line for line in lines}, size, read, texts

        yield advised
    gin.clear_config()


def test_of_a_device_into_which_all_fits_and_of_an_unknown_one_nothing_is_said(advised):
    assert advised(1.01)[0] == advised(0)[0] == {}


def test_settings_that_are_named_make_it_fit(advised):
    said, size, read, texts = advised(0.5)
    assert {"backbone"} <= {*said}
    for stage, line in said.items():
        assert "does not fit" not in line, line
        settings = re.findall(r"\S+=\S+", line)
        changed = config.resolve(stage, read, settings).text
        taken = planning.memory_of([stage], {**texts, stage: changed}, 2)[stage]
        assert settings and taken <= size


@pytest.mark.slow
def test_what_fits_no_way_is_said_with_the_least_that_was_reached(advised):
    said, _, _, _ = advised(0.01)
    for line in said.values():
        assert re.search(r"of what was tried the least, which does not fit: (\S+=\S+ )+takes [\d.]+ [kM]?B$", line)
    assert "loop.fit.ema=0.0" in said["backbone"] and SHARED in said["backbone"] and TWICE in said["backbone"]


@pytest.mark.slow
def test_what_is_set_on_the_command_line_is_not_set_again(advised):
    said, _, _, _ = advised(0.01, [TWICE])
    assert not any(TWICE in line for line in said.values())


def test_a_single_process_has_nobody_to_share_layers_with():
    assert not any(SHARED in way for way in ways(1)) and ways(1)[0] == ways(2)[0] and any(SHARED in way for way in ways(2))
