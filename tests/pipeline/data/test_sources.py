"""Where states come from: shards or the live trunk, the same batches, and nothing that belongs to another backbone."""

import threading
from dataclasses import replace
from itertools import islice

import pytest
import torch

from components.backbones.backbones import build_backbone
from components.objective.masking import exact_count
from components.training.grid_symmetries import grid_symmetries
from pipeline.corpora.prepared import Prepared, write
from pipeline.data import sources
from pipeline.data.batches import LiveSource
from pipeline.data.loading import TrainLoader
from pipeline.errors import ConfigError, DataError
from pipeline.machine.runtime import Runtime
from pipeline.models.backbones import Backbone, save_backbone
from pipeline.models.pretrained import Source as Checkpoint
from pipeline.models.pretrained import build
from pipeline.training import flops
from stages import extract
from stages.__main__ import main
from tests.pipeline.conftest import forge
from tests.support.checkpoints import LLADA, VOCAB, llada_weights, written

DATA = {"masking": exact_count, "seed": 0}


def first(source, n, epoch=0):
    """The first n rows as they are in an epoch."""
    return source.batch(torch.arange(n), torch.full((n,), epoch))


@pytest.fixture
def live(finished, backbone, runtime):
    """``live(...)``: states from the trunk over the smoke run's training examples, one layer below the end."""

    def live(**changes):
        settings = {
            "split": "train",
            "prepared": str(finished / "data/prepared"),
            "tail_layers": 1,
            "dtype": "fp32",
            **DATA,
            **changes,
        }
        return sources.live(backbone=backbone, runtime=settings.pop("runtime", runtime), **settings)

    return live


@pytest.fixture
def backbone(finished):
    return Backbone(finished / "data/backbone")


@pytest.fixture
def other(finished, tmp_path):
    """Another backbone of the same sizes."""
    known = Backbone(finished / "data/backbone")
    model = build_backbone(known.architecture)
    model.init_weights(torch.Generator().manual_seed(5))
    save_backbone(tmp_path / "other", model, known.vocabulary)
    return Backbone(tmp_path / "other")


@pytest.fixture
def resized(finished, tmp_path):
    """The prepared examples under another vocabulary."""
    data = Prepared(finished / "data/prepared")
    changed = replace(data.vocabulary, size=7, mask_id=6)
    write(tmp_path / "resized", changed, {name: data.split(name) for name in ("train", "validation")}, {})
    return str(tmp_path / "resized")


def test_shards_of_this_backbone_are_opened(finished, backbone):
    source = sources.cached("train", backbone=backbone, shards=str(finished / "data/shards"))
    assert len(source) == 300 and source.layer == 1 and source.near == 0
    assert not torch.equal(first(source, 5).masked, first(source, 5, epoch=1).masked)
    assert torch.equal(first(source, 5).masked, first(source, 5, epoch=2).masked)  # two draws


def test_shards_of_another_backbone_are_refused(finished, backbone, other):
    message = rf"belongs to backbone {backbone.digest[:12]}, but .*other holds {other.digest[:12]}; run dvc repro extract"
    with pytest.raises(DataError, match=message):
        sources.cached("train", backbone=other, shards=str(finished / "data/shards"))


def test_shards_of_other_data_are_refused(finished, backbone, copy_of):
    forge(copy_of / "data/shards", lambda index: index.update(prepared="a" * 64))
    data = Prepared(finished / "data/prepared").digest[:12]
    for read in (sources.cached, sources.streamed):
        with pytest.raises(DataError, match=rf"shards belongs to prepare a{{12}}, but .*holds {data}; run dvc repro extract"):
            read("train", backbone=backbone, shards=str(copy_of / "data/shards"))


