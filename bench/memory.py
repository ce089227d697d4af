"""Memory and time of intervals, live trunks and checkpoints: `python -m bench.memory [--against PATH] [--quick] [--json PATH]`.

Intervals: a bootstrap over 20,000 groups, and its peak over the 422,786 of the largest test set (the other one's is extrapolated
from 20,000). Trunk: a warmup on live states of 24 layers. Saving: a best checkpoint, all or one of 24 layers trained. Each in a
process of its own, in turn with the checkout at PATH (default: this one), whose interpreter is its own `.venv` if it has one.
Medians over rounds; ratios are medians of the ratios within a round.
"""

import json as js
import statistics
from pathlib import Path

import fire

from bench.checkout import ROOT, run
from pipeline.files import write_json
from pipeline.reporting.markdown import markdown

LARGEST = 422_786  # puzzles of Sudoku-Extreme's test set, each a group
NUMBERS = {"intervals": 20_000, "trunk": 512, "saving": 256, "saving_tail": 256}  # groups, or channels
QUICK = {"intervals": 2_000, "trunk": 64, "saving": 64, "saving_tail": 64}


def probe(checkout: Path, what: str, number: int) -> dict[str, float]:
    """Run one measurement on the code of a checkout."""
    told = run(checkout, what, str(ROOT / "bench/memory_probes.py"), what, str(number))
    measured: dict[str, float] = js.loads(told.splitlines()[-1])
    return measured


def main(against: str = "", rounds: int = 3, quick: bool = False, json: str = "") -> None:
    """Print a table; --quick: small sizes, one round, and no more groups than the bootstrap is timed at."""
    other, numbers, rounds = Path(against or ROOT).resolve(), QUICK if quick else NUMBERS, 1 if quick else rounds
    rows: list[dict[str, str | float]] = []
    for what, number in numbers.items():
        pairs = [(probe(ROOT, what, number), probe(other, what, number)) for _ in range(rounds)]
        ratio = {unit: statistics.median(ours[unit] / theirs[unit] for ours, theirs in pairs) for unit in ("seconds", "bytes")}
        ours = {unit: statistics.median(pair[0][unit] for pair in pairs) for unit in ("seconds", "bytes")}
        ratios = {f"{unit}_vs_other": value for unit, value in ratio.items()}
        rows.append({"what": what, "number": number, **ours, **ratios})
    if not quick:
        theirs = statistics.median(probe(other, "intervals", NUMBERS["intervals"])["bytes"] for _ in range(rounds))
        ours = probe(ROOT, "intervals", LARGEST)
        scaled = theirs * LARGEST / NUMBERS["intervals"]
        rows.append({"what": "intervals, all", "number": LARGEST, **ours, "bytes_vs_other_extrapolated": ours["bytes"] / scaled})
    if json:
        write_json(Path(json), rows)
    table = [["what", "number", "seconds", "of other's", "MB", "of other's"]]
    for row in rows:
        share = row.get("bytes_vs_other", row.get("bytes_vs_other_extrapolated"))
        time = f"{row['seconds_vs_other']:.2f}" if "seconds_vs_other" in row else "-"
        table.append(
            [str(row["what"]), f"{row['number']:,}", f"{row['seconds']:.3f}", time, f"{row['bytes'] / 1e6:.1f}", f"{share:.3f}"]
        )
    print(markdown(table), end="")


if __name__ == "__main__":
    fire.Fire(main)
