"""``python -m stages STAGE [name.param=value ...] [--flag ...]`` runs one stage; ``--help`` lists the stages."""

import sys

from pipeline.launcher import main
from pipeline.machine import process

if __name__ == "__main__":
    process.leave(main(sys.argv[1:]))
