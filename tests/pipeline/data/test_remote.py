"""States from a trunk in another process: the bits of a live one, whatever becomes of the server, and what it answers strangers."""

import http.client
import json
import signal
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice

import pytest
import torch
from safetensors.torch import save

from components.backbones.tiny_lm import TinyLM
from components.objective.masking import exact_count
from pipeline.data import giving_up, remote, sources, trunk_server
from pipeline.data.loading import TrainLoader
from pipeline.data.state_query import StateQuery, host_and_port
from pipeline.data.trunk_server import ServedTrunk, listener
from pipeline.errors import ConfigError, DataError
from pipeline.machine import process
from pipeline.machine.runtime import Runtime
from pipeline.models.backbones import Backbone, save_backbone
from tests.pipeline.data.conftest import WORDS

CPU = torch.device("cpu")
PLACE = "127.0.0.1:0"


@contextmanager
def serving(backbone, address=PLACE):
    """A served trunk, and its address."""
    trunk = ServedTrunk(backbone, CPU)
    with listener(trunk, address) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield trunk, f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def backbone(inputs):
    return Backbone(inputs / "backbone")


@pytest.fixture
def served(inputs, monkeypatch):
    """A trunk served in this process, where SLOTLOOP_TRUNKS says."""
    with serving(Backbone(inputs / "backbone")) as (trunk, address):
        monkeypatch.setenv("SLOTLOOP_TRUNKS", address)
        yield trunk


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch):
    monkeypatch.setattr(remote, "PATIENCE", 0.3)
    monkeypatch.setattr(remote, "PAUSE", 0.02)


@pytest.fixture
def source(inputs, backbone, runtime):
    """``source(read, ...)``: padded training examples one layer below the end, with states that ``read`` opens."""

    def source(read=sources.remote, rows="ragged", **changes):
        settings = {"prepared": str(inputs / rows), "masking": exact_count, "seed": 0, "tail_layers": 1, "dtype": "fp32"}
        return read("train", backbone=backbone, **{**settings, "runtime": runtime, **changes})

    return source


def batch(source, first=0, n=12):
    return source.batch(torch.arange(first, first + n), torch.zeros(n, dtype=torch.int64))


def equal(a, b):
    return (
        all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("tokens", "targets", "masked", "weights", "hidden"))
        and a.tap_layers == b.tap_layers
    )


@pytest.mark.parametrize("rows", ["ragged", "full"])
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "fp32"), ("fp32", "bf16"), ("bf16", "fp32")])
@pytest.mark.parametrize("taps", [(), (1, 0)])
def test_states_are_those_of_a_live_trunk_bit_for_bit(served, source, rows, precision, dtype, taps):
    settings = {"rows": rows, "dtype": dtype, "taps": taps, "runtime": Runtime(precision=precision, threads=1)}
    here, there = (batch(source(read, **settings)) for read in (sources.live, sources.remote))
    assert equal(here, there) and here.hidden.dtype == there.hidden.dtype == sources.DTYPES[dtype]
    assert all(torch.equal(here.tap(layer), there.tap(layer)) for layer in taps)
    assert (here.attention is None) == (there.attention is None) == (rows == "full")


@pytest.mark.parametrize("readers", [0, 1, 3])
def test_reading_threads_ask_ahead_and_change_nothing(served, source, readers, monkeypatch):
    monkeypatch.setenv("SLOTLOOP_READERS", str(readers))
    expected = islice(TrainLoader(source(sources.live), 5, seed=0).steps(0, 2), 6)
    steps = TrainLoader(source(), 5, seed=0).steps(0, 2)
    for ours, theirs in zip(islice(steps, 6), expected, strict=True):
        assert all(equal(a, b) for a, b in zip(ours, theirs, strict=True))
    until = time.monotonic() + 20
    while readers and served.questions < 13 and time.monotonic() < until:  # nobody has taken the thirteenth
        time.sleep(0.01)
    assert served.questions > 12 if readers else served.questions == 12
    steps.close()


def test_training_never_loads_the_trunk(served, source, monkeypatch):
    monkeypatch.setattr(Backbone, "trunk", property(lambda _: pytest.fail("the trunk was loaded")))
    assert batch(source()).hidden.shape == (12, 12, 8) and served.questions == 1


