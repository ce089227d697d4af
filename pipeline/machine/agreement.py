"""What the processes of one job run: they exchange it before anything else, so that no two wait for each other with different work.

A process that follows was started on another machine without a stage of its own; it takes the command of those that have one.
"""

import contextlib
import datetime
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch.distributed as dist

from pipeline.errors import ConfigError
from pipeline.machine.launch import ERRORS, stage_variables

OWN = (ERRORS, "SLOTLOOP_TORCHRUN")  # variables of one machine
SECRET = re.compile("TOKEN|SECRET|PASSWORD|KEY")  # within the name of a variable
PATIENCE = datetime.timedelta(seconds=10)  # for others to hear why the job is refused


def variables() -> dict[str, str]:
    """Collect what of this process's environment all processes of its job need: no secrets, which stay on their machine."""
    return {name: value for name, value in stage_variables().items() if name not in OWN and not SECRET.search(name)}


@dataclass(frozen=True)
class Work:
    """What a process was started to do.

    Attributes:
        command: arguments of ``python -m stages``; none = it follows.
        folder: in which it runs.
        variables: of the environment, which a process that follows takes over.
    """

    command: Sequence[str]
    folder: str = field(default_factory=os.getcwd)
    variables: Mapping[str, str] = field(default_factory=variables)

    def take_over(self) -> None:
        """Put its variables in the place of those that this process was started with."""
        for name in variables():
            del os.environ[name]
        os.environ.update(self.variables)


def agreed(store: Any, rank: int, world: int, command: Sequence[str]) -> tuple[int, Work]:
    """Exchange what each process runs; returns the first process that was given a command, and its work.

    Args:
        store: that all processes share; the first one has it.
        rank: number of this process, from 0.
        world: how many there are.
        command: of this process; none = it takes that of the others.

    Raises:
        ConfigError: they were given different commands, or none was given any; in all of them.
    """
    store.set(f"work-{rank}", json.dumps(asdict(Work([*command]))))
    works = [Work(**json.loads(text)) for text in store.multi_get([f"work-{number}" for number in range(world)])]
    first = next((number for number, work in enumerate(works) if work.command), 0)
    if refusal := _refusal(works, first):
        _let_others_hear(store, rank, world)
        raise ConfigError(refusal)
    return first, works[first]


def _refusal(works: Sequence[Work], first: int) -> str:
    """Why these processes cannot work together; "" = they can."""
    if not works[first].command:
        return "no process of this job was given a stage: only machines that follow have met"
    for number, work in enumerate(works):
        if work.command and work.command != works[first].command:
            one, other = (f"process {each} runs '{shlex.join(works[each].command)}'" for each in (first, number))
            return f"the processes of a job run one command, but {one} and {other}; start all of them with the same"
        if not work.command and work.folder != works[first].folder:
            return f"the stage runs in {works[first].folder}, but process {number} follows in {work.folder}; they share one folder"
    return ""


def _let_others_hear(store: Any, rank: int, world: int) -> None:
    """Wait, in the process that has the store, until all others have read it."""
    store.set(f"heard-{rank}", "")
    if not rank:
        with contextlib.suppress(dist.DistError):  # one has ended meanwhile
            store.wait([f"heard-{number}" for number in range(world)], PATIENCE)
