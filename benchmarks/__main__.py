"""`python -m benchmarks`: run benchmarks, store their results and write the table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from avdistill.data.files import write_text
from avdistill.pipeline.errors import UserError, nearest
from benchmarks import harness, table

RESULTS = Path("benchmarks/results")
PAGE = Path("docs/benchmarks.md")
QUICK = Path("out/benchmarks")  # where a quick run writes both


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmarks that the command line selects. Raises UserError for a bad option or if a benchmark fails."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["gpu"]:
        from benchmarks.gpu import command

        return command.main(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"Run all benchmarks for this kind of machine; write {RESULTS}/<cpu or gpu>.json and {PAGE}. "
        "`python -m benchmarks gpu --help`: the whole run on a machine with a GPU.",
    )
    parser.add_argument("--quick", action="store_true", help=f"tiny sizes, only to test; results go to {QUICK}")
    parser.add_argument("--only", action="append", metavar="NAME", help="run only this benchmark (may be repeated)")
    parser.add_argument(
        "--suite", action="store_true", help="first run the embedded suite twice, for its rows (half an hour)"
    )
    parser.add_argument(
        "--against",
        metavar="COMMIT",
        help="with --suite: also run the suite of an earlier commit (a quarter of an hour)",
    )
    given = parser.parse_args(arguments)
    if given.against and not given.suite:
        raise UserError("--against: requires --suite")

    import torch

    kind: harness.Kind = "gpu" if torch.cuda.is_available() else "cpu"
    known = harness.declared()
    for name in given.only or ():
        if name not in known:
            raise UserError(f"--only {name}: there is no such benchmark; {nearest(name, known)}")
        if kind not in known[name].goals:
            raise UserError(
                f"--only {name}: runs on {' and '.join(known[name].goals)} machines; this is a {kind} machine"
            )
        if (option := known[name].needs) and not getattr(given, option):
            raise UserError(f"--only {name}: requires --{option}")
    if given.suite:
        from benchmarks.pipeline import run_suite

        run_suite(_log, given.against)
    chosen = [
        one
        for one in known.values()
        if kind in one.goals and one.name in (given.only or known) and (not one.needs or getattr(given, one.needs))
    ]
    results, page = (QUICK, QUICK / PAGE.name) if given.quick else (RESULTS, PAGE)
    rows: dict[str, dict[str, Any]] = {}
    for one in chosen:  # write after each, because a whole run takes long
        rows |= harness.run([one], kind, given.quick, _log)
        harness.keep(results / f"{kind}.json", harness.machine(), rows)
        write_text(page, table.page(known, {kind: harness.read(results / f"{kind}.json") for kind in harness.KINDS}))
    _log(f"written: {results / kind}.json, {page}")
    if failed := [one.name for one in chosen if one.name not in rows]:
        raise UserError(f"{len(failed)} of {len(chosen)} benchmarks failed: {', '.join(failed)}")


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
