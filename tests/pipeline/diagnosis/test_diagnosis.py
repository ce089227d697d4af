"""Each symptom: a run made to have it, by the numbers of the founding pages' bad signs, and one that almost has it."""

import inspect
import json
import re

import pytest

from components.objective import objective, supervision
from components.refiners import delta, refiner
from components.training import optim
from pipeline.diagnosis import diagnosis, recorded
from pipeline.diagnosis.diagnosis import SYMPTOMS, as_text, of_all, of_run
from pipeline.diagnosis.training_run import Run
from pipeline.training import loop
from stages import controls, extract
from tests.conftest import ROOT
from tests.support.made_runs import HEALTHY, STEPS, columns, falling, noise, validations, write_record, write_run


def names(tmp_path, **changed):
    """Symptoms of a warmup with these changes, as the doctor sees them in its files."""
    write_run(tmp_path / "outputs/warmup", **changed)
    runs, evaluation = recorded.workspace(tmp_path)
    return sorted({finding.name for finding in of_all(runs, evaluation)})


def slots(context, reasoning, refinement, confidence):
    sizes = {"context": context, "reasoning": reasoning, "refinement": refinement, "confidence": confidence}
    return {f"slot/{name}": size for name, size in sizes.items()}


ZIGZAG = [x + (0.5 if step % 2 else -0.5) for step, x in enumerate(falling(4.0, 2.0))]
FLAT = validations([2.0, 2.0, 2.0, 2.0], [1.5, 1.5, 1.5, 1.5])
BACK = [1.0 + x for x in noise(0.01)]
THROWN = [(1.0 if step < 4 else 2.0 if step < 100 else 1.1) + x for step, x in enumerate(noise(0.01))]

ILL = [
    ("loss diverging", {"loss": falling(2.0, 3.0), "validation": validations(1.0, 1.3)}),
    ("loss diverging", {"loss": falling(4.0, 4.2), "loss/step_0": falling(2.0, 3.0), "validation": validations(1.0, 1.3)}),
    ("loss diverging", {"loss": falling(2.0, 3.0), "validation": validations(1.0)}),
    ("loss diverging", {"loss": [*falling(4.0, 2.0)[:-1], float("nan")]}),
    ("loss diverging", {"loss": [*falling(4.0, 2.0)[:-1], float("inf")], "ended": False}),
    ("loss oscillating", {"loss": ZIGZAG}),
    ("loss oscillating", {"validation": validations(1.0, 1.3, 0.9, 1.2, 0.8)}),
    ("learning rate too high", {"loss": THROWN}),
    ("learning rate too low", {"validation": validations(1.0, 1.001, 0.999)}),
    ("always clipped", {"grad_norm": falling(5.0, 3.0)}),
    ("always clipped", {"grad_norm": 0.5, "settings": {"loop.fit.clip": "0.1"}}),
    ("overfitting", {"validation": validations(1.2, 0.9, 1.0)}),
    ("recursion unused", {"validation": FLAT}),
    ("recursion unused", {"validation": validations([1.5, 1.4, 1.4, 1.49])}),
    ("recursion unused", {"validation": [], **{f"loss/step_{k}": falling(2.0, 1.0) for k in range(4)}}),
    ("recursion unused", {"loss": [x - 10 for x in falling(4.0, 2.0)], "validation": validations([-1.0] * 4, [-1.5] * 4)}),
    ("later steps no better", {"validation": validations([2.0, 1.8, 1.6, 1.7], [1.5, 1.2, 1.0, 1.1])}),
    ("updates vanishing", {"delta": 0.001}),
    ("updates vanishing", {"delta": 0.3, "unit": 50.0}),
    ("updates exploding", {"delta": falling(0.1, 9.0)}),
    ("updates exploding", {"delta": 0.3, "unit": 0.05, "ended": False}),
    ("slots collapsed", slots(0.50, 0.51, 0.50, 0.52)),
    ("slots collapsed", {"overlap": 0.6}),
    ("gate dead", {"gate/refinement": falling(0.5, 0.1)}),
    ("gate saturated", {"gate/context": falling(0.5, 0.95)}),
    ("confidence uniform", {"confidence": 0.012}),
    ("confidence uniform", {"confidence": 0.98}),
]  # fmt: skip

