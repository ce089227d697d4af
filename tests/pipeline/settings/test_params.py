"""params.yaml as it is read: YAML 1.2, sections, and nested maps as dotted bindings with their lines."""

import json
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.settings import params
from pipeline.settings.params import MACRO_NAME, hint

STAGES = ("warmup", "joint")


@pytest.fixture
def read(tmp_path):
    def read(text):
        (tmp_path / "params.yaml").write_text(text)
        return params.read(tmp_path / "params.yaml", STAGES)

    return read


def bindings(read_from, section="warmup"):
    """Names in capitals are taken for parameters: a map below them is a value."""
    return read_from.bindings(section, lambda path: MACRO_NAME.match(path[-1]) is not None)


def found(read_from):
    return {b.key: b.text for b in bindings(read_from)}


def test_nested_maps_and_dotted_keys_are_the_same_binding(read):
    nested = read("preset: p\nwarmup:\n  bindings:\n    loop:\n      fit: {steps: 3, clip: 2.0}\n")
    dotted = read("preset: p\nwarmup:\n  bindings:\n    loop.fit.steps: 3\n    loop.fit.clip: 2.0\n")
    assert found(nested) == found(dotted) == {"loop.fit.steps": "3", "loop.fit.clip": "2.0"}


def test_a_binding_knows_its_line(read):
    (binding,) = bindings(read("# a comment\npreset: p\nwarmup:\n  bindings:\n    loop:\n      fit:\n        steps: 3\n"))
    assert binding.origin.endswith("params.yaml:7 warmup.bindings.loop.fit.steps")


@pytest.mark.parametrize(
    ("written", "gin"),
    [
        ("5e-4", "0.0005"),
        ("1.0", "1.0"),
        ("1_000", "1000"),
        ("0x10", "16"),
        ("true", "True"),
        ("null", "None"),
        ("no", "'no'"),  # YAML 1.1 would make this False
        ("on", "'on'"),
        ("plain words", "'plain words'"),
        ("'it''s'", '"it\'s"'),
        ("'@loop.fit'", "@loop.fit"),
        ("'%SEED'", "%SEED"),
        ("'@'", "'@'"),
        ("[1, a, 2.5, [true]]", "[1, 'a', 2.5, [True]]"),
        ("{a: [1, '@loop.fit'], b: no}", "{'a': [1, @loop.fit], 'b': 'no'}"),
    ],
)
def test_values_are_read_as_yaml_1_2(read, written, gin):
    assert found(read(f"preset: p\nwarmup: {{bindings: {{K: {written}}}}}\n")) == {"K": gin}


@pytest.mark.parametrize("quoted", ["5e-4", "10", "-1.5", "+.5", "1_000"])
def test_a_quoted_number_is_refused(read, quoted):
    with pytest.raises(ConfigError, match=r"params.yaml:4 .*optim.adamw.lr: '.*' is a string that looks like a number") as error:
        found(read(f"preset: p\nwarmup:\n  bindings:\n    optim: {{adamw: {{lr: '{quoted}'}}}}\n"))
    assert f"'{quoted}'" in str(error.value)


def test_a_value_without_a_gin_form_is_refused(read):
    with pytest.raises(ConfigError, match=r"params.yaml:2 .*K: cannot use a value of type date"):
        found(read("preset: p\nwarmup: {bindings: {K: 2020-01-01}}\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preset: [\n", "is not valid YAML"),
        ("preset: a\npreset: b\n", "is not valid YAML"),
        ("- preset\n", "must hold a map with 'preset: <name>'"),
        ("", "must hold a map with 'preset: <name>'"),
        ("preset: 4\n", "must hold a map with 'preset: <name>'"),
        ("warmup: {}\n", "must hold a map with 'preset: <name>'"),
        ("preset: p\nwarmpu: {}\n", r"params.yaml:2: unknown section 'warmpu'; did you mean 'warmup'\?"),
        ("preset: p\n\nzzz: {}\n", r"params.yaml:3: unknown section 'zzz'; known: common, joint, preset, warmup"),
    ],
)
def test_a_malformed_file_is_refused(read, text, message):
    with pytest.raises(ConfigError, match=message):
        read(text)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing.yaml does not exist; run from the folder that holds it"):
        params.read(tmp_path / "nothing.yaml", STAGES)


@pytest.mark.parametrize("held", ["3", "[a]", "{binding: {}}", "{gin: [], bindings: {}, more: 1}"])
def test_a_section_holds_files_and_bindings_alone(read, held):
    with pytest.raises(ConfigError, match=r"params.yaml:2 warmup: a section may hold 'gin' .* and 'bindings' .*, nothing else"):
        found(read(f"preset: p\nwarmup: {held}\n"))


@pytest.mark.parametrize("held", ["[a]", "words", "3"])
def test_bindings_are_a_map(read, held):
    with pytest.raises(ConfigError, match=r"params.yaml:2 warmup.bindings: expected a map of bindings, got ") as error:
        found(read(f"preset: p\nwarmup: {{bindings: {held}}}\n"))
    assert held.strip("[]") in str(error.value)


