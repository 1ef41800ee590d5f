"""Numbers and ranges of numbers, as a spec holds them: `3` for a whole number is right, `3.0` and `"3"` are not."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field

Whole = Annotated[int, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=0)]
Positive = Annotated[int, Field(strict=True, ge=1)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
PositiveNumber = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
PositiveShare = Annotated[float, Field(strict=True, gt=0, le=1)]


def _both_ends(value: Any) -> Any:
    if isinstance(value, int | float):
        return (value, value)
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("expected a number or a range, [low, high]")
    return value


def _ordered(span: tuple[Any, Any]) -> tuple[Any, Any]:
    if span[0] > span[1]:
        raise ValueError(f"the range starts at {span[0]} but ends at {span[1]}")
    return span


T = TypeVar("T")
Span = Annotated[
    tuple[T, T],
    BeforeValidator(_both_ends, json_schema_input_type=float | tuple[float, float]),
    AfterValidator(_ordered),
]
"""A range with both ends in it; a single number stands for both."""