def test_data_that_the_backbone_was_not_made_from_are_refused(finished, backbone, live, tmp_path):
    data = Prepared(finished / "data/prepared")
    turned = {name: data.split(name).take(torch.arange(30).flip(0)) for name in ("train", "validation")}
    write(tmp_path / "turned", data.vocabulary, turned, {})
    with pytest.raises(DataError, match=rf"backbone belongs to prepare {data.digest[:12]}, but .*turned holds .*run dvc repro"):
        live(prepared=str(tmp_path / "turned"))


def test_data_with_other_token_ids_is_refused_with_both_values(backbone, resized, live):
    message = r"size 7 instead of 5, mask_id 6 instead of 4 than the backbone"
    with pytest.raises(DataError, match=message):
        sources.tokens("train", backbone=backbone, prepared=resized, **DATA)
    with pytest.raises(DataError, match=message):
        live(prepared=resized)


def test_extract_refuses_data_with_other_token_ids(copy_of, resized, runtime):
    with pytest.raises(DataError, match=r"size 7 instead of 5, mask_id 6 instead of 4 than the backbone"):
        extract.run(
            out=str(copy_of / "elsewhere"), prepared=resized, backbone=str(copy_of / "data/backbone"), masking=exact_count,
            tail_layers=1, taps=(), draws=1, dtype="fp32", batch_size=50, buckets=(), shard_bytes=10_000,
            block_bytes=1000, seed=0, runtime=runtime, store="",
        )  # fmt: skip
    assert not (copy_of / "elsewhere").exists()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_tokens_come_without_states_and_with_the_masks_of_the_live_source(finished, backbone, live, split):
    tokens = sources.tokens(split, backbone=backbone, prepared=str(finished / "data/prepared"), **DATA)
    for epoch in (0, 1):
        a, b = first(tokens, 20, epoch), first(live(split=split), 20, epoch)
        assert a.hidden is None and b.hidden is not None
        assert torch.equal(a.masked, b.masked) and torch.equal(a.tokens, b.tokens)


def test_other_puzzles_come_with_the_states_of_their_own(finished, backbone, live):
    """The live trunk and the reader of tokens draw the same puzzles, whose states are those of the trunk; validation's stay."""
    augment = {"augment": grid_symmetries}
    tokens = sources.tokens("train", backbone=backbone, prepared=str(finished / "data/prepared"), **DATA, **augment)
    here, there, plain = first(live(**augment), 6), first(tokens, 6), first(live(), 6)
    assert torch.equal(here.tokens, there.tokens) and torch.equal(here.targets, there.targets)
    assert not torch.equal(here.targets, plain.targets)
    assert not torch.equal(here.hidden, plain.hidden)
    same = first(live(split="validation", **augment), 6), first(live(split="validation"), 6)
    assert torch.equal(same[0].targets, same[1].targets) and torch.equal(same[0].hidden, same[1].hidden)


def test_training_masks_change_with_the_epoch_and_validation_masks_do_not(finished, backbone):
    changed = {}
    for split in ("train", "validation"):
        source = sources.tokens(split, backbone=backbone, prepared=str(finished / "data/prepared"), **DATA)
        changed[split] = not torch.equal(first(source, 20, epoch=0).masked, first(source, 20, epoch=1).masked)
    assert changed == {"train": True, "validation": False}


@pytest.mark.parametrize("tail", [0, 1, 2])
def test_live_states_enter_the_layer_below_the_tail(backbone, live, tail):
    source = live(tail_layers=tail)
    batch = first(source, 10)
    assert source.layer == 2 - tail
    assert torch.equal(batch.hidden, backbone.model().eval().trunk(batch.tokens, None, 2 - tail))
    assert not batch.hidden.requires_grad


