"""Shards in an object store or on a shared disk: the rows of a folder, whoever makes them and however often."""

import json
import shutil
from itertools import islice

import pytest
import torch

from pipeline.data import extraction as module
from pipeline.data.extraction import extract
from pipeline.data.loading import TrainLoader
from pipeline.data.reader import ShardReader, verify
from pipeline.data.shard_index import ShardIndex
from pipeline.data.store import Store, check_url
from pipeline.data.streaming import StreamedSource
from pipeline.errors import ConfigError, DataError
from tests.support.dvc import content
from tests.support.object_store import s3

SHARDS = 9  # of two draws and validation, as ``planned`` cuts them


@pytest.fixture(scope="module")
def server():
    with s3() as (address, variables):
        yield address, variables


@pytest.fixture(params=["s3", "shared disk"])
def url(request, tmp_path, monkeypatch):
    """A new folder of a store."""
    if request.param == "shared disk":
        return f"file://{tmp_path}/disk/states"
    address, variables = request.getfixturevalue("server")
    for name, value in {**variables, "AWS_ENDPOINT_URL": address}.items():
        monkeypatch.setenv(name, value)
    return f"s3://results/{tmp_path.name}"


def batches(folder, split="train", count=12):
    return list(islice(TrainLoader(StreamedSource(ShardIndex(folder), split, 2), 7, seed=3).steps(0, 1), count))


def test_states_from_a_store_are_those_of_a_folder(planned, tmp_path, url):
    extract(planned(), tmp_path / "here")
    extract(planned(), tmp_path / "there", Store(url))
    assert {file.name for file in (tmp_path / "there").iterdir()} == {"index.json", "index.safetensors", "metrics.json"}
    for split in ("train", "validation"):
        for (a,), (b,) in zip(batches(tmp_path / "here", split), batches(tmp_path / "there", split), strict=True):
            assert torch.equal(a.hidden, b.hidden) and torch.equal(a.targets, b.targets) and torch.equal(a.masked, b.masked)
    assert verify(tmp_path / "there") == ShardReader(tmp_path / "here").verify()


def test_nothing_of_the_states_stays_here(planned, tmp_path, url):
    extract(planned(), tmp_path / "there", Store(url))
    assert not list(tmp_path.glob("there/**/*.tar"))


def test_a_second_worker_makes_nothing_and_writes_the_same_index(planned, tmp_path, url, monkeypatch):
    extract(planned(), tmp_path / "one", Store(url))
    monkeypatch.setattr(module, "write_shard", None)
    extract(planned(), tmp_path / "two", Store(url))
    assert content(tmp_path / "one") == content(tmp_path / "two") and len(content(tmp_path / "one")) == 3


def test_workers_that_begin_together_share_the_shards(planned, tmp_path, url, monkeypatch):
    """The second one joins while the first is at work, and ends before it."""
    made, write = [], module.write_shard

    def joined(path, *rest, **notes):
        made.append(path.name)
        if len(made) == 3:
            extract(planned(), tmp_path / "two", Store(url))
        return write(path, *rest, **notes)

    monkeypatch.setattr(module, "write_shard", joined)
    extract(planned(), tmp_path / "one", Store(url))
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert len(set(made)) == SHARDS and len(made) == SHARDS + 1  # the one that both were making


@pytest.mark.parametrize("moment", ["put", "commit"])
def test_a_worker_that_was_killed_leaves_what_is_whole(planned, tmp_path, url, monkeypatch, moment):
    extract(planned(), tmp_path / "alone", Store(f"{url}/alone"))
    store, count = Store(f"{url}/killed"), 0
    name = "put_file" if moment == "put" else "pipe_file"
    write = getattr(store.files, name)

    def killed(*arguments, **options):
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt
        return write(*arguments, **options)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(store.files, name, killed)
        extract(planned(), tmp_path / "killed", store)
    assert not (tmp_path / "killed/index.json").exists()
    made, write_shard = [], module.write_shard
    monkeypatch.setattr(module, "write_shard", lambda path, *a, **k: (made.append(path), write_shard(path, *a, **k))[1])
    extract(planned(), tmp_path / "killed", Store(f"{url}/killed"))
    assert len(made) == SHARDS - (4 if moment == "put" else 3)  # what is committed is not made again; pipe_file first says the plan
    one, other = (json.loads((tmp_path / name / "index.json").read_bytes()) for name in ("alone", "killed"))
    assert one["shards"] == other["shards"] and one["rows"] == other["rows"]


