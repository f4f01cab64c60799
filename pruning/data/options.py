"""Types of the options that sources share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Mean = tuple[float, ...]
Std = tuple[Annotated[float, Field(gt=0)], ...]
