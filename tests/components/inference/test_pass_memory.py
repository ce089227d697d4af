"""Passes of a decode: two of them by hand, nothing while gates are closed, and a row that waits is none the wiser."""

from collections import deque
from functools import partial

import pytest
import torch

from components.backbones.tiny_lm import TinyLM
from components.batch import Batch
from components.inference.pass_memory import PassMemory
from components.inference.sampling import Sampler
from components.refined_lm import RefinedLM
from components.refiners.memory import Memory
from tests.support.cores import CORES, DIM, HEADS, SEQ, made

VOCAB, MASK = 11, 10
OVER = ["slots", "mlp", "recursive", "recursive_updates"]
over = pytest.mark.parametrize("name", OVER)


def model_over(name, closed=False):
    backbone = TinyLM(VOCAB, SEQ, DIM, 2, HEADS)
    backbone.init_weights(torch.Generator().manual_seed(0))
    core = made(partial(Memory, refiner=CORES[name]))
    for parameter in core.gates.parameters() if closed else ():  # as they are before training
        torch.nn.init.zeros_(parameter)
    return RefinedLM(backbone, core).double().eval().requires_grad_(False)


def batch_of(tokens):
    return Batch(tokens, tokens, tokens == MASK, torch.zeros(tokens.shape))


def canvas(rows=3, seed=0, answers=(4, 4, 4)):
    tokens = torch.randint(MASK, (rows, SEQ), generator=torch.Generator().manual_seed(seed))
    for row, length in zip(tokens, answers, strict=True):
        row[SEQ - length :] = MASK
    return tokens


def by_hand(model, versions):
    """Carry after carry, in one recursion a version of the tokens; the last step's states of each."""
    hidden, carry = [], None
    for tokens in versions:
        condition, fresh, layout = model.begin(batch_of(tokens))
        carry = fresh if carry is None else model.refiner.recalled(fresh, carry)
        for number in range(model.n_steps):
            state = model.step(number, carry, condition, layout)
            carry = state.carry
        hidden.append(state.hidden)
    return hidden


def predicts(model, memory=None):
    memory = PassMemory() if memory is None else memory
    return lambda tokens, queried: model.readout(memory.run(model, batch_of(tokens)).hidden[queried])


def decode(model, tokens, steps, blocks=1, predict=None):
    return list(Sampler(steps, blocks).passes(predict or predicts(model), tokens, MASK))


@over
def test_two_passes_are_those_by_hand(name):
    model, tokens = model_over(name), canvas()
    first, last = decode(model, tokens, 2)
    one, two = by_hand(model, [tokens, first.tokens])
    for committed, before, states in ((first, tokens, one), (last, first.tokens, two)):
        logits = model.readout(states)
        logits[..., MASK] = -torch.inf
        probability, best = logits.softmax(-1).max(-1)
        score = probability.masked_fill(before != MASK, -1.0)
        chosen = score >= score.sort(1, descending=True).values[:, 1:2]  # two of four tokens a pass
        assert torch.equal(committed.committed, chosen) and torch.equal(committed.tokens, torch.where(chosen, best, before))


@over
def test_a_pass_after_another_is_not_a_pass_alone(name):
    model, tokens = model_over(name), canvas()
    first, _ = decode(model, tokens, 2)
    memory = PassMemory()
    memory.run(model, batch_of(tokens))
    assert not torch.allclose(memory.run(model, batch_of(first.tokens)).hidden, model.states(batch_of(first.tokens)))


@over
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_untrained_memory_decodes_as_none_would(name, steps):
    model, tokens = model_over(name, closed=True), canvas()
    ours = decode(model, tokens, steps)
    plain = decode(model, tokens, steps, predict=lambda t, queried: model.readout(model.states(batch_of(t))[queried]))
    for a, b in zip(ours, plain, strict=True):
        assert torch.equal(a.tokens, b.tokens) and torch.equal(a.probability, b.probability)


@over
@pytest.mark.parametrize(("steps", "blocks"), [(4, 2), (6, 3), (2, 1), (4, 4)])
def test_a_row_is_decoded_as_it_would_be_alone(name, steps, blocks):
    """Short answers have empty blocks, and wait in those of longer ones."""
    model, tokens = model_over(name), canvas(answers=(5, 1, 3))
    together = decode(model, tokens, steps, blocks)[-1]
    for row in range(3):
        alone = decode(model, tokens[row : row + 1], steps, blocks)[-1]
        assert torch.equal(alone.tokens[0], together.tokens[row])
        torch.testing.assert_close(alone.probability[0], together.probability[row])


def test_a_row_that_waits_is_asked_again_as_it_was():
    model, tokens = model_over("slots"), canvas()
    changed = tokens.clone()
    changed[0, -1] = 1
    memory = PassMemory()
    waiting = [memory.run(model, batch_of(version)).hidden[1] for version in (tokens, changed, tokens, changed)]
    assert all(torch.allclose(hidden, waiting[0]) for hidden in waiting)
    moving = [memory.run(model, batch_of(version)).hidden[0] for version in (tokens, changed)]
    assert not torch.allclose(moving[0], model.states(batch_of(tokens))[0])


def test_a_new_decode_remembers_nothing_of_the_last():
    model, tokens = model_over("recursive"), canvas()
    one, other = (deque(decode(model, tokens, 2), maxlen=1).pop() for _ in range(2))
    assert torch.equal(one.tokens, other.tokens) and torch.equal(one.probability, other.probability)
