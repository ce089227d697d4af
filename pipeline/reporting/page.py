"""The report: results, pictures and what looks unhealthy, as markdown and as one page that opens without a network."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.data.shard_index import read_index
from pipeline.files import write_atomic
from pipeline.manifests import Manifest, check_inputs
from pipeline.models.model_folder import CURVES, METRICS, ModelFolder, phase_folder
from pipeline.reporting import chapters, concept_reporting, figures, health, tables, webpage
from pipeline.reporting.findings import findings
from pipeline.reporting.lost_references import without_result
from pipeline.reporting.provenance import Provenance, provenance
from pipeline.reporting.refinement import refinement
from pipeline.settings.params import Params
from pipeline.text.rendering import is_reference, rendering_of
from pipeline.training import curves

RESULTS = "Results on test"
HEAD = """\
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
OF_DIFFERENCES = "Bold: the interval is clear of zero.\n\n"
OF_DEPTHS = (
    "All read off in one pass of the deepest; bold steps: the trained number. Differences from it are paired, bold where clear of "
    "zero; *change of state*: |h - h before| / |h| of the last step.\n\n"
)
OF_BREADTH = (
    "The recursion begun several times, from the states as they are and from noised ones; each number holds the smaller ones. "
    "Differences from the one without noise are paired, bold where clear of zero.\n\n"
)
OF_RATES = (
    "Each control was trained once with every multiplier of its learning rate, for as many steps; the best on validation (bold) is "
    "the one above.\n\n"
)
CAPTIONS = {
    "losses": "Loss of each recursion step over training (smoothed over 2 % of the steps).",
    "steps": "The headline after each recursion step, with 95 % intervals.",
    "depths": "The headline after any number of recursion steps, the trained one ringed; how far a step still moves the states.",
    "breadth": "The headline over all operations of an answer: more steps of one recursion, and more restarts by each rule.",
    "slots": "Slot norms and gates over training.",
    "parallelism": "Scores of whole answers over the tokens that a pass decodes, with 95 % intervals.",
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
    "parallelism": (
        "Few passes",
        "Whole answers, decoded in few passes and in many. AUP: accuracy under parallelism, the weighted area under the curve of a "
        "score in percent over tokens decoded in a pass (d3LLM's leaderboard; docs/evaluation.md). Bold: clear of zero.",
        tables.parallelism,
    ),
    "by_difficulty": (
        "By difficulty",
        "Exact answers of the headline by a puzzle's clues, and by what the reference solver takes for it: rounds of singles, and "
        "guesses where no single is left (docs/data.md).",
        tables.difficulty,
    ),
    "forgetting": (
        "Forgetting",
        "Hidden tokens of prompts, which no phase supervises: what does worse there than the frozen backbone has forgotten.",
        tables.forgetting,
    ),
}