def test_several_trunks_are_asked_in_turn_and_one_that_is_gone_is_passed_over(inputs, source, monkeypatch):
    with serving(Backbone(inputs / "backbone")) as (one, first), serving(Backbone(inputs / "backbone")) as (two, second):
        monkeypatch.setenv("SLOTLOOP_TRUNKS", f"{first}, 127.0.0.1:9,{second}")
        examples, live = source(), source(sources.live)
        assert all(equal(batch(examples, at), batch(live, at)) for at in range(9))
    assert one.questions + two.questions == 9 and min(one.questions, two.questions) >= 3


@contextmanager
def mute():
    """The address of one that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as taking:
        yield f"127.0.0.1:{taking.getsockname()[1]}"


def test_one_that_says_nothing_is_asked_once_while_another_answers(inputs, source, monkeypatch):
    monkeypatch.setattr(remote, "ANSWERING", 0.1)
    asked, ask = [], remote.RemoteTrunk._ask
    monkeypatch.setattr(remote.RemoteTrunk, "_ask", lambda self, address, body: asked.append(address) or ask(self, address, body))
    with serving(Backbone(inputs / "backbone")) as (trunk, address), mute() as nobody:
        monkeypatch.setenv("SLOTLOOP_TRUNKS", f"{nobody},{address}")
        examples = source()
        for at in range(6):
            batch(examples, at)
        assert asked.count(nobody) == 1 and trunk.questions == 6
        monkeypatch.setattr(remote, "PASSED_OVER", 0.0)
        batch(examples, 6), batch(examples, 7)
        assert asked.count(nobody) == 2


def test_a_reader_that_waits_is_given_up_with_its_loader(source, monkeypatch):
    with mute() as nobody:
        monkeypatch.setenv("SLOTLOOP_TRUNKS", nobody)
        steps, waits, given_up = TrainLoader(source(), 5, seed=0).steps(0, 1), threading.Event(), []
        monkeypatch.setattr(remote, "given_up", lambda: waits.set() or given_up.append(giving_up.given_up()) or given_up[-1])
        with pytest.raises(KeyboardInterrupt):
            interrupt = threading.Thread(target=lambda: waits.wait(20) and signal.raise_signal(signal.SIGINT))
            interrupt.start()
            next(steps)
        interrupt.join()
        assert given_up[0] is False and given_up[-1] is True
        steps.close()


def test_once_this_process_was_asked_to_end_an_answer_has_seconds(source, monkeypatch):
    monkeypatch.setattr(giving_up, "GRACE", 0.1)
    monkeypatch.setattr(remote, "PATIENCE", 600.0)
    with mute() as nobody, process.termination_noted():
        monkeypatch.setenv("SLOTLOOP_TRUNKS", f"{nobody},127.0.0.1:9")
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(DataError, match="no trunk answers at"):
            batch(source())


def test_a_batch_that_no_trunk_takes_is_refused_before_it_is_sent(served, source, monkeypatch):
    monkeypatch.setattr(remote, "MOST_BYTES", 100)
    with pytest.raises(DataError, match=r"at most of a question, got \d+; lower BATCH or raise ACCUMULATION"):
        batch(source())
    assert served.questions == 0


def test_processes_begin_with_different_trunks(source, monkeypatch):
    monkeypatch.setattr(remote, "rank", lambda: 1)
    monkeypatch.setenv("SLOTLOOP_TRUNKS", "a:1,b:2")
    tried = []
    monkeypatch.setattr(remote.RemoteTrunk, "_ask", lambda self, address, body: tried.append(address) or save({}))
    with pytest.raises(DataError, match=r"the trunk at b:2 answered no tensors; expected states \(12, 12, 8\)"):
        batch(source())
    assert tried == ["b:2"]


def test_without_a_server_one_line_names_the_address(source, monkeypatch, capsys):
    monkeypatch.setenv("SLOTLOOP_TRUNKS", "127.0.0.1:9,127.0.0.1:7")
    with pytest.raises(DataError, match=r"^no trunk answers at 127.0.0.1:9, 127.0.0.1:7 \(ConnectionRefusedError.*stages serve"):
        batch(source())
    assert capsys.readouterr().err.count("trying for 0 s") == 1


def test_a_server_that_is_started_anew_goes_on_where_the_other_ended(inputs, source, monkeypatch):
    monkeypatch.setattr(remote, "PATIENCE", 60.0)
    monkeypatch.setattr(trunk_server.Connection, "timeout", 0.05)  # which stay open behind a listener that has ended
    live, backbone = source(sources.live), Backbone(inputs / "backbone")
    with serving(backbone) as (_, address):
        monkeypatch.setenv("SLOTLOOP_TRUNKS", address)
        examples = source()
        assert equal(batch(examples), batch(live))
    time.sleep(0.5)
    waiting, made = threading.Event(), []
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: waiting.set() or threading.Event().wait(seconds))
    asking = threading.Thread(target=lambda: made.append(batch(examples, 12)))
    asking.start()
    assert waiting.wait(20) and not made
    with serving(backbone, address) as (again, _):
        asking.join()
        assert again.questions == 1
    assert equal(made[0], batch(live, 12))


def test_another_backbone_is_refused_with_both_digests(source, tmp_path, monkeypatch, backbone):
    model = TinyLM(vocab=32, seq=12, dim=8, layers=3, heads=2, rotary=True)
    model.init_weights(torch.Generator().manual_seed(7))
    save_backbone(tmp_path / "other", model, WORDS)
    other = Backbone(tmp_path / "other")
    with serving(other) as (trunk, address):
        monkeypatch.setenv("SLOTLOOP_TRUNKS", address)
        message = rf"^the trunk at {address} answered 409: backbone {other.digest[:12]} .* over {backbone.digest[:12]}; serve"
        with pytest.raises(DataError, match=message):
            batch(source())
    assert trunk.questions == 0


def test_states_of_another_kind_of_device_are_refused(served, source):
    examples = source()
    examples.remote.query = replace(examples.remote.query, device="cuda")
    with pytest.raises(DataError, match=r"answered 409: the trunk computes on cpu, .* of cuda, .*--device cuda"):
        batch(examples)


def test_what_the_trunk_cannot_do_arrives_in_one_line_and_the_server_lives(served, source, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of memory\nand much more")

    with monkeypatch.context() as patch:
        patch.setattr(trunk_server, "states_of", fail)
        with pytest.raises(DataError, match=r"answered 500: the trunk failed: out of memory$"):
            batch(source())
    assert equal(batch(source()), batch(source(sources.live)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "localhost",
        "127.0.0.1:",
        ":7700",
        "127.0.0.1:x",
        "1.1.1.1:70000",
        "http://a:1",
        "a:1,",
        "a..b:1",
        f"{'x' * 70}.org:1",
    ],
)
def test_addresses_that_are_none_are_refused(source, monkeypatch, text):
    monkeypatch.setenv("SLOTLOOP_TRUNKS", text)
    with pytest.raises(ConfigError, match=r"SLOTLOOP_TRUNKS(: '.*' is no address; expected HOST:PORT| names none)"):
        source()


def test_port_0_is_refused(source, monkeypatch):
    monkeypatch.setenv("SLOTLOOP_TRUNKS", "127.0.0.1:0")
    with pytest.raises(ConfigError, match=r"'127.0.0.1:0' has port 0; expected the one that python -m stages serve says"):
        source()


def test_it_listens_on_addresses_of_both_kinds_and_says_where(served):
    with listener(served, PLACE) as four:
        assert four.place == f"127.0.0.1:{four.server_address[1]}"
    with listener(served, "0.0.0.0:0") as every:
        assert every.place == f"{socket.gethostname()}:{every.server_address[1]}"
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    with listener(served, "[::1]:0") as six:
        assert six.place == f"[::1]:{six.server_address[1]}"


def test_addresses_of_both_kinds_are_read():
    assert host_and_port("node7:7700", "") == ("node7", 7700) and host_and_port("[::1]:80", "") == ("::1", 80)


def test_an_address_that_is_taken_is_told(served, backbone):
    address = remote.addresses()[0]
    with pytest.raises(ConfigError, match=rf"^{address} cannot be listened on \(Address already in use\); give another"):
        listener(served, address)


def ask(served, method="POST", path=None, body=b"", headers=None):
    """Status and text of an answer to whoever asks."""
    query = StateQuery(served.backbone.digest, 2, (), "fp32", "cpu", "fp32", 1)
    connection = http.client.HTTPConnection(*host_and_port(remote.addresses()[0], ""), timeout=20)
    connection.request(method, query.url() if path is None else path, body, headers or {})
    response = connection.getresponse()
    text = response.status, response.read()
    connection.close()
    return text


def test_it_says_what_it_serves(served, backbone):
    status, text = ask(served, "GET", "/")
    assert status == 200 and json.loads(text) == {"backbone": backbone.digest, "device": "cpu", "layers": 3}
    assert ask(served, "GET", "/etc/passwd")[0] == 404 and ask(served, "DELETE", "/")[0] == 501


def tokens(*shape, dtype=torch.int64, **more):
    return save({"tokens": torch.ones(shape, dtype=dtype), **more})


GOOD = "/states?backbone=a&layer=2&taps=&dtype=fp32&device=cpu&precision=fp32&threads=1"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "as safetensors"), (b"\x80\x04N.", "as safetensors"), (b"\xff" * 999, "as safetensors"),
        (tokens(2, 3)[:-1], "as safetensors"), (save({"states": torch.ones(2, 3)}), "int64 tokens"),
        (tokens(2, 3, dtype=torch.float32), "int64 tokens"), (tokens(2, 3, 4), "int64 tokens"), (tokens(0, 3), "1 to 12 tokens"),
        (tokens(2, 13), "1 to 12 tokens"), (tokens(2, 3, other=torch.ones(1)), "int64 tokens"),
        (tokens(2, 3, attention=torch.ones(2, 4, dtype=torch.uint8)), "uint8 attention"),
        (tokens(2, 3, attention=torch.ones(2, 3)), "uint8 attention"),
        (save({"tokens": torch.full((2, 3), 32)}), "below 32"), (save({"tokens": torch.full((2, 3), -1)}), "below 32"),
    ],
)  # fmt: skip
def test_a_garbled_body_is_answered_400_and_the_server_lives(served, body, said):
    status, text = ask(served, body=body)
    assert status == 400 and said in text.decode() and b"\n" not in text
    assert ask(served, body=tokens(2, 3))[0] == 200 and served.questions == 1


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/states", "/other?" + GOOD.partition("?")[2], GOOD + "&more=1", GOOD + "&layer=1", GOOD.replace("layer=2", "layer=-1"),
        GOOD.replace("layer=2", "layer=x"), GOOD.replace("layer=2", "layer=99999"), GOOD.replace("threads=1", "threads=0"),
        GOOD.replace("threads=1", "threads=%D9%A1"), GOOD.replace("fp32", "fp64"), GOOD.replace("taps=", "taps=1,,2"),
        GOOD.replace("taps=", "taps=[1]"),
    ],
)  # fmt: skip
def test_a_garbled_query_is_answered_400(served, path):
    status, text = ask(served, path=path, body=tokens(2, 3))
    assert status == 400 and b"expected" in text and served.questions == 0


@pytest.mark.parametrize(("layer", "taps"), [(4, ""), (2, "2"), (2, "0,0"), (0, "0")])
def test_layers_that_there_are_not_are_answered_400(served, layer, taps):
    path = GOOD.replace("backbone=a", f"backbone={served.backbone.digest}").replace("layer=2&taps=", f"layer={layer}&taps={taps}")
    assert ask(served, path=path, body=tokens(2, 3))[0] == 400


@pytest.mark.parametrize(
    ("length", "status"), [("99999999999999999999", 413), (str(trunk_server.MOST_BYTES + 1), 413), ("-1", 411), ("x", 411)]
)
def test_a_body_is_not_read_before_its_size_is_known(served, length, status):
    assert ask(served, headers={"Content-Length": length})[0] == status
    assert ask(served, body=tokens(2, 3))[0] == 200


class Stranger(BaseHTTPRequestHandler):
    """Answers 200 to everything."""

    def do_POST(self):
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_):
        pass


def test_an_answer_that_holds_no_states_is_refused(source, monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setenv("SLOTLOOP_TRUNKS", f"127.0.0.1:{server.server_address[1]}")
        with pytest.raises(DataError, match=r"answered no tensors; expected states \(12, 12, 8\) of torch.float32; see that"):
            batch(source())
        server.shutdown()
