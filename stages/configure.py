"""configure: resolves and checks every stage's settings before anything costs."""

from pathlib import Path

from pipeline import config
from pipeline.errors import ConfigError
from pipeline.files import write_atomic
from pipeline.params import read_params


def run(*, out: str, stages: tuple[str, ...]) -> None:
    """Write one canonical text per stage; one mistake anywhere and nothing is written.

    Args:
        out: folder of the texts.
        stages: names of the stages to resolve.

    Raises:
        ConfigError: every mistake that was found, one a line.
    """
    params = read_params(Path("params.yaml"), stages)
    texts, errors = {}, []
    for stage in stages:
        try:
            texts[stage] = config.resolve(stage, params)
        except ConfigError as error:
            errors.append(str(error))
    if not errors:
        errors = [f"{b.origin}: no stage uses '{b.key}'" for b in config.unused_common(params, texts.values())]
    if errors:
        raise ConfigError("\n       ".join(dict.fromkeys(errors)))
    for stage, text in texts.items():
        write_atomic(Path(out) / f"{stage}.gin", text.encode())
    print(f"configure: {len(texts)} stages resolved and checked")
