"""Answers of a model that remembers: the sampler's passes hand its carry on, batched as alone, exported as trained."""

from functools import partial

import pytest
import torch

from components.batch import Batch
from components.inference import halting
from components.inference.approximate_prefix import approximate_prefix
from components.inference.pass_memory import PassMemory
from components.inference.sampling import Sampler
from components.refiners.memory import Memory
from components.refiners.refiner import SlotRefiner
from pipeline.errors import ConfigError
from pipeline.inference.exporting import export
from pipeline.inference.generation import Generator
from tests.support.trained import PUZZLE, PUZZLES, written

OTHER = "1.3./..../2.../...4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    refiner = Memory(16, partial(SlotRefiner, heads=2, steps=3))
    return written(tmp_path_factory.mktemp("memory"), PUZZLES, refiner=refiner)


@pytest.fixture
def make(folder, runtime):
    given = {"backbone": str(folder / "data/backbone"), "prepared": str(folder / "data/prepared"), "runtime": runtime}
    return lambda **settings: Generator(folder / "outputs/joint", **given | settings)


def by_hand(generator, passes):
    """Most certain first, an equal share a pass, with carries handed on."""
    tokens = torch.tensor([generator.prompts.canvas(PUZZLE, None)])
    answer, memory = tokens == PUZZLES.mask_id, PassMemory()
    for number in range(passes):
        masked = tokens == PUZZLES.mask_id
        batch = Batch(tokens, tokens, masked, torch.zeros(tokens.shape))
        with torch.no_grad():
            logits = generator.model.readout(memory.run(generator.model, batch).hidden)[..., : PUZZLES.mask_id]
        probability, best = logits.softmax(-1).max(-1)
        share = int(masked.sum()) // (passes - number)
        chosen = probability.masked_fill(~masked, -1).argsort(1, descending=True)[:, :share]
        tokens = tokens.scatter(1, chosen, best.gather(1, chosen))
    return tokens[answer].tolist()


@pytest.mark.parametrize("passes", [1, 2, 3, 4, 12])
def test_the_answer_is_that_of_passes_by_hand(make, passes):
    generator = make(sampler=Sampler(steps=passes))
    answer = generator(PUZZLE)
    assert [int(token) - 1 for token in answer.tokens] == by_hand(generator, passes) and answer.evaluations == passes


def test_memory_changes_what_is_said(make):
    generator = make(sampler=Sampler(steps=4))
    with_memory = generator(PUZZLE)
    for gate in generator.model.refiner.gates.values():
        torch.nn.init.zeros_(gate.weight), torch.nn.init.zeros_(gate.bias)
    assert with_memory.confidence != generator(PUZZLE).confidence


@pytest.mark.parametrize("sampler", [Sampler(steps=4), Sampler(steps=4, blocks=2), Sampler(blocks=4), Sampler(threshold=0.3)])
def test_an_answer_does_not_depend_on_what_stands_beside_it(make, sampler):
    generator = make(sampler=sampler)
    together = generator([PUZZLE, OTHER])
    assert [answer.text for answer in together] == [generator(prompt).text for prompt in (PUZZLE, OTHER)]


def test_a_stream_ends_with_the_answer(make):
    generator = make()
    assert list(generator.stream(PUZZLE))[-1] == generator(PUZZLE)


def test_exported_as_trained(make, folder, tmp_path, runtime):
    export(folder / "outputs/joint", folder / "data/backbone", folder / "data/prepared", tmp_path / "none", tmp_path / "exported")
    assert Generator(tmp_path / "exported", runtime=runtime)(PUZZLE) == make()(PUZZLE)


@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": Sampler(guidance=1.0)},
        {"sampler": Sampler(guidance=0.5, steps=4)},
        {"halt": halting.by_change},
        {"halt": halting.by_probability},
        {"prefix": approximate_prefix},
        {"refined_passes": 1},
    ],
)
def test_what_needs_another_memory_is_refused_in_one_line(make, settings):
    with pytest.raises(ConfigError, match=r"^a model with memory hands the carry of a whole pass .*; set them to 0 and None$"):
        make(**settings)


def test_the_backbone_alone_remembers_nothing_and_answers(make):
    assert "." not in make(refined_passes=0)(PUZZLE).text
