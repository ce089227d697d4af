"""Answers: the same whatever stands beside them, ended where they end, by the model or its backbone, and settings that are told."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from components.inference import halting
from components.inference.approximate_prefix import approximate_prefix
from components.inference.revising import least_probable
from components.inference.sampling import Sampler
from components.model import Model
from components.recursion import State
from pipeline.errors import ConfigError, DataError
from pipeline.inference.generation import Generator
from pipeline.machine.runtime import Runtime
from tests.support.trained import PUZZLE, puzzles, texts

PROMPTS = ["How many?", "Tom buys 3 pears and 4 plums.", "12 + 3 ="]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {"puzzles": puzzles(tmp_path_factory.mktemp("puzzles")), "texts": texts(tmp_path_factory.mktemp("texts"))}


@pytest.fixture
def make(folders, runtime):
    def make(kind="puzzles", model="outputs/joint", **settings):
        folder = folders[kind]
        given = {"backbone": str(folder / "data/backbone"), "prepared": str(folder / "data/prepared"), "runtime": runtime}
        return Generator(folder / model, **given | settings)

    return make


class Scripted(Model):
    """Says these ids, whatever it is asked."""

    n_steps = 1

    def __init__(self, ids, vocab):
        super().__init__()
        self.states_of = F.one_hot(torch.tensor(ids), vocab).float() * 30

    def steps(self, batch, **_):
        yield State(self.states_of[: batch.tokens.shape[1]].expand(len(batch), -1, -1))

    def readout(self, state):
        return state


def counted(model):
    """How often a module runs its last block from now on."""
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_a_puzzle_is_solved_cell_by_cell_around_its_clues(make):
    generator = make()
    *before, last = answers = list(generator.stream(PUZZLE))
    assert answers[0].text == PUZZLE and [a.text.count(".") for a in answers] == list(range(12, -1, -1))
    assert [a.evaluations for a in answers] == list(range(13))
    assert all(c in (".", d) for a in before for c, d in zip(a.text, last.text, strict=True))  # never revisited
    assert last == generator(PUZZLE) and all(0.25 <= p <= 1 for p in last.confidence)
    cells = [c for c, given in zip(last.text, PUZZLE, strict=True) if given == "."]
    assert cells == last.tokens and len(last.confidence) == 12


def test_a_puzzle_without_empty_cells_is_its_own_answer(make):
    answer = make()("1234/3412/2143/4321")
    assert (answer.text, answer.tokens, answer.evaluations) == ("1234/3412/2143/4321", [], 0)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("settings", [{}, {"length": 9}, {"refined_passes": 1}])
@pytest.mark.parametrize("revise", [None, least_probable])
def test_an_answer_does_not_depend_on_its_neighbours(make, temperature, settings, revise):
    generator = make("texts", sampler=Sampler(temperature=temperature, end_confidence=0.5, revise=revise), **settings)
    together = generator(PROMPTS)
    assert len({answer.text for answer in together}) == 3
    for prompt, answer in zip(PROMPTS, together, strict=True):
        alone = generator(prompt)
        assert (alone.text, alone.tokens, alone.evaluations) == (answer.text, answer.tokens, answer.evaluations)
        assert alone.confidence == pytest.approx(answer.confidence, abs=1e-5)


def test_the_users_process_is_left_as_it_was_by_every_call(make):
    """Not even between two passes are the user's switches turned."""

    def state():
        return torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")

    torch.use_deterministic_algorithms(False)
    before = state()
    generator = make(runtime=Runtime(threads=2))
    inside = []
    generator.model.refiner.register_forward_hook(lambda *_: inside.append(state()[:2]))
    assert state() == before
    generator(PUZZLE)
    assert state() == before and set(inside) == {(2, True)}
    for _ in generator.stream(PUZZLE):
        assert state() == before
    assert [state() for _ in generator.batches([PUZZLE])] == [before]


