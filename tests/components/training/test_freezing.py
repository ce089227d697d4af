import pytest
import torch

from components.backbones.tiny_lm import TinyLM
from components.nn.attention import RMSNorm
from components.refined_lm import RefinedLM
from components.refiners.delta import Clamped
from components.refiners.entry import Normed
from components.refiners.refiner import SlotRefiner
from components.training.freezing import by_weight, freeze_except


@pytest.fixture
def model():
    return RefinedLM(TinyLM(11, 6, 16, layers=2, heads=2), SlotRefiner(16, heads=2, entry=Normed, injection=None, update=Clamped()))


def trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def below(model, *prefixes):
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


@pytest.mark.parametrize(
    ("patterns", "prefixes"),
    [
        (["refiner"], ["refiner."]),
        (["backbone.blocks.1"], ["backbone.blocks.1."]),
        (["backbone.blocks.?"], ["backbone.blocks."]),
        (["refiner.slots.*", "backbone.head"], ["refiner.slots.project.", "refiner.slots.norms.", "backbone.head."]),
        ([""], [""]),
        ([], ["no parameter starts like this"]),
    ],
)
def test_only_matched_modules_are_trainable(model, patterns, prefixes):
    freeze_except(model, patterns)
    assert trainable(model) == below(model, *prefixes)


def test_what_was_trainable_before_is_frozen(model):
    freeze_except(model, [""])
    freeze_except(model, ["backbone.norm"])
    assert trainable(model) == {"backbone.norm.weight"}


def test_layer_norms_are_unfrozen_on_request(model):
    freeze_except(model, ["backbone.head"], layer_norms=True)
    norms = {name for name, _ in model.named_parameters() if "norm" in name}
    assert {"backbone.blocks.0.mlp_norm.weight", "refiner.slots.norms.context.weight"} <= norms
    assert trainable(model) == norms | {"backbone.head.weight", "refiner.entry.weight", "refiner.entry.bias"}


@pytest.mark.parametrize("pattern", ["refinr", "refiner.slot", "backbone.blocks.7"])
def test_a_pattern_that_matches_nothing_is_an_error_with_the_nearest_paths(model, pattern):
    near = {"refinr": "refiner", "refiner.slot": "refiner.slots", "backbone.blocks.7": "backbone.blocks.1"}[pattern]
    with pytest.raises(ValueError, match=rf"no module matches '{pattern}'.*{near}"):
        freeze_except(model, ["backbone.head", pattern])


def test_an_error_leaves_the_model_as_it_was(model):
    freeze_except(model, ["backbone.head"])
    with pytest.raises(ValueError, match="nothing_here"):
        freeze_except(model, ["refiner", "nothing_here"])
    assert trainable(model) == {"backbone.head.weight"}


def test_totals_equal_a_count_over_parameters(model):
    table = freeze_except(model, ["backbone.head", "refiner.slots"])
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert table.total == sum(sizes.values())
    assert table.trainable == sum(sizes[name] for name in below(model, "backbone.head", "refiner.slots"))


