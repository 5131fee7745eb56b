"""python -m stages STAGE PARAMS [ITEM]: run a stage, started warm where that is offered (stages/warm.py)."""

import os
import sys

from stages import warm

os.environ.update(warm.threads())
arguments = sys.argv[1:]
if (code := warm.hand_over(arguments)) is not None:
    sys.exit(code)
from stages.stage import run  # noqa: E402 - what it imports takes time

run(arguments)
