"""Deep supervision: what a loss at every recursion step changes, and what it costs.

Look at (1) the weights of the founding document; (2) the gradient that reaches each step: none in the early ones without deep
supervision where steps are detached, some where they are not, more with it; (3) the losses after a short training: both ways learn
the task, but without deep supervision the last step alone can be read (guessing costs ln 8 = 2.079); (4) peak memory and operations
of one gradient: naive keeps the logits and the graph of every step, keep the graphs only, checkpoint one step's graph at a time for
one forward pass more. The task: the second half of a sequence is the first half, backwards. Two pictures go to ``--out``.
"""

import argparse
from functools import partial
from pathlib import Path

import matplotlib
import torch
from torch.nn import functional as F

from components.backbones.recursive_lm import RecursiveLM
from components.batch import Batch
from components.objective.activations import checkpoint, keep
from components.objective.losses import masked_cross_entropy
from components.objective.objective import Objective
from components.objective.supervision import Supervision, constant, exponential_decay, last_only, linear_decay
from components.recursion import bptt_segments, full_gradient, mapped, one_step_gradient
from components.refiners.recursive_core import RecursiveCore
from pipeline.machine.allocation import peak
from pipeline.training.flops import count

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STEPS, UPDATES, ROWS = 3, 180, 32


def recursive(vocab: int, seq: int, dim: int, steps: int) -> RecursiveLM:
    """The same small model at every call; every H cycle is a supervised step."""
    model = RecursiveLM(vocab, seq, dim, partial(RecursiveCore, heads=4, steps=steps, blocks=1, h_cycles=1, l_cycles=2))
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def mirrored(rows: int, generator: torch.Generator) -> Batch:
    """Eight random digits and, masked, the same backwards."""
    half = torch.randint(8, (rows, 8), generator=generator)
    tokens, masked = torch.cat([half, half.flip(1)], 1), torch.arange(16).expand(rows, 16) >= 8
    return Batch(tokens.masked_fill(masked, 8), tokens, masked, masked / 8)


def gradients(batch: Batch, weights: list[float], bptt=full_gradient) -> list[float]:
    """Norm of d loss / d z_H after each step."""
    model = recursive(9, 16, 32, STEPS)
    condition, carry, layout = model.begin(batch)
    states, total = [], 0.0
    for numbers in bptt_segments(STEPS, bptt):
        for k in numbers:
            state = model.step(k, carry, condition, layout)
            state.hidden.retain_grad()
            states.append(state.hidden)
            total += weights[k] * masked_cross_entropy(model, state.hidden, batch, compute=True)[0] / len(batch)
            carry = state.carry
        carry = mapped(torch.Tensor.detach, carry)
    total.backward()
    return [0.0 if h.grad is None else h.grad.norm().item() for h in states]


def train(supervision: Supervision) -> list[list[float]]:
    """Loss of every step at every update."""
    model, objective = recursive(9, 16, 32, STEPS), Objective(STEPS, supervision=supervision)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    curve, generator = [], torch.Generator().manual_seed(0)
    for _ in range(UPDATES):
        optimizer.zero_grad()
        supervised = objective.gradient(model, mirrored(ROWS, generator), sequences=ROWS)
        curve.append([loss.item() for loss in supervised.losses])
        optimizer.step()
    return curve


def naive(model: RecursiveLM, batch: Batch, weights: list[float]) -> None:
    """Logits and graph of every step at once."""
    logits = [model.readout(state.hidden.flatten(0, 1)[batch.supervised]) for state in model.steps(batch)]
    targets = batch.targets.flatten()[batch.supervised]
    sum(w * F.cross_entropy(each, targets) for w, each in zip(weights, logits, strict=True)).backward()


def costs(steps: int) -> dict[str, tuple[float, float]]:
    """Peak MiB and GFLOPs of one gradient, vocabulary 4096."""
    tokens = torch.randint(4096, (8, 64), generator=torch.Generator().manual_seed(0))
    everywhere = torch.ones(8, 64, dtype=torch.bool)
    batch, table = Batch(tokens, tokens, everywhere, everywhere / 64), {}
    for name, activations in (("naive", None), ("keep", keep), ("checkpoint", checkpoint)):
        model = recursive(4096, 64, 64, steps)
        if activations is None:
            work = partial(naive, model, batch, linear_decay(steps))
        else:
            work = partial(Objective(steps, activations=activations).gradient, model, batch, sequences=8)
        flops = count(work)  # and makes the parameters' gradients, which the peak then leaves out
        table[name] = peak(work) / 2**20, flops / 1e9
    return table


