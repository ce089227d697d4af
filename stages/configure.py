"""configure: resolves and checks every stage's settings before anything costs."""

from pathlib import Path

from pipeline import config, params
from pipeline.files import write_atomic


def run(*, out: str, stages: tuple[str, ...]) -> None:
    """Write one canonical text per stage; one mistake anywhere and nothing is written.

    Args:
        out: folder of the texts.
        stages: names of the stages to resolve.

    Raises:
        ConfigError: every mistake that was found, one a line.
    """
    for stage, text in config.resolve_all(stages, params.read(Path("params.yaml"), stages)).items():
        write_atomic(Path(out) / f"{stage}.gin", text.encode())
    print(f"configure: {len(stages)} stages resolved and checked")
