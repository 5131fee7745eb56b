"""Print which effects the claims of an evaluated suite could find with other numbers of seeds.

    python -m avdistill.reporting.power PARAMS

Reads the outputs of stage evaluate and writes no files.
"""

from __future__ import annotations

import sys

import numpy as np

from avdistill.config.loading import load
from avdistill.config.schema import Params
from avdistill.pipeline.errors import UserError
from avdistill.reporting.claims import find, level_of
from avdistill.reporting.page import EMPTY, signed
from avdistill.reporting.suite import EvaluatedSuite
from avdistill.reporting.two_way import UNLIMITED

SEEDS = (3, 5, 8, 12, 20)


def power(params: Params) -> str:
    """Return a table as text: one row per claim, in points.

    `here` is the measured contrast with half of its 95 % interval, `sd` are the standard deviations of its effects
    (two_way.py), and `3` to `20` the smallest effect that so many seeds find with a probability of 80 %, at the level
    0.05 / number of tested claims; `clips` that of any number of seeds. Raises UserError if no job is evaluated, or the
    suite has no claims."""
    claims = params.report.claims
    if not claims:
        raise UserError(f"{params.suite.file}: report.claims: the suite has no claims; expected at least one")
    suite = EvaluatedSuite(params)
    found = {name: find(suite, entry) for name, entry in claims.items()}
    level = level_of(found.values())
    heads = ["claim", "metric", "here", "±", "seeds", "groups", "sd seed", "sd group", "sd residual"]
    lines = [[*heads, *map(str, SEEDS), "clips"]]
    for name, finding in found.items():
        line = [name, claims[name].metric]
        if finding is None:
            lines.append([*line, "not measured"])
            continue
        contrast = finding.contrast
        numbers = [contrast.interval().half, *np.sqrt([contrast.seed, contrast.group, contrast.residual])]
        numbers += [contrast.smallest_effect(level, seeds) for seeds in (*SEEDS, UNLIMITED)]
        half, *others = [EMPTY if np.isnan(number) else f"{number:.1f}" for number in numbers]
        lines.append([*line, signed(contrast.mean), half, str(contrast.seeds), str(contrast.groups), *others])
    widths = [max(len(line[column]) for line in lines if column < len(line)) for column in range(len(lines[0]))]
    text = ["  ".join(word.rjust(width) for word, width in zip(line, widths, strict=False)) for line in lines]
    if suite.draws > 1:
        text.append(f"Intervals cover {suite.coverage()}.")
    return "\n".join(text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m avdistill.reporting.power PARAMS")
    try:
        print(power(load(sys.argv[1])))
    except UserError as error:
        sys.exit(f"error: {error}")
