"""The report: one readable page (markdown) with the results table, the pictures and what looks unhealthy."""

from collections.abc import Mapping, Sequence
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

from pipeline import curves, figures
from pipeline.concepts import concept_reporting
from pipeline.files import read_json, write_atomic
from pipeline.markdown import cell, markdown

HEAD = """# Results on test

Means with 95 % intervals (bootstrap over independent groups). *nll* is in nats per masked token. `control_backbone` is the
backbone trained on for the compute of warmup and joint; `control_warmup` is warmup simply continued for joint's compute.

"""
CAPTIONS = {
    "losses": "Loss of each recursion step over training (smoothed over 2 % of the steps).",
    "steps": "The headline after each recursion step, with 95 % intervals.",
    "slots": "Slot norms and gates over training.",
    "puzzles": "Traced puzzles on which the frozen backbone errs most, refined step by step: clues bold, right cells green, "
    "wrong cells red, stronger colour = more certain.",
}
METRICS = {"exact": "exact", "token_accuracy": "token accuracy", "nll": "nll"}


def report(out: Path, evaluation: Path, phases: Mapping[str, str]) -> str:
    """Write ``report.md``, ``table.md`` and the pictures into ``out``; returns the table."""
    metrics = read_json(evaluation / "metrics.json", "evaluate")
    trace = read_json(evaluation / "trace.json", "evaluate")
    ordered = sorted(phases, key=["backbone", *figures.MODELS].index)
    trained = {name: read_json(Path(phases[name]) / "metrics.json", name) for name in ordered}
    curve = {name: curves.read(Path(phases[name]) / "curves.csv") for name in ordered if trained[name]["steps"]}
    if trace["rendering"] == "sentences":
        shown = [name for name in figures.MODELS if name in metrics]
        write_atomic(out / "steps.csv", steps_csv(metrics, shown, "cosine").encode())
        return concept_reporting.report(out, metrics, curve)
    models = [name for name in figures.MODELS if name in metrics]
    measures = [name for name, value in metrics["frozen"].items() if isinstance(value, dict) and "nll" in value]
    headline = metrics["headline"]

    figures.losses({n: c for n, c in curve.items() if not n.startswith("control")}, out / "losses.png")
    figures.by_step(metrics, models, _headline_metric(metrics), f"{headline}: after each recursion step", out / "steps.png")
    write_atomic(out / "steps.csv", steps_csv(metrics, models, _headline_metric(metrics)).encode())
    figures.slots({n: c for n, c in curve.items() if n in ("warmup", "joint", "finetune")}, out / "slots.png")
    pictures = ["losses", "steps", "slots"]
    refined = next(name for name in ("finetune", "joint", "warmup") if name in metrics)
    if trace["rendering"] == "sudoku":
        figures.puzzles(trace, refined, _hardest(trace, 3), out / "puzzles.png")
        pictures.append("puzzles")

    table = results_table(metrics, models, measures, trained)
    write_atomic(out / "table.md", table.encode())
    sections = {
        "Differences, paired": f"Bold: the interval is clear of zero.\n\n{differences_table(metrics, measures)}",
        "Whole answers, decoded in several passes": decodes_table(metrics, models),
        **whole_answers(metrics, models),
        **retention(metrics, models),
        "After each recursion step": steps_table(metrics, models),
        "Halting": halting_table(metrics, models),
        "Findings": "".join(f"- {line}\n" for line in findings(metrics, curve, models)),
        "Pictures": "\n\n".join(f"![{CAPTIONS[name]}]({name}.png)\n\n*{CAPTIONS[name]}*" for name in pictures) + "\n",
    }
    page = HEAD + table + "".join(f"\n## {title}\n\n{text}" for title, text in sections.items())
    write_atomic(out / "report.md", page.encode())
    return table


def _hardest(trace: Mapping[str, Any], n: int) -> list[int]:
    """The traced examples on which the frozen backbone errs most, in their own order."""
    errors = []
    for row, (target, hidden) in enumerate(zip(trace["tokens"], trace["response"], strict=True)):
        ids = trace["models"]["frozen"][row][-1]["ids"]
        errors.append((-sum(i != t for i, t, h in zip(ids, target, hidden, strict=True) if h), row))
    return sorted(row for _, row in sorted(errors)[:n])


def _headline_metric(metrics: Mapping[str, Any]) -> str:
    """exact where any model gets answers exactly right, else nll."""
    models = [v for v in metrics.values() if isinstance(v, dict) and "exact" in v]
    return "exact" if max(m["exact"]["mean"] for m in models) >= 0.05 else "nll"


