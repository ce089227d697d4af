#!/usr/bin/env bash
# torch 2.13.0 (CPU): `torch.nn.attention.sdpa_kernel` chooses the kernel of attention for all threads of the process, not for
# the one that enters the block.
#
# A context manager reads as if it governed what is called within its block. While one thread is in
# `sdpa_kernel(SDPBackend.MATH)`, `scaled_dot_product_attention` in another thread, which entered nothing, gives the last digits of
# the math kernel: other ones than the same call a moment before. It matters wherever a second thread computes, such as one that
# prepares batches by a frozen model: its results then depend on when the first one enters and leaves. The documentation of the
# function (2.13) speaks of no threads.
#
# Output seen on 2026-11-30, Python 3.11:
#   the other thread alone, twice: equal; while this one is within the block: differs, equal to math: True; afterwards: equal
#
# Exit status 0: as described. 1: it behaves otherwise now.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
seen=$("$folder/env/bin/python" - <<'PYTHON'
from concurrent.futures import ThreadPoolExecutor

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

torch.manual_seed(0)
q, k, v = torch.randn(3, 2, 4, 64, 32)


def attention():
    return scaled_dot_product_attention(q, k, v)


def word(same):
    return "equal" if same else "differs"


with ThreadPoolExecutor(1) as other:
    first, second = other.submit(attention).result(), other.submit(attention).result()
    with sdpa_kernel(SDPBackend.MATH):
        within, math = other.submit(attention).result(), attention()
    after = other.submit(attention).result()
print(
    f"the other thread alone, twice: {word(torch.equal(first, second))}; while this one is within the block: "
    f"{word(torch.equal(first, within))}, equal to math: {torch.equal(within, math)}; afterwards: {word(torch.equal(first, after))}"
)
PYTHON
)
echo "$seen"
[ "$seen" = "the other thread alone, twice: equal; while this one is within the block: differs, equal to math: True; afterwards: equal" ]
