"""Tables of the report: a row a model, means with 95 % intervals."""

from collections.abc import Mapping, Sequence
from itertools import product, zip_longest
from typing import Any

from components.inference.parallelism import PLAIN
from pipeline.reporting.intervals import compares_exact
from pipeline.reporting.markdown import bold_if_clear, cell, markdown, with_unit

CHAINS = {  # phases that a model was trained by, one after the other
    "frozen": [], "warmup": ["warmup"], "joint": ["warmup", "joint"], "finetune": ["warmup", "joint", "finetune"],
    "control_backbone": ["control_backbone"], "control_lora": ["control_lora"], "control_adapter": ["control_adapter"],
    "control_warmup": ["warmup", "control_warmup"], "control_refiner_lora": ["warmup", "control_refiner_lora"],
}  # fmt: skip
METRICS = {"exact": "exact", "token_accuracy": "token accuracy", "nll": "nll"}
ANY = "any solution"  # the share of examples with any of their right answers, where some have several


def headline_metric(models: Mapping[str, Any]) -> str:
    """Name the metric that models are compared by: exact where any model gets answers exactly right, else nll."""
    return "exact" if compares_exact(measured["exact"]["mean"] for measured in models.values()) else "nll"


def results(models: Mapping[str, Any], measures: Sequence[str], trained: Mapping[str, Mapping[str, Any]]) -> str:
    """One row a model: what it costs beside the frozen backbone, then each measure's metrics with 95 % intervals.

    Args:
        models: metrics of each model.
        measures: names.
        trained: ``metrics.json`` of each phase, with ``cache_bytes``, the states that it read.
    """
    exact = {m: compares_exact(measured[m]["exact"]["mean"] for measured in models.values()) for m in measures}
    header = ["model", "training TFLOP", "trained parameters", "FLOPs an answer", "cache bytes"]
    for measure in measures:
        header += [f"{measure} exact"] if exact[measure] else []
        header += [f"{measure} {ANY}"] if "solved" in models["frozen"][measure] else []
        header += [f"{measure} nll", f"{measure} tokens right"]
    rows = []
    for name, measured in models.items():
        row = [name, *_costs(name, measured, trained)]
        for measure in measures:
            values = measured[measure]
            row += [cell(values["exact"])] if exact[measure] else []
            row += [cell(values["solved"])] if "solved" in values else []
            row += [cell(values["nll"]), cell(values["token_accuracy"])]
        rows.append(row)
    return markdown([header, *rows])


