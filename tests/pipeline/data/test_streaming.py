"""Shards as a stream: the same rows as by random access, in an order that a resumed run, threads and processes share."""

import http.server
import os
import random
import shutil
import threading
from collections import Counter
from dataclasses import fields
from functools import partial
from itertools import islice, pairwise

import pytest
import torch

from components.batch import Batch
from pipeline.corpora.prepared import Split
from pipeline.data.batches import CachedSource
from pipeline.data.loading import TrainLoader, in_order
from pipeline.data.reader import ShardReader
from pipeline.data.shard_index import ShardIndex
from pipeline.data.shard_writer import TAR_UNIT, ShardError, member_header
from pipeline.data.streaming import StreamedSource, read_blocks
from pipeline.errors import ConfigError, DataError
from tests.pipeline.conftest import put, write_shards

ROWS = 61  # blocks of 4 rows and 12 rows a file: six files, the last of one row


def ragged(n):
    numbers = torch.arange(n)
    valid = torch.arange(6) < 3 + numbers[:, None] % 4
    response = valid & (torch.arange(6) >= 2)
    return Split(tokens=numbers[:, None].expand(n, 6).int(), response=response, group=numbers, uid=numbers, valid=valid)


@pytest.fixture(scope="module", params=["ragged", "eight bits"])
def whole(request, tmp_path_factory):
    """Shards of three draws. Read only."""
    folder = tmp_path_factory.mktemp("streamed") / "shards"
    if request.param == "ragged":
        return write_shards(folder, ragged(ROWS), draws=3)
    split = ragged(ROWS)
    return write_shards(folder, Split(**{**vars(split), "valid": None}), draws=3)


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "shards")


@pytest.fixture
def streamed(whole):
    """``streamed(near)``: the training rows."""
    return lambda near=2, split="train": StreamedSource(ShardIndex(whole), split, near)


def same(a: Batch, b: Batch):
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(Batch)]
    return all(x == y if not isinstance(x, torch.Tensor) else x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)


def ids(step):
    return [int(row) for batch in step for row in batch.targets[:, 0]]


def taken(source, first, count, size=4, accumulation=2, seed=5):
    steps = TrainLoader(source, size, seed).steps(first, accumulation)
    found = list(islice(steps, count))
    steps.close()
    return found


def alike(a, b):
    assert [len(step) for step in a] == [len(step) for step in b] and a
    return all(same(x, y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True))


def test_a_row_is_what_random_access_makes_of_it(whole, streamed):
    """Every field, every bit, in every draw."""
    cached, source = CachedSource(ShardReader(whole), "train"), streamed()
    assert (source.layer, source.fingerprint, len(source)) == (cached.layer, cached.fingerprint, len(cached))
    for epoch in range(4):
        rows = torch.tensor([60, 0, 17, 18, 3, 44])
        epochs = torch.full_like(rows, epoch)
        assert same(source.batch(rows, epochs), cached.batch(rows, epochs))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_in_order_every_row_comes_once(whole, streamed, split):
    cached = CachedSource(ShardReader(whole), split)
    found = list(in_order(streamed(split=split), 7))
    assert [number for number, _ in found] == list(range(9))
    rows = torch.arange(ROWS).split(7)
    assert all(same(batch, cached.batch(rows[number], torch.zeros_like(rows[number]))) for number, batch in found)


def test_every_row_is_seen_once_an_epoch(streamed):
    seen = [row for step in taken(streamed(), 0, 31) for row in ids(step)]
    for epoch in range(4):
        assert Counter(seen[epoch * ROWS : (epoch + 1) * ROWS]) == Counter(range(ROWS))