WELL = [
    {},
    {"loss": falling(2.0, 2.3), "validation": validations(1.0, 1.3, 1.2)},  # not by so much
    {"loss": falling(2.0, 3.0)},  # masks that are harder: validation falls
    {"loss": [x + y for x, y in zip(falling(4.0, 2.0), noise(0.5), strict=True)]},  # batches differ
    {"validation": validations(1.0, 1.03, 0.97, 1.02, 0.98, 0.9)},  # small turns
    {"validation": validations(1.0, 0.98)},
    {"validation": validations(1.0, 1.001, 0.999), "confidence": falling(0.5, 0.2)},  # it does move
    {"validation": validations(1.0, 1.001, 0.999), "slot/reasoning": falling(0.3, 0.6)},
    {"grad_norm": [0.5 if step % 5 == 0 else 2.0 for step in range(STEPS)]},  # every fifth is whole
    {"grad_norm": 5.0, "settings": {"loop.fit.clip": "0.0"}},
    {"validation": validations(1.2, 0.9, 0.905)},
    {"validation": validations(0.02, 0.010, 0.014)},  # one token of some thousands
    {"loss": falling(2.0, 2.2), "validation": validations(1.2, 0.9, 1.0)},  # training does not fall either
    {"loss": [(1.0 if step < 4 else 2.0 if step < 100 else 0.5) + x for step, x in enumerate(noise(0.01))]},
    {"loss": BACK},
    {"validation": validations([2.0, 1.5, 1.0, 0.95], [1.8, 1.4, 0.9, 0.91])},
    {"delta": 0.05},
    {  # losses below 0 that fall
        "loss": [x - 10 for x in falling(4.0, 2.0)],
        "validation": validations([-1.0, -1.1, -1.2, -1.3], [-1.1, -1.2, -1.3, -1.5], [-1.2, -1.3, -1.5, -1.6]),
    },
    {"delta": 0.001, "unit": 0.0},  # nobody knows how large the states are
    slots(0.70, 0.71, 0.23, 1.05),  # the default preset's: out of order, and recursion is worth a lot
    slots(0.50, 0.53, 0.50, 0.52),
    {"gate/context": 0.31, "gate/reasoning": 0.69},
    {"confidence": 0.06},
    {f"slot/{name}": None for name in ("context", "reasoning", "refinement", "confidence")} | {"overlap": None, "delta": None},
]


@pytest.mark.parametrize(("name", "changed"), ILL)
def test_a_run_that_was_made_ill_is_found_to_be(tmp_path, name, changed):
    assert names(tmp_path, **changed) == [name]


@pytest.mark.parametrize("changed", WELL)
def test_a_run_that_is_well_has_no_finding(tmp_path, changed):
    assert names(tmp_path, **changed) == []


def test_slots_out_of_order_are_named_where_the_recursion_does_nothing(tmp_path):
    found = names(tmp_path, validation=FLAT, **slots(0.2, 0.2, 0.0, 2.7))
    assert found == ["recursion unused", "slots out of the founding order"]
    assert names(tmp_path, validation=FLAT, **slots(0.2, 0.21, 0.1, 0.1)) == ["recursion unused"]


