"""Format pydantic's validation errors as one line: the key, what is wrong, the nearest valid choice."""

from __future__ import annotations

import re
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ValidationError

from avdistill.config.origins import AnyOrigin
from avdistill.config.schema import Params
from avdistill.pipeline.errors import nearest


def first_problem(error: ValidationError) -> str:
    """Return pydantic's first error as one line: the key, what is wrong, the nearest valid choice."""
    problems = error.errors()
    # A misspelt required key gives two errors, missing and unknown; the latter is more helpful.
    problem = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    location = problem["loc"]
    # pydantic inserts the tag of a discriminated union into the location; it is no key of the file.
    where = [
        str(part)
        for before, part in zip((None, *location), location, strict=False)
        if before != "origin" or part not in _tags()
    ]
    key = ".".join(where)
    kind = problem["type"]
    if kind == "extra_forbidden":
        return f"{key}: unknown key; {nearest(where[-1], _fields_at(problem['loc'][:-1]))}"
    if kind in {"literal_error", "union_tag_invalid"}:
        context = problem["ctx"]
        expected = re.findall(r"'([^']*)'", str(context.get("expected") or context.get("expected_tags")))
        given = context.get("tag", problem["input"])
        return f"{key}: {given!r} is not a valid value; {nearest(given, [c for c in expected if c])}"
    if kind == "missing":
        return f"{key}: missing"
    if kind == "union_tag_not_found":
        return f"{key}.kind: missing; {nearest('', _tags())}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message[0].lower()}{message[1:]} (found {problem['input']!r})"


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """Return the valid keys at a location of params.yaml, by walking the models."""
    model: Any = Params
    for part in location:
        if isinstance(model, type) and issubclass(model, BaseModel):
            if part not in model.model_fields:
                return []
            annotation = model.model_fields[str(part)].annotation
            model = _models_in(annotation)
        elif isinstance(model, list):
            tagged = [m for m in model if "kind" in m.model_fields and part == _tag(m)]
            model = tagged[0] if tagged else (model[0] if len(model) == 1 else model)
    if isinstance(model, list):
        model = model[0] if model else None
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _tags() -> set[str]:
    return {_tag(model) for model in _models_in(AnyOrigin)}


def _tag(model: type[BaseModel]) -> str:
    """Return the `kind` that selects a model of a discriminated union."""
    return str(get_args(model.model_fields["kind"].annotation)[0])


def _models_in(annotation: Any) -> Any:
    """Return the model, or the list of models, in an annotation such as dict[str, Avsynth | Folder]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found: list[Any] = []
    for inner in getattr(annotation, "__args__", ()):
        models = _models_in(inner)
        found += models if isinstance(models, list) else [models]
    if getattr(annotation, "__origin__", None) is Annotated:
        return _models_in(annotation.__origin__)
    return found
