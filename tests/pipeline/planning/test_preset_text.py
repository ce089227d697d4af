"""The text of a preset: whatever its values say, gin reads them back, and no header becomes a binding."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.planning.preset_text import PresetText
from pipeline.settings.effective import Source
from pipeline.settings.ginfiles import parse_value


def written(header=("One.",), bindings=()):
    return PresetText(header, ("pipeline.text.jsonl", "components.inference.answers"), "gsm8k", bindings).written()


def test_a_preset_is_a_header_imports_a_base_and_a_binding_a_line():
    assert written(bindings=[("CORPUS", Source("@jsonl.QuestionAnswers()")), ("STEPS", 3)]) == (
        "# One.\n"
        "from __gin__ import dynamic_registration\n"
        "from components.inference import answers\n"
        "from pipeline.text import jsonl\n"
        "include 'gin/presets/gsm8k.gin'\n"
        "\n"
        "CORPUS = @jsonl.QuestionAnswers()\n"
        "STEPS = 3\n"
    )


@given(st.text())
def test_a_header_stays_a_comment(text):
    lines = written(header=[repr(text)]).splitlines()
    comment = lines[: lines.index("from __gin__ import dynamic_registration")]
    assert all(line.startswith("# ") for line in comment)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3) | st.tuples(inner),
    max_leaves=5,
)


@given(VALUES)
def test_gin_reads_any_value_back(value):
    line = written(bindings=[("X", value)]).split("\n\n")[1].removesuffix("\n")
    assert line.startswith("X = ") and parse_value(line.removeprefix("X = ")).literal == value
