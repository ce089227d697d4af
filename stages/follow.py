"""follow: joins, with this machine's processes, the stages of another machine, one after the other (SLOTLOOP_TORCHRUN)."""


def run() -> None:
    """Run each stage together with the machine where DVC runs, until Ctrl-C or SIGTERM.

    All machines share the folder that it is started in, and the options of torchrun that SLOTLOOP_TORCHRUN holds.
    """
    from pipeline.machine import torchrun

    torchrun.follow()
