"""Metrics made by hand, and the cells of a table."""


def value(mean, half=0.01, n=30):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def model(exact, nll, by_step=(1.0,), decode=None):
    measure = {"exact": value(exact), "nll": value(nll), "token_accuracy": value(0.5), "flops_per_answer": 3_000_000}
    if decode is not None:
        measure["decode_8"] = {"exact": value(decode), "token_accuracy": value(0.5), "flops_per_answer": 24_000_000}
    steps = {f"{k}_by_step": [value(x) for x in by_step] for k in ("nll", "exact", "token_accuracy")}
    return {"test": measure, "exact": value(exact), "nll": value(nll), "flops_per_answer": 3_000_000, **steps}


def pair(exact, nll, half=0.01):
    return {"test": {"exact": value(exact, half), "nll": value(nll, half), "token_accuracy": value(0, half)}}


def cells(table):
    return [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()]


def retained(models, lost):
    """What is left of what the backbone knew: the refined model is worse by ``lost``."""
    for name, apart in (("frozen", value(0, 0)), ("warmup", value(lost, 0.1))):
        minus = {"prompt_nll": apart, "prompt_token_accuracy": value(0)}
        models[name]["forgetting"] = {"prompt_nll": value(2.0), "prompt_token_accuracy": value(0.5), "minus_frozen": minus}
    return models
