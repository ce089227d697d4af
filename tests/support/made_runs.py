"""Runs made to be healthy or ill: small files as training leaves them, every column a plain list of numbers."""

import json

import numpy as np
from safetensors.numpy import save_file

STEPS = 200
NORMS = {"context": 0.9, "reasoning": 0.6, "refinement": 0.4, "confidence": 0.2}
SETTINGS = {"loop.fit.clip": "1.0", "loop.fit.accumulation": "1", "loop.fit.steps": str(STEPS), "{stage}.run.batch_size": "10"}


def noise(size, steps=STEPS, seed=0):
    """Numbers around 0 that a step does not share with the next."""
    return list(size * np.random.default_rng(seed).standard_normal(steps))


def falling(first, last, steps=STEPS):
    """A straight line, with noise of a hundredth."""
    return [first + (last - first) * step / (steps - 1) + x for step, x in enumerate(noise(0.01 * first, steps))]


def columns(steps=STEPS, **changed):
    """Curves of a healthy warmup; a value in place of a list is that value in every step, None leaves a column out."""
    rates = [1e-3 * min(1.0, (step + 1) / 20, (steps - step) / steps + 0.05) for step in range(steps)]
    losses = {f"loss/step_{k}": falling(2.0, 1.0 - 0.2 * k, steps) for k in range(4)}
    sizes = {f"slot/{name}": norm for name, norm in NORMS.items()} | {f"gate/{name}": 0.5 for name in NORMS}
    rest = {"confidence": 0.5, "delta": 0.3, "overlap": 0.05, "lr": rates, "grad_norm": falling(0.5, 0.2, steps)}
    every = {"loss": falling(4.0, 2.0, steps), **losses, **sizes, **rest, **changed}
    return {name: v if isinstance(v, list) else [v] * steps for name, v in every.items() if v is not None}


def validations(*losses, steps=STEPS):
    """Validations at equal distances; a number stands for losses that fall with the recursion steps."""
    by_step = [loss if isinstance(loss, list) else [loss * (1.3 - 0.1 * k) for k in range(4)] for loss in losses]
    at = [steps * (number + 1) // len(losses) for number in range(len(losses))]
    return [{"step": step, "loss": values[-1], "loss_by_step": values} for step, values in zip(at, by_step, strict=True)]


HEALTHY = validations(1.5, 1.2, 1.0, 0.9)


def csv(rows):
    lines = [",".join(rows), *(",".join(f"{value:.9g}" for value in row) for row in zip(*rows.values(), strict=True))]
    return "\n".join(lines) + "\n"


def write_record(workspace, folder, settings, began=1.0):
    """Write what tracking knows of a run that goes on."""
    record = workspace / f".tracking/{folder.name}-{began:g}"
    record.mkdir(parents=True)
    facts = {"out": str(folder.resolve()), "began": began, "settings": settings}
    (record / "record.json").write_text(json.dumps(facts))


def write_run(
    folder, stage="warmup", *, validation=HEALTHY, ended=True, unit=1.0, settings=None, metrics=None, inputs=(), **changed
):
    """Write a phase's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    curves = columns(**changed)
    (folder / "curves.csv").write_text(csv({"step": list(range(len(curves["loss"]))), **curves}))
    given = {key.format(stage=stage): value for key, value in {**SETTINGS, **(settings or {})}.items()}
    (folder / "config.gin").write_text("".join(f"{key} = {value}\n" for key, value in given.items()))
    (folder / "model.json").write_text(json.dumps({"inputs": {name: "0" for name in inputs}, "sha256": {"model.safetensors": "0"}}))
    if unit:
        save_file({"refiner.hidden_rms": np.asarray(unit, dtype=np.float32)}, folder / "model.safetensors")
    rows = {"step": [v["step"] for v in validation], "loss": [v["loss"] for v in validation]}
    rows |= (
        {f"loss/step_{k}": [v["loss_by_step"][k] for v in validation] for k in range(len(validation[0]["loss_by_step"]))}
        if validation
        else {}
    )
    (folder / "validation.csv").write_text(csv(rows))
    if ended:
        (folder / "metrics.json").write_text(json.dumps({"steps": STEPS, "validation": validation, **(metrics or {})}))
    return folder
