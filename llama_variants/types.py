"""Kinds of values that several blocks share."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Annotated

from pydantic import PlainValidator


def _ratio(value: object) -> float | str:
    if isinstance(value, str) and re.fullmatch(r"[1-9]\d{0,8}/[1-9]\d{0,8}", value):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9:
        return float(value)
    raise ValueError("a positive number under a thousand million, or a fraction such as 8/3")


Ratio = Annotated[float | str, PlainValidator(_ratio)]
"""A positive number, or a fraction written as text: 8/3."""


def to_fraction(ratio: float | str) -> Fraction:
    """The exact value of a :data:`Ratio`; 0.1 is a tenth, not the nearest binary number."""
    return Fraction(str(ratio))
