"""Reading shards: any rows in any order are what was written, to the bit; everything else is an error with its place."""

import gc
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.backbones.tiny_lm import TinyLM
from components.quantisation import calibrated, expanded, quantised
from pipeline.data import reader
from pipeline.data.batches import CachedSource
from pipeline.data.reader import ShardReader
from pipeline.data.shard_writer import ShardError, write_index, write_shard
from pipeline.data.sources import cached
from pipeline.errors import DataError
from pipeline.models.backbones import Backbone, save_backbone
from tests.pipeline.conftest import forge, forge_block, write_shards

MEND = "run dvc repro extract, or dvc pull if it was made elsewhere"
MADE_FROM = {"backbone": "b" * 64, "prepared": "c" * 64}
PLAN = {**MADE_FROM, "layer": 1, "mask_id": 100, "pad_id": 101, "sequence": 9, "draws": 1, "padded": True}
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.int8: torch.int8, torch.float8_e4m3fn: torch.uint8}
DTYPES = tuple(BITS)


def ragged(lengths, dtype=torch.float32, dim=3):
    """Rows of the given lengths whose every number is random, any finite bits, with uids in no order."""
    generator = torch.Generator().manual_seed(len(lengths))
    uids = torch.randperm(len(lengths), generator=generator) + 7
    for length, uid in zip(lengths, uids, strict=True):
        bits = torch.randint(-(2**31), 2**31, (length, dim), generator=generator)
        states = bits.to(BITS[dtype]).view(dtype)
        row = {
            "uid": uid[None],
            "hidden": torch.where(states.float().isfinite(), states.float(), 0.0).to(dtype),
            "tokens": torch.randint(100, (length,), generator=generator, dtype=torch.int32),
            "targets": torch.randint(100, (length,), generator=generator, dtype=torch.int32),
            "masked": torch.rand(length, generator=generator) < 0.5,
            "weights": torch.rand(length, generator=generator),
        }
        yield row if dtype.itemsize > 1 else {**row, "scale": torch.rand(length, generator=generator)}


def stored(folder, rows, per_block=3, blocks_per_shard=2, **plan):
    """Shards of the given rows, in their order."""
    records = []
    blocks = [rows[i : i + per_block] for i in range(0, len(rows), per_block)]
    for first in range(0, len(blocks), blocks_per_shard):
        made = []
        for chosen in blocks[first : first + blocks_per_shard]:
            cuts = torch.tensor([0, *(len(row["tokens"]) for row in chosen)]).cumsum(0)
            made.append({**{name: torch.cat([row[name] for row in chosen]) for name in chosen[0]}, "cu_seqlens": cuts})
        record = write_shard(folder / f"train-00-{first:05d}.tar", made, "identity")
        records.append({**record, "split": "train", "draw": 0})
    states = rows[0]["hidden"]
    channel = torch.arange(1.0, states.shape[1] + 1) if states.dtype.itemsize == 1 else None
    kind = {"dim": states.shape[1], "dtype": str(states.dtype).removeprefix("torch.")}
    write_index(folder, {**PLAN, **kind, **plan}, records, channel)
    return ShardReader(folder)


def differing(found, rows, padded):
    """Names of what a batch has that the rows, padded, do not have bit for bit."""
    amiss = set()
    for i, row in enumerate(rows):
        length = len(row["tokens"])
        amiss |= {"length"} if int(found["length"][i]) != length else set()
        for name in ("hidden", "tokens", "targets", "masked", "weights", "scale"):
            if name not in row:
                amiss |= {name} & set(found)
                continue
            got = found[name][i]
            filling = 101 if name in ("tokens", "targets") else 0
            same = got.dtype == row[name].dtype and len(got) == padded and bool((got[length:].float() == filling).all())
            as_bits = [value.contiguous().view(BITS.get(value.dtype, value.dtype)) for value in (got[:length], row[name])]
            amiss |= set() if same and torch.equal(*as_bits) else {name}
    return amiss


@pytest.fixture
def three(shards_of):
    """A folder: two draws and validation of 36 rows, each in three shards of three blocks."""
    return shards_of(36).folder


