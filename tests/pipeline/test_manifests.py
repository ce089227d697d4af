"""Manifests: what was written is read, whatever else is refused by name, and inputs are those that are there."""

import hashlib
import json
from pathlib import Path

import pytest

from pipeline import manifests
from pipeline.errors import DataError
from pipeline.manifests import Manifest, check_inputs, write_manifest

CONTENT = {
    "stage": "joint",
    "sha256": {"a": hashlib.sha256(b"1").hexdigest()},
    "inputs": {"warmup": "e" * 64},
    "steps": [4, 2.5, None],
}


@pytest.fixture
def path(tmp_path):
    write_manifest(tmp_path / "model.json", CONTENT)
    (tmp_path / "a").write_bytes(b"1")
    return tmp_path / "model.json"


def test_what_was_written_is_read(path, tmp_path):
    manifest = Manifest(path, "joint", "joint")
    plain = (json.dumps(CONTENT, indent=1, sort_keys=True) + "\n").encode()
    assert manifest.digest == hashlib.sha256(plain).hexdigest()
    assert manifest.content == {**CONTENT, "digest": manifest.digest}
    assert (manifest.writer, manifest.inputs, manifest.hashes) == ("joint", CONTENT["inputs"], CONTENT["sha256"])
    assert manifest.verify("a") == tmp_path / "a" and manifest.json("a") == 1
    write_manifest(tmp_path / "again.json", manifest.content)
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"2.5", b"2.6"),
        (b"4,", b"2,"),
        (b"null", b"0"),
        (b'"steps"', b'"step"'),
        (b"  4,", b" 4,"),  # nothing but white space
        (b"\n}", b',\n "later": 1\n}'),
        (b'"stage": "joint"', b'"stage": "joint", "stage": "joint"'),  # JSON takes the last of two
        (b"joint", b"warmup"),
        (b"}\n", b"}\n\n"),
    ],
)
def test_any_change_is_refused(path, before, after):
    content = path.read_bytes()
    assert before in content
    path.write_bytes(content.replace(before, after, 1))
    with pytest.raises(DataError, match=r"model.json is not what was written: .*; run dvc repro joint, or dvc checkout if"):
        Manifest(path, "joint")


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"stage": "joint"}', '{"digest": null}', '{"digest": ["a"]}', '"digest"'])
def test_what_has_no_digest_is_refused(path, content):
    path.write_text(content)
    with pytest.raises(DataError, match=r"model.json has no digest: another version wrote it, or it is no manifest; run dvc repro"):
        Manifest(path, "joint")


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "\ud800", '{"digest": 1e', "9" * 5000])
def test_what_is_no_json_is_refused(path, content):
    path.write_text(content, errors="surrogatepass")
    with pytest.raises(DataError, match=r"model.json is not valid JSON .*; run dvc repro joint"):
        Manifest(path, "joint")


def test_another_stage_is_told_from_the_one_that_must_have_written_it(path, tmp_path):
    for writer in ("warmup", "controls/warmup", "backbone"):
        with pytest.raises(DataError, match=rf"is what joint wrote, expected what {writer} writes; run dvc repro warmup"):
            Manifest(path, "warmup", writer)
    write_manifest(tmp_path / "by_hand.json", {})
    assert Manifest(tmp_path / "by_hand.json", "warmup", "warmup").writer == ""


@pytest.mark.parametrize(("change", "message"), [
    (lambda file: file.unlink(), "a is listed in the manifest but does not exist"),
    (lambda file: file.write_bytes(b"2"), "a is damaged: sha256 d4735e3a265e, its manifest says 6b86b273ff34"),
    (lambda file: file.write_bytes(b""), "a is damaged: sha256 e3b0c44298fc, its manifest says 6b86b273ff34"),
    (lambda file: (file.unlink(), file.mkdir()), "a is listed in the manifest but is a folder, and a file is expected"),
    (lambda file: (file.unlink(), file.symlink_to("nowhere")), "a is listed in the manifest but is a link that leads nowhere"),
])  # fmt: skip
def test_a_file_that_changed_is_refused(path, change, message):
    change(path.with_name("a"))
    with pytest.raises(DataError, match=rf"{message}.*; run dvc repro joint, or dvc checkout if it was right before$"):
        Manifest(path, "joint").verify("a")


def test_a_file_is_hashed_once(path, monkeypatch):
    hashed = []
    monkeypatch.setattr(manifests, "verify", lambda file, *_: hashed.append(file.name))
    manifest = Manifest(path, "joint")
    assert manifest.verify("a") == manifest.verify("a") and hashed == ["a"]


def test_a_link_to_the_same_bytes_is_the_same_file(path, tmp_path):
    """As DVC leaves them where its cache is linked."""
    for name in ("model.json", "a"):
        (tmp_path / name).rename(tmp_path / f"cached-{name}")
        (tmp_path / name).symlink_to(f"cached-{name}")
    Manifest(path, "joint").verify("a")


def test_a_file_that_is_not_listed_is_refused(path):
    with pytest.raises(DataError, match=r"model.json lists no b; run dvc repro joint"):
        Manifest(path, "joint").verify("b")


def test_inputs_are_compared_where_both_sides_name_them():
    made, place = Path("outputs/joint"), Path("outputs/warmup")
    check_inputs(made, {"warmup": "a" * 64, "backbone": "b" * 64}, {"warmup": "a" * 64, "prepare": "c" * 64}, place, "joint")
    check_inputs(made, {}, {"warmup": "a" * 64}, place, "joint")
    with pytest.raises(
        DataError, match=r"outputs/joint belongs to warmup a{12}, but outputs/warmup holds d{12}; run dvc repro joint"
    ):
        check_inputs(made, {"warmup": "a" * 64}, {"warmup": "d" * 64}, place, "joint")
