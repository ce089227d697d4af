"""visualise: what deep supervision does in a trained phase, drawn and measured on this machine; and a puzzle as it is solved."""

from pathlib import Path


def run(*, model: str = "outputs/warmup", evaluation: str = "outputs/evaluate", out: str = "outputs/visualise") -> None:
    """Write a page and its diagrams (PNG, SVG), and a GIF of a traced puzzle, with the settings that the phase was trained by.

    Args:
        model: folder that warmup or joint wrote.
        evaluation: folder that evaluate wrote, whose trace is played; where there is none, no GIF is made.
        out: folder to write to.
    """
    from pipeline.reporting import animation, visualising  # bring matplotlib and torch

    print("\n".join(visualising.visualise(Path(model), Path(out))))
    print(animation.animate(Path(evaluation), Path(out) / "puzzle.gif"))
    print(f"visualise: wrote {Path(out) / 'index.html'}")
