"""What `python -m bench` runs, and what it leaves out and why. Who adds a bench adds it here, to the one or to the other.

A bench writes rows as JSON. A column whose name has ``_vs_`` is a ratio, of this row's quantity over another's, as
``memory_vs_naive``; the columns in ``Bench.case`` say what a row is of. That is all that collecting takes.
"""

from dataclasses import dataclass

HERE = "docs/performance.md#"


@dataclass(frozen=True)
class Bench:
    """One script of this folder, as the collection runs it.

    Attributes:
        name: of its file.
        case: columns that say what a row is of.
        stated: page and heading where its ratios are claimed.
        quick: options of the quick run; sizes are the documents' as far as seconds allow, rounds are fewer.
        whole: options of the whole run.
        slow: why the quick run leaves it out; "" = it does not.
    """

    name: str
    case: tuple[str, ...]
    stated: str
    quick: str = ""
    whole: str = ""
    slow: str = ""


SUITE = (
    Bench("deep_supervision", ("mode", "vocab", "steps", "supervised"), f"README.md, {HERE}deep-supervision",
          "--vocab 32000 --steps 8 --rounds 1"),
    Bench("cores", ("hidden", "precision", "mode"), f"{HERE}the-recursive-core", "--batch 1 --rounds 2"),
    Bench("selective", ("pass", "refined", "spread"), f"{HERE}selective-refinement", "--rounds 1"),
    Bench("cache", ("phase", "recursion steps"), f"{HERE}the-cache", "--quick"),
    Bench("evaluation", ("models", "rules"), f"{HERE}evaluation", "--pairs 1"),
    Bench("read_depths", ("read", "to"), "docs/evaluation.md#any-number-of-recursion-steps", "--quick"),
    Bench("causal_generation", ("model", "way"), f"{HERE}generation", "--answers 2 --tokens 16 --samples 2", "--samples 3"),
    Bench("approximate_prefix", ("model", "way"), f"{HERE}generation", "--answers 1 --blocks 2", "--answers 2"),
    Bench("waiting", ("beside",), f"{HERE}beside-other-programs",
          slow="in fewer steps the start of a process would hide what threads do"),
    Bench("sharding", ("trained",), "docs/scaling.md#more-than-one-process-can-hold",
          slow="a narrower model is smaller than what its process imports"),
    Bench("store", ("what", "where"), "docs/data.md#in-an-object-store", "--quick"),
    Bench("data", ("what", "sample"), "docs/data.md#speed", "--mib 64 --runs 1", "--mib 256 --runs 2"),
)  # fmt: skip

PEER = "takes a checkout of other code"
TRAINED = "minutes of training over several seeds: scores with intervals, no ratios"
LEFT_OUT = {
    "cores --reference": f"{PEER}, the Tiny Recursive Model's: python -m bench.cores --reference PATH",
    "data --loader": "minutes of training, and its differences are tenths of a percent: python -m bench.data --loader",
    "depth": f"{TRAINED}: python -m bench.depth",
    "draws": f"{TRAINED}: python -m bench.draws",
    "generation": "takes the models of `make repro`, and claims milliseconds: python -m bench.generation",
    "gpu": "takes a GPU; no document has a figure of it yet: python -m bench.gpu",
    "memory": f"{PEER}, an older commit of this: python -m bench.memory --against PATH",
    "overhead": "no document claims a ratio of it: python -m bench.overhead",
    "seeds": f"{TRAINED}: python -m bench.seeds",
    "stage": f"{PEER}, an older commit of this, with finished pipelines: python -m bench.stage --against PATH",
    "sharding --against": f"{PEER}, an older commit of this: python -m bench.sharding --against PATH",
}  # fmt: skip
