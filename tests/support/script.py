"""Scripts run as ``__main__`` in this process: what they print, without the seconds that another interpreter with torch takes."""

import runpy
import sys

import pytest
import torch
from matplotlib import pyplot


def printed(capsys: pytest.CaptureFixture[str], script: str, *options: str) -> str:
    """What a script prints; what it changes for the whole process is put back.

    Args:
        capsys: pytest's.
        script: a path, or a module's name with dots.
        options: its command line.
    """
    threads, before = torch.get_num_threads(), sys.argv
    deterministic = torch.are_deterministic_algorithms_enabled()
    imported = sys.modules.pop(script, None)  # which runpy would warn of
    capsys.readouterr()
    try:
        sys.argv = [script, *options]
        with torch.random.fork_rng(devices=[]):
            if script.endswith(".py"):
                runpy.run_path(script, run_name="__main__")
            else:
                runpy.run_module(script, run_name="__main__", alter_sys=True)
    finally:
        sys.argv = before
        if imported is not None:
            sys.modules[script] = imported
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        pyplot.close("all")
    told = capsys.readouterr()
    assert not told.err, told.err
    return told.out
