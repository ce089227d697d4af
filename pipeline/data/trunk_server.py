"""A backbone's trunk, served over HTTP to training in other processes: the door to ``http.server``.

Token ids come and states go as safetensors, nothing is unpickled, and what comes is checked before anything is computed. There is
no password: whoever can connect can have states computed.
"""

import json
import socket
import sys
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.backbones.taps import below_split
from pipeline.data.batches import states_of
from pipeline.data.state_query import DTYPES, MOST_BYTES, TOO_LARGE, StateQuery, host_and_port
from pipeline.errors import ConfigError
from pipeline.machine import process
from pipeline.machine.runtime import Runtime
from pipeline.models.backbones import Backbone
from pipeline.tensor_files import UNREADABLE, bytes_of_tensors, tensors_of_bytes

EVERY = 60.0  # seconds between lines
TICK = 0.2  # seconds between looks at whether it is to end


class Refused(Exception):
    """A question that is not answered; takes the HTTP status and what is wrong."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class ServedTrunk:
    """A frozen trunk that answers questions, one at a time.

    Args:
        backbone: whose trunk it is; loaded here.
        device: that it computes on.

    Attributes:
        questions, sequences: that were answered.
    """

    def __init__(self, backbone: Backbone, device: torch.device) -> None:
        self.backbone, self.device, self.trunk = backbone, device, backbone.trunk.to(device)
        self.questions, self.sequences = 0, 0
        self._computing = threading.Lock()

    def description(self) -> dict[str, Any]:
        """Say what is served, and where it computes."""
        return {"backbone": self.backbone.digest, "device": self.device.type, "layers": self.backbone.architecture["layers"]}

    def answer(self, url: str, body: bytes) -> bytes:
        """Compute the states of a question.

        Args:
            url: path and query (``StateQuery``).
            body: tokens, and attention if there is padding, as safetensors.

        Raises:
            Refused: the question is malformed, meant for another trunk, or more than the device can take.
        """
        try:
            query = StateQuery.of_url(url)
            tokens, attention = _read(body, self.backbone.vocabulary.size, self.backbone.vocabulary.sequence)
            self._check(query)
        except ValueError as error:
            raise Refused(400, str(error)) from None
        with self._computing:  # also of threads and determinism, which are the process's
            try:
                states = self._states(query, tokens, attention)
            except RuntimeError as error:  # no memory, for example
                raise Refused(500, f"the trunk failed: {str(error).partition(chr(10))[0]:.300}") from None
            self.questions, self.sequences = self.questions + 1, self.sequences + len(tokens)
        return bytes_of_tensors({"states": states})

    def end(self) -> None:
        """Wait for what is being computed, and compute nothing more: a thread within torch must not outlive the interpreter."""
        self._computing.acquire()

    def _states(self, query: StateQuery, tokens: Tensor, attention: Tensor | None) -> Tensor:
        runtime = Runtime(str(self.device), "bf16" if query.precision == "bf16" else "fp32", query.threads)
        where = self.trunk.head.weight.device
        with runtime.in_force():
            attention = None if attention is None else attention.to(where)
            states = states_of(self.trunk, tokens.to(where), attention, query.layer, query.taps, runtime.autocast)
            return states.to(DTYPES[query.dtype]).cpu().contiguous()

    def _check(self, query: StateQuery) -> None:
        """Whether a question is meant for this trunk, and has an answer."""
        mine = self.backbone.digest
        if query.backbone != mine:
            raise Refused(
                409,
                f"backbone {mine[:12]} is served here, training is over {query.backbone:.12}; serve the folder that training names "
                "(backbone = ...), as it is now",
            )
        if query.device != self.device.type:
            raise Refused(
                409,
                f"the trunk computes on {self.device.type}, and these settings ask for states of {query.device:.12}, whose last "
                f"digits differ; start it with --device {query.device:.12}, or set runtime.Runtime.device",
            )
        layers = self.backbone.architecture["layers"]
        if query.layer > layers:
            raise ValueError(f"expected a layer up to {layers}, got {query.layer}")
        below_split(query.taps, layers, query.layer)


def _read(body: bytes, size: int, sequence: int) -> tuple[Tensor, Tensor | None]:
    """Tokens and attention of a question.

    Raises:
        ValueError: they are none, of another shape or type, or of another vocabulary.
    """
    try:
        tensors = tensors_of_bytes(body)
    except UNREADABLE:
        raise ValueError("expected tokens as safetensors, got something else") from None
    shapes = {name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors.items()}
    tokens = tensors.get("tokens")
    if tokens is None or tokens.ndim != 2 or tokens.dtype != torch.int64 or not tensors.keys() <= {"tokens", "attention"}:
        raise ValueError(f"expected int64 tokens (batch, seq) and perhaps attention, got {shapes!s:.200}")
    if not tokens.numel() or tokens.shape[1] > sequence:
        raise ValueError(f"expected sequences of 1 to {sequence} tokens, got {tuple(tokens.shape)}")
    if int(tokens.min()) < 0 or int(tokens.max()) >= size:
        raise ValueError(f"expected token ids below {size}, got {int(tokens.min())} to {int(tokens.max())}")
    attention = tensors.get("attention")
    if attention is None:
        return tokens, None
    if attention.shape != tokens.shape or attention.dtype != torch.uint8:
        raise ValueError(f"expected uint8 attention of the tokens' shape, got {shapes!s:.200}")
    return tokens, attention != 0


class Listener(ThreadingHTTPServer):
    """HTTP server with a thread for each connection; says nothing of clients that go away.

    Args:
        host: name or address, of IPv4 or IPv6.
        port: 0 = any that is free.
        trunk: that answers.
    """

    request_queue_size = 128  # every reading thread of every process connects

    def __init__(self, host: str, port: int, trunk: ServedTrunk) -> None:
        self.address_family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        super().__init__((host, port), partial(Connection, trunk=trunk))

    @property
    def place(self) -> str:
        """Where others reach it, HOST:PORT; this machine's name stands for all of its addresses."""
        host, port = str(self.server_address[0]), self.server_address[1]
        host = socket.gethostname() if host in ("0.0.0.0", "::") else host
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Leave out what a client's end raises; anything else is a bug."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Connection(BaseHTTPRequestHandler):
    """One client's connection, which stays open between its questions."""

    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True
    timeout = 600  # seconds without a question until it is closed

    def __init__(self, *arguments: Any, trunk: ServedTrunk) -> None:
        self.trunk = trunk
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Say which backbone is served."""
        if self.path == "/":
            self._send(200, json.dumps(self.trunk.description()).encode())
        else:
            self._send(404, b"expected GET / or POST /states")

    def do_POST(self) -> None:
        """Answer with states, or say in one line why not."""
        try:
            self._send(200, self.trunk.answer(self.path, self._body()))
        except Refused as refused:
            self.close_connection = True  # whose body may not have been read
            self._send(refused.status, refused.message.encode())

    def log_message(self, format: str, *arguments: Any) -> None:
        """Print nothing: there is a line a minute."""

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise Refused(411, "expected a Content-Length")
        if len(length) > 12 or int(length) > MOST_BYTES:
            raise Refused(413, f"{TOO_LARGE}, got {length:.20}")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise Refused(400, f"expected {length} bytes, got {len(body)}")
        return body

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)


def listener(trunk: ServedTrunk, address: str) -> Listener:
    """Listen on an address; ``serve_forever`` answers.

    Raises:
        ConfigError: it is no address, or cannot be listened on.
    """
    host, port = host_and_port(address, "--address")
    try:
        return Listener(host, port, trunk)
    except OSError as error:
        raise ConfigError(f"{address} cannot be listened on ({error.strerror}); give another --address") from None


def serve(folder: Path, address: str, device: str) -> None:
    """Serve the trunk of a backbone until SIGTERM or Ctrl-C, with a line for each minute in which something was asked.

    Args:
        folder: of the backbone.
        address: HOST:PORT to listen on.
        device: that it computes on.

    Raises:
        ConfigError: no such address or device.
        DataError: the folder holds no backbone.
    """
    host_and_port(address, "--address")
    runtime = Runtime(device)
    runtime.enter_process()
    trunk = ServedTrunk(Backbone(folder), runtime.device)
    with listener(trunk, address) as server, process.termination_noted() as ended:
        threading.Thread(target=server.serve_forever, name="listener", daemon=True).start()
        try:
            what = f"backbone {trunk.backbone.digest[:12]} of {folder} on {runtime.device}"
            _say(f"{what}; for training: SLOTLOOP_TRUNKS={server.place}")
            while not ended():
                _minute(trunk, ended)
        except KeyboardInterrupt:
            pass
        server.shutdown()
        trunk.end()
    _say(f"ended after {trunk.questions:,} requests, {trunk.sequences:,} sequences")


def _minute(trunk: ServedTrunk, ended: Any) -> None:
    questions, sequences, began = trunk.questions, trunk.sequences, time.monotonic()
    while not ended() and time.monotonic() < began + EVERY:
        time.sleep(TICK)
    if (new := trunk.questions - questions) and not ended():
        rate = (trunk.sequences - sequences) / (time.monotonic() - began)
        _say(f"{new:,} requests, {rate:.1f} sequences/s")


def _say(text: str) -> None:
    print(f"serve: {text}", flush=True)
