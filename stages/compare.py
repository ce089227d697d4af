"""compare: one page that lays finished runs side by side: folders, commits or experiments."""

from pathlib import Path


def run(*runs: str, out: str = "outputs/compare") -> None:
    """Write a page that compares runs with the first of them, and print what can be said of each other one.

    Args:
        runs: two or more, each a folder (. is this one), a git revision or the name of an experiment.
        out: folder of the page.
    """
    from pipeline.reporting import comparison  # brings matplotlib, torch and DVC

    print("\n".join(comparison.compare(runs, Path(out))))
    print(f"compare: wrote {Path(out) / 'index.html'}")