def read_all(folder):
    opened = ShardReader(folder)
    for split, draw in (("train", 0), ("train", 1), ("validation", 0)):
        opened.read(opened.rows(split, draw), 6)


# What was written


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data(), st.lists(st.integers(1, 9), min_size=1, max_size=14), st.sampled_from(DTYPES))
def test_any_rows_in_any_order_are_what_was_written(tmp_path_factory, data, lengths, dtype):
    rows = list(ragged(lengths, dtype))
    folder = tmp_path_factory.mktemp("any")
    opened = stored(
        folder, rows, data.draw(st.integers(1, 5), "rows of a block"), data.draw(st.integers(1, 3), "blocks of a shard")
    )
    for _ in range(2):  # what is kept from the first time counts too
        chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=20), "rows")
        longest = max(lengths[i] for i in chosen)
        padded = data.draw(st.integers(longest, longest + 3), "padded to")
        assert differing(opened.read(torch.tensor(chosen), padded), [rows[i] for i in chosen], padded) == set()
    shutil.rmtree(folder)


def test_shards_that_are_links_into_a_cache_are_read(three, tmp_path):
    (tmp_path / "linked").mkdir()
    for file in three.iterdir():
        (tmp_path / "linked" / file.name).symlink_to(file)
    read_all(tmp_path / "linked")


def test_rows_of_a_draw_come_by_ascending_uid(tmp_path):
    rows = list(ragged([3, 5, 2, 9, 1, 4, 4]))
    opened = stored(tmp_path, rows)
    by_uid = sorted(rows, key=lambda row: int(row["uid"]))
    assert [int(row["uid"]) for row in rows] != [int(row["uid"]) for row in by_uid]
    assert differing(opened.read(opened.rows("train", 0), 9), by_uid, 9) == set()


def test_draws_and_splits_are_told_apart(shards_of):
    opened = shards_of(20, draws=3)
    for split, draw in (("train", 0), ("train", 1), ("train", 2), ("validation", 0)):
        found = opened.read(opened.rows(split, draw), 6)["hidden"]
        assert torch.equal(found, (torch.arange(20.0) + 1000 * draw)[:, None, None].expand(20, 6, 2))


@pytest.mark.parametrize(("split", "draw"), [("train", 2), ("train", -1), ("validation", 1), ("test", 0)])
def test_a_draw_that_is_not_stored_is_named(shards_of, split, draw):
    with pytest.raises(DataError, match=rf"holds no draw {draw} of split '{split}'; run dvc repro extract"):
        shards_of(12).rows(split, draw)


@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_states_in_eight_bits_are_expanded_as_they_were_stored(tmp_path, format):
    hidden = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1, 1, 40])
    channel = calibrated(hidden, format)
    numbers, scale = quantised(hidden, channel, format)
    (row,) = ragged([30], numbers.dtype, dim=4)
    stored(tmp_path, [{**row, "hidden": numbers, "scale": scale}], sequence=30)
    forge(tmp_path, in_table=lambda table: table.update(channel=channel))
    batch = CachedSource(ShardReader(tmp_path), "train").batch(torch.tensor([0]), torch.tensor([0]))
    moved = batch.to(torch.device("cpu"))
    assert torch.equal(moved.hidden[0], expanded(numbers, scale, channel)) and moved.scale is None
    assert bool(((moved.hidden[0] - hidden).norm(dim=1) < 0.05 * hidden.norm(dim=1)).all())


def test_a_batch_keeps_its_content_while_others_are_read(tmp_path):
    rows = list(ragged([9] * 12))
    opened = stored(tmp_path, rows)
    batches = [(i, opened.read(torch.tensor([i, 11 - i]), 9)) for _ in range(4) for i in range(12)]
    assert all(differing(batch, [rows[i], rows[11 - i]], 9) == set() for i, batch in batches)


