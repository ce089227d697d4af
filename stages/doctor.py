"""doctor: names what is wrong with a run, with the numbers that say so and the setting that mends it."""

from pathlib import Path


def run(*folders: str) -> None:
    """Print a line for each symptom of a run; ends with status 3 if there is one (docs/doctor.md lists them).

    Args:
        folders: a workspace or the folder of a phase, whether its run has ended or goes on; default: here.
    """
    from pipeline.diagnosis import diagnosis, recorded
    from pipeline.errors import ConfigError, Unhealthy

    if len(folders) > 1:
        raise ConfigError(f"doctor looks at one folder, got {len(folders)}: {' '.join(folders)}")
    runs, evaluation = recorded.workspace(Path(*folders))
    findings = diagnosis.of_all(runs, evaluation)
    print(diagnosis.as_text(findings, runs))
    if findings:
        raise Unhealthy(f"{len(findings)} of what docs/doctor.md lists; each line above ends with its mend")