def results_table(
    metrics: Mapping[str, Any], models: Sequence[str], measures: Sequence[str], trained: Mapping[str, Mapping[str, Any]]
) -> str:
    """One row a model: compute spent after the backbone, then each measure's metrics with 95 % intervals."""
    exact = {m: max(metrics[x][m]["exact"]["mean"] for x in models) >= 0.05 for m in measures}
    header = ["model", "training TFLOP"]
    for measure in measures:
        header += [f"{measure} exact"] if exact[measure] else []
        header += [f"{measure} nll", f"{measure} tokens right"]
    rows = []
    for name in models:
        row = [name, _compute(name, trained)]
        for measure in measures:
            values = metrics[name][measure]
            row += [cell(values["exact"])] if exact[measure] else []
            row += [cell(values["nll"]), cell(values["token_accuracy"])]
        rows.append(row)
    return markdown([header, *rows])


def _compute(name: str, trained: Mapping[str, Mapping[str, Any]]) -> str:
    """Training compute on top of the frozen backbone's, in 10^12 floating-point operations."""
    chain = {
        "frozen": [], "warmup": ["warmup"], "joint": ["warmup", "joint"], "finetune": ["warmup", "joint", "finetune"],
        "control_backbone": ["control_backbone"], "control_warmup": ["warmup", "control_warmup"],
    }[name]  # fmt: skip
    return f"{sum(trained[phase]['flops'] for phase in chain) / 1e12:.2f}"


def decodes_table(metrics: Mapping[str, Any], models: Sequence[str]) -> str:
    """Whole answers decoded in several passes, the most certain tokens first."""
    entries = [
        (name, key) for name, value in metrics["frozen"].items() if isinstance(value, dict) for key in value if "decode_" in key
    ]
    header = ["model"]
    for name, key in entries:
        passes = f"{name}, {key.removeprefix('decode_')} passes"
        header += [f"{passes}: exact", f"{passes}: tokens right"]
    rows = [header]
    for model in models:
        values = [metrics[model][name][key] for name, key in entries]
        rows.append([model, *(cell(value[metric]) for value in values for metric in ("exact", "token_accuracy"))])
    return markdown(rows)


def differences_table(metrics: Mapping[str, Any], measures: Sequence[str]) -> str:
    """Paired differences with 95 % intervals; bold where the interval is clear of zero."""
    rows = [["difference", *(f"{m} {METRICS[k]}" for m in measures for k in ("exact", "nll"))]]
    for pair, by_measure in metrics["differences"].items():
        values = [by_measure[m][k] for m in measures for k in ("exact", "nll")]
        rows.append([pair, *map(bold_if_clear, values)])
    return markdown(rows)


def whole_answers(metrics: Mapping[str, Any], models: Sequence[str]) -> dict[str, str]:
    """Sections on generated answers and on the likelihood of whole answers, where they were asked for."""
    found = {}
    if "answers" in metrics["frozen"]:
        passes = "Function evaluations are passes through the model for an answer, times recursion steps in each."
        found["Generated answers"] = (
            f"Share of right results; how they are found: docs/evaluation.md. {passes}\n\n" + answers_table(metrics, models)
        )
    if "likelihood" in metrics["frozen"]:
        bound = "An upper bound on -log p in nats an answer, after ± the standard error of its Monte-Carlo estimate."
        found["Likelihood of whole answers"] = f"{bound}\n\n{likelihood_table(metrics, models)}"
    return found


def retention(metrics: Mapping[str, Any], models: Sequence[str]) -> dict[str, str]:
    """The section on forgetting, where it was looked for."""
    if "retention" not in metrics["frozen"]:
        return {}
    what = (
        "Hidden tokens of prompts, which no phase supervises: a phase that does worse there than the frozen backbone has forgotten."
    )
    return {"What the backbone knew": f"{what}\n\n{retention_table(metrics, models)}"}


def answers_table(metrics: Mapping[str, Any], models: Sequence[str]) -> str:
    """Share of generated answers that are right by each pattern, the paired difference from the frozen backbone, and the cost."""
    patterns = sorted(metrics["frozen"]["answers"]["minus_frozen"])
    rows = [["model", *(title for p in patterns for title in (p, f"{p} - frozen")), "function evaluations"]]
    for name in models:
        found = metrics[name]["answers"]
        shares = [text for p in patterns for text in (cell(found[p]), bold_if_clear(found["minus_frozen"][p]))]
        rows.append([name, *shares, f"{found['function_evaluations']:g} x {found['recursion_steps']}"])
    return markdown(rows)