@pytest.mark.parametrize(("batch", "rows", "ill"), [(10, 400, True), (10, 500, False), (10, 499, True), (4, 400, False)])
def test_masks_used_too_often(tmp_path, batch, rows, ill):
    """200 steps of so many sequences, over stored rows of all draws."""
    shards = [
        {"split": "train", "rows": rows // 2},
        {"split": "train", "rows": rows - rows // 2},
        {"split": "validation", "rows": 9},
    ]
    (tmp_path / "data/shards").mkdir(parents=True)
    (tmp_path / "data/shards/index.json").write_text(json.dumps({"shards": shards}))
    settings = {"warmup.run.batch_size": str(batch)}
    assert names(tmp_path, settings=settings, inputs=["extract"]) == ["masks used too often"] * ill
    assert names(tmp_path, settings=settings, inputs=["prepare"]) == []  # a live trunk masks anew


@pytest.mark.parametrize(
    ("control", "changed", "ill"),
    [
        ("warmup", {"validation": validations(1.0, 0.95)}, True),  # warmup ended at .9
        ("warmup", {"validation": validations(0.95, 0.85)}, False),
        ("backbone", {"loss": falling(1.0, 1.1), "validation": validations(1.3, 1.2)}, True),
        ("backbone", {"loss": falling(1.1, 1.0), "validation": validations(1.3, 1.2)}, False),
        ("optional/lora", {"metrics": {"rate": 3.0, "rates": [{"rate": rate} for rate in (0.3, 1.0, 3.0)]}}, True),
        ("optional/lora", {"metrics": {"rate": 0.3, "rates": [{"rate": rate} for rate in (0.3, 1.0, 3.0)]}}, True),
        ("optional/lora", {"metrics": {"rate": 1.0, "rates": [{"rate": rate} for rate in (0.3, 1.0, 3.0)]}}, False),
    ],
)
def test_a_control_that_was_never_trained_properly(tmp_path, control, changed, ill):
    write_run(tmp_path / "outputs/warmup")
    write_run(tmp_path / "outputs/controls" / control, "controls", **changed)
    found = of_all(*recorded.workspace(tmp_path))
    assert [(f.where, f.name) for f in found] == [(f"controls/{control}", "control not trained properly")] * ill


@pytest.mark.parametrize(("low", "ill"), [(0.2, True), (-0.1, False), (0.0, False)])
def test_forgetting(tmp_path, low, ill):
    write_run(tmp_path / "outputs/warmup")
    lost = {"prompt_nll": {"mean": 0.3, "low": low, "high": 0.4, "n": 30}}
    (tmp_path / "outputs/evaluate").mkdir()
    models = {"frozen": {}, "joint": {"forgetting": {"minus_frozen": lost}}}
    (tmp_path / "outputs/evaluate/metrics.json").write_text(json.dumps({"models": models}))
    found = of_all(*recorded.workspace(tmp_path))
    assert [str(f).split(". ")[0] for f in found] == [
        "joint: forgetting: nll of prompts' tokens is 0.300 [0.200, 0.400] above the frozen backbone's"
    ] * ill


@pytest.mark.parametrize("steps", [1, 2, 5, 19])
def test_of_a_few_steps_nothing_is_said(tmp_path, steps):
    ill = {name: values[:steps] for name, values in columns(**{"delta": 0.0, "confidence": 0.0, "grad_norm": 9.0}).items()}
    assert names(tmp_path, validation=validations(1.0, steps=steps), **ill) == []


@pytest.mark.parametrize(("planned", "said"), [(300, True), (400, True), (401, False), (4000, False)])
def test_a_run_that_goes_on_is_judged_on_what_it_came_to_from_its_middle_on(tmp_path, planned, said):
    write_record(tmp_path, tmp_path / "outputs/warmup", {"loop.fit.steps": str(planned)})
    assert names(tmp_path, ended=False, confidence=0.01) == ["confidence uniform"] * said


@pytest.mark.parametrize(
    ("changed", "name"), [({"grad_norm": [9.0] * 90 + [0.5] * 110}, "always clipped"), ({"loss": THROWN}, "learning rate too high")]
)
def test_what_a_run_may_still_mend_is_said_of_its_end_alone(changed, name):
    """Large gradients of the first steps, and a loss that waits for the rate to fall, are what healthy runs have."""
    curves = columns(**changed)

    def findings(steps, ended):
        so_far = {column: values[:steps] for column, values in curves.items()}
        return [finding.name for finding in of_run(Run("warmup", so_far, planned=STEPS, ended=ended, clip=1.0, unit=1.0))]

    assert not any(name in findings(steps, ended=False) for steps in range(20, STEPS, 10))
    assert (name in findings(STEPS, ended=True)) == (name == "learning rate too high")


@pytest.mark.parametrize(("waited", "steps", "ill"), [(0.5, 200, True), (0.2, 20, True), (0.19, 200, False), (0.5, 19, False)])
def test_a_loader_that_starves_the_device(waited, steps, ill):
    run = Run("warmup", {"loss": falling(4.0, 2.0, steps)}, planned=10_000, ended=False, waited=waited)
    assert [finding.name for finding in of_run(run)] == ["loader starves the device"] * ill


def test_every_symptom_has_a_run_that_has_it():
    beside = {"slots out of the founding order", "masks used too often", "control not trained properly", "forgetting"}
    beside |= {"loader starves the device"}
    assert {symptom.name for symptom in SYMPTOMS} == {name for name, _ in ILL} | beside
    assert len({symptom.name for symptom in SYMPTOMS}) == len(SYMPTOMS)


def test_the_evidence_says_numbers_and_the_mend_a_setting(tmp_path):
    for number, (_, changed) in enumerate(ILL):
        write_run(tmp_path / str(number) / "outputs/warmup", **changed)
        for finding in of_all(*recorded.workspace(tmp_path / str(number))):
            assert re.search(r"\d|nan|inf", finding.evidence) and finding.where == "warmup"
            assert re.search(r"\w+\.\w+\.\w+|DRAWS", finding.mend)


MODULES = {
    "refiner": refiner, "delta": delta, "optim": optim, "supervision": supervision, "objective": objective, "loop": loop,
    "controls": controls, "extract": extract,
}  # fmt: skip


def test_the_settings_of_every_mend_exist():
    said = {setting for symptom in SYMPTOMS for setting in re.findall(r"\b([a-z_]+)\.(\w+)\.(\w+)", symptom.mend)}
    assert len(said) >= 12
    for module, name, parameter in said:
        assert parameter in inspect.signature(getattr(MODULES[module], name)).parameters
    choices = {choice for symptom in SYMPTOMS for choice in re.findall(r"@(\w+)\.(\w+)", symptom.mend)}
    assert choices == {("delta", "Damped"), ("delta", "Clamped"), ("supervision", "exponential_decay"), ("sources", "live")}


def test_the_documents_table_is_that_of_the_code():
    rows = re.findall(r"^\| \*\*(.*?)\*\* \| (.*?) \| (.*?) \|$", (ROOT / "docs/doctor.md").read_text(), re.MULTILINE)
    assert [tuple(row) for row in rows] == [(s.name, s.rule, s.mend) for s in diagnosis.SYMPTOMS]


@pytest.mark.parametrize(("count", "said"), [(0, "no findings in"), (1, "1 finding in"), (2, "2 findings in")])
def test_the_text_ends_with_what_was_looked_at(tmp_path, count, said):
    write_run(tmp_path / "outputs/warmup", ended=False)
    runs, _ = recorded.workspace(tmp_path)
    findings = [SYMPTOMS[0].seen("warmup", "x")] * count
    assert as_text(findings, runs).splitlines() == [*map(str, findings), f"{said} warmup ({STEPS} steps, not ended)"]


def test_a_run_alone_is_judged_without_files(tmp_path):
    write_run(tmp_path / "outputs/warmup", confidence=0.01)
    runs, _ = recorded.workspace(tmp_path)
    assert [finding.name for finding in of_run(runs["warmup"])] == ["confidence uniform"] and HEALTHY
