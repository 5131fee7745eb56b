"""Set a value of a params file, and keep all else in it, comments included.

python -m avdistill.config.editing PARAMS KEY VALUE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml

from avdistill.data.files import write_text
from avdistill.pipeline.errors import UserError, nearest


def replaced(text: str, key: str, value: str) -> str:
    """Return the text of a params file with the text `value` as the scalar at `key` ("teachers.audio.weights").

    Raises UserError unless there is a scalar at `key`."""
    node = yaml.compose(text, yaml.SafeLoader)
    for name in key.split("."):
        entries = {k.value: v for k, v in node.value} if isinstance(node, yaml.MappingNode) else {}
        if name not in entries:
            raise UserError(f"{key}: there is no key '{name}'; {nearest(name, entries)}")
        node = entries[name]
    if not isinstance(node, yaml.ScalarNode):
        raise UserError(f"{key}: expected one value, found several")
    return text[: node.start_mark.index] + json.dumps(value) + text[node.end_mark.index :]


def main(arguments: list[str]) -> None:
    """Set the value; print what was set."""
    if len(arguments) != 3:
        sys.exit("usage: python -m avdistill.config.editing PARAMS KEY VALUE")
    file, key, value = arguments
    try:
        text = Path(file).read_text(encoding="utf-8")
        changed = replaced(text, key, value)
    except (UserError, OSError) as error:
        sys.exit(f"error: {file}: {error}")
    if changed != text:
        write_text(Path(file), changed)
        print(f"{file}: {key}: {value}")


if __name__ == "__main__":
    main(sys.argv[1:])
