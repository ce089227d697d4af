"""Every shipped preset: resolves for every stage, uses what it defines, and describes models that run."""

import re

import gin
import pytest
import torch

from components.batch import Batch
from components.refiners.slots import Slot
from pipeline.command_line import SECTIONS, STAGES
from pipeline.settings import config, effective, params, rehearsal
from tests.conftest import ROOT

FOLDER = ROOT / "gin" / "presets"
PRETRAINED = {  # need weights from elsewhere: tests/stages run them with small ones
    "concepts", "concepts_sonar", "gsm8k_dream", "gsm8k_llada", "gsm8k_llada_moe", "gsm8k_qwen3", "gsm8k_smol", "gsm8k_smol_smoke",
    "gsm8k_smol_diffusion", "gsm8k_smol_diffusion_smoke",
}  # fmt: skip
PRESETS = sorted(path.stem for path in FOLDER.glob("*.gin") if path.stem not in {"defaults", *PRETRAINED})
RECIPES = ["d1_4x4", "memory", "quick", "reasoning", "text"]  # each is named for all stages
SIZES = sorted(path.stem for path in (ROOT / "gin" / "sizes").glob("*.gin"))
REFINERS = {
    "adapter": "Adapter", "attention_context": "SlotRefiner", "cascade": "Cascade", "chunk_masking": "ChunkMasking",
    "hybrid": "Hybrid", "mlp": "MLPRefiner",
    "recursive_core": "RecursiveCore", "selective": "Hybrid", "taps": "Tapped",
}  # fmt: skip
FULL = ("gsm8k", "literal", "sudoku4", "sudoku6")  # those whose numbers mean something
REFINED = ("warmup", "joint", "finetune", "controls")


@pytest.fixture(scope="module")
def resolved(tmp_path_factory):
    """``resolved(preset, lines of params.yaml)``: every stage's text."""
    file, made = tmp_path_factory.mktemp("presets") / "params.yaml", {}

    def resolved(preset, lines=""):
        if (preset, lines) not in made:
            file.write_text(f"preset: {preset}\n{lines}")
            made[preset, lines] = config.resolve_all(SECTIONS, params.read(file, SECTIONS), root=ROOT)
        return made[preset, lines]

    yield resolved
    gin.clear_config()


@pytest.fixture(scope="module")
def rehearsed(resolved):
    """``rehearsed(preset)``: its models on shapes."""
    made = {}

    def rehearsed(preset):
        if preset not in made:
            made[preset] = rehearsal.rehearse(resolved(preset))
        return made[preset]

    return rehearsed


def test_presets_and_sizes_are_found():
    assert PRESETS == [
        "gsm8k", "gsm8k_smoke", "literal", "recursive4", "recursive6", "recursive9", "smoke", "sudoku4", "sudoku6", "sudoku9",
        "sudoku_extreme",
    ]  # fmt: skip
    assert {path.stem for path in (ROOT / "gin" / "refiners").glob("*.gin")} == set(REFINERS)
    assert {path.stem for path in (ROOT / "gin" / "recipes").glob("*.gin")} == set(RECIPES)
    assert SIZES == ["base", "large", "tiny"] and set(FULL) <= set(PRESETS)


@pytest.mark.parametrize("preset", sorted({*PRESETS, *PRETRAINED}))
def test_a_preset_resolves_for_every_stage(resolved, preset):
    texts = resolved(preset)
    assert set(texts) == set(SECTIONS) and len(texts) == 13
    outs = [re.search(rf"^{stage}\.run\.out = '(.+)'$", texts[stage], re.MULTILINE)[1] for stage in STAGES]
    assert len(set(outs)) == len(STAGES)
    assert not any("REQUIRED" in text for text in texts.values())


@pytest.mark.parametrize("preset", sorted({*PRESETS, *PRETRAINED}))
def test_a_header_tells_what_came_out_or_that_nothing_is_known(preset):
    header = re.match(r"(#.*\n)+", (FOLDER / f"{preset}.gin").read_text())[0].replace("\n# ", " ")
    told = [re.search(p, header) for p in (r"Result.*: .*\d", "Never run with real weights", "Its numbers mean nothing")]
    assert sum(map(bool, told)) == 1


@pytest.mark.parametrize("preset", PRESETS)
def test_what_a_stage_reads_another_writes(resolved, preset):
    texts = resolved(preset)
    named = {stage: set(re.findall(r"'((?:data|outputs)/[\w/]+)'", texts[stage])) for stage in STAGES}
    written = [re.search(rf"^{stage}\.run\.out = '(.+)'$", texts[stage], re.MULTILINE)[1] for stage in STAGES]
    for number, stage in enumerate(STAGES):
        above = written[: number + 1]
        assert all(any(f"{name}/".startswith(f"{folder}/") for folder in above) for name in named[stage]), stage


