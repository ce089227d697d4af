"""Ways to decode puzzles, what they solve and what they cost: `python -m bench.generation [--split NAME] [--quick] [--json PATH]`.

Over the models in outputs/joint and data/backbone (`dvc repro joint`). Solved: mean and 95 % interval over groups. Evaluations:
runs of the model a puzzle, also those of the backbone alone.
"""

import json as encoder
import time
from functools import partial
from pathlib import Path

import fire
import torch

from components.inference import halting
from components.inference.approximate_prefix import approximate_prefix, approximate_surroundings
from components.inference.metrics import SHARE, interval
from components.inference.sampling import Sampler
from pipeline.corpora.prepared import Prepared, Split
from pipeline.inference.generation import Generator
from pipeline.machine.runtime import Runtime
from pipeline.reporting.markdown import cell, markdown
from pipeline.text.rendering import rendering_of

WAYS = {
    "backbone, every cell a pass": ("data/backbone", {}),
    "one pass": ("outputs/joint", {"sampler": Sampler(steps=1)}),
    "every cell a pass": ("outputs/joint", {}),
    "2 passes": ("outputs/joint", {"sampler": Sampler(steps=2)}),
    "2 passes, the last one refined": ("outputs/joint", {"sampler": Sampler(steps=2), "refined_passes": 1}),
    "2 passes, none refined": ("outputs/joint", {"sampler": Sampler(steps=2), "refined_passes": 0}),
    "threshold .9": ("outputs/joint", {"sampler": Sampler(threshold=0.9)}),
    "threshold .9, the last pass refined": ("outputs/joint", {"sampler": Sampler(threshold=0.9), "refined_passes": 1}),
    "threshold .9, halting": ("outputs/joint", {"sampler": Sampler(threshold=0.9), "halt": halting.by_probability}),
    "threshold .9, guidance 1": ("outputs/joint", {"sampler": Sampler(threshold=0.9, guidance=1.0)}),
    "4 blocks, every cell a pass": ("outputs/joint", {"sampler": Sampler(blocks=4)}),
    "4 blocks, every cell a pass, approximate prefix": (
        "outputs/joint",
        {"sampler": Sampler(blocks=4), "prefix": approximate_prefix},
    ),
    "4 blocks, every cell a pass, approximate surroundings": (
        "outputs/joint",
        {"sampler": Sampler(blocks=4), "prefix": approximate_surroundings},
    ),
    "every cell a pass, temperature 1": ("outputs/joint", {"sampler": Sampler(temperature=1.0)}),
}


def measure(generator: Generator, split: Split, prepared: Prepared) -> dict:
    """Solved, evaluations a puzzle, and microseconds a puzzle."""
    render, mask_id = (
        rendering_of(prepared.vocabulary.rendering).renderer(prepared.vocabulary, prepared.folder),
        prepared.vocabulary.mask_id,
    )
    prompts = [render(row) for row in torch.where(split.response, mask_id, split.tokens).tolist()]
    started = time.process_time()
    answers = generator(prompts)
    seconds = time.process_time() - started
    pairs = zip(answers, split.tokens.tolist(), strict=True)
    solved = torch.tensor([answer.text == render(row) for answer, row in pairs], dtype=torch.float64)
    found = interval(solved, torch.ones_like(solved), split.group, generator=torch.Generator().manual_seed(0), bounds=SHARE)
    evaluations = sum(answer.evaluations for answer in answers) / len(answers)
    return {"solved": found, "evaluations": evaluations, "ms": 1e3 * seconds / len(answers)}


def main(split: str = "test_5", root: str = ".", quick: bool = False, json: str = "") -> None:
    """Decode SPLIT of ROOT's prepared puzzles in every way; --quick takes 20 puzzles."""
    prepared = Prepared(Path(root) / "data/prepared")
    puzzles = prepared.split(split)
    puzzles = puzzles.take(slice(0, 20)) if quick else puzzles
    given = {"backbone": f"{root}/data/backbone", "prepared": f"{root}/data/prepared", "runtime": Runtime(threads=1)}
    make = partial(Generator, batch_size=200, **given)
    rows = [
        {"way": name, **measure(make(f"{root}/{model}", **settings), puzzles, prepared)} for name, (model, settings) in WAYS.items()
    ]
    shown = [[row["way"], cell(row["solved"]), f"{row['evaluations']:.1f}", f"{row['ms']:.1f}"] for row in rows]
    print(markdown([["way", "solved", "evaluations", "processor ms a puzzle"], *shown]))
    if json:
        Path(json).write_text(encoder.dumps(rows))


if __name__ == "__main__":
    fire.Fire(main)
