"""python -m stages STAGE PARAMS [ITEM]: run a stage, started warm where that is offered
(avdistill/pipeline/warm.py)."""

import os
import sys

from avdistill.pipeline import warm
from avdistill.pipeline.processes import ensure_user

ensure_user()
os.environ.update(warm.threads())
os.environ["MPLBACKEND"] = "agg"  # a notebook's own is not here
arguments = sys.argv[1:]
if (code := warm.hand_over(arguments)) is not None:
    sys.exit(code)
from avdistill.pipeline.stage import run  # noqa: E402 - what it imports takes time

run(arguments)