def test_presets_differ(resolved):
    texts = {preset: tuple(resolved(preset).values()) for preset in PRESETS}
    assert len(set(texts.values())) == len(PRESETS)


def test_one_macro_is_the_optimizer_of_the_refiner_and_of_the_controls_and_another_that_of_the_backbone(resolved):
    texts = resolved("sudoku9")
    for stage in ("warmup", "joint", "finetune", "controls"):
        assert {"OPTIMIZER = @optim.muon", "loop.fit.optimizer = %OPTIMIZER"} <= set(texts[stage].splitlines())
    for preset, optimizer in (("sudoku9", "adamw"), ("recursive9", "muon")):
        backbone = resolved(preset)["backbone"].splitlines()
        assert {f"BACKBONE_OPTIMIZER = @optim.{optimizer}", "loop.fit.optimizer = %BACKBONE_OPTIMIZER"} <= set(backbone)


def test_the_founding_design_differs_from_the_default_in_its_design_alone(resolved):
    one, other = resolved("sudoku4"), resolved("literal")
    assert {stage for stage in STAGES if one[stage] != other[stage]} == {"warmup"}
    added = set(other["warmup"].splitlines()) - set(one["warmup"].splitlines())
    assert set(one["warmup"].splitlines()) <= set(other["warmup"].splitlines())
    assert added == {
        "from components.refiners import delta", "from components.refiners import entry",
        "refiner.SlotRefiner.entry = @entry.Normed", "refiner.SlotRefiner.injection = None",
        "refiner.SlotRefiner.update = @delta.Clamped()",
    }  # fmt: skip


OWN = [["mood", "state", 5], ["drift", "change", 3], ["doubt", "variance", 2]]


@pytest.mark.parametrize(
    ("preset", "bindings", "found"),
    [
        (
            "sudoku4",
            {"refiner.SlotRefiner.slots": OWN},
            {"slots": [Slot(*slot)._asdict() for slot in OWN]},
        ),
        ("literal", {"delta.Clamped.scale": 0.05}, {"update": {"update": "Clamped", "scale": 0.05, "limit": 0.5}}),
        ("literal", {"delta.Clamped.limit": 0.02}, {"update": {"update": "Clamped", "scale": 0.1, "limit": 0.02}}),
        ("literal", {}, {"entry": "Normed", "injection": None}),
        ("literal", {"refiner.SlotRefiner.entry": "@entry.Identity"}, {"entry": "Identity", "injection": None}),
        ("sudoku4", {"refiner.SlotRefiner.update": "@delta.Clamped()"}, {"entry": "Identity", "injection": "Injection"}),
        ("sudoku4", {}, {"update": {"update": "Damped"}}),
        ("sudoku4", {"refiner.SlotRefiner.update": "@delta.RmsScaled()"}, {"update": {"update": "RmsScaled"}}),
        ("gsm8k_smoke", {}, {"update": {"update": "RmsScaled"}}),
        ("sudoku4", {"refiner.SlotRefiner.heads": None, "refiner.SlotRefiner.head_width": 8}, {"heads": 8}),
        (
            "sudoku4",
            {
                "REFINER": "@chunk_masking.ChunkMasking",
                "chunk_masking.ChunkMasking.refined": [0, 3],
                "chunk_masking.ChunkMasking.chunk": 4,
            },
            {"core": "ChunkMasking", "refined": [0, 3], "chunk": 4},
        ),
    ],
)
def test_a_founding_knob_of_the_refiner_can_be_set(resolved, preset, bindings, found):
    read = params.Params(ROOT / "params.yaml", preset, {"preset": preset, "warmup": {"bindings": bindings}})
    models = rehearsal.rehearse(resolved(preset) | {"warmup": config.resolve("warmup", read, root=ROOT).text})
    architecture = models["warmup"].refiner.architecture
    assert {name: architecture[name] for name in found} == found


@pytest.mark.parametrize("preset", PRESETS)
def test_the_models_of_a_preset_run_on_shapes(rehearsed, preset):
    for stage in ("backbone", *REFINED):
        run_on_shapes(rehearsed(preset)[stage], preset, stage)


def run_on_shapes(model, preset, stage):
    """Every step and its logits have the shapes that the backbone's sizes imply."""
    backbone = getattr(model, "backbone", model)
    sizes = backbone.architecture
    steps = model.n_steps
    rows, seq, dim = 3, sizes["seq"], sizes["dim"]
    with torch.device("meta"), torch.no_grad():
        tokens = torch.zeros(rows, seq, dtype=torch.int32)
        masked = torch.zeros(rows, seq, dtype=torch.bool)
        hidden = None if stage in ("backbone", "finetune") else torch.zeros(rows, seq, dim)
        attention = torch.ones(rows, seq, dtype=torch.bool) if preset.startswith("gsm8k") else None  # puzzles are not padded
        batch = Batch(tokens, tokens, masked, torch.zeros(rows, seq), attention, hidden)
        states = list(model.steps(batch))
        logits = [model.readout(state.hidden) for state in states]
        gathered = model.readout(states[-1].hidden[:, 0])
    alone = preset.startswith("recursive") or preset == "sudoku_extreme"
    supervised = {"sudoku_extreme": 16}.get(preset, 6 if preset[-1] in "69" or alone else 4)
    assert len(states) == steps == (supervised if alone or stage in REFINED else 1)
    assert all(state.hidden.shape == (rows, seq, dim) and state.hidden.device.type == "meta" for state in states)
    assert all(each.shape == (rows, seq, sizes["vocab"]) for each in logits) and gathered.shape == (rows, sizes["vocab"])