def draw(curves: dict[str, list[list[float]]], table: dict[int, dict[str, tuple[float, float]]], out: Path) -> None:
    """supervision.png: losses over training; memory.png: peak and operations over the number of steps."""
    plt.rcParams.update(
        {"figure.dpi": 120, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3}
    )
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True)
    for axis, (name, curve) in zip(axes, curves.items(), strict=True):
        for k in range(STEPS):
            smooth = [sum(row[k] for row in curve[max(0, i - 9) : i + 1]) / min(i + 1, 10) for i in range(UPDATES)]
            axis.plot(smooth, color=plt.get_cmap("viridis")(0.8 - 0.35 * k), label=f"step {k + 1}")
        axis.set(title=f"{'without' if name == 'last_only' else 'with'} deep supervision ({name})", xlabel="update")
    axes[0].set_ylabel("loss (nats per token)")
    axes[0].axhline(2.079, color="grey", linewidth=0.8, linestyle=":")
    axes[0].annotate("guessing", (UPDATES, 2.079), ha="right", va="bottom", color="grey", fontsize=8)
    axes[1].legend(frameon=False)
    figure.savefig(out / "supervision.png", bbox_inches="tight", metadata={"Software": None})
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2))
    for i, (axis, label) in enumerate(zip(axes, ("peak memory (MiB)", "operations (GFLOPs)"), strict=True)):
        for name, style in (("naive", "o-"), ("keep", "s--"), ("checkpoint", "^-")):
            axis.plot(list(table), [row[name][i] for row in table.values()], style, label=name, ms=8 if name == "naive" else 5)
        axis.set(title=label, xlabel="H cycles", xticks=list(table), ylim=(0, None))
    axes[1].annotate(
        "naive and keep do the same", (4, table[4]["keep"][1]), xytext=(8, -10), textcoords="offset points", fontsize=8
    )
    axes[0].legend(frameon=False)
    figure.savefig(out / "memory.png", bbox_inches="tight", metadata={"Software": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("build/examples"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    schedules = {s.__name__: s for s in (constant, linear_decay, exponential_decay, last_only)}
    for name, schedule in schedules.items():
        print(f"weights {name:<18}{[round(w, 3 if name == 'exponential_decay' else 2) for w in schedule(STEPS)]}")
    torch.set_num_threads(1)  # for so small a model a second thread costs more than it gives
    batch = mirrored(ROWS, torch.Generator().manual_seed(0))
    for name, bptt in (("last_only", one_step_gradient), ("last_only", full_gradient), ("linear_decay", full_gradient)):
        sizes = "".join(f"{size:>9.5f}" for size in gradients(batch, schedules[name](STEPS), bptt))
        print(f"gradient at steps 1..3: {name:<13} {bptt.__name__:<18}{sizes}")
    curves = {name: train(schedules[name]) for name in ("last_only", "linear_decay")}
    for name, curve in curves.items():
        late = [sum(row[k] for row in curve[-20:]) / 20 for k in range(STEPS)]
        print(f"loss of steps 1..3 after {UPDATES} updates: {name:<13}" + "".join(f"{loss:>8.3f}" for loss in late))
    table = {steps: costs(steps) for steps in (2, 4, 8)}
    print("H cycles     peak MiB: naive     keep checkpoint    GFLOPs: naive     keep checkpoint")
    for steps, row in table.items():
        mib, flops = zip(*row.values(), strict=True)
        print(f"{steps:>8}{mib[0]:>20.1f}{mib[1]:>9.1f}{mib[2]:>11.1f}{flops[0]:>17.2f}{flops[1]:>9.2f}{flops[2]:>11.2f}")
    draw(curves, table, out)
    print(f"pictures: {out / 'supervision.png'}, {out / 'memory.png'}")
