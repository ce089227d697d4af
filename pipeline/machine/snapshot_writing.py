"""One snapshot on its way to the disk: begun at once, written at once or while the training goes on, named when all of it is there.

What lies on an accelerator has to be copied to the host in any case. Then the copy is taken at once and a thread of this process
writes, hashes and syncs it while the next steps run. What lies on the host is written where it lies, and the training waits: a
second copy in memory would be the price. The files of the run are copied at once either way, as the run goes on appending to them.

Threads never talk to other processes, as two of one process that do can wait for one another for ever. Of a snapshot of several
processes' parts each thread writes its own, and the hashes travel when the main threads meet next: only then has it its name. No
process has to see another one's file to know of it, so what a shared disk shows late, or only to one machine, decides nothing.
"""

import contextlib
import copy
import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.files import remove, sha256, storing, synced
from pipeline.machine.distributed import barrier, gathered, rank
from pipeline.tensor_files import write_tensors

STATE, DESCRIPTION = "state.safetensors", "state.json"
PART = "part-"  # of a file with what one of several processes holds of some tensors
OUT = "out-"  # of a copy of a file that the run has written
BEHIND = ("cuda", "mps")  # types of device: what lies there is written while the training goes on
KEPT = 2  # snapshots: should the newest be damaged, the one before it is taken

Hashes = dict[str, str]  # of a snapshot's files, by name


class Writing:
    """A snapshot that is being written; all is taken as it is now. Of several processes all that hold a part must make one.

    Args:
        final: folder that it becomes.
        tensors: that this process holds whole; the first one's are written.
        numbers: beside them.
        out: folder whose files are copied.
        parts: rows of tensors of which every process holds some.

    Attributes:
        behind: a thread writes, and the tensors may change; otherwise it is ``finish`` that writes.

    Raises:
        StorageError: the disk refuses; nothing of it is left.
    """

    def __init__(
        self, final: Path, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], out: Path, parts: Mapping[str, Tensor]
    ) -> None:
        self._final, self._temporary, self._shared = final, final.with_name("writing"), bool(parts)
        self._numbers = copy.deepcopy(dict(numbers))
        self.behind = any(tensor.device.type in BEHIND for tensor in (*tensors.values(), *parts.values()))
        files = {} if rank() else {STATE: tensors}
        if parts:
            files[f"{PART}{rank():05d}.safetensors"] = parts
        if self.behind:
            files = {name: _copies(of) for name, of in files.items()}
        with contextlib.ExitStack() as stack:
            stack.enter_context(storing(final, None if rank() else self._temporary))
            copied = [] if rank() else self._begin(out)
            if parts:
                barrier()
            write = partial(self._write, files, copied)
            self._hashes = _in_a_thread(write) if self.behind else write
            self._storing = stack.pop_all()

    def finish(self, *, together: bool = True) -> None:
        """Wait until all this process has to write is written; a snapshot of parts then gets its name.

        Args:
            together: all processes come here. Otherwise what there is of a snapshot of parts is removed.

        Raises:
            StorageError: the disk refused, now or in the thread; nothing of it is left.
        """
        with self._storing:
            hashes = self._hashes()
            if self._shared and together:
                every = gathered(hashes)
                if not rank():
                    self._name({name: digest for of in every for name, digest in of.items()})

    def _begin(self, out: Path) -> list[str]:
        """Make the folder anew and copy the run's files; their names there."""
        remove(self._temporary)
        self._temporary.mkdir(parents=True)
        files = [file for file in out.iterdir() if file.is_file()]
        for file in files:
            shutil.copyfile(file, self._temporary / f"{OUT}{file.name}")
        return [f"{OUT}{file.name}" for file in files]

    def _write(self, files: Mapping[str, Mapping[str, Tensor]], copied: list[str]) -> Hashes:
        """Write this process's files so that they have reached the disk; without parts, that is the snapshot."""
        for name, tensors in files.items():
            write_tensors(self._temporary / name, tensors)
        hashes = {name: sha256(self._temporary / name) for name in (*files, *copied)}
        for name in hashes:
            synced(self._temporary / name)
        if not self._shared:
            self._name(hashes)
        return hashes

    def _name(self, hashes: Hashes) -> None:
        """Describe the snapshot, put it in its place durably and drop the older ones."""
        (self._temporary / DESCRIPTION).write_text(json.dumps({"numbers": self._numbers, "files": hashes}))
        for path in (self._temporary / DESCRIPTION, self._temporary):
            synced(path)
        os.replace(self._temporary, self._final)
        synced(self._final.parent)
        for older in snapshots_in(self._final.parent)[KEPT:]:
            shutil.rmtree(older)


def snapshots_in(folder: Path) -> list[Path]:
    """List the snapshots of a folder that have their names, the newest first."""
    return sorted(folder.glob("step-*"), reverse=True) if folder.is_dir() else []


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors on the host, in memory of their own."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def _in_a_thread(work: Callable[[], Hashes]) -> Callable[[], Hashes]:
    """Begin work in a thread; what is returned waits for it, and raises what it raised."""
    thread = ThreadPoolExecutor(1, "snapshot")
    future = thread.submit(work)
    thread.shutdown(wait=False)
    return future.result
