"""What TensorBoard reads of the event files: every row once, settings, pictures, pages."""

import struct
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.files import write_atomic, write_json
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.run_log import Record, RunInfo, TrackingError
from pipeline.tracking.tensorboard import TensorBoard

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy and protobuf, as tensorboard uses them


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


COLOUR = (200, 100, 7)


def png(width=3, height=2):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"".join(b"\0" + bytes(COLOUR) * width for _ in range(height)))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def gif():
    """Two frames of three by two pixels."""
    frames, data = [Image.new("P", (3, 2), colour) for colour in (0, 1)], BytesIO()
    frames[0].putpalette(bytes((*COLOUR, 0, 0, 0)))
    frames[1].putpalette(bytes((*COLOUR, 0, 0, 0)))
    frames[0].save(data, "GIF", save_all=True, append_images=frames[1:], duration=100)
    return data.getvalue()


def begun(stage="warmup"):
    out = Path("outputs") / stage
    record = Record(Path(".tracking") / f"{stage}-aaaa-1")
    record.folder.mkdir(parents=True)
    record.begin(RunInfo(stage, 3, "smoke", "a" * 64, "c" * 64, {"loop.fit": {"steps": 5, "ema": 0.9}}, out, []))
    return record


def curves(record, steps, name="curves.csv"):
    lines = "".join(f"{step},{step * 0.5},{step * 0.25}\n" for step in range(steps))
    write_atomic(Path(record.facts["out"]) / name, f"step,loss,loss/step_0\n{lines}".encode())


def finished(record, steps=5):
    out = Path(record.facts["out"])
    curves(record, steps)
    curves(record, 3, "backbone/curves.csv")
    models = {"joint": {"nll": {"mean": 0.25}}}
    write_json(out / "metrics.json", {"steps": 5, "validation": [{"step": 2, "loss": 0.5}], "models": models})
    write_atomic(out / "puzzles.png", png())
    write_atomic(out / "report.md", b"# Findings\n")
    write_json(out / "model.json", {"sha256": {"model.safetensors": "d" * 64}})
    write_atomic(out / "model.safetensors", b"weights")
    record.finish("completed")


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    found.Reload()
    return found


def scalars(folder):
    found = events(folder)
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def text(found, tag):
    tags = found.Tags()["tensors"]
    return found.Tensors(f"{tag}/text_summary" if f"{tag}/text_summary" in tags else tag)[0].tensor_proto.string_val[0]


RUN = Path(".tracking/tensorboard/warmup-aaaa-1")


def test_every_row_settings_pictures_and_pages_are_there_once(here):
    record = begun()
    finished(record)
    Delivery(record, TensorBoard()).finish()
    told = scalars(RUN)
    assert told.pop("loss") == [(step, step * 0.5) for step in range(5)]
    assert told.pop("loss/step_0") == [(step, step * 0.25) for step in range(5)]
    assert told.pop("backbone/loss") == [(step, step * 0.5) for step in range(3)] and told.pop("backbone/loss/step_0")
    assert told == {"validation/loss": [(2, 0.5)], "single/steps": [(0, 5.0)], "single/joint.nll": [(0, 0.25)]}
    found = events(RUN)
    assert b"| loop.fit.steps | `5` |" in text(found, "settings") and text(found, "report") == b"# Findings\n"
    assert b"outputs/warmup/model.safetensors" in text(found, "models") and text(found, "status") == b"completed"
    (picture,) = found.Images("puzzles")
    assert (picture.width, picture.height) == (3, 2)
    pixels = np.asarray(Image.open(BytesIO(picture.encoded_image_string)).convert("RGB"))
    assert pixels.shape == (2, 3, 3) and pixels.tolist() == [[list(COLOUR)] * 3] * 2
    assert "_hparams_/session_start_info" in found.summary_metadata


def test_a_picture_that_moves_is_shown_as_it_is(here):
    record = begun()
    finished(record)
    write_atomic(record.files / "refinement.gif", gif())
    Delivery(record, TensorBoard()).finish()
    (picture,) = events(RUN).Images("refinement")
    assert picture.encoded_image_string == gif() and (picture.width, picture.height) == (3, 2)
    assert Image.open(BytesIO(gif())).n_frames == 2


def test_rows_are_on_disk_as_soon_as_they_are_delivered(here):
    record = begun()
    delivery = Delivery(record, TensorBoard())
    for length in (2, 5):
        curves(record, length)
        delivery.advance(Path(record.facts["out"]))
        assert len(scalars(RUN)["loss"]) == length


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_after_a_sender_died_the_next_one_leaves_every_row_once(here, cut):
    record = begun()
    curves(record, 3)
    Delivery(record, TensorBoard()).advance(Path(record.facts["out"]))
    (file,) = RUN.iterdir()
    with file.open("r+b") as opened:  # in the middle of an event
        opened.truncate(file.stat().st_size - cut)
    finished(record)
    Delivery(record, TensorBoard()).finish()
    assert scalars(RUN)["loss"] == [(step, step * 0.5) for step in range(5)] and len(events(RUN).Images("puzzles")) == 1


def test_a_killed_run_that_goes_on_is_one_run(here):
    record = begun()
    curves(record, 3)
    record.salvage()
    Delivery(record, TensorBoard()).finish()
    assert text(events(RUN), "status") == b"killed" and len(scalars(RUN)["loss"]) == 3
    finished(record)
    Delivery(record, TensorBoard()).finish()
    assert len(scalars(RUN)["loss"]) == 5 and text(events(RUN), "status") == b"completed"


def test_each_record_has_a_folder_and_one_tracker_serves_many(here):
    tracker = TensorBoard("boards")
    for stage in ("warmup", "joint"):
        record = begun(stage)
        finished(record, 5 if stage == "warmup" else 7)
        Delivery(record, tracker).finish()
    boards = sorted(Path(".tracking/boards").iterdir())
    assert [(board.name, len(scalars(board)["loss"])) for board in boards] == [("joint-aaaa-1", 7), ("warmup-aaaa-1", 5)]


def test_no_host_is_named(here, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "the-host-of-somebody")
    record = begun()
    finished(record)
    Delivery(record, TensorBoard()).finish()
    (file,) = RUN.iterdir()
    assert b"the-host-of-somebody" not in file.read_bytes() and "the-host" not in file.name


def test_without_the_package_its_extra_is_named(here, monkeypatch):
    for name in [
        name for name in sys.modules if name.partition(".")[0] == "tensorboard" or name.startswith("torch.utils.tensorboard")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    record = begun()
    with pytest.raises(TrackingError, match=r"pip install 'slotloop\[tensorboard\]'"):
        Delivery(record, TensorBoard()).advance(Path(record.facts["out"]))
