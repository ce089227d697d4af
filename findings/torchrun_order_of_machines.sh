#!/usr/bin/env bash
# torch 2.13.0 (CPU, Linux): which machine is the first of a `torchrun` job with the c10d rendezvous does not follow from which one has
# the store (`is_host`), from which one came first, or from `--node-rank` (ignored with a warning): machines are numbered in the order
# of their addresses as text, so 127.0.0.10 comes before 127.0.0.9. What the first process does, such as printing or writing a
# checkpoint to a disk of its own, may happen on any of them, and elsewhere when an address changes.
#
# Two launchers on this machine, each with an address of its own. 127.0.0.9 has the store and is started three seconds earlier.
#
# Output seen on 2026-12-01, Python 3.11:
#   127.0.0.9 is number 1
#   127.0.0.10 is number 0
#
# Exit status 0: as described. 1: it behaves otherwise now.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cd "$folder"
cat > say.py <<'PYTHON'
import os
import sys

print(sys.argv[1], "is number", os.environ["GROUP_RANK"], flush=True)
PYTHON
run() {
  env/bin/torchrun --nnodes=2 --nproc-per-node=1 --rdzv-backend=c10d --rdzv-id=job --rdzv-endpoint=127.0.0.9:29411 \
    --rdzv-conf="is_host=$1" --local-addr="$2" say.py "$2" 2> "log-$2" | tee "said-$2"
}
run 1 127.0.0.9 &
sleep 3
run 0 127.0.0.10
wait
grep -qx "127.0.0.9 is number 1" said-127.0.0.9
grep -qx "127.0.0.10 is number 0" said-127.0.0.10
