"""Shards that were damaged by accident or made by a stranger: refused in one line, never read as if nothing were, never run."""

import ast
import copy
import io
import itertools
import json
import os
import pickle
import random
import resource
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.corpora.prepared import Split
from pipeline.data.batches import CachedSource
from pipeline.data.reader import ShardReader
from pipeline.data.shard_writer import ShardError
from pipeline.errors import DataError
from pipeline.files import read_json
from tests.conftest import ROOT
from tests.pipeline.conftest import forge, forge_block, put, write_shards
from tests.support.dvc import content
from tests.support.json_fields import leaves, set_field

UNIT = 512


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of three shards of ten kilobytes: two draws and validation of six rows in two blocks. Read only."""
    numbers = torch.arange(6)
    response = torch.ones(6, 6, dtype=torch.bool)
    response[:, :2] = False
    split = Split(tokens=numbers[:, None].expand(6, 6).int(), response=response, group=numbers, uid=numbers)
    return write_shards(tmp_path_factory.mktemp("fuzz") / "shards", split)


@pytest.fixture
def folder(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "shards"))


def read_all(folder):
    """Every stored number, as training reads them."""
    opened = ShardReader(folder)
    sources = [CachedSource(opened, "train", [3]), CachedSource(opened, "validation")]
    found = []
    for source in sources:
        rows = torch.arange(len(source))
        found += [source.batch(rows, torch.full_like(rows, epoch)) for epoch in range(len(source.positions))]
    return found


def outcome(folder):
    """How reading ends, as a word: "accepted", "refused", or what should not be."""
    try:
        read_all(folder)
    except DataError as error:
        told = str(error)
        return "refused" if str(folder) in told and "run dvc repro extract" in told else f"refused with: {told}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


# Accidents


def flips(content, positions, rng):
    """One bit of each of these bytes."""
    for position in positions:
        damaged = bytearray(content)
        damaged[position] ^= 1 << rng.randrange(8)
        yield f"a bit of byte {position}", bytes(damaged)


def cuts(content, step):
    """Every so many lengths that are too short."""
    for length in range(0, len(content), step):
        yield f"cut to {length}", content[:length]


def additions(content, rng):
    for more in (1, 2, 7, 8, 511, 512, 1024, 10240):
        yield f"{more} zeros more", content + bytes(more)
        yield f"{more} bytes more", content + rng.randbytes(more)
        yield f"{more} bytes before", rng.randbytes(more) + content


def ranges(content, rng, count):
    """Ranges that became zero or random, changed places, or slipped: as disks and networks do it."""
    for _ in range(count):
        size = rng.choice((1, 8, 64, UNIT, 4096))
        one, other = sorted(rng.randrange(max(1, len(content) - size)) for _ in range(2))
        if rng.random() < 0.5:
            one, other = one - one % UNIT, other - other % UNIT
        a, b = content[one : one + size], content[other : other + size]
        yield f"{size} zeros at {one}", content[:one] + bytes(len(a)) + content[one + len(a) :]
        yield f"{size} random bytes at {one}", content[:one] + rng.randbytes(len(a)) + content[one + len(a) :]
        yield f"{size} bytes of {other} also at {one}", content[:one] + b + content[one + len(b) :]
        yield f"{size} bytes of {one} lost", content[:one] + content[one + size :]
        if one + size <= other:
            yield f"{one} and {other} exchanged", content[:one] + b + content[one + size : other] + a + content[other + len(b) :]


def framing(folder, name):
    """Positions of a tar that hold no row's states: headers of tar and safetensors, filling, and its end."""
    with tarfile.open(folder / name, "r:") as tar:
        members = tar.getmembers()
    content, found = (folder / name).read_bytes(), []
    for member in members:
        header = int.from_bytes(content[member.offset_data : member.offset_data + 8], "little")
        end = member.offset_data + member.size
        found += [*range(member.offset, member.offset_data + 8 + header), *range(end, end + -end % UNIT)]
    return [*found, *range(found[-1] + 1, found[-1] + 1 + 64)]


def damages(folder):
    """(file, what was done to it, its content then)."""
    rng = random.Random(0)
    tar = "train-01-00000.tar"
    for name in (tar, "index.json", "index.safetensors"):
        content = (folder / name).read_bytes()
        positions = range(len(content)) if name != tar else framing(folder, name)
        kinds = [flips(content, positions, rng), additions(content, rng), ranges(content, rng, 50)]
        kinds += [cuts(content, 3 if name != tar else 16)]
        if name == tar:
            used = len(content.rstrip(b"\0"))
            kinds += [flips(content, (rng.randrange(used) for _ in range(800)), rng)]
            kinds += [flips(content, (rng.randrange(used, len(content)) for _ in range(50)), rng)]
        yield from ((name, what, damaged) for what, damaged in itertools.chain(*kinds))
    for one, other in itertools.permutations(sorted(file.name for file in folder.glob("*.tar")), 2):
        yield one, f"is {other}", (folder / other).read_bytes()


