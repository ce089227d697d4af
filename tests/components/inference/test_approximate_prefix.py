"""The approximate prefix: exact where a block is read for the first time, blind to later changes of what stands before it."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from components.backbones.pretrained_lm import PretrainedLM
from components.backbones.tiny_lm import TinyLM
from components.batch import Batch
from components.inference.approximate_prefix import approximate_prefix, approximate_surroundings
from components.inference.sampling import Sampler, low_confidence_remasking
from components.refined_lm import RefinedLM
from pipeline.models.discovery import discovered
from pipeline.models.transformers import key_value_cache
from tests.support.cores import HEADS, RESIDUAL, made

transformers = pytest.importorskip("transformers")
VOCAB, DIM, LAYERS, MASK, SEQ = 31, 16, 3, 30, 14
STARTS = torch.tensor([[2], [5], [4]])
LENGTHS = torch.tensor([[14], [11], [10]])


def tiny():
    model = TinyLM(VOCAB, SEQ, DIM, LAYERS, HEADS, rotary=True)
    model.init_weights(torch.Generator().manual_seed(0))
    for parameter in model.blocks.parameters():
        parameter.data.mul_(4)
    return model.double()


def llama(shift):
    """Bidirectional, as LLaDA is, or as Dream, whose logits stand one place earlier."""
    config = transformers.LlamaConfig(
        hidden_size=DIM, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=1, intermediate_size=24,
        vocab_size=VOCAB, max_position_embeddings=64, head_dim=8,
    )  # fmt: skip
    config.use_cache, config.is_causal, config._attn_implementation = False, False, "sdpa"
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval().double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    with torch.device("meta"):
        parts = discovered(type(model)(config), config)
    architecture = {"dim": DIM, "layers": LAYERS, "vocab": VOCAB, "seq": 64}
    return PretrainedLM(model, parts, architecture, shift, cache=key_value_cache(type(model), config))


BASES = {"tiny": tiny, "llada": lambda: llama(0), "dream": lambda: llama(1)}
CORES = ("slots", "mlp", "recursive_two_blocks_rotary", "chunk_masking", "cascade", "tapped")
CASES = [  # a backbone of one's own with every core, each of the library's with none and some
    *(("tiny", core) for core in (None, *CORES)),
    *(("llada", core) for core in (None, "slots", "recursive_two_blocks_rotary", "slots_of_taps")),
    *(("dream", core) for core in (None, "mlp", "chunk_masking", "cascade", "tapped")),
]


@pytest.fixture(params=CASES, ids=[f"{base}-{core}" for base, core in CASES])
def model(request):
    base, core = request.param
    built = BASES[base]()
    return (built if core is None else RefinedLM(built, made(RESIDUAL[core]).double())).eval().requires_grad_(False)


@pytest.fixture
def batch():
    """Prompts of 2, 5 and 4 tokens and answers of 12, 6 and 6, all masked, padded on the right."""
    place = torch.arange(SEQ)
    tokens = torch.randint(MASK, (3, SEQ), generator=torch.Generator().manual_seed(1))
    there = place < LENGTHS
    masked = (place >= STARTS) & there
    tokens = tokens.masked_fill(masked, MASK).masked_fill(~there, 0)
    return Batch(tokens, tokens, masked, masked.float(), there)


def plain(model, batch):
    def predict(tokens, queried):
        return model.readout(model.states(replace(batch, tokens=tokens, masked=batch.masked & (tokens == MASK)))[queried])

    return predict


def block_of(batch, blocks):
    """The first of so many blocks of each answer."""
    return batch.masked & (batch.masked.cumsum(1) <= batch.masked.sum(1, keepdim=True) // blocks)


def counted(model):
    """How many tokens each run of the model reads."""
    read, backbone = [], getattr(model, "backbone", model)
    states = backbone.states_and_heads
    backbone.states_and_heads = lambda batch, layers=(): read.append(batch.tokens.shape[1]) or states(batch, layers)
    return read


@pytest.mark.parametrize(("way", "blocks"), [(approximate_prefix, 3), (approximate_surroundings, 3), (approximate_prefix, 1)])
def test_with_as_many_passes_as_blocks_nothing_is_approximated(model, batch, blocks, way):
    exact = low_confidence_remasking(plain(model, batch), batch.tokens, MASK, blocks, blocks)
    prefix = low_confidence_remasking(way(model, batch, blocks), batch.tokens, MASK, blocks, blocks)
    assert torch.equal(exact.tokens, prefix.tokens)
    torch.testing.assert_close(exact.probability, prefix.probability, rtol=0, atol=1e-9)


def test_as_long_as_nothing_changes_the_block_is_read_as_in_the_first_pass(model, batch):
    """From what is kept and from the block and what stands behind it alone."""
    predict, read = approximate_prefix(model, batch, 2), counted(model)
    block = block_of(batch, 2)
    first, again, third = (predict(batch.tokens, block) for _ in range(3))
    torch.testing.assert_close(again, first, rtol=0, atol=1e-9)
    torch.testing.assert_close(third, first, rtol=0, atol=1e-9)
    torch.testing.assert_close(first, plain(model, batch)(batch.tokens, block), rtol=0, atol=1e-9)
    assert read[:3] == [SEQ, SEQ - 2, SEQ - 2]


def test_the_block_alone_is_read_where_its_surroundings_are_kept(model, batch):
    predict, read = approximate_surroundings(model, batch, 3), counted(model)
    first, again = (predict(batch.tokens, block_of(batch, 3)) for _ in range(2))
    torch.testing.assert_close(again, first, rtol=0, atol=1e-9)
    assert read == [SEQ, 4]  # a third of twelve, of six and of six
    last = low_confidence_remasking(predict, batch.tokens, MASK, 6, 3)
    assert read[2:] == [4, 4, SEQ, 4, SEQ, 4] and not (last.tokens == MASK).any()


def test_the_next_block_reads_everything_once_and_then_less(model, batch):
    predict, read = approximate_prefix(model, batch, 3), counted(model)
    passes = list(Sampler(steps=6, blocks=3).passes(predict, batch.tokens, MASK))
    # the least that is before a block of any row: 2; 2 + 4 = 6 in the first, 4 + 2 = 6 in the last; 10, and 4 + 4 = 8
    assert read == [SEQ, SEQ - 2, SEQ, SEQ - 6, SEQ, SEQ - 8]
    assert not (passes[-1].tokens == MASK).any() and passes[-1].evaluations.tolist() == [6, 6, 6]


@pytest.mark.parametrize("way", [approximate_prefix, approximate_surroundings])
def test_revised_tokens_of_the_block_are_read_and_asked_for_again(model, batch, way):
    predict, read, block = way(model, batch, 2), counted(model), block_of(batch, 2)
    some = batch.tokens.masked_fill(block & (torch.arange(SEQ) % 2 == 0), 3)
    whole = plain(model, batch)(some, block)
    torch.testing.assert_close(predict(some, block), whole, rtol=0, atol=1e-9)
    torch.testing.assert_close(predict(some, block), whole, rtol=0, atol=1e-9)
    assert read[0] == SEQ > read[2]
    sampler = Sampler(steps=6, blocks=2, revise=lambda probability, decided: decided)
    *_, last = sampler.passes(way(model, batch, 2), batch.tokens, MASK)
    assert not (last.tokens == MASK).any() and last.evaluations.tolist() == [6, 6, 6]


@pytest.mark.parametrize("way", [approximate_prefix, approximate_surroundings])
def test_rows_do_not_know_of_each_other(model, batch, way):
    """A row that is done with its block before the others waits for them, and has nothing of theirs read again."""
    sampler = Sampler(threshold=0.12, blocks=2)
    *_, together = sampler.passes(way(model, batch, 2), batch.tokens, MASK)
    for row in range(len(batch)):
        alone = batch.take(torch.tensor([row]))
        *_, last = sampler.passes(way(model, alone, 2), alone.tokens, MASK)
        assert torch.equal(last.tokens[0], together.tokens[row]) and last.evaluations[0] == together.evaluations[row]


def test_a_row_that_is_done_is_not_read_again():
    model = tiny().eval()
    tokens = torch.full((2, SEQ), 3)
    tokens[0, 2:4], tokens[1, SEQ - 4 :] = MASK, MASK
    batch = Batch(tokens, tokens, tokens == MASK, (tokens == MASK).double())
    done = torch.tensor([[True], [False]])
    late = tokens.masked_fill(done, 5), batch.masked & ~done
    predict, read = approximate_prefix(model, batch, 1), counted(model)
    predict(tokens, batch.masked)
    predict(*late)
    assert read == [SEQ, SEQ - 2]
    predict, read = approximate_prefix(model, batch, 1), counted(model)
    predict(*late)
    predict(*late)
    assert read == [SEQ, 4]


def test_what_changes_before_the_block_is_not_seen_until_the_next():
    """A token of the prompt is replaced behind the predictor's back."""
    model = tiny().eval()
    tokens = torch.tensor([[3, 4, 5, MASK, MASK, MASK, MASK]])
    batch = Batch(tokens, tokens, tokens == MASK, (tokens == MASK).double())
    predict = approximate_prefix(model, batch, 2)
    with torch.no_grad():
        before = predict(tokens, block_of(batch, 2))
        other = tokens.clone()
        other[0, 1] = 9
        torch.testing.assert_close(predict(other, block_of(batch, 2)), before, rtol=0, atol=1e-9)
        other[0, 3:5] = torch.tensor([7, 8])
        last = other == MASK
        torch.testing.assert_close(predict(other, last), plain(model, batch)(other, last), rtol=0, atol=1e-9)


def test_a_canvas_without_masks_and_passes_without_candidates_are_nothing_to_fill(batch):
    model = tiny().eval()
    full = replace(batch, tokens=batch.tokens.masked_fill(batch.masked, 3))
    full = replace(full, masked=torch.zeros_like(full.masked))
    assert not len(approximate_prefix(model, full, 2)(full.tokens, full.masked))
    exact, prefix = (
        low_confidence_remasking(predict, batch.tokens, MASK, 40, 2)
        for predict in (plain(model, batch), approximate_prefix(model, batch, 2))
    )
    assert torch.equal(exact.evaluations, prefix.evaluations) and not (prefix.tokens == MASK).any()


def test_a_model_that_cannot_go_on_from_a_cache_is_refused(batch):
    model = RefinedLM(tiny(), made(RESIDUAL["selective"]).double())
    with pytest.raises(ValueError, match="cannot go on from keys and values"):
        approximate_prefix(model, batch, 2)
