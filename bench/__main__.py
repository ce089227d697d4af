"""Every ratio that this project claims, beside this machine's baseline: `python -m bench [--quick] [--save] [--only NAME,NAME]`.

The benches of `bench/suite.py` run one after another, each in a process of its own; `--quick` takes about five minutes on two
quiet cores. The table says what is compared with what, the ratio here and in the baseline, the one over the other (marked ``OFF``
beyond `baseline.SPREAD`) and where a document claims it. A bench that fails is a row that says why, the others run, and the exit
status is 1. What is left out is named below the table, with the reason. `--baseline F` compares with another file.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import fire

from bench import suite
from bench.baseline import file_of, is_off, read_baseline, write_baseline
from bench.ratios import Ratios, ratios
from bench.suite import Bench
from pipeline.environment import processor
from pipeline.files import write_json
from pipeline.progress import Progress
from pipeline.reporting.markdown import markdown

HEADER = ("bench", "case", "ratio", "here", "baseline", "here / baseline", "stated in")


def main(quick: bool = False, json: str = "", baseline: str = "", save: bool = False, only: Sequence[str] | str = ()) -> None:
    """Print the table.

    Args:
        quick: fewer rounds, and sizes of which the document's takes minutes are smaller; it has a baseline of its own.
        json: file for the table's rows.
        baseline: file of the baseline; "" = this machine's in `bench/baselines`.
        save: write the baseline, if all benches ran.
        only: names of benches, with commas between them.
    """
    names = only.split(",") if isinstance(only, str) else list(only)
    if save and names:
        raise SystemExit("a baseline has all benches: leave out --only or --save")
    benches, mode = chosen(names, quick), "quick" if quick else "whole"
    path = Path(baseline) if baseline else file_of(processor())
    before = read_baseline(path, mode)
    measured, failed = run(benches, quick)
    rows = table(benches, measured, failed, before)
    print(markdown([HEADER, *map(shown, rows)]))
    slow = {bench.name: f"not quick: {bench.slow}" for bench in suite.SUITE if quick and bench.slow and bench not in benches}
    print("\n".join(f"left out: {name}: {reason}" for name, reason in {**slow, **suite.LEFT_OUT}.items()))
    print(f"baseline: {path}" if before else f"no baseline of {mode} runs in {path}: --save writes one, on a quiet machine")
    if json:
        write_json(Path(json), rows)
    if failed:
        raise SystemExit(1)
    if save:
        write_baseline(path, mode, {claim: value for of_bench in measured.values() for claim, value in of_bench.items()})
        print(f"{path} is written")


def chosen(names: Sequence[str], quick: bool) -> Sequence[Bench]:
    """Choose the benches with these names; without names all, of which the quick run leaves out the slow ones.

    Raises:
        SystemExit: there is no such bench.
    """
    known = {bench.name: bench for bench in suite.SUITE}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"--only {unknown[0]}: there is {', '.join(known)}")
    return [known[name] for name in names] or [bench for bench in suite.SUITE if not (quick and bench.slow)]


def run(benches: Sequence[Bench], quick: bool) -> tuple[dict[str, Ratios], dict[str, str]]:
    """Run benches one after another; returns ratios of those that ran, and what the others failed of, by name."""
    measured: dict[str, Ratios] = {}
    failed: dict[str, str] = {}
    with Progress("bench", len(benches), "bench", stream=sys.stdout) as bar:
        for bench in benches:
            began = time.monotonic()
            try:
                measured[bench.name] = ratios(bench, quick)
                what = f"{len(measured[bench.name])} ratios"
            except RuntimeError as error:
                failed[bench.name] = what = f"failed, {error}"
            bar.advance()
            bar.line(f"{bench.name}: {what}, {time.monotonic() - began:.0f} s | {bar.rate()}")
    return measured, failed


def table(
    benches: Sequence[Bench], measured: Mapping[str, Ratios], failed: Mapping[str, str], before: Ratios
) -> list[dict[str, str | float | None]]:
    """Set the ratios beside those of a baseline: a row for each, and one for a bench that failed."""
    rows: list[dict[str, str | float | None]] = []
    for bench in benches:
        if bench.name in failed:
            words = {"bench": bench.name, "case": f"FAILED: {failed[bench.name]}", "stated in": bench.stated}
            rows.append({**dict.fromkeys(HEADER), **words})
            continue
        gone = {claim: None for claim in before if claim.startswith(f"{bench.name}: ")}
        for claim, here in {**gone, **measured[bench.name]}.items():
            there = before.get(claim)
            case, _, ratio = claim.removeprefix(f"{bench.name}: ").rpartition(": ")
            off = here / there if here is not None and there else None
            rows.append(dict(zip(HEADER, (bench.name, case, ratio, here, there, off, bench.stated), strict=True)))
    return rows


def shown(row: Mapping[str, str | float | None]) -> list[str]:
    """Write a row's cells; a ratio that is off its baseline is marked."""
    numbers = {name: "" if value is None else f"{value:.3g}" for name, value in row.items() if not isinstance(value, str)}
    cells = [numbers[name] if name in numbers else str(value).replace("|", "\\|") for name, value in row.items()]
    here, there = row["here"], row["baseline"]
    if isinstance(here, float) and isinstance(there, float) and is_off(here, there):
        cells[HEADER.index("here / baseline")] += " OFF"
    return cells


if __name__ == "__main__":
    fire.Fire(main)