@pytest.mark.parametrize("held", ["gin/sizes/tiny.gin", "{a: b}"])
def test_gin_files_are_a_list(read, held):
    with pytest.raises(ConfigError, match=r"params.yaml:2 warmup.gin: expected a list of gin files, got "):
        read(f"preset: p\nwarmup: {{gin: {held}}}\n").files("warmup")


def test_gin_files_come_in_order_with_their_line(read):
    files = read("preset: p\n\nwarmup: {gin: [b.gin, a.gin]}\n").files("warmup")
    assert [path for _, path in files] == ["b.gin", "a.gin"] and all(o.endswith("params.yaml:3 warmup.gin") for o, _ in files)


def test_a_key_bound_twice_names_both_places(read):
    text = "preset: p\nwarmup:\n  bindings:\n    loop.fit.steps: 3\n    loop: {fit: {steps: 4}}\n"
    with pytest.raises(ConfigError, match=r"params.yaml:5 .*steps: bound twice; also at .*params.yaml:4 .*steps"):
        found(read(text))


def test_a_name_that_is_a_number_is_refused(read):
    with pytest.raises(ConfigError, match=r"params.yaml:4 .*: a name was expected, got 5"):
        found(read("preset: p\nwarmup:\n  bindings:\n    5: 3\n"))


@pytest.mark.parametrize(("written", "shown"), [(".inf", "inf"), ("-.inf", "-inf"), (".nan", "nan")])
def test_a_number_that_is_not_finite_is_refused(read, written, shown):
    with pytest.raises(ConfigError, match=rf"params.yaml:2 .*K: expected a finite number, got {shown}"):
        found(read(f"preset: p\nwarmup: {{bindings: {{K: {written}}}}}\n"))


def test_a_tree_is_dumped_one_value_a_line_and_read_back_the_same(read):
    tree = {"loop": {"fit": {"lr": 5e-4, "steps": 3}}, "K": [1, "a b", None, True], "L": {"a": [1, 2]}}
    text = params.dump(tree)
    assert "loop:\n  fit:\n    lr: 0.0005\n    steps: 3\n" in text
    indented = "".join(f"    {line}\n" for line in text.splitlines())
    assert found(read(f"preset: p\nwarmup:\n  bindings:\n{indented}")) == {
        "loop.fit.lr": "0.0005", "loop.fit.steps": "3", "K": "[1, 'a b', None, True]", "L": "{'a': [1, 2]}",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["preset: p\n", "preset: p\nwarmup:\n", "preset: p\nwarmup: {bindings: }\n"])
def test_an_absent_or_empty_section_binds_nothing(read, text):
    assert found(read(text)) == {}


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("stpes", ["steps", "clip"], "; did you mean 'steps'?"),
        ("elsewhere_entirely.fit", ["loop.fit", "optim.adamw"], "; did you mean 'loop.fit'?"),
        ("zzz", ["b", "a"], "; known: a, b"),
    ],
)
def test_hint_names_the_nearest_or_all(word, known, expected):
    assert hint(word, known) == expected


@settings(max_examples=25, deadline=None)
@given(
    st.recursive(
        st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b c"]), inner),
    )
)
def test_what_python_reads_back_is_what_was_written(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_text("preset: p\nwarmup: {bindings: {K: " + json.dumps(value) + "}}\n")
    (binding,) = bindings(params.read(path, STAGES))
    assert eval(binding.text) == value


@settings(max_examples=25, deadline=None)
@given(st.text(string.printable, min_size=1).filter(lambda s: s[0] not in "@%+-.0123456789"))
def test_any_other_string_stays_that_string(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "strings.yaml"
    path.write_text("preset: p\nwarmup:\n  bindings:\n    K: " + json.dumps(value) + "\n")
    (binding,) = bindings(params.read(path, STAGES))
    assert eval(binding.text) == value


def test_bindings_are_written_over_those_of_a_section_and_the_rest_stays(tmp_path):
    source, out = tmp_path / "params.yaml", tmp_path / "out.yaml"
    source.write_text("preset: p  # a word\ncommon:\n  bindings: {SEED: 1, WIDTH: 2}\nwarmup: {gin: [a.gin]}\n")
    params.with_bindings(source, out, {"common": {"SEED": 3}, "warmup": {"STEPS": 4}, "joint": {"K": 5}}, "q")
    found = params.read(out, ["warmup", "joint"])
    assert found.preset == "q" and found.files("warmup")[0][1] == "a.gin"
    texts = {name: {b.key: b.text for b in found.bindings(name, lambda path: False)} for name in ("common", "warmup", "joint")}
    assert texts == {"common": {"SEED": "3", "WIDTH": "2"}, "warmup": {"STEPS": "4"}, "joint": {"K": "5"}}
    params.with_bindings(source, out, {})
    assert params.read(out, ["warmup"]).preset == "p"
