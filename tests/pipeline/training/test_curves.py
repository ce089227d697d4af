"""curves.csv: one row a step, columns of the first row, numbers that come back."""

import pytest
import torch

from pipeline.training.curves import Curves, read


def test_rows_come_back_as_columns(tmp_path):
    curves = Curves(tmp_path / "c.csv")
    curves.record(0, {"loss": torch.tensor(0.5), "lr": 1e-3})
    curves.record(1, {"loss": torch.tensor(0.25), "lr": 2e-3})
    assert curves.flush() == [{"step": 0, "loss": 0.5, "lr": 1e-3}, {"step": 1, "loss": 0.25, "lr": 2e-3}]
    assert read(tmp_path / "c.csv") == {"step": [0, 1], "loss": [0.5, 0.25], "lr": [1e-3, 2e-3]}


def test_flushes_append_and_the_header_stands_once(tmp_path):
    curves = Curves(tmp_path / "c.csv")
    for step in range(3):
        curves.record(step, {"loss": float(step)})
        curves.flush()
    assert curves.flush() == []
    assert (tmp_path / "c.csv").read_bytes() == b"step,loss\n0,0\n1,1\n2,2\n"


def test_a_file_that_is_there_is_continued_without_a_second_header(tmp_path):
    for step in (0, 1):
        curves = Curves(tmp_path / "c.csv")
        curves.record(step, {"a": 2.0})
        curves.flush()
    assert (tmp_path / "c.csv").read_text() == "step,a\n0,2\n1,2\n"


def test_columns_keep_the_order_of_the_first_row(tmp_path):
    curves = Curves(tmp_path / "deep/c.csv")
    curves.record(0, {"b": 1.0, "a": 2.0})
    curves.record(1, {"a": 4.0, "b": 3.0})
    curves.flush()
    assert (tmp_path / "deep/c.csv").read_text() == "step,b,a\n0,1,2\n1,3,4\n"


def test_nothing_is_written_before_a_flush(tmp_path):
    Curves(tmp_path / "c.csv").record(0, {"loss": 1.0})
    assert not (tmp_path / "c.csv").exists()


def test_of_several_processes_the_first_alone_writes(tmp_path):
    curves = Curves(tmp_path / "deep/c.csv", writes=False)
    for step in (0, 1):
        curves.record(step, {"loss": torch.tensor(0.5 + step)})
        assert curves.flush() == [{"step": step, "loss": 0.5 + step}]
    assert curves.flush() == [] and not (tmp_path / "deep").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e-30, 123456789.0])
def test_extreme_values_come_back(tmp_path, value):
    curves = Curves(tmp_path / "c.csv")
    curves.record(0, {"loss": torch.tensor(value)})
    curves.flush()
    assert read(tmp_path / "c.csv")["loss"] == pytest.approx([value], nan_ok=True)


def test_a_file_without_rows_has_no_columns(tmp_path):
    (tmp_path / "c.csv").write_text("step,loss\n")
    assert read(tmp_path / "c.csv") == {}
