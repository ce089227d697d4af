"""Several processes for one stage on this machine, through torch's own launcher; each runs the same command again.

As many as the environment variable SLOTLOOP_PROCESSES says: it changes no result, so it is no setting. Over several machines use
``torchrun`` itself; a stage sees by its environment that it is one of several.
"""

import os
import re
import signal
import sys

from pipeline import process
from pipeline.errors import ConfigError, UserError

PROCESSES = "SLOTLOOP_PROCESSES"
GRACE = 120  # seconds that processes have after SIGTERM, to finish a step and save


def wanted() -> int:
    """Processes to start; 1 within one of several.

    Raises:
        ConfigError: the variable is no number.
    """
    if "RANK" in os.environ:
        return 1
    text = os.environ.get(PROCESSES, "1")
    if not re.fullmatch(r"[1-9]\d{0,3}", text):
        raise ConfigError(f"{PROCESSES} is '{text}'; expected how many processes to start, 1 or more")
    return int(text)


def launch(arguments: list[str], processes: int) -> None:
    """Run ``python -m stages`` with ``arguments`` in several processes, and wait for all.

    Raises:
        UserError: one of them failed: names it; the others were stopped.
        Interrupted: SIGTERM came, and all have saved.
    """
    # Else a store of an earlier, killed attempt can answer, and processes wait for one another for ever (pytorch issue 135712).
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    process.die_with_parent()
    options = ["--standalone", f"--nproc-per-node={processes}", "--max-restarts=0", f"--shutdown-timeout={GRACE}"]
    try:
        main([*options, "-m", "stages", *arguments])
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise process.Interrupted("SIGTERM; run it again to continue") from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        if code == -signal.SIGTERM or code == process.INTERRUPTED:
            raise process.Interrupted("SIGTERM; run it again to continue") from None
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with status {code}"
        raise UserError(f"process {rank} of {processes} {how}, the others were stopped; run it again to continue") from None
    sys.stdout.flush()