@pytest.mark.parametrize("kept", [0, 200, 1 << 20])
def test_many_threads_read_the_same_whatever_is_kept(tmp_path, monkeypatch, kept):
    """No more small fields are held than may be; with no room at all, those of one block."""
    monkeypatch.setattr(reader, "CACHE_BYTES", kept)
    rows = list(ragged([1 + i % 9 for i in range(40)]))
    opened, amiss = stored(tmp_path, rows), []

    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(40):
            chosen = torch.randint(40, (8,), generator=generator)
            amiss.append(differing(opened.read(chosen, 9), [rows[i] for i in chosen.tolist()], 9))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert amiss == [set()] * 240
    assert (sum(columns.nbytes for columns in opened._columns.values()) <= kept) or len(opened._columns) == 1


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no list of open files here")
def test_files_are_closed_with_the_last_that_reads(three):
    def held():
        return [link for fd in Path("/proc/self/fd").iterdir() if str(three) in (link := os.path.realpath(fd))]

    opened = ShardReader(three)
    opened.read(opened.rows("train", 0), 6)
    assert len(held()) == 3
    del opened
    gc.collect()
    assert held() == []


# What was not


def test_verify_counts_every_byte(three):
    assert ShardReader(three).verify() == sum(file.stat().st_size for file in three.glob("*.tar"))


def test_verify_finds_a_damage_anywhere(three):
    shard = three / "train-01-00002.tar"
    content = shard.read_bytes()
    for position in (0, 700, len(content) // 2, len(content) - 1):
        shard.write_bytes(content[:position] + bytes([content[position] ^ 16]) + content[position + 1 :])
        with pytest.raises(ShardError, match=rf"train-01-00002.tar: sha256 is \w+, the index says \w+; {MEND}"):
            ShardReader(three).verify()


SIZES = {
    "missing": "it does not exist",
    "empty": "0 bytes",
    "truncated": "777 bytes",
    "longer": "20481 bytes",
    "a folder": "it does",
}


@pytest.mark.parametrize("case", SIZES)
def test_a_shard_that_is_not_whole_is_refused_at_once(three, case):
    shard = three / "train-01-00001.tar"
    content = (shard.read_bytes() + bytes(20481))[:20481]
    shard.unlink()
    if case == "a folder":
        shard.mkdir()
    elif case != "missing":
        shard.write_bytes({"empty": b"", "truncated": content[:777], "longer": content}[case])
    with pytest.raises(ShardError, match=rf"train-01-00001.tar: .*{SIZES[case]}.*; {MEND}"):
        ShardReader(three)


@pytest.mark.parametrize("kept", [0, 100, 512, 800, 1400, 4000])
def test_a_file_that_is_cut_after_it_was_opened_is_an_error_and_no_signal(three, kept):
    opened = ShardReader(three)
    opened.read(opened.rows("train", 0)[:1], 6)
    os.truncate(three / "train-00-00000.tar", kept)
    with pytest.raises(ShardError, match=rf"train-00-00000.tar :: 00000\d.safetensors.*: the file ends here; {MEND}"):
        opened.read(opened.rows("train", 0), 6)
    opened.read(opened.rows("train", 1), 6)


def test_a_file_that_vanishes_before_it_is_read_is_named(three):
    opened = ShardReader(three)
    (three / "train-00-00002.tar").unlink()
    with pytest.raises(ShardError, match=r"train-00-00002.tar: it cannot be read any more \(No such file or directory\)"):
        opened.read(opened.rows("train", 0), 6)


def test_two_shards_that_changed_places_are_found(three):
    one, other = three / "train-00-00001.tar", three / "train-01-00001.tar"
    assert one.stat().st_size == other.stat().st_size
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1]), other.write_bytes(contents[0])
    with pytest.raises(ShardError, match=rf"train-00-00001.tar :: 000000.safetensors.*not those that were written; {MEND}"):
        read_all(three)


@pytest.mark.parametrize("what", ["of this extraction", "of another one"])
def test_a_shard_over_another_is_found(three, rows, tmp_path, what):
    split = rows(36)
    split.tokens[20, 3] = 90  # in one token of its middle shard
    origin = write_shards(tmp_path / "other", split) / "train-00-00001.tar" if what != "of this extraction" else None
    shutil.copy(origin or three / "train-00-00000.tar", three / "train-00-00001.tar")
    with pytest.raises(ShardError, match=rf"train-00-00001.tar :: 00000[0-2].safetensors.*; {MEND}"):
        read_all(three)


