#!/usr/bin/env bash
# torch 2.13.0: FSDP2's set_gradient_divide_factor(1.0), for gradients that are to be summed, ends in an error over gloo.
#
# `fully_shard` divides reduced gradients by the number of processes. Told to divide by 1, it asks for a sum with a factor before it,
# which gloo does not know; at the default, two, or over NCCL it is not asked for. `set_force_sum_reduction_for_comms(True)` beside it
# gives the sum that was meant.
#
# Output seen on 2026-11-29, Python 3.11, two processes on a CPU:
#   divided by 1.0: RuntimeError: Cannot use ReduceOp.PREMUL_SUM with Gloo
#   divided by 1.0, plain sums forced: gradient 3.0
#   as it comes: gradient 1.5
#
# Exit status 0: as described. 1: it behaves otherwise now.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.2
cat > "$folder/sums.py" <<'PYTHON'
import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

dist.init_process_group("gloo")
layer = torch.nn.Linear(1, 2, bias=False)
fully_shard(layer, reshard_after_forward=True)
if sys.argv[1] != "default":
    layer.set_gradient_divide_factor(1.0)
if sys.argv[1] == "forced":
    layer.set_force_sum_reduction_for_comms(True)
try:
    layer(torch.full((1, 1), 1.0 + dist.get_rank())).sum().backward()
    said = f"gradient {layer.weight.grad.to_local()[0, 0].item()}"
except RuntimeError as error:
    said = f"RuntimeError: {str(error).splitlines()[0]}"
if dist.get_rank() == 0:
    print(said, flush=True)
os._exit(0)
PYTHON
run() {
  OMP_NUM_THREADS=1 "$folder/env/bin/torchrun" --standalone --nproc-per-node=2 "$folder/sums.py" "$1" 2> /dev/null
}
seen="divided by 1.0: $(run divided)
divided by 1.0, plain sums forced: $(run forced)
as it comes: $(run default)"
echo "$seen"
expected="divided by 1.0: RuntimeError: Cannot use ReduceOp.PREMUL_SUM with Gloo
divided by 1.0, plain sums forced: gradient 3.0
as it comes: gradient 1.5"
[ "$seen" = "$expected" ]
