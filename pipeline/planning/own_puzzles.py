"""Grid puzzles of one's own, as a preset: a small model from scratch, of the sizes of the shipped preset for grids of that size."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.corpora.sudoku import BOXES
from pipeline.errors import ConfigError, DataError
from pipeline.planning.preset_text import PresetText
from pipeline.planning.proposed_sizes import power_of_two, quantile, test_share, validation_share
from pipeline.settings.effective import Source
from pipeline.text.jsonl import held_out
from pipeline.text.puzzle_files import PuzzleFile, PuzzleFiles
from pipeline.text.puzzle_lines import PuzzleLine, puzzle_lines
from pipeline.text.raw_files import raw_name
from pipeline.text.survey import format_of

LEARNED, TESTED = 40_000, 600  # puzzles of a file that are used at most, drawn by the seed, as the shipped presets have
CORPUS = "puzzle_files.PuzzleFiles"
SIZES: Mapping[int, Mapping[str, object]] = {  # of sudoku4, sudoku6 and sudoku9
    4: {"LAYERS": 2, "BACKBONE_STEPS": 400, "WARMUP_STEPS": 650, "WARMUP_LR": 4e-3, "JOINT_STEPS": 300, "JOINT_LR": 2e-3,
        "VALIDATE_EVERY": 150, "DRAWS": 2, "RECURSION_STEPS": 4, "STATE_DTYPE": "fp32", "masking.often_full.full": 0.5},
    6: {"LAYERS": 3, "BACKBONE_STEPS": 1000, "WARMUP_STEPS": 1000, "WARMUP_LR": 3e-3, "JOINT_STEPS": 300, "JOINT_LR": 1.5e-3,
        "VALIDATE_EVERY": 250, "DRAWS": 2, "RECURSION_STEPS": 6, "STATE_DTYPE": "bf16", "masking.often_full.full": 0.3},
    9: {"LAYERS": 3, "BACKBONE_STEPS": 1000, "WARMUP_STEPS": 3000, "WARMUP_LR": 6e-3, "JOINT_STEPS": 400, "JOINT_LR": 3e-3,
        "VALIDATE_EVERY": 250, "DRAWS": 1, "RECURSION_STEPS": 6, "STATE_DTYPE": "bf16", "masking.often_full.full": 0.3,
        "POSITIONS": Source("@positions.Grid()"), "objective.Objective.lead": Source("@lead.RandomLead()"),
        "OPTIMIZER": Source("@optim.muon")},
}  # fmt: skip
WIDEST = {4: 128, 6: 128, 9: 64}  # puzzles of a step


@dataclass(frozen=True)
class OwnPuzzles:
    """Puzzles that a preset is proposed for.

    Attributes:
        corpus: as they are read.
        learned: puzzles of the training file that no split holds out.
        tested: puzzles of the test split.
        seen: what was seen, in lines for a person.
    """

    corpus: PuzzleFiles
    learned: int
    tested: int
    seen: Sequence[str]

    @property
    def batch(self) -> int:
        """Examples of a step that the rule proposes: as the shipped preset, a quarter of the puzzles at most."""
        return min(WIDEST[self.corpus.size], power_of_two(self.learned / 4))

    def preset(self, batch: int, made_by: str) -> PresetText:
        """Write the preset, for steps of ``batch`` puzzles."""
        corpus, size = self.corpus, self.corpus.size
        over = f"sudoku{size}"
        header = [
            f"Puzzles of {Path(corpus.train).name!r}, {size}x{size}: about {self.learned:,} to learn from, {self.tested:,} to "
            "test; a small model from scratch. Headline: exact test puzzles in one parallel decode.",
            f"Made by: python -m stages new {made_by}",
            f"Run: dvc exp run -S preset={made_by.split()[0]}. Result: not run yet. Sizes and learning rates are those of {over}, "
            f"which was measured on generated puzzles. Commonly overridden: BACKBONE_STEPS, WARMUP_STEPS, DIM, {CORPUS}.limits.",
        ]
        names = ("train", "test", "validation", "download", "size", "limits", "several")
        fixed: dict[str, object] = {"CORPUS": Source(f"@{CORPUS}()")}
        fixed |= {f"{CORPUS}.{name}": getattr(corpus, name) for name in names}
        fixed |= {"DIM": 64, "HEADS": 4, "BACKBONE_LR": 3e-3, "TAIL_LR": 1e-3, "MASKING": Source("@masking.often_full")}
        fixed |= {"MEASURES": {"test": ("test", 1.0)}, "DECODES": {"test": ("test", 8, 1, TESTED)}, "HEADLINE": "test"}
        fixed |= {"BATCH": batch, "BACKBONE_BATCH": batch, "EVALUATION_BATCH": 200}
        imports = ["components.objective.masking", "pipeline.text.puzzle_files"]
        if size == 9:
            objective = ["components.objective.lead", "components.objective.objective"]
            imports += [*objective, "components.backbones.positions", "components.training.optim"]
        return PresetText(header, imports, "defaults", [*fixed.items(), *SIZES[size].items()])


def grid_size(path: Path) -> int | None:
    """Tell the size of the grid that a file's first line holds; None where it holds none."""
    for size in BOXES:
        try:
            return None if next(puzzle_lines(path, size), None) is None else size
        except DataError:
            continue
    return None