def test_rows_name_each_module_that_holds_parameters(model):
    rows = {row.module: row for row in freeze_except(model, ["refiner"]).rows}
    assert set(rows) == {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    assert (rows["backbone.head"].parameters, rows["backbone.head"].trainable) == (11 * 16, False)
    assert (rows["refiner.confidence"].parameters, rows["refiner.confidence"].trainable) == (2 + 1, True)


def test_the_table_as_text_lists_trainable_modules_and_totals(model):
    table = freeze_except(model, ["backbone.head"])
    first, *sums = str(table).splitlines()
    assert first.split() == ["backbone.head", "176"]
    total = sum(p.numel() for p in model.parameters())
    shares = {"Total": total, "Trainable": 176, "Frozen": total - 176}
    expected = [[name, "parameters:", f"{n / 1e6:.4f}M", f"({100 * n / total:.2f}%)"] for name, n in shares.items()]
    assert [line.split() for line in sums] == expected


def test_millions_are_told_to_two_places():
    with torch.device("meta"):
        table = freeze_except(
            torch.nn.ModuleDict({"a": torch.nn.Linear(30000, 50000, bias=False), "b": torch.nn.Linear(1, 1)}), ["b"]
        )
    assert [line.split()[2:] for line in str(table).splitlines()[1:]] == [
        ["1,500.00M", "(100.00%)"], ["0.0000M", "(0.00%)"], ["1,500.00M", "(100.00%)"]
    ]  # fmt: skip


def test_modules_that_differ_in_numbers_alone_are_one_line():
    table = freeze_except(TinyLM(11, 6, 16, layers=3, heads=2), ["blocks.*.attention", "blocks.1.mlp_norm", "head"])
    lines = [line.rsplit(maxsplit=1) for line in str(table).splitlines()[:-3]]
    of_one = {row.module: row.parameters for row in table.rows}
    assert [name.strip() for name, _ in lines] == ["blocks.*.attention.qkv (3)", "blocks.1.mlp_norm", "head"]
    assert [int(count.replace(",", "")) for _, count in lines] == [
        sum(of_one[f"blocks.{number}.attention.qkv"] for number in range(3)), of_one["blocks.1.mlp_norm"], of_one["head"]
    ]  # fmt: skip


def test_the_table_by_weight_lists_every_weight_that_is_trained(model):
    table = freeze_except(model, ["refiner.slots"])
    lines = [line.split() for line in by_weight(table).splitlines()]
    sizes = {name: f"{p.numel():,}" for name, p in model.named_parameters() if p.requires_grad}
    assert {name: size for name, size in lines[:-3]} == sizes and "refiner.slots.project.context.weight" in sizes
    assert lines[-3:] == [line.split() for line in str(table).splitlines()[-3:]]


def test_a_tied_tensor_counts_once(model):
    model.backbone.head.weight = model.backbone.embedding.weight
    table = freeze_except(model, ["backbone.head"])
    assert table.total == sum(p.numel() for p in model.parameters()) and table.trainable == 11 * 16
    for rows, name in ((table.rows, "backbone.embedding"), (table.weights, "backbone.embedding.weight")):
        assert [(row.module, row.parameters) for row in rows if row.trainable] == [(name, 176)]
        assert sum(row.parameters for row in rows) == table.total


def test_a_module_with_parameters_at_its_root_is_listed():
    root = torch.nn.Linear(2, 3)
    assert [(row.module, row.parameters) for row in freeze_except(root, [""]).rows] == [("(root)", 9)]


class ScaleNorm(torch.nn.Module):
    """A norm of somebody's own."""

    def __init__(self):
        super().__init__()
        self.g = torch.nn.Parameter(torch.ones(3))


class NormedLinear(torch.nn.Module):
    """Called so, and no norm: it holds a matrix."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3, 3))


@pytest.mark.parametrize(
    "norm", [torch.nn.LayerNorm(3), torch.nn.RMSNorm(3), torch.nn.GroupNorm(1, 3), torch.nn.BatchNorm1d(3), RMSNorm(3), ScaleNorm()]
)
def test_every_norm_is_one_by_what_it_is(norm):
    whole = torch.nn.Sequential(torch.nn.Linear(3, 3), norm, NormedLinear())
    freeze_except(whole, [], layer_norms=True)
    assert trainable(whole) == below(whole, "1.")


@pytest.mark.parametrize("norm", [NormedLinear(), torch.nn.LayerNorm(3, elementwise_affine=False), torch.nn.Identity()])
def test_no_norm_at_all_is_an_error(norm):
    with pytest.raises(ValueError, match="layer_norms is set, and no module of Sequential is a norm with weights; leave it out"):
        freeze_except(torch.nn.Sequential(torch.nn.Linear(3, 3), norm), ["0"], layer_norms=True)
