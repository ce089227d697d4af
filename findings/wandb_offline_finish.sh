#!/usr/bin/env bash
# Weights & Biases 0.31.0, offline: Run.finish() returns before the run's file is written; wandb.teardown() waits for it.
#
# What a run logged lies in the memory of the library's service when finish() comes back: the .wandb file has its header of 7 bytes
# and nothing else, and is whole within a second. Whoever copies, syncs or counts the folder at once, or ends the container, gets an
# empty run, without a word. How often depends on how busy the machine is. After wandb.teardown(), a quarter of a second, it is whole.
#
# Output seen on 2026-11-29, Python 3.11, two busy cores (the number in the first line varies from run to run, and is not checked
# beyond being above 0):
#   wandb 0.31.0: of 60 runs, file not whole when finish() returned: 21
#   and when teardown() returned: 0
#
# Exit status 0: as described. 1: it behaves otherwise now.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check wandb==0.31.0
cat > "$folder/runs.py" <<'PYTHON'
"""Count offline runs whose file still grows after what should have ended them: finish() alone, or teardown() too."""

import multiprocessing
import os
import sys
import time
from pathlib import Path

import wandb

NUMBER = 60


def spin() -> None:
    """Keep a core busy."""
    while True:
        pass


def size(folder: Path) -> int:
    """Return the bytes of the one run's file."""
    return next(folder.rglob("*.wandb")).stat().st_size


def grew(folder: Path, *, teardown: bool) -> bool:
    """Log three values in an offline run; tell whether its file grows after its end."""
    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True)
    run = wandb.init(project="p", mode="offline", dir=str(folder), settings=settings, reinit="create_new")
    for step in range(3):
        run.log({"loss": 1.0 / (1 + step)}, step=step)
    run.finish()
    if teardown:
        wandb.teardown()
    before = size(folder)
    time.sleep(1.0)
    return size(folder) > before


def main(root: Path) -> None:
    """Print both counts; exit status 1 if they are not as described."""
    busy = [multiprocessing.Process(target=spin, daemon=True) for _ in range(2 * (os.cpu_count() or 1))]
    for process in busy:
        process.start()
    counts = []
    for teardown in (False, True):
        folders = [root / f"{teardown}-{number}" for number in range(NUMBER)]
        for folder in folders:
            folder.mkdir()
        counts.append(sum(grew(folder, teardown=teardown) for folder in folders))
    for process in busy:
        process.kill()
    print(f"wandb {wandb.__version__}: of {NUMBER} runs, file not whole when finish() returned: {counts[0]}")
    print(f"and when teardown() returned: {counts[1]}")
    sys.exit(not (counts[0] > 0 and counts[1] == 0))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
PYTHON
mkdir "$folder/runs"
cd "$folder"
WANDB_ERROR_REPORTING=false HOME="$folder" "$folder/env/bin/python" "$folder/runs.py" "$folder/runs"