def own_puzzles(train: Path, test: Path | None, size: int) -> OwnPuzzles:
    """Look at puzzles, and propose how they are read.

    Args:
        train: training file.
        test: test file; None = a share of the training file.
        size: of a grid.

    Raises:
        ConfigError: the test file holds no grids of this size.
        DataError: a line is no puzzle, or there are too few.
    """
    if test is not None and grid_size(test) != size:
        raise ConfigError(f"{train} holds puzzles of {size}x{size} cells, and {test} does not; expected the same in both")
    files = {path: PuzzleFile(raw_name(path), "").lines(size, 0) for path in (train, test) if path is not None}
    seen = [_in_words(path, lines, size) for path, lines in files.items()]
    lines, limits = files[train], {"train": LEARNED} if len(files[train]) > LEARNED else {}
    keys = [line.solution or line.clues for line in lines]
    share_of_test = 0.5 if test is None else 0.0
    if test is None:
        share_of_test = test_share(keys, lambda key, share: held_out(f"test/{key}", share))
        seen.append(f"splits: {share_of_test:.0%} of the file is the test, by a hash of the solution: no grid is on both sides")
    else:
        limits |= {"test": TESTED} if len(files[test]) > TESTED else {}
        both = len({line.clues for line in lines} & {line.clues for line in files[test]})
        seen.append(f"shared: {both:,} puzzles are in both files; prepare learns from none of them")
    rest = [key for key in keys if not (test is None and held_out(f"test/{key}", share_of_test))]
    validation = validation_share(rest, held_out)
    download = f"(no command is known that makes {train.name!r})"
    corpus = PuzzleFiles(
        raw_name(train),
        raw_name(test) if test else share_of_test,
        download,
        validation,
        size,
        limits=limits or None,
        several="drop",
    )
    learned = sum(not held_out(key, validation) for key in rest)
    tested = len(lines) - len(rest) if test is None else min(len(files[test]), TESTED)
    return OwnPuzzles(corpus, min(learned, LEARNED), tested, seen)


def _in_words(path: Path, lines: Sequence[PuzzleLine], size: int) -> str:
    clues = [size**2 - line.clues.count(".") for line in lines]
    times = Counter(line.clues for line in lines)
    solved = sum(line.solution is not None for line in lines)
    how = "all with solutions" if solved == len(lines) else f"{solved:,} with solutions, which prepare finds for the others"
    suffix = f" ({format_of(path)})" if path.suffix in (".csv", ".parquet", ".jsonl") else ""
    some = f"{min(clues)} to {max(clues)} clues, half {quantile(clues, 0.5)} at most"
    again = f"{len(lines) - len(times):,} stand there before"
    return f"{path}{suffix}: {len(lines):,} puzzles of {size}x{size}, {how}; {some}; {again}"
