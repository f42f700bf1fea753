"""Kinds of values that several blocks share, and what a field is to a run's identity."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Final

from pydantic import BaseModel, PlainValidator


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


class _Observes:
    """The type of :data:`OBSERVES`."""


OBSERVES: Final = _Observes()
"""Marks a field that bears on no loss: ``Annotated[int, OBSERVES]``. A run's identity leaves it out."""


@dataclass(frozen=True)
class Neutral:
    """Marks a field that was added later: ``Annotated[float, Neutral(0.0)]``.

    At ``value`` the program does what it did before there was the field, and a run's identity leaves it out: runs that
    were made before keep their names. It never changes, whatever becomes of the field's default.
    """

    value: Any


def bearing(config: BaseModel, plain: Mapping[str, Any]) -> dict[str, Any]:
    """What of ``config``'s fields, as ``plain`` data, is part of a run's identity; keys that are no fields stay."""

    def counts(name: str) -> bool:
        field = type(config).model_fields.get(name)
        marks = field.metadata if field else []
        value = getattr(config, name, None)
        return not any(mark is OBSERVES or (isinstance(mark, Neutral) and mark.value == value) for mark in marks)

    return {name: value for name, value in plain.items() if counts(name)}


def unsaid(config: BaseModel, name: str) -> bool:
    """Whether a field was added later and has its default, at which all is as it was before there was the field."""
    field, value = type(config).model_fields[name], getattr(config, name)
    return value == field.default and Neutral(value) in field.metadata
