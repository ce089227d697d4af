"""Which kind of model answers from a folder, told before it is opened."""

import pytest

from pipeline.inference.exported import is_causal
from pipeline.manifests import write_manifest


def described(folder, kind, causal):
    write_manifest(folder / "model.json", {"kind": kind, "vocabulary": {"causal": causal}})


@pytest.fixture
def place(tmp_path):
    """Models of every kind: exported, backbones elsewhere, the pipeline's own, one that was changed."""
    for name, causal in (("writes", True), ("fills", False)):
        (tmp_path / f"exported/{name}").mkdir(parents=True)
        (tmp_path / f"exported/{name}/export.json").write_text("{}")
        described(tmp_path / f"exported/{name}", "refined", not causal)  # of which only the backbone within counts
        described(tmp_path / f"exported/{name}/backbone", "backbone", causal)
        described(tmp_path / f"elsewhere/{name}", "backbone", causal)
    described(tmp_path / "elsewhere/refined", "refined", causal=None)
    described(tmp_path / "changed", "backbone", causal=True)
    (tmp_path / "changed/model.json").write_text((tmp_path / "changed/model.json").read_text().replace("true", "false"))
    write_manifest(tmp_path / "wordless/model.json", {"kind": "backbone"})
    return tmp_path


@pytest.mark.parametrize("pipeline", [False, True])
@pytest.mark.parametrize(
    ("model", "backbone", "expected"),
    [
        ("outputs/joint", "data/backbone", "as the pipeline"),  # neither is there yet
        ("data/backbone", "data/backbone", "as the pipeline"),
        ("nowhere", "data/backbone", "as the pipeline"),
        ("exported/writes", "data/backbone", True),
        ("exported/fills", "data/backbone", False),
        ("elsewhere/writes", "data/backbone", True),
        ("elsewhere/fills", "data/backbone", False),
        ("elsewhere/refined", "elsewhere/writes", True),
        ("outputs/joint", "elsewhere/fills", False),
        ("outputs/joint", "nowhere", None),
        ("elsewhere/refined", "changed", None),
        ("elsewhere/refined", "wordless", None),
    ],
)
def test_whether_a_model_writes_token_after_token(place, model, backbone, expected, pipeline):
    told = is_causal(place / model, place / backbone, pipeline=pipeline)
    assert told is (pipeline if expected == "as the pipeline" else expected)