def test_batches_keep_the_order(make):
    one, many = make("texts", batch_size=1, length=4), make("texts", batch_size=2, length=4)
    assert [len(answers) for answers in many.batches(PROMPTS)] == [2, 1]
    assert [a.text for a in many(PROMPTS)] == [a.text for a in one(PROMPTS)] and many([]) == []


def test_the_seed_decides(make):
    def said(seed, temperature):
        return make("texts", sampler=Sampler(temperature=temperature, seed=seed), length=8)(PROMPTS)

    assert said(0, 1.0) == said(0, 1.0) != said(1, 1.0) and said(0, 0.0) == said(1, 0.0)


def test_an_answer_ends_and_what_would_follow_is_not_computed(make):
    generator = make("texts", length=8)
    start = len(generator.prompts.canvas(PROMPTS[0], 0 + 1)) - 1
    end, word = generator.prompts.end_id, generator.prompts.encoding.encode(" apples")
    generator.model = Scripted([3] * start + word + [end] * 20, generator.vocabulary.size)
    answer = generator(PROMPTS[0])
    assert answer.text == " apples" and len(answer.tokens) == len(word) and answer.evaluations == len(word) + 1
    generator.model = Scripted([3] * start + [end] * 20, generator.vocabulary.size)
    assert generator(PROMPTS[0]).text == "" and generator(PROMPTS[0]).evaluations == 1


def test_the_mask_is_never_said(make):
    generator = make("texts", length=5)
    generator.model = Scripted([generator.vocabulary.mask_id] * 48, generator.vocabulary.size)
    assert generator.prompts.encoding.special["mask"] not in generator(PROMPTS[0]).text


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"temperature": 3.0, "seed": 7}])
def test_an_id_that_the_tokenizer_does_not_know_is_never_said(tmp_path, runtime, causal, settings):
    folder = texts(tmp_path, more=200, causal=causal)
    places = {"backbone": str(folder / "data/backbone"), "prepared": str(folder / "data/prepared"), "runtime": runtime}
    generator = Generator(folder / "outputs/joint", sampler=Sampler(**settings), length=8, **places)
    size, said, write = generator.vocabulary.size, [], generator.prompts.token
    generator.prompts.token = lambda token: said.append(token) or write(token)
    generator(PROMPTS)
    generator.model = Scripted([size + 5] * 48, size + 200)
    generator(PROMPTS)
    assert len(said) > 24 and max(said) < size


@pytest.mark.parametrize(("refined", "steps", "runs"), [(None, 6, 6), (0, 6, 0), (1, 6, 1), (2, 6, 2), (9, 6, 6), (1, None, 1)])
def test_the_backbone_alone_denoises_until_the_last_passes(make, refined, steps, runs):
    generator = make(sampler=Sampler(steps=steps), refined_passes=refined)
    refiner, backbone = counted(generator.model.refiner), counted(generator.model.backbone.norm)
    answer = generator(PUZZLE)
    passes = steps or 12
    assert len(refiner) == 3 * runs and answer.evaluations == passes == len(backbone)


def test_never_refined_is_the_backbone_under_the_model(make):
    generator = make(refined_passes=0)
    alone = make()
    alone.model = alone.model.backbone
    assert generator(PUZZLE) == alone(PUZZLE) != make()(PUZZLE)


def test_a_backbone_answers_too(make):
    generator = make("puzzles", model="data/backbone")
    assert generator.model.n_steps == 1 and generator(PUZZLE).evaluations == 12
    assert generator(PUZZLE) == make("puzzles", model="data/backbone", refined_passes=1)(PUZZLE)


def test_a_halting_rule_ends_the_recursion_within_each_pass(make):
    generator = make(halt=partial(halting.by_probability, threshold=0.0))
    calls = counted(generator.model.refiner)
    halted = generator(PUZZLE)
    assert len(calls) == 12  # one step of three, in every pass
    never = make(halt=partial(halting.by_probability, threshold=1.0))
    assert never(PUZZLE) == make()(PUZZLE) != halted