EVERY = pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])  # of each kind a third, or all


@EVERY
def test_no_damage_is_ever_accepted(folder, every):
    assert outcome(folder) == "accepted"
    originals, amiss, count = content(folder), [], 0
    for name, what, damaged in itertools.islice(damages(folder), 0, None, every):
        if damaged == originals[name]:
            continue
        put(folder / name, damaged)
        found = outcome(folder)
        put(folder / name, originals[name])
        count += 1
        amiss += [f"{name}: {what}: {found}"] if found != "refused" else []
    assert not amiss, f"{len(amiss)} of {count} damages were not refused: {amiss[:20]}"
    assert count >= 5000 // every
    assert outcome(folder) == "accepted"


# Forgeries: what no accident does, for every hash and checksum agrees

ODD = (
    None, True, False, -1, 0, 1, 2, 7, 511, 512, 2**20 - 1, 2**31 - 1, 2**31, 2**48, 2**63 - 1, -(2**63), 2**64, 10**400, 0.5, 6.0,
    1e308, float("inf"), float("nan"), "", "x", "6", "../x", "\0", "\ud800", "f" * 64, [], [0], [[]], ["hidden"], {}, {"a": 1},
    "float32", "bfloat16", "int8", "float8_e4m3fn", "float64", "train", "validation",
)  # fmt: skip
NUMBERS = (0, 1, -1, 3, 6, 511, 512, 1024, 10240, 2**31, -(2**31), 2**48, 2**61, 2**62, 2**63 - 1, -(2**63))


@pytest.fixture
def forged(folder):
    """``forged(make)``: how reading ends after ``make(folder)``, all of which is then undone; memory is scarce meanwhile."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("cannot tell here how much memory is used")
    originals, before = content(folder), resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

    def forged(make):
        make(folder)
        found = outcome(folder)
        for name, original in originals.items():
            put(folder / name, original)
        return found

    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), before[1]))
    yield forged
    resource.setrlimit(resource.RLIMIT_AS, before)


def told(outcomes):
    """What is neither refused nor read, and how many were."""
    return [(what, found) for what, found in outcomes if found not in ("accepted", "refused")], Counter(f for _, f in outcomes)


@EVERY
def test_no_forged_index_does_more_than_be_refused(forged, folder, every):
    paths = [path for path in leaves(read_json(folder / "index.json", "extract")) if path not in ((), ("fingerprint",))]
    outcomes = [
        ((path, new), forged(lambda at, path=path, new=new: forge(at, lambda index: set_field(index, path, new))))
        for number, path in enumerate(paths)
        for new in (*ODD[number % every :: every], leaves)
    ]
    amiss, counts = told(outcomes)
    assert not amiss and counts["refused"] > 1000 // every
    assert counts["accepted"] < 150, [what for what, found in outcomes if found == "accepted"]


def test_no_forged_table_does_more_than_be_refused(forged, folder):
    table = load_file(folder / "index.safetensors")

    def change(name, position, number):
        def in_table(table):
            table[name].view(-1)[position] = number

        return lambda at: forge(at, in_table=in_table)

    def replace(name, new):
        return lambda at: forge(at, in_table=lambda table: table.pop(name) if new is None else table.update({name: new}))

    outcomes = []
    for name, column in table.items():
        for position, number in itertools.product({0, 1, column.numel() // 2, column.numel() - 1}, NUMBERS):
            outcomes.append(((name, position, number), forged(change(name, position, number))))
        others = (None, column[:-1], column[:0], column.int(), column.double(), column[None], column.flatten()[0], -column)
        outcomes += [((name, i), forged(replace(name, other))) for i, other in enumerate(others)]
    outcomes += [("channel", forged(replace("channel", torch.ones(n)))) for n in (0, 1, 2)]
    amiss, counts = told(outcomes)
    assert not amiss and counts["refused"] > 400
    assert all(what[0] == "row/uid" or number_stays(table, *what) for what, found in outcomes if found == "accepted")


def number_stays(table, name, position, number):
    return int(table[name].view(-1)[position]) == number


def test_no_forged_header_does_more_than_be_refused(forged, whole):
    with tarfile.open(whole / "train-00-00000.tar", "r:") as tar:
        member = tar.extractfile(tar.getmembers()[0]).read()
    size = int.from_bytes(member[:8], "little")
    header = json.loads(member[8 : 8 + size])

    def with_header(text, length=size):
        head = length.to_bytes(8, "little") + text.encode("utf-8", "replace").ljust(size)[:size]
        return lambda at: forge_block(at, 0, lambda block: block[:512] + head + block[512 + len(head) :])

    texts = ["", "3", "[]", "\0" * size, "[" * size, '{"a":' * size, '{"__metadata__":3}', '{"hidden":[]}']
    for path in leaves(header):
        for new in (*ODD[len(texts) % 3 :: 3], leaves) if path else ():
            changed = copy.deepcopy(header)
            set_field(changed, path, new)
            texts.append(json.dumps(changed, separators=(",", ":")))
    outcomes = [(text, forged(with_header(text))) for text in texts if text != json.dumps(header, separators=(",", ":"))]
    lengths = (0, 1, 7, size - 8, size - 1, size + 1, size + 8, len(member), 2**31, 2**63 - 1, 2**63, 2**64 - 1)
    text = member[8 : 8 + size].decode()
    outcomes += [(length, forged(with_header(text, length))) for length in lengths]
    amiss, counts = told(outcomes)
    assert not amiss and counts["refused"] > 300
    read = [json.loads(what) for what, found in outcomes if found == "accepted"]
    kept = ("dtype", "shape")
    assert all({k: read_one[name][k] for k in kept} == {k: header[name][k] for k in kept} for read_one in read for name in header)


def test_what_no_memory_holds_is_refused(forged):
    def long_rows(at):
        forge(at, lambda index: index.update(padded=True, sequence=1 << 30))

    def endless_file(at):
        os.truncate(at / "train-00-00000.tar", 1 << 40)
        forge(at, lambda index: index["shards"][0].update(bytes=1 << 40))

    assert [forged(make) for make in (long_rows, endless_file)] == ["refused", "refused"]


# Strangers


class Touch:
    """Leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


