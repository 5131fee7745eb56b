"""Types shared by all sections of params.yaml."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
NO_TEACHER = "none"
STUDENTS = ("r2plus1d_10_small",)  # kinds of networks in section teachers that students start from


class Settings(BaseModel):
    """Base class of the sections of params.yaml: unknown keys are errors, instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Precision = Literal["float32", "tf32", "bfloat16", "float16"]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
# DVC's commands contain paths of this kind, and a shell reads them. No ".." either: stages delete what they replace.
PlainPath = Annotated[str, Field(pattern=r"^/?\w[\w.-]*(/\w[\w.-]*)*$")]
# Without credentials, because params are stored in git and MLflow and shown in the report.
Url = Annotated[str, Field(pattern=r"^(https?://[^/\s@]+(/\S*)?|file://\S*)$")]
