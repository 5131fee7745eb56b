"""Distillation methods, one file each, named as in params.yaml. To add a method, add its file here.

`build` creates a method. Its `forward` returns `{term: weighted loss}`; the trainer adds the terms up and runs one
backward pass. Methods whose authors use two optimizers, one for the student and one for a module of the method, fit
this contract too: the loss that only the module learns from is computed on *detached* outputs of the student.

Proof. Let S(a, b) be the student's loss and M(a, b) the module's, with parameters a of the student and b of the
module. The authors run two backward passes; the student keeps the gradient of S alone, the module those of both. The
gradients are dS/da and dS/db + dM/db. The sum S(a, b) + M(stopgrad a, b) has the same derivatives, because the
stop-gradient removes dM/da and nothing else. Different learning rates are two parameter groups of one optimizer.
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
    """Return every method by name: the `Distiller` subclass that each file of this package defines."""
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
    """Build a distiller, its parameters initialised from torch's global random state.

    `teacher_dims` maps the letter of each teacher ("A", "I", "S") to the width of its feature; `clips` is the number
    of training clips. Raises ValueError as `check_options` does, and if the method does not support the widths."""
    _check_names(name, options, "".join(sorted(teacher_dims)))
    return methods()[name](Sizes(student_dim, stage_dims, teacher_dims, classes, clips), **options)


def check_options(name: str, options: Mapping[str, Any], teachers: str | None = None) -> None:
    """Check a method's name, its options and, if given, the letters of its teachers (such as "", "A", "I" or "AI").

    Raises ValueError with one line that names the option, what is expected and the nearest valid choice."""
    _check_names(name, options, teachers)
    letters = methods()[name].accepts[0] if teachers is None else teachers
    small = Sizes(840, (105, 210, 420, 840), dict.fromkeys(letters, 840), 3, 9)  # 840: divisible by 1..8 heads
    # The class checks the ranges. On the meta device nothing is allocated and the random state does not change.
    with torch.device("meta"):
        methods()[name](small, **options)


def _check_names(name: str, options: Mapping[str, Any], teachers: str | None) -> None:
    """Check everything that can be checked without building the method."""
    if name not in methods():
        raise ValueError(f"there is no method '{name}'; {_nearest(name, methods())}")
    method = methods()[name]
    if teachers is not None and teachers not in method.accepts:
        accepted = " or ".join(repr(letters) for letters in method.accepts)
        raise ValueError(f"method {name} does not support teachers '{teachers}'; expected {accepted}")
    hints = typing.get_type_hints(method.__init__)
    known = [p.name for p in inspect.signature(method).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option, value in options.items():
        if option not in known:
            raise ValueError(f"method {name} has no option '{option}'; {_nearest(option, known)}")
        if problem := _mismatch(value, hints[option]):
            raise ValueError(f"method {name}, option {option}: {problem}")


def _mismatch(value: object, hint: Any) -> str | None:
    """Return what is wrong with a value for an annotation, or None if it fits.

    The annotation is bool, int, float (an int is accepted) or Literal."""
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        return None if value in choices else f"{value!r} is not a valid choice; {_nearest(value, choices)}"
    accepted = (int, float) if hint is float else (hint,)
    if isinstance(value, accepted) and (hint is bool or not isinstance(value, bool)) and math.isfinite(value):
        return None
    return f"expected {hint.__name__}, found {value!r}"


def _nearest(name: object, valid: Iterable[str]) -> str:
    """Return a hint for a wrong name: the nearest valid one, or all of them."""
    choices = sorted(valid)
    close = get_close_matches(str(name), choices, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"valid: {', '.join(choices)}" if choices else "it has no options"