def test_other_settings_do_not_take_what_is_there(planned, tmp_path, url):
    extract(planned(seed=1), tmp_path / "one", Store(url))
    extract(planned(seed=2), tmp_path / "two", Store(url))
    extract(planned(seed=2), tmp_path / "alone", Store(f"{url}/alone"))
    one, other = (json.loads((tmp_path / name / "index.json").read_bytes())["shards"] for name in ("two", "alone"))
    assert one == other


def test_a_shard_that_is_gone_or_changed_is_named_and_made_again(planned, tmp_path, url):
    extract(planned(), tmp_path / "there", store := Store(url))
    index = ShardIndex(tmp_path / "there")
    first, second = (f"{store.path}/{shard['file']}" for shard in index.shards[:2])
    size = store.files.info(second)["size"]
    store.files.pipe_file(second, bytes(size))
    with pytest.raises(DataError, match=r"train-00-00001-\w+.tar: sha256 is \w+, the index says \w+; run dvc repro extract"):
        verify(tmp_path / "there")
    store.files.rm(first)
    with pytest.raises(DataError, match=r"train-00-00000-\w+.tar"):
        list(islice(TrainLoader(StreamedSource(index, "train", 2), 7, seed=3).steps(0, 1), 12))
    extract(planned(), tmp_path / "again", store)
    assert store.files.exists(first)


def test_metrics_beside_the_index_are_verified_too(planned, tmp_path, url):
    extract(planned(), tmp_path / "there", Store(url))
    (tmp_path / "there/metrics.json").write_text("{}")
    with pytest.raises(DataError, match=r"metrics.json: it is not what was written"):
        verify(tmp_path / "there")


def test_random_access_says_what_to_set(planned, tmp_path, url):
    extract(planned(), tmp_path / "there", Store(url))
    with pytest.raises(ConfigError, match=r"lie in .*, where rows are read as a stream; set states = '@sources.streamed'"):
        ShardReader(tmp_path / "there")


def test_a_store_that_refuses_is_one_line_before_anything_is_computed(planned, tmp_path, server, monkeypatch):
    address, variables = server
    for name, value in {**variables, "AWS_ENDPOINT_URL": address}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "write_shard", None)
    with pytest.raises(DataError, match=r"s3://nowhere/states cannot be written \(.*bucket.*\); see that the bucket exists"):
        extract(planned(), tmp_path / "there", Store("s3://nowhere/states"))


@pytest.mark.parametrize("wrong", ["states", "/mnt/states", "s3://", "foo://bucket/x", "simplecache::s3://bucket/x"])
def test_what_is_no_store_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"extract.run.store is '.*'"):
        check_url(wrong)


def test_no_store_is_no_error():
    check_url("")


def test_a_stage_goes_to_its_store_and_verifies_it(finished, tmp_path, monkeypatch, capsys):
    from stages.__main__ import main

    for name in ("params.yaml", "gin"):
        (tmp_path / name).symlink_to(finished / name)
    (tmp_path / "data").mkdir()
    for name in ("prepared", "backbone"):
        (tmp_path / "data" / name).symlink_to(finished / "data" / name)
    monkeypatch.chdir(tmp_path)
    store = f"extract.run.store='file://{tmp_path}/disk'"
    assert main(["extract", store, "--out", "data/shards"]) == 0, capsys.readouterr().err
    assert main(["extract", "--verify", "--out", "data/shards"]) == 0
    assert "bytes in data/shards are those that were written" in capsys.readouterr().out
    assert main(["warmup", "--out", "warm"]) == 2
    assert "set states = '@sources.streamed'" in capsys.readouterr().err
    assert main(["warmup", "warmup.run.states=@sources.streamed", "--out", "warm"]) == 0
    shutil.rmtree(tmp_path / "disk")
