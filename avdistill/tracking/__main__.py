"""Command line: python -m avdistill.tracking sync PARAMS... | mirror FOLDER."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from avdistill.config.loading import load
from avdistill.pipeline.errors import UserError, redact
from avdistill.pipeline.processes import ensure_user
from avdistill.tracking.mirror import mirror, sync
from avdistill.tracking.shared import tracking_uri


def _main(arguments: list[str]) -> None:
    match arguments:
        case ["mirror", folder]:
            os.nice(10)  # stages take priority
            mirror(Path(folder))
        case ["sync", first, *others]:
            failed = False
            for file in [first, *others]:
                try:
                    sent = sync(load(file))
                    done = f"{sent.events} events sent, {sent.completed} runs completed"
                    print(f"{file}: {done} in {redact(tracking_uri())}")
                except UserError as error:
                    print(f"error: {error}", file=sys.stderr)
                    failed = True
            sys.exit(failed)
        case _:
            sys.exit("usage: python -m avdistill.tracking sync PARAMS... | mirror FOLDER")


if __name__ == "__main__":
    ensure_user()
    _main(sys.argv[1:])
