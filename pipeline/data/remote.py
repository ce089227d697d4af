"""States from a trunk in another process (``python -m stages serve``): asked for over HTTP, never written to a disk.

Where the trunk runs changes no state, so the addresses are no setting but the environment variable SLOTLOOP_TRUNKS.
"""

import itertools
import os
import sys
import time
import weakref
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from multiprocessing.connection import wait

import torch
from torch import Tensor

from pipeline.data.giving_up import given_up
from pipeline.data.state_query import COMMAND, DTYPES, MOST_BYTES, TOO_LARGE, StateQuery, host_and_port
from pipeline.errors import ConfigError, DataError
from pipeline.machine.distributed import rank
from pipeline.tensor_files import UNREADABLE, bytes_of_tensors, tensors_of_bytes

TRUNKS = "SLOTLOOP_TRUNKS"  # where trunks are served, HOST:PORT,HOST:PORT
PATIENCE = 90.0  # seconds in which none of them answers, until training ends
PAUSE = 0.5  # seconds until all of them are tried again, and between looks at whether an answer is still wanted
PASSED_OVER = 60.0  # seconds in which one that did not answer is asked only if no other answers
CONNECTING, ANSWERING = 10.0, 300.0  # seconds that one may take


def addresses() -> list[str]:
    """Read where trunks are served.

    Raises:
        ConfigError: nowhere, or what is said is no address.
    """
    text = os.environ.get(TRUNKS, "")
    if not text.strip():
        raise ConfigError(
            f"sources.remote reads states from a trunk in another process, and {TRUNKS} names none; start one by {COMMAND}, and "
            f"set {TRUNKS}=127.0.0.1:7700 (several with commas between them)"
        )
    listed = [address.strip() for address in text.split(",")]
    for address in listed:
        if not host_and_port(address, TRUNKS)[1]:
            raise ConfigError(f"{TRUNKS}: '{address}' has port 0; expected the one that {COMMAND} says")
    return listed


class RemoteTrunk:
    """Client of one or more served trunks, which are asked in turn; any thread may ask.

    A trunk that does not answer is passed over for a while. When none does, all are tried again for ``PATIENCE`` seconds: one that
    was started anew goes on where the other ended, for an answer depends on the question alone.

    Args:
        addresses: HOST:PORT of each.
        query: what is asked of them.
        width: numbers of a state, taps included.
    """

    def __init__(self, addresses: Sequence[str], query: StateQuery, width: int) -> None:
        self.addresses, self.query, self.width = list(addresses), query, width
        self._turns = itertools.count(rank())  # processes of a job begin with different ones
        self._idle: dict[str, list[HTTPConnection]] = {address: [] for address in addresses}
        self._silent: dict[str, float] = {}  # addresses that did not answer, and when
        weakref.finalize(self, _close, self._idle)

    def states(self, tokens: Tensor, attention: Tensor | None) -> Tensor:
        """Ask for the states of a batch on the host.

        Args:
            tokens: ids, (batch, seq).
            attention: True where one stands, False for padding; None = everywhere.

        Raises:
            DataError: no trunk answers, or it is of another backbone, on another kind of device, or says what is wrong; or a batch
                is larger than what one takes.
        """
        question = {"tokens": tokens.contiguous()}
        question |= {} if attention is None else {"attention": attention.to(torch.uint8)}
        if len(body := bytes_of_tensors(question)) > MOST_BYTES:
            raise DataError(f"sources.remote: {TOO_LARGE}, got {len(body)}; lower BATCH or raise ACCUMULATION")
        address, content = self._answer(body)
        shape, dtype = (*tokens.shape, self.width), DTYPES[self.query.dtype]
        try:
            answer = tensors_of_bytes(content)
        except UNREADABLE:
            answer = {}
        states = answer.get("states")
        if states is None or tuple(states.shape) != shape or states.dtype != dtype:
            came = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in answer.items()}
            raise DataError(
                f"the trunk at {address} answered {came or 'no tensors'}; expected states {shape} of {dtype}; {_again()}"
            )
        return states

    def _answer(self, body: bytes) -> tuple[str, bytes]:
        """The answer of the next trunk that gives one, and its address."""
        last, said, why, all_of_them = time.monotonic() + PATIENCE, False, "", ", ".join(self.addresses)
        for attempt, turn in enumerate(itertools.count(next(self._turns))):
            for address in self._in_turn(turn):
                try:
                    content = self._ask(address, body)
                except (OSError, HTTPException) as error:
                    self._silent[address], why = time.monotonic(), f"{type(error).__name__}: {error}"
                else:
                    self._silent.pop(address, None)
                    return address, content
            if given_up() or time.monotonic() > last:
                break
            if attempt and not said:  # the first refusal can be of a connection to one that was replaced
                print(f"no trunk answers at {all_of_them} ({why}); trying for {PATIENCE:.0f} s", file=sys.stderr, flush=True)
                said = True
            time.sleep(PAUSE)
        raise DataError(f"no trunk answers at {all_of_them} ({why}); {_again()}")

    def _in_turn(self, turn: int) -> list[str]:
        """All addresses, from that of a turn on; those that lately did not answer come last."""
        first = turn % len(self.addresses)
        turned = [*self.addresses[first:], *self.addresses[:first]]
        now = time.monotonic()
        return sorted(turned, key=lambda address: now - self._silent.get(address, -PASSED_OVER) < PASSED_OVER)

    def _ask(self, address: str, body: bytes) -> bytes:
        idle = self._idle[address]
        connection = idle.pop() if idle else _connected(address)
        try:
            connection.request("POST", self.query.url(), body, {"Content-Type": "application/octet-stream"})
            _wait_for_answer(connection)
            response = connection.getresponse()
            content = response.read()
        except BaseException:
            connection.close()
            raise
        if response.status != 200:
            connection.close()
            words = " ".join(content.decode(errors="replace").split())
            raise DataError(f"the trunk at {address} answered {response.status}: {words:.500}")
        idle.append(connection)
        return content


def _connected(address: str) -> HTTPConnection:
    connection = HTTPConnection(*host_and_port(address, TRUNKS), timeout=CONNECTING)
    connection.connect()
    connection.sock.settimeout(ANSWERING)
    return connection


def _wait_for_answer(connection: HTTPConnection) -> None:
    """Wait until an answer begins.

    Raises:
        TimeoutError: it does not, or nobody wants it any longer.
    """
    until = time.monotonic() + ANSWERING
    while not wait([connection.sock], PAUSE):
        if given_up() or time.monotonic() > until:
            raise TimeoutError("it is connected, and says nothing")


def _close(idle: dict[str, list[HTTPConnection]]) -> None:
    for connection in itertools.chain(*idle.values()):
        connection.close()


def _again() -> str:
    return f"see that {COMMAND} runs there and that {TRUNKS} says where, then run again: training goes on where it last saved"