NAMES = ("000000.pth", "000000.pkl", "000000.pyd", "../../evil.safetensors", "/tmp/evil.safetensors", "x/../../../evil", "evil.py")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("payload", ["block", "pickle", "torch"])
def test_nothing_in_a_shard_runs_or_reaches_the_disk(folder, tmp_path, name, payload):
    """Members of any name: one over a block, and one behind the last."""
    written = io.BytesIO()
    torch.save(Touch(tmp_path / "was_here"), written)
    contents = {"pickle": pickle.dumps(Touch(tmp_path / "was_here")), "torch": written.getvalue()}
    original = (folder / "train-00-00000.tar").read_bytes()

    def member(size, content):
        head = tarfile.TarInfo(name)
        head.size = size
        return head.tobuf(tarfile.USTAR_FORMAT) + content.ljust(size + -size % 512, b"\0")

    def over(block):
        content = block[512:] if payload == "block" else contents[payload]
        return member(len(block) - 512, content[: len(block) - 512])

    forge_block(folder, 0, over)
    before = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    assert outcome(folder) == ("accepted" if payload == "block" else "refused")
    more = original.rstrip(b"\0")
    more = more.ljust(len(more) + -len(more) % 512, b"\0") + member(600, contents.get(payload, b"x"))
    (folder / "train-00-00000.tar").write_bytes(more + bytes(10240))
    forge(folder, lambda index: index["shards"][0].update(bytes=len(more) + 10240))
    assert outcome(folder) == "refused"
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} == before and not Path("/tmp/evil.safetensors").exists()


OUTSIDE = ("../x.tar", "{}/x.tar", "sub/x.tar", "./x.tar", "..", ".", "", "x.tar\0", "x.tar\n", "/dev/zero", "~/x.tar", "x")


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_names_no_file_outside_of_its_folder(folder, tmp_path, name):
    (folder / "sub").mkdir()
    for place in (tmp_path, folder / "sub", folder):
        shutil.copy(folder / "train-00-00000.tar", place / "x.tar")
    forge(folder, lambda index: index["shards"][0].update(file="x.tar"))
    assert outcome(folder) == "accepted"
    forge(folder, lambda index: index["shards"][0].update(file=name.format(tmp_path)))
    with pytest.raises(ShardError, match=r"index.json :: file: .* cannot be what extract wrote; run dvc repro extract"):
        ShardReader(folder)


UNSAFE = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def unsafe(source):
    """What in a source could run what a file says, or write where a file says."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from {alias.name.split(".")[0] for alias in node.names} & UNSAFE
        elif isinstance(node, ast.ImportFrom):
            yield from {(node.module or "").split(".")[0]} & UNSAFE
        elif isinstance(node, ast.Call):
            called, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if called in ("torch.load", "np.load", "numpy.load"):
                yield from [] if keywords.get("weights_only") == "True" or keywords.get("allow_pickle") == "False" else [called]
            elif called.endswith((".extractall", "unpack_archive")) or called in ("eval", "exec"):
                yield called


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from pickle import loads", "torch.load(f)", "torch.load(f, weights_only=False)", "tar.extractall()"],
)
def test_unsafe_sources_are_seen(source):
    assert list(unsafe(source)) and not list(unsafe("torch.load(f, weights_only=True)  # no pickle"))


def test_no_source_unpickles_or_unpacks():
    sources = [path for package in ("components", "pipeline", "stages") for path in (ROOT / package).rglob("*.py")]
    assert len(sources) >= 55
    assert {str(path): found for path in sources if (found := list(unsafe(path.read_text())))} == {}