@pytest.mark.parametrize("taps", [(), (0,)])
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "bf16"), ("bf16", "bf16"), ("bf16", "fp32")])
def test_live_states_are_computed_and_rounded_as_stored_ones(finished, backbone, live, tmp_path, precision, dtype, taps):
    runtime = Runtime(precision=precision, threads=1)
    extract.run(
        out=str(tmp_path / "shards"), prepared=str(finished / "data/prepared"), backbone=str(backbone.folder), masking=exact_count,
        tail_layers=1, taps=taps, draws=1, dtype=dtype, batch_size=30, buckets=(), shard_bytes=10_000_000, block_bytes=100_000,
        seed=0, runtime=runtime, store="",
    )  # fmt: skip
    cached = sources.cached("train", backbone=backbone, shards=str(tmp_path / "shards"))
    stored, fresh = (first(source, 30) for source in (cached, live(dtype=dtype, runtime=runtime, taps=taps)))
    for ours, expected in ((fresh.hidden, stored.hidden), *((fresh.tap(layer), stored.tap(layer)) for layer in taps)):
        assert ours.dtype == expected.dtype == sources.DTYPES[dtype] and torch.equal(ours, expected)
    assert fresh.tap_layers == stored.tap_layers == cached.taps == taps


def test_one_opened_backbone_loads_its_trunk_once(backbone, live):
    trunks = {id(live(split=split).trunk) for split in ("train", "validation", "train")}
    assert trunks == {id(backbone.trunk)} and not any(p.requires_grad for p in backbone.trunk.parameters())
    assert backbone.model() is not backbone.trunk  # what is trained is another


def test_threads_take_turns_in_a_pretrained_trunk(tmp_path, rows, vocabulary, monkeypatch):
    """It is patched for the length of a call: two calls at once would return each other's states."""
    pytest.importorskip("transformers")
    trunk = build(Checkpoint(path=str(written(tmp_path, LLADA, llada_weights())), dtype="fp32")).eval().requires_grad_(False)
    split = rows(32)
    split = replace(split, tokens=split.tokens % VOCAB)
    small = replace(vocabulary, size=VOCAB, mask_id=VOCAB - 1, pad_id=0)

    def steps(readers):
        monkeypatch.setenv("SLOTLOOP_READERS", str(readers))
        found = TrainLoader(LiveSource(split, small, exact_count, 0, trunk=trunk, layer=2), 4, seed=0).steps(0, 2)
        batches = [batch for step in islice(found, 30) for batch in step]
        found.close()
        return batches

    alone = steps(0)
    for readers in (2, 4):
        for a, b in zip(steps(readers), alone, strict=True):
            assert torch.equal(a.tokens, b.tokens) and torch.equal(a.hidden, b.hidden)
    for batch in alone[:3]:
        assert torch.equal(batch.hidden, trunk.trunk(batch.tokens, None, 2))


def test_counting_operations_changes_no_states_that_a_reading_thread_makes(live):
    """Attention is plain products while they are counted, in all threads of the process."""
    source, made = live(), []
    alone = first(source, 32).hidden
    thread = threading.Thread(target=lambda: made.append(first(source, 32).hidden))

    def work():
        thread.start()
        thread.join(0.3)

    flops.count(work)
    thread.join()
    assert torch.equal(made[0], alone)


@pytest.mark.parametrize(
    ("taps", "message"), [((1,), "tap 1 is layer 1, at or above the split"), ((-1,), "tap -1"), ((0, 0), "twice"), ((2,), "got 2")]
)
def test_live_taps_that_cannot_be_handed_on_are_refused(live, taps, message):
    with pytest.raises(ConfigError, match=message):
        live(taps=taps)


def test_a_live_tail_longer_than_the_backbone_is_refused(live):
    with pytest.raises(ConfigError, match="tail"):
        live(tail_layers=3)


def test_an_index_of_another_backbone_stops_warmup(copy_of, monkeypatch, capsys):
    forge(copy_of / "data/shards", lambda index: index.update(backbone="a" * 64))
    monkeypatch.chdir(copy_of)
    assert main(["warmup"]) == 1
    fingerprint = Backbone("data/backbone").digest[:12]
    assert f"error: data/shards belongs to backbone aaaaaaaaaaaa, but data/backbone holds {fingerprint};" in capsys.readouterr().err
    assert not (copy_of / "runs").exists()