@pytest.mark.parametrize("near", [1, 2, 5, 100])
def test_files_come_whole_and_rows_are_shuffled_within_a_window(streamed, near):
    """Reckoned from the rows alone: 4 a block, 12 a file."""
    orders = []
    for epoch in range(3):
        order = streamed(near).sampler(1, 5).epoch(epoch).tolist()
        orders.append(order)
        place = [0, *(a // 4 != b // 4 for a, b in pairwise(order))]
        files = [row // 12 for row in order]
        if near == 1:
            assert sum(place) == 15 and sum(a != b for a, b in pairwise(files)) == 5
        sequence = streamed(near).sampler(1, 5).reading(epoch).tolist()
        assert sum(a // 3 != b // 3 for a, b in pairwise(sequence)) == 5  # each file once
        assert all(b == a + 1 for a, b in pairwise(sequence) if a // 3 == b // 3)  # from its beginning to its end
        windows = [sequence[i : i + near] for i in range(0, 16, near)]
        at = 0
        for window in windows:
            size = sum(1 if block == 15 else 4 for block in window)
            assert {row // 4 for row in order[at : at + size]} == set(window)
            at += size
    assert orders[0] != orders[1] != orders[2] and orders[0] != list(range(ROWS))


@pytest.mark.parametrize(
    ("readers", "near", "first"),
    [(readers, 3 if (i + j) % 2 else 1, first) for i, readers in enumerate((0, 1, 3)) for j, first in enumerate((1, 7, 8, 23))],
)
def test_any_step_can_be_the_first(streamed, monkeypatch, readers, near, first):
    """Within an epoch of seven and five eighths steps, over a border, many epochs on: bit for bit."""
    monkeypatch.setenv("SLOTLOOP_READERS", "0")
    everything = taken(streamed(near), 0, 26)
    monkeypatch.setenv("SLOTLOOP_READERS", str(readers))
    assert alike(taken(streamed(near), first, 26 - first), everything[first:])


@pytest.mark.parametrize(("readers", "world"), [(0, 2), (1, 4), (3, 2)])
def test_processes_share_the_microbatches_of_a_step(streamed, monkeypatch, readers, world):
    alone = taken(streamed(), 2, 18, size=2, accumulation=4)
    monkeypatch.setenv("SLOTLOOP_READERS", str(readers))
    monkeypatch.setenv("WORLD_SIZE", str(world))
    shares = []
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(taken(streamed(), 2, 18, size=2, accumulation=4))
    assert alike([[batch for share in step for batch in share] for step in zip(*shares, strict=True)], alone)


def test_no_more_blocks_are_held_than_asked_for_and_files_before_are_not_opened(whole, monkeypatch):
    opened, held = [], []
    from pipeline.data import streaming

    real_open, real_block = streaming.tariterators.gopen.gopen, streaming._Block
    monkeypatch.setattr(streaming.tariterators.gopen, "gopen", lambda url: opened.append(os.path.basename(url)) or real_open(url))

    class Counted(real_block):
        def __init__(self, *args):
            super().__init__(*args)
            held.append(self)

    monkeypatch.setattr(streaming, "_Block", Counted)
    monkeypatch.setenv("SLOTLOOP_READERS", "0")
    source = StreamedSource(ShardIndex(whole), "train", 2)
    order = source.sampler(8, 5).reading(0)
    taken(source, 5, 1)
    files = [f"train-00-{block // 3:05d}.tar" for block in order.tolist()]
    expected = list(dict.fromkeys(files))
    assert opened == expected[len(expected) - len(opened) :] and 0 < len(opened) < 6
    assert len(held) < 16


# URLs


def test_files_may_lie_elsewhere_known_by_their_names(whole, streamed, folder, tmp_path):
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    for file in folder.glob("*.tar"):
        shutil.move(file, elsewhere / file.name)
    expected = taken(streamed(), 0, 9)
    paths = sorted(elsewhere.glob("*.tar"), reverse=True)
    for urls in ([str(path) for path in paths], [path.as_uri() for path in paths]):
        assert alike(taken(StreamedSource(ShardIndex(folder), "train", 2, urls), 0, 9), expected)


@pytest.mark.skipif(not shutil.which("curl"), reason="webdataset reads from the web with curl")
def test_files_may_lie_on_a_server(whole, streamed):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(whole))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        urls = [f"{base}/{path.name}" for path in whole.glob("*.tar")]
        assert alike(taken(StreamedSource(ShardIndex(whole), "train", 2, urls), 0, 9), taken(streamed(), 0, 9))
        amiss = [url.replace("/train", "/no/train") for url in urls]
        with pytest.raises(ShardError, match=r"train-00-\d{5}.tar :: 000000.safetensors: .*; run dvc repro extract"):
            StreamedSource(ShardIndex(whole), "train", 2, amiss).batch(torch.tensor([0]), torch.tensor([0]))
        server.shutdown()


@pytest.mark.parametrize("url", ["pipe:touch was_here; cat {}", "PIPE:cat {}", "ssh://host{}", "gs://bucket{}"])
def test_what_would_run_a_command_is_refused(whole, tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    urls = [url.format(path) for path in sorted(whole.glob("*.tar"))]
    with pytest.raises(ConfigError, match=r"sources.streamed.urls: '.*' is of kind '\w+:'; expected a path, file://, http://"):
        StreamedSource(ShardIndex(whole), "train", 2, urls)
    assert not list(tmp_path.glob("was_here"))


def test_a_file_without_url_is_named(whole):
    urls = [str(path) for path in whole.glob("train-00-*.tar") if "00003" not in path.name]
    with pytest.raises(DataError, match=r"sources.streamed.urls name no train-00-00003.tar, .* \(13 are missing\)"):
        StreamedSource(ShardIndex(whole), "train", 2, urls)


# Damage


def test_the_header_of_a_member_is_the_one_that_is_written(whole):
    table = ShardIndex(whole)
    for number in range(len(table.rows)):
        offset, file = int(table.offset[number]), table.shards[table.shard[number]]["file"]
        written = (whole / file).read_bytes()[offset : offset + TAR_UNIT]
        size = int(written[124:135], 8)
        assert member_header(table.member(number), size) == written


def read_all(folder):
    source = StreamedSource(ShardIndex(folder), "train", 2)
    return [batch.targets.tolist() for _, batch in in_order(source, 9)]


def damages(content):
    rng = random.Random(0)
    used = len(content.rstrip(b"\0"))
    for position in [*range(0, 1100, 2), *(rng.randrange(used) for _ in range(100))]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << rng.randrange(8)
        yield f"a bit of byte {position}", bytes(damaged)
    for length in (*range(0, used, 197), *range(0, used, TAR_UNIT)):
        yield f"cut to {length}", content[:length]
    for _ in range(30):
        one, other = sorted(rng.randrange(used // TAR_UNIT) * TAR_UNIT for _ in range(2))
        a, b = content[one : one + TAR_UNIT], content[other : other + TAR_UNIT]
        yield f"{one} is {other}", content[:one] + b + content[one + TAR_UNIT :]
        yield f"{one} lost", content[:one] + content[one + TAR_UNIT :]
        yield f"{one} and {other} exchanged", content[:one] + b + content[one + TAR_UNIT : other] + a + content[other + TAR_UNIT :]


@pytest.mark.parametrize("whole", ["ragged"], indirect=True)
def test_no_damage_is_ever_accepted(folder, monkeypatch):
    """Neither a wrong number nor a row less, whatever webdataset makes of the file."""
    monkeypatch.setenv("SLOTLOOP_READERS", "0")
    path, expected = folder / "train-00-00001.tar", read_all(folder)
    content, amiss, refused = path.read_bytes(), [], 0
    for what, damaged in damages(content):
        put(path, damaged)
        try:
            if read_all(folder) != expected:
                amiss.append(what)
        except ShardError as error:
            refused += 1
            amiss += [] if "\n" not in str(error) and "run dvc repro extract" in str(error) else [f"{what}: {error}"]
    put(path, content)
    assert not amiss and refused > 500 and read_all(folder) == expected


@pytest.mark.parametrize("readers", [0, 1, 3])
def test_damage_is_named_in_one_line_by_training_as_well(folder, monkeypatch, readers):
    monkeypatch.setenv("SLOTLOOP_READERS", str(readers))
    path = folder / "train-00-00002.tar"
    content = bytearray(path.read_bytes())
    table = ShardIndex(folder)
    content[int(table.hidden[6])] ^= 4
    put(path, bytes(content))
    with pytest.raises(ShardError, match=r"train-00-00002.tar :: 000000.safetensors :: hidden: states of row 24 are not those"):
        taken(StreamedSource(table, "train", 2), 0, 20)
    path.unlink()
    with pytest.raises(ShardError, match=r"train-00-00002.tar :: 000000.safetensors: it cannot be read \(.*No such file"):
        taken(StreamedSource(ShardIndex(folder), "train", 2), 0, 20)


def test_files_are_closed_and_nothing_reaches_the_disk(folder):
    before = sorted(path.name for path in folder.parent.rglob("*"))
    table = ShardIndex(folder)

    def held():
        return sum(str(folder) in os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))

    urls = {shard["file"]: str(folder / shard["file"]) for shard in table.shards}
    blocks = read_blocks(table, range(3), urls)
    assert [number for number, _ in islice(blocks, 5)] == list(range(5))
    assert held() == 1
    blocks.close()
    assert held() == 0
    assert sorted(path.name for path in folder.parent.rglob("*")) == before


def test_draws_in_other_places_are_refused(whole, folder, monkeypatch):
    table = ShardIndex(folder)
    table.uid[60], table.uid[61] = table.uid[61].copy(), table.uid[60].copy()
    with pytest.raises(DataError, match=r"draws of train do not hold the same rows in the same places; run dvc repro extract"):
        StreamedSource(table, "train")