def test_shards_of_another_backbone_are_refused(three, vocabulary, tmp_path):
    model = TinyLM(vocab=102, seq=6, dim=2, layers=2, heads=1)
    model.init_weights(torch.Generator().manual_seed(0))
    save_backbone(tmp_path / "backbone", model, vocabulary)
    backbone = Backbone(tmp_path / "backbone")
    with pytest.raises(DataError, match=rf"belongs to backbone b{{12}}, but .* holds {backbone.digest[:12]}; run dvc repro"):
        cached("train", backbone=backbone, shards=str(three))
    forge(three, lambda index: index.update(backbone=backbone.digest))
    assert len(cached("train", backbone=backbone, shards=str(three))) == 36


def test_draws_of_other_rows_are_refused(three):
    def exchange(table):
        table["row/uid"][36:72] += 100

    forge(three, in_table=exchange)
    with pytest.raises(DataError, match="draws of train do not hold the same rows; run dvc repro extract"):
        CachedSource(ShardReader(three), "train")
    assert len(CachedSource(ShardReader(three), "validation")) == 36


@pytest.mark.parametrize("file", ["index.json", "index.safetensors"])
def test_a_damaged_index_is_refused(three, file):
    content = (three / file).read_bytes()
    for position in range(0, len(content), 97):
        (three / file).write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(DataError, match=rf"{file} .*run dvc repro extract|{file}: it is not what was written; {MEND}"):
            ShardReader(three)
    (three / file).unlink()
    with pytest.raises(DataError, match=rf"{file}.* does not exist; .*run dvc repro extract"):
        ShardReader(three)


def test_extraction_that_never_finished_is_told_so(three):
    (three / "index.json").unlink()
    with pytest.raises(DataError, match=r"index.json does not exist; it is written by stage extract: run dvc repro extract"):
        ShardReader(three)


@pytest.mark.parametrize("content", [b"[]", b"3", b"null", b'{"format": 1}', b'{"format": [2]}', b"{}", b"[" * 100_000])
def test_an_index_of_another_kind_is_refused(three, content):
    (three / "index.json").write_bytes(content)
    with pytest.raises(DataError, match=r"index.json (is of format|is not valid JSON).*run dvc repro extract"):
        ShardReader(three)


# Forged: what is wrong and every hash over it agree

HEADERS = {
    "dtype of the states": ("hidden", b'"hidden":{"dtype":"F32"', b'"hidden":{"dtype":"I32"', r"I32 \[24, 2\], .* F32 \[24, 2\]"),
    "shape of the states": ("hidden", b'"shape":[24,2]', b'"shape":[12,4]', r"F32 \[12, 4\], the index speaks of F32 \[24, 2\]"),
    "dtype of a field": ("weights", b'"weights":{"dtype":"F32"', b'"weights":{"dtype":"I32"', r"I32 \[24\], .* F32 \[24\]"),
    "name of a field": ("weights", b'"weights"', b'"heights"', r"None None, the index speaks of F32 \[24\]"),
    "a field's place": ("masked", b"x", b"x", r"it lies at \[\d+, \d+\], the index says \d+"),
    "no fields": ("", b"{", b"[", "no safetensors header"),
}


@pytest.mark.parametrize(("field", "old", "new", "told"), HEADERS.values(), ids=HEADERS)
def test_a_forged_block_is_named_with_its_field(  # the second of the fifth of nine shards, of three blocks each
    three, field, old, new, told
):
    fields = ShardReader(three).index["fields"]

    def moved(table):
        table["block/fields"][13, fields.index("masked")] += 1

    forge_block(three, 13, lambda member: member.replace(old, new, 1), **({"in_table": moved} if field == "masked" else {}))
    place = rf"train-01-00001.tar :: 000001.safetensors{f' :: {field}' if field else ''}: "
    with pytest.raises(ShardError, match=rf"{place}{told}; {MEND}"):
        read_all(three)