@pytest.mark.parametrize(
    ("preset", "size"), [*(("sudoku4", size) for size in SIZES), ("gsm8k", "base"), ("literal", "large"), ("sudoku6", "tiny")]
)
def test_every_size_fits_every_preset(resolved, rehearsed, preset, size):
    texts = resolved(preset)
    read = params.Params(ROOT / "params.yaml", preset, {"preset": preset, "warmup": {"gin": [f"gin/sizes/{size}.gin"]}})
    models = rehearsal.rehearse(texts | {"warmup": config.resolve("warmup", read, root=ROOT).text})
    blocks = {"tiny": 1, "base": 2, "large": 4}[size]
    assert models["warmup"].refiner.architecture["blocks"] == blocks
    plain = sum(p.numel() for p in rehearsed(preset)["warmup"].refiner.parameters())
    assert (sum(p.numel() for p in models["warmup"].refiner.parameters()) > plain) == (blocks > 1)


# Every refiner over puzzles and over padded text; the other two presets differ in the design of slots and in the board's size.
@pytest.mark.parametrize(
    ("preset", "refiner"),
    [
        *((preset, refiner) for preset in ("sudoku4", "gsm8k") for refiner in sorted(REFINERS)),
        *(("literal", refiner) for refiner in ("attention_context", "hybrid")),
        *(("sudoku6", refiner) for refiner in ("cascade", "recursive_core")),
    ],
)
def test_every_refiner_fits_every_preset(resolved, refiner, preset):
    read = params.Params(ROOT / "params.yaml", preset, {"preset": preset, "warmup": {"gin": [f"gin/refiners/{refiner}.gin"]}})
    warmup = config.resolve("warmup", read, root=ROOT, overrides=["TAPS=[-1]"] if refiner == "taps" else []).text
    models = rehearsal.rehearse(resolved(preset) | {"warmup": warmup})
    assert all(models[stage].refiner.architecture["core"] == REFINERS[refiner] for stage in REFINED)
    assert models["warmup"].context_layers == ((models["backbone"].architecture["layers"] - 1,) if "context" in refiner else ())


@pytest.mark.parametrize("preset", ["sudoku4", "sudoku6", "gsm8k"])
def test_memory_fits_presets_of_masked_diffusion(resolved, preset):
    models = rehearsal.rehearse(resolved(preset, "common: {gin: [gin/recipes/memory.gin]}"))
    assert all(models[stage].refiner.architecture["core"] == "Memory" for stage in REFINED)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_headline_is_among_the_measures_and_every_split_exists(resolved, preset):
    config.load_text(resolved(preset)["evaluate"], "evaluate")
    values = effective.settings("stages.evaluate.run")["evaluate.run"]
    assert values["headline"] in values["measures"]
    config.load_text(resolved(preset)["prepare"], "prepare")
    corpus = config.argument("stages.prepare.run", "corpus")
    splits = {f"test_{n}" for n in corpus.test_clues} if hasattr(corpus, "test_clues") else {"test"}
    assert {split for split, *_ in (*values["measures"].values(), *values["decodes"].values())} <= splits


def test_every_macro_of_the_defaults_is_used():
    macros = re.findall(r"^([A-Z_]+) =", (FOLDER / "defaults.gin").read_text(), re.MULTILINE)
    bound = "".join(path.read_text() for path in (ROOT / "gin").glob("*.gin"))
    assert len(macros) >= 14
    assert all(f"%{macro}" in bound for macro in macros)


def test_every_gin_file_is_reached():
    files = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "gin").rglob("*.gin")}
    included = set(re.findall(r"^include '(.+)'", "".join(files.values()), re.MULTILINE))
    named = {f"gin/sizes/{size}.gin" for size in SIZES} | {f"gin/refiners/{refiner}.gin" for refiner in REFINERS}
    named |= {f"gin/recipes/{recipe}.gin" for recipe in RECIPES}
    direct = {f"gin/{stage}.gin" for stage in SECTIONS} | {f"gin/presets/{preset}.gin" for preset in {*PRESETS, *PRETRAINED}}
    assert set(files) == included | direct | named and len(files) >= 30
