"""Canvases: equal rows are read once, what is not asked for is left out, and what is said of a row is what is said of it alone."""

import pytest
import torch

from components.backbones.tiny_lm import TinyLM
from components.batch import Batch
from components.inference.canvases import BLOCK, distinct, read_out
from components.refined_lm import RefinedLM
from components.refiners.chunk_masking import ChunkMasking
from components.refiners.recursive_core import RecursiveCore
from components.refiners.refiner import SlotRefiner

MASK, VOCAB, SEQ = 9, 10, 8
REFINERS = {
    "slots": SlotRefiner,
    "two blocks": lambda dim: SlotRefiner(dim, blocks=2),
    "taps and heads": lambda dim: SlotRefiner(
        dim, context_layers=[1], slots=[("low", "tap 0", 4), ("heads", "context", 4), ("was", "backbone", 2)]
    ),
    "chunks": lambda dim: ChunkMasking(dim, SlotRefiner, chunk=2, refined=[1, 2]),
    "another core": RecursiveCore,
}


def made(refiner=SlotRefiner):
    generator = torch.Generator().manual_seed(0)
    backbone = TinyLM(VOCAB, SEQ, 16, 2, 2)
    backbone.init_weights(generator)
    core = refiner(dim=16)
    core.init_weights(1.0, generator)
    for parameter in core.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return RefinedLM(backbone, core).eval()


def rows(number, canvases, padded=False):
    """So many rows of as many different canvases, each half masked."""
    generator = torch.Generator().manual_seed(1)
    different = torch.randint(0, MASK - 1, (canvases, SEQ), generator=generator)
    different[:, 0] = torch.arange(canvases) % MASK
    different[:, 1] = torch.arange(canvases) // MASK
    masked = torch.rand(canvases, SEQ, generator=generator) < 0.5
    masked[:, :2] = False
    masked[0, 2] = True
    of = torch.randperm(number, generator=generator) % canvases
    attention = torch.ones(number, SEQ, dtype=torch.bool)
    attention[:, -2:] = False
    masked = masked[of] & (attention if padded else True)
    tokens = different[of].masked_fill(masked, MASK)
    return Batch(tokens, tokens, masked, masked.float(), attention if padded else None)


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("refiner", REFINERS.values(), ids=REFINERS)
def test_what_is_shared_equals_what_is_computed_apart(refiner, padded):
    model, batch = made(refiner), rows(100, 40, padded)
    shared = read_out(model, batch, batch.masked)
    apart = torch.cat([model.readout(model.states(batch.take(torch.tensor([row])))) for row in range(len(batch))])
    assert torch.allclose(shared, apart[batch.masked], atol=1e-5)


@torch.no_grad()
def test_each_canvas_is_read_once_in_whole_blocks(monkeypatch):
    model, batch, read, changed = made(), rows(200, 40), [], []
    begin, delta = model.begin, model.refiner.delta_in.forward
    monkeypatch.setattr(model, "begin", lambda batch, *rest: read.append(len(batch)) or begin(batch, *rest))
    monkeypatch.setattr(model.refiner.delta_in, "forward", lambda x: changed.append(x.shape[:-1].numel()) or delta(x))
    read_out(model, batch, batch.masked)
    masked = int(batch.take(distinct(batch, batch.masked)[0]).masked.sum())
    assert read == [2 * BLOCK]
    assert changed == [2 * BLOCK * SEQ] * 3 + [-(-masked // BLOCK) * BLOCK]
    assert changed[-1] < changed[0]


@pytest.mark.parametrize(("number", "canvases", "chosen"), [(100, 100, 100), (100, 97, 100), (100, 60, 64), (64, 1, 32), (5, 1, 5)])
def test_every_row_has_its_canvas_among_the_chosen(number, canvases, chosen):
    batch = rows(number, canvases)
    among, canvas = distinct(batch, batch.masked)
    assert len(among) == len(among.unique()) == chosen
    assert torch.equal(batch.tokens[among][canvas], batch.tokens)


def test_rows_of_which_other_positions_are_asked_for_or_present_are_not_equal():
    batch = rows(64, 1, padded=True)
    asked, attention = batch.masked.clone(), batch.attention.clone()
    asked[1], attention[2, -1] = ~asked[1], True
    assert len(distinct(batch, batch.masked)[1].unique()) == 1
    assert len(distinct(batch, asked)[1].unique()) == 2
    other = Batch(batch.tokens, batch.targets, batch.masked, batch.weights, attention)
    assert len(distinct(other, batch.masked)[1].unique()) == 2
    hidden = Batch(batch.tokens, batch.targets, asked, batch.weights, batch.attention)  # as where guidance hides the prompt
    assert len(distinct(hidden, batch.masked)[1].unique()) == 2


@torch.no_grad()
@pytest.mark.parametrize("canvases", [1, 64])
def test_nothing_asked_for_is_nothing_said(canvases):
    model, batch = made(), rows(64, canvases)
    assert read_out(model, batch, batch.masked & False).shape == (0, VOCAB)
