"""Chunks that may change, by their place: bit-identical elsewhere, and the same refiner within."""

from functools import partial

import pytest
import torch

from components.refiners.chunk_masking import ChunkMasking, chunk_positions
from components.refiners.core import Layout
from tests.support.cores import ATTENTION, CORES, DIM, SEQ, begun, inputs, made, slots, states


def masked(core, **options):
    """``core`` behind a mask, and itself with the same weights."""
    outer = made(partial(ChunkMasking, refiner=CORES[core], **options))
    return outer, outer.refiner


@pytest.mark.parametrize("core", ["slots", "slots_literal", "recursive", "mlp", "cascade"])
@pytest.mark.parametrize(("chunk", "refined", "expected"), [(2, (0, 2), [1, 1, 0, 0, 1, 1]), (4, (1,), [0, 0, 0, 0, 1, 1])])
def test_states_are_those_of_the_refiner_under_the_mask(core, chunk, refined, expected):
    outer, inner = masked(core, chunk=chunk, refined=refined)
    positions = torch.tensor(expected, dtype=torch.bool).expand(3, SEQ)
    given = inputs(outer)
    for ours, plain in zip(states(outer, ATTENTION, **given), states(inner, ATTENTION, positions=positions, **given), strict=True):
        assert torch.equal(ours.hidden, plain.hidden)
        assert torch.equal(ours.hidden[~positions], given["x"][~positions])
        assert (ours.hidden[positions] != given["x"][positions]).any(-1).all()


def test_a_mask_of_the_caller_narrows_it_further():
    outer, inner = masked("slots", chunk=2, refined=(0, 2))
    given, own = inputs(outer), torch.arange(SEQ).expand(3, SEQ) > 0
    both = own & torch.tensor([1, 1, 0, 0, 1, 1], dtype=torch.bool)
    for ours, plain in zip(states(outer, positions=own, **given), states(inner, positions=both, **given), strict=True):
        assert torch.equal(ours.hidden, plain.hidden)


def test_chunks_are_counted_where_the_tokens_stand():
    outer, _ = masked("slots", chunk=2, refined=(1,))
    places = torch.tensor([[2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 8, 9], [0, 2, 4, 6, 8, 10]])
    given = inputs(outer)
    condition, carry, layout = begun(outer, given, Layout(places=places))
    hidden = outer.step(0, carry, condition, layout).hidden
    assert torch.equal((hidden == given["x"]).all(-1), ~((places == 2) | (places == 3)))


@pytest.mark.parametrize(
    ("options", "message"), [({"chunk": 0}, "chunk 0"), ({"refined": ()}, r"refined \[\]"), ({"refined": (-1,)}, r"\[-1\]")]
)
def test_chunks_that_are_none_are_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        ChunkMasking(DIM, slots, **options)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_chunk_positions_repeats_each_chunk_over_its_tokens(size):
    chunks = torch.tensor([[True, False, True], [False, False, True]])
    expected = [[chunks[b, i // size].item() for i in range(3 * size)] for b in range(2)]
    assert chunk_positions(chunks, 3 * size).tolist() == expected


def test_chunks_that_do_not_divide_the_sequence_are_named():
    with pytest.raises(ValueError, match=r"\b3 chunks.*\b8 tokens"):
        chunk_positions(torch.ones(1, 3, dtype=torch.bool), 8)
