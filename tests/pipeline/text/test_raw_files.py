"""Raw files: where they lie, and what settings call them."""

import pytest

from pipeline.text.raw_files import raw_folder, raw_name


@pytest.mark.parametrize("given", ["mine.jsonl", "sub/mine.jsonl", "a b/\u00e9.csv"])
def test_a_file_of_the_raw_folder_is_named_within_it(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLOTLOOP_RAW", raising=False)
    assert raw_name(tmp_path / "data/raw" / given) == given == raw_name(raw_folder() / given)
    monkeypatch.setenv("SLOTLOOP_RAW", str(tmp_path / "elsewhere"))
    assert raw_name(tmp_path / "elsewhere" / given) == given
    assert raw_name(tmp_path / "data/raw" / given) == str(tmp_path / "data/raw" / given)


def test_a_file_elsewhere_is_named_by_its_whole_path_which_the_raw_folder_leaves_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = raw_name(tmp_path / "mine.jsonl")
    assert name == str(tmp_path / "mine.jsonl") and raw_folder() / name == tmp_path / "mine.jsonl"
