"""Stage code: write the code and packages that each stage depends on, one small file per stage and item.

DVC runs this stage every time, because no file changes when a package is upgraded. The other stages depend on its files
and run only if these have changed. See avdistill/pipeline/code.py.
"""

from __future__ import annotations

from avdistill.config.items import ITEMS
from avdistill.data.files import write_json
from avdistill.pipeline import code
from avdistill.pipeline.stage import Stage


def main(stage: Stage) -> None:
    """Write code/<stage>/<item>.json for every stage and item, and code/<stage>.json for stages without items."""
    with stage.output() as folder:
        for name, section in ITEMS.items():
            for item in getattr(stage.params, section) if section else [None]:
                write_json(code.file_of(folder, name, item), code.describe(name, item, stage.params))
