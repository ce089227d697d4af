#!/usr/bin/env bash
# torchdata 0.11.0 with torch 2.13.0 (CPU, Linux): a ParallelMapper over threads leaves the whole process with one thread.
#
# `torch.set_num_threads(2)` in the main thread, then a loader of `torchdata.nodes` whose ParallelMapper has one worker thread: the
# worker calls `torch.set_num_threads(1)`, and from then on the main thread computes with one thread too, unless it had computed, or
# asked for the number, between its own call and the loader's start. A Prefetcher alone does not do this.
#
# Output seen on 2026-11-28, Python 3.11:
#   ParallelMapper, number not asked for before: 1
#   ParallelMapper, number asked for before: 2
#   Prefetcher, number not asked for before: 2
#
# Exit status 0: as described. 1: it behaves otherwise now.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/env/bin/pip" install --quiet --disable-pip-version-check --no-deps torchdata==0.11.0
cat > "$folder/threads.py" <<'PYTHON'
import sys

import torch
from torchdata.nodes import IterableWrapper, ParallelMapper, Prefetcher

kind, asked = sys.argv[1:]
torch.set_num_threads(2)
if asked == "asked":
    torch.get_num_threads()
numbers = IterableWrapper(range(4))
if kind == "ParallelMapper":
    loader = ParallelMapper(numbers, lambda number: number, num_workers=1, method="thread")
else:
    loader = Prefetcher(numbers, 2)
loader.reset()
assert [next(loader) for _ in range(4)] == [0, 1, 2, 3]
print(torch.get_num_threads())
PYTHON
seen=""
for case in "ParallelMapper not" "ParallelMapper asked" "Prefetcher not"; do
  read -r kind asked <<< "$case"
  threads=$("$folder/env/bin/python" -W ignore "$folder/threads.py" "$kind" "$asked")
  echo "$kind, number ${asked/asked/asked for before}: $threads" | sed 's/number not/number not asked for before/'
  seen+="$threads "
done
[ "$seen" = "1 2 2 " ]
