"""Ways of distilling, one file each; a file's name is the method's name in params.yaml, and adding one takes no more.

`build` makes a method; its `forward` returns `{term: weighted loss}` and the trainer adds the terms up for one
backward. This holds for methods too whose authors run two optimizers, one for the student and one for a module of
the method's own: the loss of the module alone is computed on *detached* outputs of the student.

Proof. Let the student's loss be S(a, b) and the module's M(a, b), a the student's parameters and b the module's; two
backward passes, in which the student keeps the gradient of S alone and the module that of both, give it dS/da and
dS/db + dM/db. The sum S(a, b) + M(stopgrad a, b) has exactly these derivatives, because the stop removes dM/da and
nothing else; different learning rates are two parameter groups of one optimizer.
"""

from __future__ import annotations

import inspect
import math
import pkgutil
import typing
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from typing import Any

import torch

from models.distillers.base import Distiller, Sizes

__all__ = ["Distiller", "Sizes", "build", "check_options", "methods"]


@cache
def methods() -> dict[str, type[Distiller]]:
    """Every method by name: the `Distiller` that each file of this package defines."""
    found = {}
    for file in pkgutil.iter_modules(__path__):
        for _, kind in inspect.getmembers(import_module(f"{__name__}.{file.name}"), inspect.isclass):
            ours = kind.__module__ == f"{__name__}.{file.name}" and not inspect.isabstract(kind)
            if ours and issubclass(kind, Distiller):
                found[file.name] = kind
    return found


def build(
    name: str,
    *,
    student_dim: int,
    stage_dims: tuple[int, ...],
    teacher_dims: Mapping[str, int],
    classes: int,
    clips: int,
    options: Mapping[str, Any],
) -> Distiller:
    """A new distiller, its own parameters initialised from torch's random state.

    `teacher_dims` maps the letters of the teachers that it shall listen to ("A", "I") to the widths of their features;
    `clips` is the number of training clips. Raises ValueError as `check_options` does, and where the widths do not
    suit the method."""
    _check_names(name, options, "".join(sorted(teacher_dims)))
    return methods()[name](Sizes(student_dim, stage_dims, teacher_dims, classes, clips), **options)


def check_options(name: str, options: Mapping[str, Any], teachers: str | None = None) -> None:
    """Check a method's name and options, and the letters of its teachers where given ("", "A", "I" or "AI").

    Raises ValueError, one line that names the option, what was expected and the nearest valid choice."""
    _check_names(name, options, teachers)
    letters = methods()[name].accepts[0] if teachers is None else teachers
    small = Sizes(840, (105, 210, 420, 840), dict.fromkeys(letters, 840), 3, 9)  # 840: divisible by up to 8 heads
    with torch.device("meta"):  # ranges are checked by the class itself; nothing is allocated, no random number drawn
        methods()[name](small, **options)


def _check_names(name: str, options: Mapping[str, Any], teachers: str | None) -> None:
    """All that can be checked without building the method."""
    if name not in methods():
        raise ValueError(f"there is no method '{name}'; {_nearest(name, methods())}")
    method = methods()[name]
    if teachers is not None and teachers not in method.accepts:
        accepted = " or ".join(repr(letters) for letters in method.accepts)
        raise ValueError(f"method {name} cannot listen to teachers '{teachers}'; it takes {accepted}")
    hints = typing.get_type_hints(method.__init__)
    known = [p.name for p in inspect.signature(method).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option, value in options.items():
        if option not in known:
            raise ValueError(f"method {name} has no option '{option}'; {_nearest(option, known)}")
        if problem := _mismatch(value, hints[option]):
            raise ValueError(f"method {name}, option {option}: {problem}")


def _mismatch(value: object, hint: Any) -> str | None:
    """What is wrong with a value for an annotation: bool, int, float (which an int may stand for) or Literal."""
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        return None if value in choices else f"{value!r} is none of the choices; {_nearest(value, choices)}"
    accepted = (int, float) if hint is float else (hint,)
    if isinstance(value, accepted) and (hint is bool or not isinstance(value, bool)) and math.isfinite(value):
        return None
    return f"expected {hint.__name__}, found {value!r}"


def _nearest(name: object, valid: Iterable[str]) -> str:
    """A hint for a wrong name: the nearest valid one, or all of them."""
    choices = sorted(valid)
    close = get_close_matches(str(name), choices, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"valid: {', '.join(choices)}" if choices else "it has none"
