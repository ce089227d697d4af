"""configure: resolves and checks every stage's settings before anything costs."""

from pathlib import Path

from pipeline import config, params, rehearsal
from pipeline.files import write_atomic


def run(*, out: str, stages: tuple[str, ...]) -> None:
    """Write one canonical text per stage; one mistake anywhere and nothing is written.

    Args:
        out: folder of the texts; "" = check only.
        stages: names of the stages to resolve.

    Raises:
        ConfigError: every mistake that was found, one a line.
    """
    texts = config.resolve_all(stages, params.read(Path("params.yaml"), stages))
    models = rehearsal.rehearse(texts)
    for stage, text in texts.items() if out else ():
        write_atomic(Path(out) / f"{stage}.gin", text.encode())
    print(f"configure: {len(texts)} stages resolved, checked and built on shapes; parameters to train: {rehearsal.sizes(models)}")
