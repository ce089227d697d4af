"""Operations are counted as the products that a model is made of."""

import pytest
import torch

from components.batch import Batch
from components.fused import Linear
from components.losses import masked_cross_entropy
from components.tiny_lm import TinyLM
from pipeline import flops

ROWS, SEQ, DIM, VOCAB = 3, 6, 8, 11


def test_a_matrix_product():
    assert flops.count(lambda: torch.ones(3, 4) @ torch.ones(4, 5)) == 2 * 3 * 4 * 5


def test_nothing_costs_nothing():
    assert flops.count(lambda: torch.ones(9).sum()) == 0


def test_the_work_is_done():
    done = []
    flops.count(lambda: done.append(1))
    assert done == [1]


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_a_training_step_of_the_backbone(layers):
    """Forward 2 operations a weight and token, backward twice that; attention scores and sums; the head at masked positions."""
    model = TinyLM(VOCAB, SEQ, DIM, layers, heads=2)
    model.init_weights(torch.Generator().manual_seed(0))
    tokens = torch.zeros(ROWS, SEQ, dtype=torch.long)
    masked = torch.arange(SEQ).expand(ROWS, SEQ) < 2
    batch = Batch(tokens, tokens, masked, masked.float())
    linear = layers * (3 + 1 + 4 + 4) * DIM**2 * ROWS * SEQ
    attention = layers * 2 * ROWS * SEQ * SEQ * DIM
    head = ROWS * 2 * DIM * VOCAB
    forward = flops.count(lambda: model.readout(model.states(batch).flatten(0, 1)[batch.supervised]))
    assert forward == 2 * (linear + attention + head)
    step = flops.count(lambda: masked_cross_entropy(model, model.states(batch), batch)[0].backward())
    assert step == 3 * 2 * (linear + attention + head)


def test_a_product_by_onednn_counts_as_any_other():
    layer, x = Linear(4, 5), torch.ones(2, 3, 4, requires_grad=True)
    assert flops.count(lambda: layer(x).sum().backward()) == 3 * 2 * 2 * 3 * 4 * 5