@pytest.mark.parametrize(("steps", "runs"), [(None, 3), (1, 1), (5, 5)])
def test_another_number_of_recursion_steps_is_taken_in_each_pass(make, steps, runs):
    generator = make(recursion_steps=steps, sampler=Sampler(steps=2))
    calls = counted(generator.model.refiner)
    generator(PUZZLE)
    assert len(calls) == 2 * runs


def test_a_rule_that_the_model_cannot_follow_names_the_setting(make):
    with pytest.raises(ConfigError, match=r"Generator.halt: halting.by_learning needs a core that learns to halt"):
        make(halt=halting.by_learning)(PUZZLE)


def test_guidance_runs_the_model_twice(make):
    assert make(sampler=Sampler(guidance=1.0))(PUZZLE).evaluations == 24
    plain, guided = (make("texts", length=6, sampler=Sampler(guidance=g))(PROMPTS[1]) for g in (0.0, 4.0))
    assert plain.text != guided.text


def test_an_answer_is_revised_within_its_passes(make):
    """Each cell once at most, and only before the last pass; what is masked again shows as empty."""
    generator = make(sampler=Sampler(steps=6, revise=least_probable))
    texts = [answer.text for answer in generator.stream(PUZZLE)]
    emptied = [sum(a != "." == b for a, b in zip(*pair, strict=True)) for pair in pairwise(texts)]
    assert [text.count(".") for text in texts] == [12, 10, 9, 7, 5, 3, 0] and emptied == [0, 1, 1, 1, 1, 0]
    assert generator(PUZZLE).text == texts[-1] and generator(PUZZLE).evaluations == 6


def test_a_threshold_saves_passes(make):
    assert make(sampler=Sampler(threshold=0.0))(PUZZLE).evaluations == 1


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"sampler": Sampler(steps=3, blocks=2)}, "sampling.Sampler: steps must be a positive multiple of blocks"),
        ({"length": 0}, "generation.Generator.length must be at least 1, got 0"),
        ({"refined_passes": -1}, "refined_passes must be at least 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"recursion_steps": 0}, "generation.Generator.recursion_steps must be at least 1, got 0"),
        ({"prefix": approximate_prefix, "halt": halting.by_change}, "prefix goes with neither halt nor sampling.Sampler.guidance"),
        ({"prefix": approximate_prefix, "sampler": Sampler(guidance=1.0)}, "prefix goes with neither halt nor"),
        ({"sampler": Sampler(revise=least_probable, revisions=0)}, "sampling.Sampler: revisions must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_told(make, settings, told):
    with pytest.raises(ConfigError, match=told):
        make(**settings)


def test_a_prompt_that_is_none_stops_all_before_anything_is_answered(make):
    with pytest.raises(DataError, match="a puzzle is 16 cells"):
        next(make().batches([PUZZLE, "hello"]))


def test_threads_that_share_a_generator_get_the_answers_that_one_gets(make):
    generator = make("texts", length=6)
    expected = [generator(prompt).text for prompt in PROMPTS]
    with ThreadPoolExecutor(3) as pool:
        assert [answer.text for answer in pool.map(generator, PROMPTS * 3)] == expected * 3


@pytest.mark.parametrize("settings", [{}, {"refined_passes": 1}, {"model": "data/backbone"}])
def test_an_approximate_prefix_is_exact_with_a_pass_a_block_and_fills_all_with_more(make, settings):
    for sampler in (Sampler(steps=3, blocks=3), Sampler(steps=12, blocks=3)):
        exact, kept = (make(sampler=sampler, prefix=prefix, **settings)(PUZZLE) for prefix in (None, approximate_prefix))
        assert "." not in kept.text and kept.evaluations == exact.evaluations
        assert kept.text == exact.text or sampler.steps > 3


def test_an_approximate_prefix_keeps_answers_apart(make):
    generator = make("texts", prefix=approximate_prefix, sampler=Sampler(steps=8, blocks=2), length=8)
    together = generator(PROMPTS)
    assert [answer.text for answer in together] == [generator(prompt).text for prompt in PROMPTS]
