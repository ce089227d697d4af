"""The page of a run: what it shows follows from what the run has."""

import pytest

from pipeline.reporting.page import report

REFINED = ("warmup", "joint", "finetune")
PHASES = {
    "backbone": "data/backbone", **{name: f"outputs/{name}" for name in REFINED},
    "control_backbone": "outputs/controls/backbone", "control_warmup": "outputs/controls/warmup",
}  # fmt: skip


@pytest.mark.parametrize("refiner", ["of slots", "of another kind"])
def test_slots_are_shown_where_there_are_any(copy_of, monkeypatch, refiner):
    monkeypatch.chdir(copy_of)
    for phase in REFINED if refiner == "of another kind" else ():
        path = copy_of / "outputs" / phase / "curves.csv"
        rows = [line.split(",") for line in path.read_text().splitlines()]
        columns = [i for i, name in enumerate(rows[0]) if not name.startswith(("slot/", "gate/"))]
        assert len(columns) < len(rows[0]) or phase == "finetune"  # which is off
        path.write_text("".join(",".join(row[i] for i in columns) + "\n" for row in rows))
    table = report(copy_of / "page", copy_of / "outputs/evaluate", PHASES)
    page = (copy_of / "page/report.md").read_text()
    assert table in page and "![" in page
    assert (copy_of / "page/slots.png").exists() == ("slots.png" in page) == (refiner == "of slots")
