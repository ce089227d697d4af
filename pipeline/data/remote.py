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

import torch
from torch import Tensor

from pipeline.data.state_query import COMMAND, DTYPES, StateQuery, host_and_port
from pipeline.errors import ConfigError, DataError
from pipeline.machine.distributed import rank
from pipeline.tensor_files import UNREADABLE, bytes_of_tensors, tensors_of_bytes

TRUNKS = "SLOTLOOP_TRUNKS"  # where trunks are served, HOST:PORT,HOST:PORT
PATIENCE = 90.0  # seconds in which none of them answers, until training ends
PAUSE = 0.5  # seconds until all of them are tried again
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
        host_and_port(address, TRUNKS)
    return listed


class RemoteTrunk:
    """Client of one or more served trunks, which are asked in turn; any thread may ask.

    A trunk that does not answer is passed over. When none does, all are tried again for ``PATIENCE`` seconds: one that was started
    anew goes on where the other ended, for an answer depends on the question alone.

    Args:
        addresses: HOST:PORT of each.
        query: what is asked of them.
        width: numbers of a state, taps included.
    """

    def __init__(self, addresses: Sequence[str], query: StateQuery, width: int) -> None:
        self.addresses, self.query, self.width = list(addresses), query, width
        self._turns = itertools.count(rank())  # processes of a job begin with different ones
        self._idle: dict[str, list[HTTPConnection]] = {address: [] for address in addresses}
        weakref.finalize(self, _close, self._idle)

    def states(self, tokens: Tensor, attention: Tensor | None) -> Tensor:
        """Ask for the states of a batch on the host.

        Args:
            tokens: ids, (batch, seq).
            attention: True where one stands, False for padding; None = everywhere.

        Raises:
            DataError: no trunk answers, or it is of another backbone, on another kind of device, or says what is wrong.
        """
        question = {"tokens": tokens.contiguous()}
        question |= {} if attention is None else {"attention": attention.to(torch.uint8)}
        address, content = self._answer(bytes_of_tensors(question))
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
        last, said = time.monotonic() + PATIENCE, False
        for attempt, turn in enumerate(itertools.count(next(self._turns)), start=1):
            address = self.addresses[turn % len(self.addresses)]
            try:
                return address, self._ask(address, body)
            except (OSError, HTTPException) as error:
                why = f"{type(error).__name__}: {error}"
            if attempt % len(self.addresses):
                continue
            all_of_them = ", ".join(self.addresses)
            if time.monotonic() > last:
                raise DataError(f"no trunk answers at {all_of_them} ({why}); {_again()}")
            if attempt > len(self.addresses) and not said:  # the first refusal can be of a connection to one that was replaced
                print(f"no trunk answers at {all_of_them} ({why}); trying for {PATIENCE:.0f} s", file=sys.stderr, flush=True)
                said = True
            time.sleep(PAUSE)
        raise AssertionError("turns do not end")

    def _ask(self, address: str, body: bytes) -> bytes:
        idle = self._idle[address]
        connection = idle.pop() if idle else _connected(address)
        try:
            connection.request("POST", self.query.url(), body, {"Content-Type": "application/octet-stream"})
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


def _close(idle: dict[str, list[HTTPConnection]]) -> None:
    for connection in itertools.chain(*idle.values()):
        connection.close()


def _again() -> str:
    return f"see that {COMMAND} runs there and that {TRUNKS} says where, then run again: training goes on where it last saved"
