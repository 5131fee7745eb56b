"""Stage code: what code and packages each stage depends on, one small file for each stage and item.

DVC runs it every time, since no file tells when a package was upgraded. Other stages depend on its files, and run again
only where those have changed. See avdistill/pipeline/code.py.
"""

from __future__ import annotations

from avdistill.data.files import write_json
from avdistill.pipeline import code
from avdistill.pipeline.stage import ITEMS, Stage


def main(stage: Stage) -> None:
    """Write code/<stage>/<item>.json for every stage of the suite, code/<stage>.json for stages without items."""
    with stage.output() as folder:
        for name, section in ITEMS.items():
            for item in getattr(stage.params, section) if section else [None]:
                path = folder / name / f"{item}.json" if item else folder / f"{name}.json"
                write_json(path, code.describe(name, item, stage.params))