def likelihood_table(metrics: Mapping[str, Any], models: Sequence[str]) -> str:
    """Nats of whole answers, their paired difference from the frozen backbone, and the mean after each recursion step."""
    rows = [["model", "nats an answer", "nats a token", "nats an answer - frozen", "after each step"]]
    for name in models:
        found = metrics[name]["likelihood"]
        other = found["minus_frozen"]
        rows.append([
            name, f"{cell(found['answer_nll'])} ± {found['standard_error']:.3f}", cell(found["answer_nll_per_token"]),
            f"{bold_if_clear(other['answer_nll'])} ± {other['standard_error']:.3f}",
            ", ".join(f"{v['mean']:.2f}" for v in found["answer_nll_by_step"]),
        ])  # fmt: skip
    return markdown(rows)


def retention_table(metrics: Mapping[str, Any], models: Sequence[str]) -> str:
    """What each model says of hidden tokens of prompts, and the paired difference from the frozen backbone."""
    rows = [["model", "nll", "nll - frozen", "tokens right"]]
    for name in models:
        found = metrics[name]["retention"]
        rows.append(
            [
                name,
                cell(found["prompt_nll"]),
                bold_if_clear(found["minus_frozen"]["prompt_nll"]),
                cell(found["prompt_token_accuracy"]),
            ]
        )
    return markdown(rows)


def bold_if_clear(value: Mapping[str, float]) -> str:
    """A cell, bold where the interval is clear of zero."""
    return f"**{cell(value)}**" if value["low"] > 0 or value["high"] < 0 else cell(value)


def halting_table(metrics: Mapping[str, Any], models: Sequence[str]) -> str:
    """The headline measure when every example leaves the recursion as soon as a rule says so, beside all steps."""
    rows = [["model", "rule", "mean steps", "exact", "nll"]]
    for name in models:
        if not metrics[name].get("halting"):
            continue
        steps = str(len(metrics[name]["nll_by_step"]))
        rows.append([name, "all steps", steps, cell(metrics[name]["exact"]), cell(metrics[name]["nll"])])
        for rule, value in metrics[name]["halting"].items():
            rows.append([name, rule, cell(value["steps"]), cell(value["exact"]), cell(value["nll"])])
    return markdown(rows) if len(rows) > 1 else "No model takes several steps, or no rule was asked for.\n"


def steps_table(metrics: Mapping[str, Any], models: Sequence[str]) -> str:
    """The headline measure after each recursion step."""
    longest = max(len(metrics[name]["nll_by_step"]) for name in models)
    rows = [["model", "metric", *(f"step {i + 1}" for i in range(longest))]]
    for name in models:
        for key, label in METRICS.items():
            values = metrics[name][f"{key}_by_step"]
            rows.append([name, label, *(f"{v['mean']:.3f}" for v in values), *([""] * (longest - len(values)))])
    return markdown(rows)


def steps_csv(metrics: Mapping[str, Any], models: Sequence[str], metric: str) -> str:
    """A row per recursion step with a column per refined model, for `dvc plots`."""
    columns = {name: [v["mean"] for v in metrics[name][f"{metric}_by_step"]] for name in models}
    refined = {name: values for name, values in columns.items() if len(values) > 1}
    rows = zip_longest(*refined.values(), fillvalue="")
    lines = [",".join(["step", *refined]), *(",".join([str(i), *map(str, row)]) for i, row in enumerate(rows, 1))]
    return "\n".join(lines) + "\n"


def findings(metrics: Mapping[str, Any], curve: Mapping[str, figures.Curves], models: Sequence[str]) -> list[str]:
    """What a reader should know before believing the table; each line is computed, good or bad."""
    found = []
    headline = metrics["headline"]
    for pair, by_measure in metrics["differences"].items():
        key = _headline_metric(metrics)
        value = by_measure[headline][key]
        clear = value["low"] > 0 or value["high"] < 0
        better = (value["mean"] > 0) == (key == "exact")
        verdict = ("better" if better else "worse") if clear else "not distinguishable"
        found.append(f"{pair}: {verdict} on {headline} {METRICS[key]} ({cell(value)})")
    for name in models:
        steps = [v["mean"] for v in metrics[name]["nll_by_step"]]
        if len(steps) > 1:
            falling = all(b <= a for a, b in pairwise(steps))
            found.append(f"{name}: nll falls with every recursion step" if falling else f"{name}: more steps are not always better")
    for name in models:
        lost = metrics[name].get("retention", {}).get("minus_frozen", {}).get("prompt_nll", {"low": 0.0})
        if lost["low"] > 0:
            found.append(f"{name}: has forgotten, nll of prompts' tokens is {cell(lost)} above the frozen backbone's")
    for name, columns in curve.items():
        for gate in (k for k in columns if k.startswith("gate/")):
            if not 0.3 <= (value := columns[gate][-1]) <= 0.7:
                becoming = "closing" if value < 0.3 else "taking over"
                found.append(f"{name}: {gate} ends at {value:.2f}, outside 0.3..0.7: this slot is {becoming}")
    return found
