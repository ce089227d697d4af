#!/usr/bin/env bash
# torch 2.13.0 (CPU): the first `nn.Embedding` that is built on the meta device imports torch's compiler, and sympy with it.
#
# The meta device is there to build a model's shapes without cost, before its weights are loaded. `nn.Embedding` draws its weights
# from a normal distribution; on the meta device, where nothing is drawn, `normal_` is served by a Python reference whose module
# imports `torch._dynamo`: some 800 modules and more than a second, once in every process. `nn.Linear`, whose weights are uniform,
# brings none, nor does an embedding on the CPU, nor one made of a tensor (`nn.Embedding.from_pretrained(torch.zeros(...))`). A
# program that builds on the meta device and loads, as libraries of pretrained models do, pays it at every start, compiled or not.
#
# Output seen on 2026-11-30, Python 3.11:
#   modules of torch._dynamo and sympy after an embedding on the CPU: none; a linear layer on meta: none; an embedding on meta made
#   of a tensor: none; an embedding on meta: some
#
# Exit status 0: as described. 1: it behaves otherwise now.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
seen=$("$folder/env/bin/python" - <<'PYTHON'
import sys

import torch
from torch import nn


def compiler():
    return "some" if {"torch._dynamo", "sympy"} <= sys.modules.keys() else "none"


nn.Embedding(4, 4)
on_cpu = compiler()
with torch.device("meta"):
    nn.Linear(4, 4)
    linear = compiler()
    nn.Embedding.from_pretrained(torch.zeros(4, 4))
    of_a_tensor = compiler()
    nn.Embedding(4, 4)
print(
    f"modules of torch._dynamo and sympy after an embedding on the CPU: {on_cpu}; a linear layer on meta: {linear}; "
    f"an embedding on meta made of a tensor: {of_a_tensor}; an embedding on meta: {compiler()}"
)
PYTHON
)
echo "$seen"
[ "$seen" = "modules of torch._dynamo and sympy after an embedding on the CPU: none; a linear layer on meta: none; an embedding on meta made of a tensor: none; an embedding on meta: some" ]
