"""Metrics made by hand, and the cells of a table."""


def value(mean, half=0.01, n=30):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def model(exact, nll, by_step=(1.0,), decode=None):
    measure = {"exact": value(exact), "nll": value(nll), "token_accuracy": value(0.5), "flops_per_answer": 3_000_000}
    if decode is not None:
        measure["decode_8"] = {"exact": value(decode), "token_accuracy": value(0.5), "flops_per_answer": 24_000_000}
    steps = {f"{k}_by_step": [value(x) for x in by_step] for k in ("nll", "exact", "token_accuracy")}
    return {"test": measure, "exact": value(exact), "nll": value(nll), "flops_per_answer": 3_000_000, **steps}


def curve(first, second, aup, apart=0.0):
    """A model's answers in 2 and in 10 passes by one sampler; half of its intervals' widths is .01, of differences 1."""

    def point(mean, tokens):
        minus = {"exact": value(apart), "token_accuracy": value(0)}
        of_tokens = {"token_accuracy": value(mean), "tokens_per_pass": value(tokens)}
        return {"exact": value(mean / 2), **of_tokens, "revised": value(1.0), "minus_frozen": minus, "minus_plain": minus}

    areas = {"exact": value(aup / 2), "token_accuracy": value(aup)}
    minus = {"exact": value(apart), "token_accuracy": value(0, 1)}
    return {
        "points": {"10": point(second, 1.2), "2": point(first, 6.0)},
        "aup": areas,
        "aup_minus_frozen": minus,
        "aup_minus_plain": minus,
    }


def restart(restarts, exact, half=0.01):
    """So many restarts, of a model whose single recursion has exact .5; ``half``: of the intervals of differences."""
    apart = {"exact": value(exact - 0.5, half), "nll": value(0.1, half)}
    metrics = {"exact": value(exact), "nll": value(0.6), "token_accuracy": value(0.9)}
    return {"restarts": restarts, "steps": 4, **metrics, "minus_one": apart, "flops_per_answer": restarts * 10**6}


def depth(steps, exact, nll, half=0.01, trained=4):
    """Of a model whose trained number has exact .75 and nll .5; ``half``: of the intervals of differences."""
    apart = {"exact": value(exact - 0.75, half), "nll": value(nll - 0.5, half)}
    change = {"change": value(1 / steps)} if steps > 1 else {}
    metrics = {"exact": value(exact), "nll": value(nll), "token_accuracy": value(0.9)}
    return {
        "steps": steps,
        "trained": steps == trained,
        **metrics,
        "minus_trained": apart,
        **change,
        "flops_per_answer": steps * 10**6,
    }


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
