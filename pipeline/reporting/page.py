"""The report: one readable page (markdown) with the results table, the pictures and what looks unhealthy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.data.shard_index import read_index
from pipeline.files import write_atomic
from pipeline.manifests import Manifest, check_inputs
from pipeline.models.model_folder import CURVES, METRICS, ModelFolder, phase_folder
from pipeline.reporting import concept_reporting, figures, tables
from pipeline.reporting.findings import findings
from pipeline.reporting.lost_references import without_result
from pipeline.text.rendering import rendering_of
from pipeline.training import curves

HEAD = """# Results on test

Means with 95 % intervals (bootstrap over independent groups). *nll* is in nats per masked token. `control_backbone` is the
backbone trained on for the compute of warmup and joint; `control_warmup` is warmup simply continued for joint's compute.

"""
OF_OPTIONAL = {  # controls that can be switched on
    "control_lora": "`control_lora` is the frozen backbone with low-rank adapters, trained for the compute of `control_backbone`: "
    "{lora[parameters]:,} parameters (rank {lora[rank]}) where warmup trains {lora[compared_with]:,}.\n\n",
    "control_adapter": "`control_adapter` has one block without recursion in the refiner's place, of {parameters[trainable]:,} "
    "parameters, trained on the same states for warmup's compute.\n\n",
    "control_refiner_lora": "`control_refiner_lora` is warmup's refiner trained on together with low-rank adapters below it, "
    "{lora[parameters]:,} parameters (rank {lora[rank]}), for joint's compute.\n\n",
}
OF_COSTS = (
    "*training TFLOP*: on top of the backbone's own. *FLOPs an answer*: of one parallel decode of the headline with all recursion "
    "steps. *cache bytes*: states that extract stored, for models that were trained from them.\n\n"
)
OF_RATES = (
    "Each control was trained once with every multiplier of its learning rate, for as many steps; the best on validation (bold) is "
    "the one above.\n\n"
)
CAPTIONS = {
    "losses": "Loss of each recursion step over training (smoothed over 2 % of the steps).",
    "steps": "The headline after each recursion step, with 95 % intervals.",
    "slots": "Slot norms and gates over training.",
    "puzzles": "Traced puzzles on which the frozen backbone errs most, refined step by step: clues bold, right cells green, "
    "wrong cells red, stronger colour = more certain.",
}
OPTIONAL = {  # metrics that only some evaluations hold: title, explanation and table of their section
    "answers": (
        "Generated answers",
        "Share of right results, compared as numbers, and lm-evaluation-harness's exact match, which compares texts, as it is "
        "published; how results are read: docs/evaluation.md. Function evaluations are passes through the model for an "
        "answer, times recursion steps in each.",
        tables.answers,
    ),
    "likelihood": (
        "Likelihood of whole answers",
        "An upper bound on -log p in nats an answer, after ± the standard error of its Monte-Carlo estimate.",
        tables.likelihood,
    ),
    "forgetting": (
        "Forgetting",
        "Hidden tokens of prompts, which no phase supervises: what does worse there than the frozen backbone has forgotten.",
        tables.forgetting,
    ),
}


def report(out: Path, evaluation: Path, shards: Path, phases: Mapping[str, str]) -> str:
    """Write ``report.md``, ``table.md`` and the pictures into ``out``; returns the table."""
    manifest = Manifest(evaluation / METRICS, "evaluate", "evaluate")
    metrics, trace = manifest.content, manifest.json("trace.json")
    folders = {name: phase_folder(name, phases[name]) for name in sorted(phases, key=["backbone", *figures.MODELS].index)}
    _check_evaluated(manifest, folders)
    trained = {name: {**folder.metrics(), "cache_bytes": _stored(folder, shards)} for name, folder in folders.items()}
    curve = {name: curves.read(folder.manifest.verify(CURVES)) for name, folder in folders.items() if trained[name]["steps"]}
    models = {name: metrics["models"][name] for name in figures.MODELS if name in metrics["models"]}
    rendering = rendering_of(trace["rendering"])
    if rendering.predicts == "embeddings":
        write_atomic(out / "steps.csv", tables.steps_csv(models, "cosine").encode())
        return concept_reporting.report(out, metrics, curve)
    measures, differences, headline = (metrics[key] for key in ("measures", "differences", "headline"))
    compared = tables.headline_metric(models)

    figures.losses({n: c for n, c in curve.items() if not n.startswith("control")}, out / "losses.png")
    figures.by_step(models, compared, f"{headline}: after each recursion step", out / "steps.png")
    write_atomic(out / "steps.csv", tables.steps_csv(models, compared).encode())
    pictures = ["losses", "steps"]
    if slotted := {n: c for n, c in curve.items() if any(column.startswith("slot/") for column in c)}:
        figures.slots({n: c for n, c in slotted.items() if n in ("warmup", "joint", "finetune")}, out / "slots.png")
        pictures.append("slots")
    refined = next(name for name in ("finetune", "joint", "warmup") if name in models)
    if rendering.cell is not None:
        figures.puzzles(trace, refined, _hardest(trace, 3), rendering.cell, out / "puzzles.png")
        pictures.append("puzzles")

    table = tables.results(models, measures, trained)
    write_atomic(out / "table.md", table.encode())
    sections = {
        "Differences, paired": f"Bold: the interval is clear of zero.\n\n{tables.differences(metrics['differences'], measures)}",
        "Whole answers, decoded in several passes": tables.decodes(models),
        **({"Learning rates": OF_RATES + tables.rates(searched)} if (searched := _searched(trained)) else {}),
        **optional(models),
        "After each recursion step": tables.steps(models),
        "Halting": tables.halting(models),
        "Findings": "".join(f"- {line}\n" for line in findings(headline, models, differences, curve)),
        "Pictures": "\n\n".join(f"![{CAPTIONS[name]}]({name}.png)\n\n*{CAPTIONS[name]}*" for name in pictures) + "\n",
    }
    warnings = "".join(f"**{line}**\n\n" for line in without_result(metrics.get("lost_references", {})))
    controls = "".join(text.format(**trained[name]) for name, text in OF_OPTIONAL.items() if name in models)
    page = HEAD + warnings + controls + OF_COSTS + table + "".join(f"\n## {title}\n\n{text}" for title, text in sections.items())
    write_atomic(out / "report.md", page.encode())
    return table


def _stored(folder: ModelFolder, shards: Path) -> int:
    """Bytes of the states that a phase was trained from; 0 where it read none.

    Raises:
        DataError: the shards are damaged, or others than it read.
    """
    if "extract" not in folder.manifest.inputs:
        return 0
    index = read_index(shards)
    check_inputs(folder.path, folder.manifest.inputs, {"extract": index["fingerprint"]}, shards, folder.stage)
    return sum(shard["bytes"] for shard in index["shards"])


def _searched(trained: Mapping[str, Any]) -> dict[str, Any]:
    """The trainings of each phase whose learning rate was chosen on validation."""
    return {name: metrics for name, metrics in trained.items() if "rates" in metrics}


def _check_evaluated(evaluation: Manifest, folders: Mapping[str, ModelFolder]) -> None:
    """Raise DataError unless the evaluation is of these very models."""
    for name, folder in folders.items():
        known = "frozen" if name == "backbone" else name
        there = {known: folder.manifest.digest}
        check_inputs(evaluation.folder, evaluation.content["evaluated"], there, folder.path, "evaluate")


def optional(models: Mapping[str, Any]) -> dict[str, str]:
    """Write the sections on what only some evaluations hold: generated answers, likelihood, forgetting."""
    sections = [section for key, section in OPTIONAL.items() if key in models["frozen"]]
    return {title: f"{what}\n\n{table(models)}" for title, what, table in sections}


def _hardest(trace: Mapping[str, Any], n: int) -> list[int]:
    """The traced examples on which the frozen backbone errs most, in their own order."""
    errors = []
    for row, (target, hidden) in enumerate(zip(trace["tokens"], trace["response"], strict=True)):
        ids = trace["models"]["frozen"][row][-1]["ids"]
        errors.append((-sum(i != t for i, t, h in zip(ids, target, hidden, strict=True) if h), row))
    return sorted(row for _, row in sorted(errors)[:n])
