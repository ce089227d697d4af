"""The most memory that a piece of work takes, in a process of its own: only there is it not what came before."""

import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

from tests.conftest import ROOT
from tests.support.jobs import together

PROGRAM = """
import json
from pathlib import Path

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()  # getrusage tells the parent's too, of a process that has just begun
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))

{before}
Path("/proc/self/clear_refs").write_text("5")  # the peak of what came before counts no more
resident = memory("VmRSS")
{work}
print(json.dumps([memory("VmHWM") - resident, {result}]))
"""


def peak_memory(before: str, work: str, result: str = "None") -> tuple[int, Any]:
    """Most bytes that ``work`` takes beyond what is there after ``before``, and what an expression says at the end."""
    program = PROGRAM.format(before=dedent(before), work=dedent(work), result=result)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, indent(done.stderr, "  ")
    bytes_taken, value = json.loads(done.stdout.splitlines()[-1])
    return bytes_taken, value


def peak_memories(before: str, work: str, processes: int, folder: Path) -> list[int]:
    """The same of each of several processes that work together."""
    program = PROGRAM.format(before=dedent(before), work=dedent(work), result="None")
    done = together(program, processes, folder)
    assert not any(process.returncode for process in done), "".join(process.stderr for process in done)
    return [json.loads(process.stdout.splitlines()[-1])[0] for process in done]
