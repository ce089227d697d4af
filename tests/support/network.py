"""Two machines on one: network namespaces of Linux with a cable between them, which can be pulled. They share the disk."""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.dvc import wait_until

ASLEEP = ("sleep", "infinity")


@dataclass(frozen=True)
class Machine:
    """One of two.

    Attributes:
        process: a process of it.
        cable: name of its end of the cable.
        address: on that network.
    """

    process: subprocess.Popen[bytes]
    cable: str
    address: str

    @property
    def entered(self) -> tuple[str, ...]:
        """What stands before a command that is to run there."""
        return ("nsenter", f"--target={self.process.pid}", "--user", "--net", "--preserve-credentials")

    def run(self, *command: str) -> None:
        """Run a command there."""
        subprocess.run([*self.entered, *command], check=True, capture_output=True)

    def pull(self) -> None:
        """Pull the cable out: nothing arrives any longer, and nobody is told."""
        self.run("ip", "link", "set", self.cable, "down")

    def give_up_soon(self) -> None:
        """Let the system close a connection that nothing answers after some ten seconds and not fifteen minutes."""
        self.run("sysctl", "-w", "net.ipv4.tcp_retries2=5")


@contextlib.contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Two machines with a cable between them. A test that cannot have them is skipped."""
    if not sys.platform.startswith("linux") or not all(map(shutil.which, ("unshare", "nsenter", "ip", "sysctl"))):
        pytest.skip("network namespaces are Linux's, by unshare, nsenter, ip and sysctl")
    with contextlib.ExitStack() as stack:
        first = Machine(_namespace(stack, "unshare", "--user", "--map-root-user", "--net"), "left", "10.77.0.1")
        second = Machine(_namespace(stack, *first.entered, "unshare", "--net"), "right", "10.77.0.2")
        try:
            first.run("ip", "link", "add", first.cable, "type", "veth", "peer", "name", second.cable)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no cable between network namespaces here: {error.stderr.decode().strip()}")
        first.run("ip", "link", "set", second.cable, "netns", str(second.process.pid))
        for machine in (first, second):
            machine.run("ip", "addr", "add", f"{machine.address}/24", "dev", machine.cable)
            for device in ("lo", machine.cable):
                machine.run("ip", "link", "set", device, "up")
        yield first, second


def _namespace(stack: contextlib.ExitStack, *command: str) -> subprocess.Popen[bytes]:
    """A process in a network of its own, until the block of ``stack`` ends."""
    process = subprocess.Popen([*command, *ASLEEP], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    stack.callback(_end, process)
    ours = Path("/proc/self/ns/net").readlink()

    def has_begun() -> bool:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{process.pid}/comm").read_text().strip() == ASLEEP[0]
        return False

    wait_until(lambda: has_begun() or process.poll() is not None, "the network is there", pause=0.01)
    if process.poll() is not None:
        assert process.stderr is not None
        pytest.skip(f"no network namespaces here: {process.stderr.read().decode().strip()}")
    assert Path(f"/proc/{process.pid}/ns/net").readlink() != ours
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()
