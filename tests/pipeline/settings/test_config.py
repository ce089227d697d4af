"""Settings: precedence, what reaches a stage, mistakes and where they stand, canonical texts."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from pipeline.command_line import SECTIONS, STAGES
from pipeline.errors import ConfigError
from pipeline.settings import config, dependencies, layers, params
from stages import configure
from tests.conftest import ROOT

SMOKE = "preset: smoke\n"


def resolve(stage, text=SMOKE, *overrides):
    Path("params.yaml").write_text(text)
    return config.resolve(stage, params.read(Path("params.yaml"), SECTIONS), overrides).text


def bound(text):
    return dict(line.split(" = ", 1) for line in text.splitlines() if " = " in line)


def in_section(*lines, stage="warmup"):
    return SMOKE + f"{stage}:\n  bindings:\n" + "".join(f"    {line}\n" for line in lines)


def append(file, *lines):
    file.write_text((file.read_text() if file.exists() else "from __gin__ import dynamic_registration\n") + "\n".join(lines) + "\n")


# Precedence


@pytest.mark.parametrize("layers", range(1, 6))
def test_later_layers_win(root, layers):
    """preset < stage file < common < stage section < command line: with the first n of them, the n-th decides."""
    append(root / "gin/presets/smoke.gin", "from pipeline.training import loop", "loop.fit.clip = 1.0")
    if layers >= 2:
        append(root / "gin/warmup.gin", "loop.fit.clip = 2.0")
    common = "common: {bindings: {loop: {fit: {clip: 3.0}}}}\n" if layers >= 3 else ""
    own = "warmup: {bindings: {loop: {fit: {clip: 4.0}}}}\n" if layers >= 4 else ""
    overrides = ["loop.fit.clip=5.0"] if layers >= 5 else []
    assert bound(resolve("warmup", SMOKE + own + common, *overrides))["loop.fit.clip"] == f"{layers}.0"


def test_a_preset_overrides_what_it_includes(root):
    append(root / "gin/presets/mine.gin", "include 'gin/presets/smoke.gin'", "WARMUP_STEPS = 17")
    assert bound(resolve("warmup", "preset: mine\n")) == bound(resolve("warmup")) | {"WARMUP_STEPS": "17"}


def test_a_named_gin_file_overrides_the_stage_file(root):
    assert bound(resolve("warmup"))["refiner.SlotRefiner.heads"] == "%HEADS"
    assert bound(resolve("warmup", SMOKE + "warmup: {gin: [gin/sizes/base.gin]}\n"))["refiner.SlotRefiner.heads"] == "None"


def test_a_binding_overrides_a_named_gin_file(root):
    text = SMOKE + "warmup: {gin: [gin/sizes/base.gin], bindings: {refiner.SlotRefiner.blocks: 3}}\n"
    assert bound(resolve("warmup", text))["refiner.SlotRefiner.blocks"] == "3"


def test_the_gin_file_of_a_section_overrides_that_of_common(root):
    text = SMOKE + "warmup: {gin: [gin/sizes/base.gin]}\ncommon: {gin: [gin/sizes/large.gin]}\n"
    assert bound(resolve("warmup", text))["refiner.SlotRefiner.blocks"] == "2"


def test_the_gin_file_of_a_section_overrides_a_binding_of_common(root):
    text = SMOKE + "common: {bindings: {refiner.SlotRefiner.blocks: 3}}\nwarmup: {gin: [gin/sizes/base.gin]}\n"
    assert bound(resolve("warmup", text))["refiner.SlotRefiner.blocks"] == "2"


# What a binding can say


def test_a_macro_is_set_by_its_name_alone(root):
    assert bound(resolve("warmup", in_section("WARMUP_LR: 5e-4")))["WARMUP_LR"] == "0.0005"


def test_a_reference_brings_what_it_needs_and_drops_what_it_replaces(root):
    text = bound(
        resolve(
            "warmup", in_section("objective.Objective.supervision: '@supervision.constant'", "supervision.constant.weight: 0.3")
        )
    )
    assert text["objective.Objective.supervision"] == "@supervision.constant"
    assert text["supervision.constant.weight"] == "0.3"
    swapped = bound(resolve("warmup", in_section("warmup.run.states: '@sources.live'")))
    assert "sources.live.prepared" in swapped and "sources.cached.shards" not in swapped


def test_a_scope_binds_one_use_alone(root):
    text = bound(resolve("controls", in_section("trained_on/optim: {adamw: {lr: 0.5}}", stage="controls")))
    assert text["trained_on/optim.adamw.lr"] == "0.5" and text["optim.adamw.lr"] == "%JOINT_LR"
    by_command = bound(resolve("controls", SMOKE, "trained_on/optim.adamw.lr=0.5"))
    assert by_command == text


def test_a_leading_name_that_nothing_imports_is_a_scope(root):
    text = bound(resolve("controls", in_section("trained_on: {optim: {adamw: {lr: 0.5}}}", stage="controls")))
    assert text["trained_on/optim.adamw.lr"] == "0.5" and text["optim.adamw.lr"] == "%JOINT_LR"


def test_a_macro_can_hold_a_map(root):
    text = bound(resolve("evaluate", in_section("MEASURES: {test_5: [test_5, 0.5]}", stage="evaluate")))
    assert eval(text["MEASURES"]) == {"test_5": ("test_5", 0.5)}  # a list stands for a tuple: YAML has none


@pytest.mark.parametrize(
    ("argument", "key", "value"),
    [
        ("loop.fit.steps=7", "loop.fit.steps", "7"),
        ("loop.fit.clip=5e-4", "loop.fit.clip", "0.0005"),
        ("warmup.run.layer_norms=true", "warmup.run.layer_norms", "True"),
        ("optim.adamw.backbone_lr=null", "optim.adamw.backbone_lr", "None"),
        ("warmup.run.out=runs/a=b", "warmup.run.out", "'runs/a=b'"),
        ("warmup.run.unfreeze=['refiner', 'backbone']", "warmup.run.unfreeze", "['refiner', 'backbone']"),
        ("loop.fit.schedule=@optim.warmup_cosine", "loop.fit.schedule", "@optim.warmup_cosine"),
        ("SEED=3", "SEED", "3"),
    ],
)
def test_the_command_line_takes_gin_values_and_plain_words(root, argument, key, value):
    assert bound(resolve("warmup", SMOKE, argument))[key] == value


@settings(max_examples=25, deadline=None)
@given(st.floats(min_value=1e-12, max_value=1e12))
def test_any_float_arrives_exactly(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "floats.yaml"
    path.write_text(in_section(f"optim.adamw.lr: {value!r}"))
    assert float(bound(config.resolve("warmup", params.read(path, SECTIONS)).text)["optim.adamw.lr"]) == value


# Mistakes


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["loop: {fit: {stpes: 1}}"], r"params.yaml:4 .*: loop.fit has no parameter 'stpes'; did you mean 'steps'\?"),
        (["loop: {fti: {steps: 1}}"], r"params.yaml:4 .*: nothing configurable is called 'loop.fti'; did you mean 'loop.fit'\?"),
        (["lop: {fit: {steps: 1}}"], r"params.yaml:4 .*: nothing configurable is called 'lop.fit'; did you mean 'loop.fit'\?"),
        (["fit: {steps: 1}"], r"params.yaml:4 .*: nothing configurable is called 'fit'; did you mean 'loop.fit'\?"),
        (["SEEED: 1"], r"params.yaml:4 .*: no macro is called 'SEEED'; did you mean 'SEED'\?"),
        (["SEED: 1", "loop.fit.steps: many"], r"params.yaml:5 .*: loop.fit.steps expects int, got 'many' \(str\)"),
        (["loop.fit.steps: 1.5"], r"params.yaml:4 .*: loop.fit.steps expects int, got 1.5 \(float\)"),
        (["loop.fit.steps: null"], r"params.yaml:4 .*: loop.fit.steps expects int, got None \(NoneType\)"),
        (["optim.adamw.lr: high"], r"params.yaml:4 .*: optim.adamw.lr expects float, got 'high' \(str\)"),
        (
            ["runtime.Runtime.precision: fp16"],
            r"params.yaml:4 .*: runtime.Runtime.precision expects 'fp32' or 'bf16', got 'fp16' \(str\)",
        ),
        (["warmup.run.unfreeze: 3"], r"params.yaml:4 .*: warmup.run.unfreeze expects Sequence\[str\], got 3 \(int\)"),
        (
            ["objective.Objective.supervision: 5"],
            r"params.yaml:4 .*: objective.Objective.supervision expects Callable .*, got 5 \(int\)",
        ),
        (
            ["loop.fit.schedule: '@optim.warmup_cosin'"],
            r"params.yaml:4 .*: nothing configurable is called 'optim.warmup_cosin'; did you mean 'optim.warmup_cosine'",
        ),
        (
            ["supervision.constant.weight: 0.3"],
            r"params.yaml:4 .*'supervision.constant.weight' is valid, but nothing that stage warmup",
        ),
        (
            ["other/loop.fit.steps: 3"],
            r"params.yaml:4 .*'other/loop.fit.steps' is valid, but nothing that stage warmup builds uses it",
        ),
        (["DRAWS: 3"], r"params.yaml:4 .*'DRAWS' is valid, but nothing that stage warmup builds uses it"),
    ],
)
def test_a_mistake_in_a_section_is_named_with_its_line(root, lines, message):
    with pytest.raises(ConfigError, match=message):
        resolve("warmup", in_section(*lines))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("loop.fit.steps", r"command line 'loop.fit.steps': expected name.param=value"),
        ("=3", r"command line '=3': expected name.param=value"),
        ("loop.fit.steps=many", r"command line 'loop.fit.steps=many': loop.fit.steps expects int, got 'many' \(str\)"),
        ("loop.fit.stpes=3", r"command line 'loop.fit.stpes=3': loop.fit has no parameter 'stpes'; did you mean 'steps'\?"),
        ("SEEED=3", r"command line 'SEEED=3': no macro is called 'SEEED'; did you mean 'SEED'\?"),
    ],
)
def test_a_mistake_on_the_command_line_is_quoted(root, argument, message):
    with pytest.raises(ConfigError, match=message):
        resolve("warmup", SMOKE, argument)


def test_an_unknown_preset_names_the_nearest(root):
    with pytest.raises(ConfigError, match=r"params.yaml:2: unknown preset 'smok'; did you mean 'smoke'\?"):
        resolve("warmup", "# comment\npreset: smok\n")


def test_a_missing_gin_file_names_the_nearest(root):
    with pytest.raises(ConfigError, match=r"gin file 'gin/sizes/tinny.gin' does not exist; did you mean 'gin/sizes/tiny.gin'\?"):
        resolve("warmup", SMOKE + "warmup: {gin: [gin/sizes/tinny.gin]}\n")


@pytest.mark.parametrize("where", ["section", "command line"])
def test_a_reference_to_an_unknown_macro_is_refused(root, where):
    with pytest.raises(ConfigError, match="NOPE"):
        if where == "section":
            resolve("warmup", in_section("loop.fit.steps: '%NOPE'"))
        else:
            resolve("warmup", SMOKE, "loop.fit.steps=%NOPE")


def test_a_macro_of_the_wrong_type_is_refused(root):
    with pytest.raises(ConfigError, match="expects int"):
        resolve("warmup", in_section("WARMUP_STEPS: many"))


def test_a_word_for_a_list_of_words_is_refused(root):
    with pytest.raises(ConfigError, match="unfreeze expects"):
        resolve("warmup", in_section("warmup.run.unfreeze: refiner"))


def test_a_bool_for_an_int_is_refused(root):
    with pytest.raises(ConfigError, match="steps expects int"):
        resolve("warmup", in_section("loop.fit.steps: true"))


def test_bindings_that_are_no_map_are_refused(root):
    with pytest.raises(ConfigError, match="bindings"):
        resolve("warmup", SMOKE + "warmup: {bindings: [1]}\n")


def test_one_gin_file_that_is_no_list_is_named_whole(root):
    with pytest.raises(ConfigError, match="list"):
        resolve("warmup", SMOKE + "warmup: {gin: gin/sizes/tiny.gin}\n")


# .gin files


def test_a_forbidden_import_does_not_run(root):
    """The module would leave a file behind; the text is refused before gin imports anything."""
    (root / "hostile.py").write_text("open('was_here', 'w').close()\n")
    (root / "gin/hostile.gin").write_text("import hostile\n")
    allowed = (
        r"components, pipeline.corpora.sudoku, .*, torch.nn, torch.optim "
        r"\(and what the environment variable SLOTLOOP_ALLOW lists\)"
    )
    with pytest.raises(ConfigError, match=rf"gin/hostile.gin:1: may not import 'hostile'; allowed are {allowed}$"):
        resolve("warmup", SMOKE + "warmup: {gin: [gin/hostile.gin]}\n")
    assert not (root / "was_here").exists()


def test_a_reference_cannot_reach_what_may_not_be_imported(root):
    hostile = ["from pipeline.machine import runtime", "from stages import warmup", "runtime.os.mkdir.path = 'was_here'"]
    append(root / "gin/hostile.gin", *hostile, "warmup.run.unfreeze = [@runtime.os.mkdir()]")
    with pytest.raises(ConfigError, match=r"hostile.gin|runtime.os"):
        resolve("warmup", SMOKE + "warmup: {gin: [gin/hostile.gin]}\n")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import os\n", "1: may not import 'os'"),
        ("from __gin__ import dynamic_registration\nfrom os import path\n", "2: .*'os.path'"),
    ],
)
def test_a_forbidden_import_is_named_with_its_line(root, text, told):
    (root / "gin/hostile.gin").write_text(text)
    with pytest.raises(ConfigError, match=rf"^params.yaml:2 warmup.gin: gin/hostile.gin:{told}; allowed are"):
        resolve("warmup", SMOKE + "warmup: {gin: [gin/hostile.gin]}\n")


def test_a_forbidden_import_cannot_hide_in_an_include(root):
    (root / "gin/hostile.gin").write_text("import os\n")
    append(root / "gin/outer.gin", "include 'gin/hostile.gin'")
    with pytest.raises(ConfigError, match=r"gin/hostile.gin:1: may not import 'os'"):
        resolve("warmup", SMOKE + "common: {gin: [gin/outer.gin]}\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("from components import nope", "mine.gin: No module named 'components.nope'"),
        ("loop.fit.stpes = 3", "mine.gin: Configurable 'loop.fit' doesn't have a parameter named 'stpes'"),
        ("loop.fti.steps = 3", "mine.gin: .*fti"),
    ],
)
def test_a_mistake_in_a_gin_file_names_the_file(root, line, message):
    append(root / "gin/mine.gin", "from pipeline.training import loop", line)
    with pytest.raises(ConfigError, match=message):
        resolve("warmup", SMOKE + "warmup: {gin: [gin/mine.gin]}\n")


@pytest.mark.parametrize("line", ["loop.fit.steps = ", "include 'gin/nope.gin'"])
def test_a_malformed_gin_file_is_a_config_error(root, line):
    append(root / "gin/mine.gin", "from pipeline.training import loop", line)
    with pytest.raises(ConfigError, match=r"mine.gin|nope.gin"):
        resolve("warmup", SMOKE + "warmup: {gin: [gin/mine.gin]}\n")


def test_a_required_binding_that_nobody_gave_is_refused(root):
    append(root / "gin/warmup.gin", "loop.fit.clip = %gin.REQUIRED")
    with pytest.raises(ConfigError, match=r"loop.fit.clip is required"):
        resolve("warmup")


# What reaches a stage


def test_the_text_is_the_same_twice(root):
    assert [resolve(stage) for stage in STAGES] == [resolve(stage) for stage in STAGES]


def test_comments_and_order_do_not_change_the_text(root):
    one = SMOKE + "joint: {bindings: {JOINT_LR: 0.5}}\nwarmup: {bindings: {SEED: 3, loop: {fit: {clip: 2.0, ema: 0.5}}}}\n"
    other = (
        "# note\nwarmup:\n  bindings:\n    loop.fit.ema: 0.5  # why\n    loop: {fit: {clip: 2.0}}\n    SEED: 3\npreset: smoke\n"
        "joint: {bindings: {JOINT_LR: 0.5}}\n"
    )
    assert resolve("warmup", one) == resolve("warmup", other)


def test_the_text_is_valid_on_its_own(root):
    text = resolve("warmup", in_section("loop.fit.clip: 2.0"))
    config.load_text(text, "warmup")
    assert config.query("pipeline.training.loop.fit.clip") == 2.0


def test_a_text_of_another_stage_is_refused(root):
    with pytest.raises(ConfigError, match=r"configuration of stage elsewhere does not name stages.elsewhere.run"):
        config.load_text(resolve_in(ROOT, "warmup"), "elsewhere")


def test_what_a_stage_cannot_reach_is_dropped(root):
    text = resolve("warmup")
    assert "SlotRefiner" in text
    for dropped in ("sudoku", "CORPUS", "TinyLM", "sources.live", "JOINT_LR", "exact_count"):
        assert dropped not in text


def test_a_setting_changes_the_texts_of_its_stages_alone(root):
    before = {stage: resolve(stage) for stage in STAGES}
    after = {stage: resolve(stage, SMOKE + "common: {bindings: {JOINT_LR: 0.123}}\n") for stage in STAGES}
    assert {stage for stage in STAGES if before[stage] != after[stage]} == {"joint", "controls"}


def test_a_corpus_setting_changes_prepare_alone(root):
    before = {stage: resolve(stage) for stage in STAGES}
    after = {stage: resolve(stage, SMOKE + "prepare: {bindings: {sudoku: {Sudoku: {train: 299}}}}\n") for stage in STAGES}
    assert {stage for stage in STAGES if before[stage] != after[stage]} == {"prepare"}


def test_the_config_of_a_run_holds_defaults_and_can_be_run_again(finished):
    text = (finished / "outputs/warmup/config.gin").read_text()
    assert "loop.fit.clip" not in resolve_in(finished, "warmup") and bound(text)["loop.fit.clip"] == "1.0"
    config.load_text(text, "warmup")
    assert config.query("pipeline.training.loop.fit.clip") == 1.0
    assert config.query("stages.warmup.run.out") == "outputs/warmup"


def resolve_in(folder, stage):
    return config.resolve(stage, params.read(folder / "params.yaml", SECTIONS), root=folder).text


# What is said to several stages at once

CLAIM = "params.yaml:2 common.bindings.{}"
COMMON = SMOKE + "common: {bindings: {JOINT_LR: 0.5, ACCUMULATION: 9}}\n"


@pytest.mark.parametrize(
    ("stage", "kept"),
    [
        ("warmup", {"ACCUMULATION"}),
        ("joint", {"JOINT_LR", "ACCUMULATION"}),
        ("controls", {"JOINT_LR", "ACCUMULATION"}),
        ("report", set()),
    ],
)
def test_a_claim_of_common_is_kept_where_it_has_its_effect(root, stage, kept):
    Path("params.yaml").write_text(COMMON)
    claims = config.resolve(stage, params.read(Path("params.yaml"), SECTIONS)).claims
    assert {name for name in ("JOINT_LR", "ACCUMULATION") if claims[CLAIM.format(name)][0]} == kept
    assert claims[CLAIM.format("ACCUMULATION")][1] == layers.UNUSED


def test_a_claim_of_a_gin_file_in_common_is_named_with_its_line(root):
    append(root / "gin/mine.gin", "from pipeline.data import sources", "sources.cached.near = 9")
    Path("params.yaml").write_text(SMOKE + "common: {gin: [gin/mine.gin]}\n")
    read = params.read(Path("params.yaml"), SECTIONS)
    kept = {stage for stage in SECTIONS if config.resolve(stage, read).claims["gin/mine.gin:3"][0]}
    assert kept == {"warmup", "joint", "controls"}


def test_a_claim_of_a_preset_is_lost_where_the_stage_file_sets_it_afterwards(root):
    append(
        root / "gin/presets/mine.gin",
        "include 'gin/presets/smoke.gin'",
        "from components.training import optim",
        "optim.warmup_cosine.floor = 0.1",
    )
    append(root / "gin/joint.gin", "optim.warmup_cosine.floor = 0.2")
    Path("params.yaml").write_text("preset: mine\n")
    read = params.read(Path("params.yaml"), SECTIONS)
    claims = {stage: config.resolve(stage, read).claims.get("gin/presets/mine.gin:4") for stage in SECTIONS}
    assert claims["warmup"][0] and not claims["joint"][0] and "has no effect" in claims["joint"][1]
    assert not claims["prepare"][0]  # nothing there uses it
    assert set(config.resolve_all(SECTIONS, read)) == set(SECTIONS)  # one stage is enough


def test_a_macro_counts_as_used_by_whoever_names_it(root):
    append(root / "gin/presets/mine.gin", "include 'gin/presets/smoke.gin'", "MINE = 3", "WARMUP_STEPS = %MINE")
    Path("params.yaml").write_text("preset: mine\n")
    assert bound(config.resolve_all(SECTIONS, params.read(Path("params.yaml"), SECTIONS))["warmup"])["MINE"] == "3"


def test_a_binding_of_a_named_gin_file_that_reaches_nothing_is_refused_with_its_line(root):
    append(root / "gin/mine.gin", "from components.objective import supervision", "supervision.constant.weight = 0.3")
    with pytest.raises(
        ConfigError, match=r"gin/mine.gin:3.*'supervision.constant.weight' is valid, but nothing that stage warmup builds"
    ):
        resolve("warmup", SMOKE + "warmup: {gin: [gin/mine.gin]}\n")


def test_what_a_named_gin_file_includes_may_reach_nothing(root):
    append(root / "gin/mine.gin", "include 'gin/sizes/tiny.gin'", "from pipeline.training import loop", "loop.fit.clip = 2.0")
    assert bound(resolve("joint", SMOKE + "joint: {gin: [gin/mine.gin]}\n"))["loop.fit.clip"] == "2.0"


# Asking the current configuration


def test_an_argument_comes_with_its_references_resolved(root):
    config.load_text(resolve("prepare"), "prepare")
    corpus = config.argument("stages.prepare.run", "corpus")
    assert (corpus.train, corpus.clues) == (300, (4, 6))
    assert config.query("stages.prepare.run.out") == "data/prepared"


def test_one_parameter_can_be_set(root):
    config.load_text(resolve("prepare"), "prepare")
    config.bind("stages.prepare.run.out", "elsewhere")
    assert config.query("stages.prepare.run.out") == "elsewhere"


# configure, over all stages


def test_configure_writes_every_text(root, capsys):
    Path("params.yaml").write_text(SMOKE)
    configure.run(out="build", stages=SECTIONS)
    assert {p.stem: p.read_text() for p in Path("build").glob("*.gin")} == {stage: resolve(stage) for stage in SECTIONS}
    for kind in ("code", "yaml"):
        assert {p.stem for p in Path("build").glob(f"*.{kind}")} == set(STAGES)
    assert Path("build/warmup.code").read_text() == dependencies.listing("warmup", resolve("warmup"))
    assert YAML(typ="safe").load(Path("build/prepare.yaml"))["sudoku"]["Sudoku"]["size"] == 4
    told = capsys.readouterr().out
    assert told.startswith("configure: 13 stages resolved, checked and built on shapes; parameters to train: backbone 6,640, ")


def test_common_reaches_the_stages_that_can_use_it(root):
    Path("params.yaml").write_text(SMOKE + "common: {bindings: {sources: {cached: {near: 50}}, SEED: 9}}\n")
    configure.run(out="build", stages=SECTIONS)
    texts = {stage: bound(Path(f"build/{stage}.gin").read_text()) for stage in STAGES}
    assert {s for s, text in texts.items() if text.get("sources.cached.near") == "50"} == {"warmup", "joint", "controls"}
    assert {s for s, text in texts.items() if text.get("SEED") == "9"} == set(STAGES) - {"prepare", "report"}


@pytest.mark.parametrize("binding", ["masking.bernoulli.eps: 0.1", "nowhere.at.all: 1", "NOBODY: 1"])
def test_common_that_no_stage_uses_is_refused_and_nothing_written(root, binding):
    Path("params.yaml").write_text(SMOKE + f"common:\n  bindings:\n    {binding}\n")
    key = binding.split(":")[0]
    with pytest.raises(ConfigError, match=rf"params.yaml:4 common.bindings.{key}: no stage uses this, or it is misspelt"):
        configure.run(out="build", stages=SECTIONS)
    assert not Path("build").exists()


@pytest.mark.parametrize("binding", ["STEPS: 5", "fit.steps: 5", "trained_onn/optim.adamw.lr: 0.5"])
def test_common_whose_name_is_the_end_of_another_is_refused(root, binding):
    Path("params.yaml").write_text(SMOKE + f"common:\n  bindings:\n    {binding}\n")
    with pytest.raises(ConfigError, match="no stage uses"):
        configure.run(out="build", stages=SECTIONS)


def test_configure_reports_every_mistake_at_once(root):
    Path("params.yaml").write_text(SMOKE + "warmup: {bindings: {SEEED: 1}}\njoint: {bindings: {loop.fit.stpes: 1}}\n")
    with pytest.raises(ConfigError) as error:
        configure.run(out="build", stages=SECTIONS)
    assert [line.strip().split(":")[1].split()[0] for line in str(error.value).splitlines()] == ["2", "3"]
    assert not Path("build").exists()


def test_the_repository_is_configured_as_it_stands():
    assert set(config.resolve_all(SECTIONS, params.read(Path("params.yaml"), SECTIONS))) == set(SECTIONS)
