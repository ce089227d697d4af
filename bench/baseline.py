"""Ratios of a machine in git: `bench/baselines/<machine>.json`, an entry for each mode ("quick", "whole") with commit and date."""

import datetime
import json
import re
from pathlib import Path
from typing import Any

import torch

from bench.ratios import ROOT, Ratios
from pipeline.files import write_json
from pipeline.tracking.revision import revision

FOLDER = ROOT / "bench/baselines"
SPREAD = 1.25  # by which a ratio may be off, either way: machines are shared


def file_of(processor: str) -> Path:
    """Name the file of a machine by its processor and how many of its cores may be used.

    >>> file_of("AMD EPYC 7763 64-Core Processor, 2 cores, torch's threads 1").name
    'amd-epyc-7763-2.json'
    >>> file_of("Intel(R) Xeon(R) CPU @ 2.20GHz, 8 cores, torch's threads 8").name
    'intel-xeon-8.json'
    """
    model, cores = re.findall(r"(.+), (\d+) cores, ", processor)[0]
    words = re.sub(r"\(\w+\)|\bCPU\b|\bProcessor\b|\S+-Core\b|@.*", " ", model)
    return FOLDER / f"{'-'.join([*re.findall(r'[a-z0-9]+', words.lower()), cores])}.json"


def read_baseline(path: Path, mode: str) -> Ratios:
    """Read the ratios of a mode; none where there is no file, or no run in that mode in it."""
    return json.loads(path.read_text()).get(mode, {}).get("ratios", {}) if path.is_file() else {}


def write_baseline(path: Path, mode: str, ratios: Ratios) -> None:
    """Write the ratios of a mode, with the code, torch and day that they are of; the other mode's stay."""
    before: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    entry = {"commit": commit(), "torch": torch.__version__, "date": f"{datetime.date.today()}", "ratios": ratios}
    write_json(path, {**before, mode: entry})


def commit() -> str:
    """Name the code that runs."""
    code = revision()
    return str(code["revision"]) + " and changes" * code["changed"]


def is_off(here: float, there: float) -> bool:
    """Tell whether two ratios differ by more than the spread.

    >>> is_off(1.0, 1.2), is_off(1.0, 1.3), is_off(1.3, 1.0)
    (False, True, True)
    """
    return not there / SPREAD <= here <= there * SPREAD