def report(
    out: Path,
    evaluation: Path,
    shards: Path,
    phases: Mapping[str, str],
    *,
    runtime: Mapping[str, Any],
    params: Params | None = None,
    sections: Sequence[str] = (),
) -> str:
    """Write ``report.md``, ``table.md``, the pictures and ``index.html`` into ``out``.

    Args:
        out: folder of the report.
        evaluation: folder that evaluate wrote.
        shards: folder of the states that phases read.
        phases: folder of each training phase.
        runtime: device, precision and threads, by the settings.
        params: settings over the preset; None = not known.
        sections: of ``params`` that the pipeline's stages read, in their order.

    Returns:
        The table of results, as markdown.
    """
    manifest = Manifest(evaluation / METRICS, "evaluate", "evaluate")
    metrics, trace = manifest.content, manifest.json("trace.json")
    folders = {name: phase_folder(name, phases[name]) for name in sorted(phases, key=["backbone", *figures.MODELS].index)}
    _check_evaluated(manifest, folders)
    trained = {name: {**folder.metrics(), "cache_bytes": _stored(folder, shards)} for name, folder in folders.items()}
    curve = {name: curves.read(folder.manifest.verify(CURVES)) for name, folder in folders.items() if trained[name]["steps"]}
    models = {name: metrics["models"][name] for name in figures.MODELS if name in metrics["models"]}
    origin = provenance(manifest, runtime, params, sections)
    of_health = health.section(health.findings(curve, trained, metrics), curve)
    if rendering_of(trace["rendering"]).predicts == "embeddings":
        write_atomic(out / "steps.csv", tables.steps_csv(models, "cosine").encode())
        return concept_reporting.report(out, metrics, curve, origin, of_health)
    headline, differences = metrics["headline"], metrics["differences"]
    pictures = _pictures(out, models, headline, curve, trace)
    table = tables.results(models, metrics["measures"], trained)
    write_atomic(out / "table.md", table.encode())
    parts = {
        "Differences, paired": f"{OF_DIFFERENCES}{tables.differences(differences, metrics['measures'])}",
        "Whole answers, decoded in several passes": tables.decodes(models),
        **({"Learning rates": OF_RATES + tables.rates(searched)} if (searched := _searched(trained)) else {}),
        **optional(models),
        "After each recursion step": tables.steps(models),
        **({"At any number of recursion steps": OF_DEPTHS + tables.depths(models)} if "depths" in pictures else {}),
        **({"With restarts": OF_BREADTH + tables.breadth(models)} if "breadth" in pictures else {}),
        "Halting": tables.halting(models),
    }
    said = findings(headline, models, differences)
    lost = without_result(metrics.get("lost_references", {}))
    controls = "".join(text.format(**trained[name]) for name, text in OF_OPTIONAL.items() if name in models)
    warnings = "".join(f"**{line}**\n\n" for line in lost)
    all_parts = {
        **parts,
        "Findings": "".join(f"- {line}\n" for line in said),
        "Health": of_health,
        "Pictures": "\n\n".join(f"![{CAPTIONS[name]}]({name}.png)\n\n*{CAPTIONS[name]}*" for name in pictures) + "\n",
    }
    notes = OF_COSTS + "".join(f"{line}\n\n" for line in tables.several_solutions(metrics.get("several_solutions", {})))
    text = f"# {RESULTS}\n\n{HEAD}{warnings}{controls}{notes}{table}"
    text += "".join(f"\n## {title}\n\n{part}" for title, part in all_parts.items())
    write_atomic(out / "report.md", text.encode())
    tabled = {RESULTS: f"{HEAD}{controls}{notes}{table}", **parts}
    content = [*chapters.chapters(models, trace, curve, trained, tabled), webpage.Chapter("Health", of_health)]
    page = _page(models, metrics, trace, content, origin)
    write_atomic(out / "index.html", webpage.render(replace(page, warnings=lost, findings=said)).encode())
    return table


def _pictures(
    out: Path, models: Mapping[str, Any], headline: str, curve: Mapping[str, figures.Curves], trace: Mapping[str, Any]
) -> list[str]:
    """Write the pictures and the table of steps; returns their names."""
    compared = tables.headline_metric(models)
    figures.losses({n: c for n, c in curve.items() if not n.startswith("control")}, out / "losses.png")
    figures.by_step(models, compared, f"{headline}: after each recursion step", out / "steps.png")
    write_atomic(out / "steps.csv", tables.steps_csv(models, compared).encode())
    pictures = ["losses", "steps"]
    if any("depths" in measured for measured in models.values()):
        figures.depths(models, compared, headline, out / "depths.png")
        pictures.append("depths")
    if any("breadth" in measured for measured in models.values()):
        figures.breadth(models, compared, headline, out / "breadth.png")
        pictures.append("breadth")
    if slotted := {n: c for n, c in curve.items() if any(column.startswith("slot/") for column in c)}:
        figures.slots({n: c for n, c in slotted.items() if n in chapters.PHASES}, out / "slots.png")
        pictures.append("slots")
    if (cell := rendering_of(trace["rendering"]).cell) is not None:
        figures.puzzles(trace, chapters.last_phase(models), _hardest(trace, 3), cell, out / "puzzles.png")
        pictures.append("puzzles")
    if "parallelism" in models["frozen"]:
        figures.parallelism(models, tables.curve_scores(models), out / "parallelism.png")
        pictures.append("parallelism")
    return pictures


def _page(
    models: Mapping[str, Any],
    metrics: Mapping[str, Any],
    trace: Mapping[str, Any],
    content: Sequence[webpage.Chapter],
    origin: Provenance,
) -> webpage.Page:
    """Put together what the page shows of models of tokens."""
    rendering, metric = rendering_of(trace["rendering"]), tables.headline_metric(models)
    right = rendering.solves if "several_solutions" in metrics else is_reference
    played = refinement(trace, chapters.last_phase(models), right, rendering.cell)
    title = chapters.headline(models, metric, metrics["headline"])
    return webpage.Page(origin, title, chapters.bars(models, metric), content, played)


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
