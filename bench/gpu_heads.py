"""Head kernels beside each other: cross-entropy of a frozen bfloat16 head, loss and gradient of the rows.

Ours (eager, and its softmax part compiled), full logits, torch's, Liger's and cut-cross-entropy's where they can be imported. The
error is that of the first rows' gradient against float64. All weights are equal, because not every other kernel knows weights.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.gpu_timing import CUDA, DEVICE, Budget, Row, fused_softmax, timed
from components.objective.linear_cross_entropy import CHUNK_ROWS, linear_cross_entropy

SIZES = [(512, 4096, 126464), (2048, 4096, 126464), (8192, 4096, 126464), (2048, 2048, 157184)]  # rows, dim, vocabulary
TOY = [(32, 64, 1000)]
CHECKED = 128  # rows whose gradient is compared

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]  # rows, head, targets -> mean cross-entropy


def head_rows(budget: Budget, quick: bool, ceiling: float) -> list[Row]:
    """A row for every kernel and size; ``ceiling``: FLOP/s of the largest product."""
    rows: list[Row] = []
    for size in TOY if quick or not CUDA else SIZES:
        found: list[Row] = []
        for name, kernel in kernels(size[0]).items():
            found += budget.attempt(f"head {name} {size}", partial(measured, name, kernel, size, ceiling))
        full = next((row for row in found if row["what"] == "full logits"), None)
        for row in found:
            row["time_vs_full"] = row["ms"] / full["ms"] if full else None
            row["memory_vs_full"] = row["peak_gb"] / full["peak_gb"] if full and full["peak_gb"] else None
        rows += found
    return rows


def kernels(rows: int) -> dict[str, Kernel]:
    """By name, what can be imported."""
    found: dict[str, Kernel] = {"full logits": full, "ours": ours(), "ours, compiled": ours(compiled=True)}
    if rows > CHUNK_ROWS:
        found["ours, compiled, 2048 rows"] = ours(compiled=True, chunk=2048)
    if hasattr(F, "linear_cross_entropy") and hasattr(torch.nn, "LinearCrossEntropyOptions"):
        found["torch"] = lambda h, w, y: F.linear_cross_entropy(h, w, y, options=torch.nn.LinearCrossEntropyOptions())
        if rows >= CHUNK_ROWS:
            options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK_ROWS)
            found["torch, 512 rows"] = lambda h, w, y: F.linear_cross_entropy(h, w, y, options=options)
    try:
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Liger

        found["Liger"] = lambda h, w, y: Liger.apply(h, w, y)[0]
    except Exception as error:
        print(f"Liger is left out ({error}): pip install liger-kernel", flush=True)
    try:
        from cut_cross_entropy import linear_cross_entropy as cut

        found["cut-cross-entropy"] = cut
        found["cut-cross-entropy, exact"] = lambda h, w, y: cut(h, w, y, filter_eps=None)
    except Exception as error:
        print(f"cut-cross-entropy is left out ({error}): pip install cut-cross-entropy", flush=True)
    return found


def full(h: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """As one writes it: all logits, in float32."""
    return F.cross_entropy((h @ w.T).float(), y)


def ours(compiled: bool = False, chunk: int = CHUNK_ROWS) -> Kernel:
    """``components.objective.linear_cross_entropy``."""

    def kernel(h: Tensor, w: Tensor, y: Tensor) -> Tensor:
        weights = torch.full((len(h),), 1 / len(h), device=h.device)
        return linear_cross_entropy(h, w, y, weights, chunk=chunk)[0]

    kernel.context = fused_softmax if compiled else nullcontext  # type: ignore[attr-defined]
    return kernel


def measured(name: str, kernel: Kernel, size: tuple[int, int, int], ceiling: float) -> list[Row]:
    """One row."""
    rows, dim, vocab = size
    generator = torch.Generator(DEVICE).manual_seed(0)
    w = torch.randn(vocab, dim, device=DEVICE, dtype=torch.bfloat16, generator=generator).mul_(2 * dim**-0.5)
    h = torch.randn(rows, dim, device=DEVICE, dtype=torch.bfloat16, generator=generator)
    y = torch.randint(vocab, (rows,), device=DEVICE, generator=generator)

    def run() -> Tensor:
        leaf = h.detach().requires_grad_()
        kernel(leaf, w, y).backward()
        assert leaf.grad is not None
        return leaf.grad

    with getattr(kernel, "context", nullcontext)():
        error = difference(run(), h, w, y)
        timing = timed(run)
    flops = 4 * rows * dim * vocab
    return [{
        "what": name, "rows": rows, "dim": dim, "vocab": vocab, **timing.row(), "tflops": flops / timing.ms / 1e9,
        "time_vs_floor": timing.ms / 1e3 * ceiling / flops, "error": error,
    }]  # fmt: skip


def difference(gradient: Tensor, h: Tensor, w: Tensor, y: Tensor) -> float:
    """Of the first rows' gradient from float64, over the latter's norm. Vocabulary in parts: float64 of all would be 4 GB."""
    some, n = h[:CHECKED].double(), len(h)
    parts = w.split(8192)
    total = torch.stack([(some @ part.double().T).logsumexp(1) for part in parts]).logsumexp(0)
    exact = sum(((some @ part.double().T - total[:, None]).exp() @ part.double() for part in parts), torch.zeros_like(some))
    exact = (exact - w[y[:CHECKED]].double()) / n
    return float((gradient[:CHECKED].double() - exact).norm() / exact.norm())
