"""Types of fields that many settings classes have. A ``description`` is what the message says a value must be."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

__all__ = ["BlockNumber", "Count", "NonNegative", "NonNegativeInt", "Positive", "Share"]

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
BlockNumber = Annotated[int, Field(ge=0, description="the number of a block, counted from 0")]