def _costs(name: str, measured: Mapping[str, Any], trained: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Training compute on top of the frozen backbone's, in 10^12 floating-point operations, with that of a search for the learning
    rate; parameters that the last phase trained; operations of an answer; and what was stored for training.
    """
    chain = [trained[phase] for phase in CHAINS[name]]
    compute = sum(phase["flops"] for phase in chain)
    searched = sum(phase.get("search_flops", phase["flops"]) for phase in chain)
    text = f"{compute / 1e12:.2f}" + (f" ({searched / 1e12:.2f} with search)" if searched != compute else "")
    parameters = chain[-1]["parameters"]["trainable"] if chain else 0
    cached = max((phase["cache_bytes"] for phase in chain), default=0)
    return [text, f"{parameters:,}", with_unit(measured["flops_per_answer"]), with_unit(cached)]


def rates(searched: Mapping[str, Mapping[str, Any]]) -> str:
    """A row a phase: the best validation loss with each multiplier of its learning rate, the chosen one bold."""
    multipliers = sorted({trial["rate"] for metrics in searched.values() for trial in metrics["rates"]})
    rows = [["model", *(f"x {rate:g}" for rate in multipliers), "TFLOP of all"]]
    for name, metrics in searched.items():
        losses = {trial["rate"]: _loss(trial["best_loss"]) for trial in metrics["rates"]}
        losses[metrics["rate"]] = f"**{losses[metrics['rate']]}**"
        rows.append([name, *(losses.get(rate, "") for rate in multipliers), f"{metrics['search_flops'] / 1e12:.2f}"])
    return markdown(rows)


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def decodes(models: Mapping[str, Any]) -> str:
    """Whole answers decoded in several passes, the most certain tokens first."""
    entries = [
        (name, key) for name, value in models["frozen"].items() if isinstance(value, dict) for key in value if "decode_" in key
    ]
    if not entries:
        return "None was asked for.\n"
    header = ["model"]
    for name, key in entries:
        passes = f"{name}, {key.removeprefix('decode_')} passes"
        solved = [f"{passes}: {ANY}"] if "solved" in models["frozen"][name][key] else []
        header += [f"{passes}: exact", *solved, f"{passes}: tokens right", f"{passes}: FLOPs an answer"]
    rows = [header]
    for model, measured in models.items():
        values = [measured[name][key] for name, key in entries]
        row = [model]
        for value in values:
            row += [cell(value[key]) for key in ("exact", "solved", "token_accuracy") if key in value]
            row += [with_unit(value["flops_per_answer"])]
        rows.append(row)
    return markdown(rows)


def several_solutions(by_split: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Say of each split that has examples of several right answers how many, and how they are judged.

    >>> several_solutions({"public": {"several": 124, "of": 500}})[0][:60]
    '124 of the 500 puzzles of public have more than one solution'
    """
    return [
        f"{counts['several']} of the {counts['of']} puzzles of {split} have more than one solution: exact counts the listed one, "
        f"'{ANY}' any that keeps clues and rules."
        for split, counts in by_split.items()
    ]


def differences(pairs: Mapping[str, Any], measures: Sequence[str]) -> str:
    """Paired differences with 95 % intervals; bold where the interval is clear of zero."""
    rows = [["difference", *(f"{m} {METRICS[k]}" for m in measures for k in ("exact", "nll"))]]
    for pair, by_measure in pairs.items():
        values = [by_measure[m][k] for m in measures for k in ("exact", "nll")]
        rows.append([pair, *map(bold_if_clear, values)])
    return markdown(rows)


def answers(models: Mapping[str, Any]) -> str:
    """Share of generated answers that are right by each pattern, the paired difference from the frozen backbone, lm-evaluation-
    harness's exact match by each of its filters, and the cost.
    """
    patterns, published = (sorted(models["frozen"]["answers"][key]) for key in ("minus_frozen", "exact_match"))
    compared = [title for p in patterns for title in (p, f"{p} - frozen")]
    rows = [["model", *compared, *(f"exact match, {name}" for name in published), "function evaluations"]]
    for name, measured in models.items():
        values = measured["answers"]
        shares = [text for p in patterns for text in (cell(values[p]), bold_if_clear(values["minus_frozen"][p]))]
        shares += [cell(values["exact_match"][p]) for p in published]
        rows.append([name, *shares, f"{values['function_evaluations']['mean']:g} x {values['recursion_steps']}"])
    return markdown(rows)


def likelihood(models: Mapping[str, Any]) -> str:
    """Nats of whole answers, their paired difference from the frozen backbone, and the mean after each recursion step."""
    rows = [["model", "nats an answer", "nats a token", "nats an answer - frozen", "after each step"]]
    for name, measured in models.items():
        values = measured["likelihood"]
        other = values["minus_frozen"]
        rows.append([
            name, f"{cell(values['answer_nll'])} ± {values['standard_error']:.3f}", cell(values["answer_nll_per_token"]),
            f"{bold_if_clear(other['answer_nll'])} ± {other['standard_error']:.3f}",
            ", ".join(f"{v['mean']:.2f}" for v in values["answer_nll_by_step"]),
        ])  # fmt: skip
    return markdown(rows)


def curve_scores(models: Mapping[str, Any]) -> list[str]:
    """Name the scores that curves over parallelism are shown by; exact answers where any model gets some at any point."""
    curves = [curve for measured in models.values() for curve in measured["parallelism"].values()]
    exact = [point["exact"]["mean"] for curve in curves for point in curve["points"].values()]
    return [score for score in sorted(curves[0]["aup"]) if score != "exact" or compares_exact(exact)]


def parallelism(models: Mapping[str, Any]) -> str:
    """By score, each model's and sampler's answers in every number of passes, and the area under the curve; where there are several
    samplers, what the others differ by from the plain one.
    """
    curves = models["frozen"]["parallelism"]
    others = sorted(name for name in curves if name != PLAIN)
    points = {passes: curves[PLAIN]["points"][passes] for passes in sorted(curves[PLAIN]["points"], key=int)}
    titles = [
        f"{passes} {'pass' if passes == '1' else 'passes'}, {point['tokens_per_pass']['mean']:.3g} tokens each"
        for passes, point in points.items()
    ]
    parts = []
    for score in curve_scores(models):
        label = METRICS.get(score, score)
        rows = [["model", "sampler", *titles, "AUP", "AUP - frozen", *(["AUP - plain"] if others else [])]]
        apart = [["difference", *titles]]
        for (name, measured), sampler in product(models.items(), [PLAIN, *others]):
            curve = measured["parallelism"][sampler]
            values = [curve["points"][passes][score] for passes in points]
            rows.append(
                [name, sampler, *map(cell, values), cell(curve["aup"][score]), bold_if_clear(curve["aup_minus_frozen"][score])]
            )
            if others:
                rows[-1].append("" if sampler == PLAIN else bold_if_clear(curve["aup_minus_plain"][score]))
            if sampler != PLAIN:
                differing = [bold_if_clear(curve["points"][passes]["minus_plain"][score]) for passes in points]
                apart.append([f"{name}: {sampler} - plain", *differing])
        parts += [f"*{label}*\n\n{markdown(rows)}", *([f"*{label}, paired*\n\n{markdown(apart)}"] if others else [])]
    return "\n".join(parts)


def forgetting(models: Mapping[str, Any]) -> str:
    """What each model says of hidden tokens of prompts, and the paired difference from the frozen backbone."""
    rows = [["model", "nll", "nll - frozen", "tokens right"]]
    for name, measured in models.items():
        values = measured["forgetting"]
        lost = bold_if_clear(values["minus_frozen"]["prompt_nll"])
        rows.append([name, cell(values["prompt_nll"]), lost, cell(values["prompt_token_accuracy"])])
    return markdown(rows)


def difficulty(models: Mapping[str, Any]) -> str:
    """Exact answers of each model, a row a band of clues, rounds or guesses."""
    rows = [["of the puzzle", "n", *models]]
    for kind, bands in models["frozen"]["by_difficulty"].items():
        for band, value in bands.items():
            own = [cell(measured["by_difficulty"][kind][band]) for measured in models.values()]
            rows.append([f"{band} {kind}", str(value["n"]), *own])
    return markdown(rows)


def halting(models: Mapping[str, Any]) -> str:
    """The headline measure when every example leaves the recursion as soon as a rule says so, beside all steps."""
    rows = [["model", "rule", "mean steps", "exact", "nll"]]
    for name, measured in models.items():
        if not measured.get("halting"):
            continue
        steps = str(len(measured["nll_by_step"]))
        rows.append([name, "all steps", steps, cell(measured["exact"]), cell(measured["nll"])])
        for rule, value in measured["halting"].items():
            rows.append([name, rule, cell(value["steps"]), cell(value["exact"]), cell(value["nll"])])
    return markdown(rows) if len(rows) > 1 else "No model takes several steps, or no rule was asked for.\n"


def steps(models: Mapping[str, Any]) -> str:
    """The headline measure after each recursion step."""
    longest = max(len(measured["nll_by_step"]) for measured in models.values())
    rows = [["model", "metric", *(f"step {i + 1}" for i in range(longest))]]
    for name, measured in models.items():
        for key, label in METRICS.items():
            values = measured[f"{key}_by_step"]
            rows.append([name, label, *(f"{v['mean']:.3f}" for v in values), *([""] * (longest - len(values)))])
    return markdown(rows)


def depths(models: Mapping[str, Any]) -> str:
    """The headline measure after any number of recursion steps, the trained one bold; what each costs and still changes."""
    header = ["model", "steps", *METRICS.values(), "exact - trained", "nll - trained", "change of state", "FLOPs an answer"]
    rows = [header]
    for name, measured in models.items():
        for at in measured.get("depths", ()):
            steps = f"**{at['steps']}**" if at["trained"] else str(at["steps"])
            apart = ["" if at["trained"] else bold_if_clear(at["minus_trained"][key]) for key in ("exact", "nll")]
            change = f"{at['change']['mean']:.4f}" if "change" in at else ""
            rows.append([name, steps, *(cell(at[key]) for key in METRICS), *apart, change, with_unit(at["flops_per_answer"])])
    return markdown(rows)


def breadth(models: Mapping[str, Any]) -> str:
    """The headline measure with every number of restarts by each rule, and the paired difference from one recursion."""
    rows = [["model", "chosen by", "restarts", *METRICS.values(), "exact - one", "nll - one", "FLOPs an answer"]]
    for name, measured in models.items():
        for rule, at in ((rule, at) for rule, curve in measured.get("breadth", {}).items() for at in curve):
            apart = ["" if at["restarts"] == 1 else bold_if_clear(at["minus_one"][key]) for key in ("exact", "nll")]
            cells = [*(cell(at[key]) for key in METRICS), *apart, with_unit(at["flops_per_answer"])]
            rows.append([name, rule, str(at["restarts"]), *cells])
    return markdown(rows)


def steps_csv(models: Mapping[str, Any], metric: str) -> str:
    """A row per recursion step with a column per refined model, for `dvc plots`."""
    columns = {name: [v["mean"] for v in measured[f"{metric}_by_step"]] for name, measured in models.items()}
    refined = {name: values for name, values in columns.items() if len(values) > 1}
    rows = zip_longest(*refined.values(), fillvalue="")
    lines = [",".join(["step", *refined]), *(",".join([str(i), *map(str, row)]) for i, row in enumerate(rows, 1))]
    return "\n".join(lines) + "\n"
