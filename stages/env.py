"""env: what a report of a fault needs to say of machine, versions and settings; no secrets."""

from pathlib import Path


def run() -> None:
    """Print versions, devices, room on the disk and the settings' digest, ready to be pasted."""
    from pipeline import environment  # brings torch

    print(environment.described(Path("params.yaml")))
