"""Where a function of one number is zero; importing `scipy.optimize` takes longer than all that is asked of it."""

from __future__ import annotations

import math
from collections.abc import Callable

_RTOL = 4 * 2.0**-52
_MOST_STEPS = 100
_Point = tuple[float, float]  # a place, and the function there


def root(function: Callable[[float], float], low: float, high: float, *, xtol: float = 2e-12) -> float:
    """The place between ``low`` and ``high`` where ``function`` is zero, to ``xtol``: Brent's method.

    As ``scipy.optimize.brentq`` goes about it, step by step, so that the digits are the same. Source: Brent 1973,
    Algorithms for Minimization without Derivatives, chapter 4.

    Raises:
        ValueError: when the function has the same sign at both ends.
    """
    before, here = (low, function(low)), (high, function(high))
    for place, value in (before, here):
        if value == 0:
            return place
    if (before[1] > 0) == (here[1] > 0):
        raise ValueError(f"no change of sign between {low} and {high}")
    other, last, step = (0.0, 0.0), 0.0, 0.0
    for _ in range(_MOST_STEPS):
        if before[1] != 0 and here[1] != 0 and (before[1] > 0) != (here[1] > 0):  # the root lies between these two
            other = before
            last = step = here[0] - before[0]
        if abs(other[1]) < abs(here[1]):
            before, here, other = here, other, here
        delta = (xtol + _RTOL * abs(here[0])) / 2
        half = (other[0] - here[0]) / 2
        if here[1] == 0 or abs(half) < delta:
            break
        guess = _guess(before, here, other) if abs(last) > delta and abs(here[1]) < abs(before[1]) else math.inf
        if 2 * abs(guess) < min(abs(last), 3 * abs(half) - delta):
            last, step = step, guess
        else:
            last = step = half
        before, place = here, here[0] + (step if abs(step) > delta else math.copysign(delta, half))
        here = place, function(place)
    return here[0]


def _guess(before: _Point, here: _Point, other: _Point) -> float:
    """The step to the root of the line, or of the inverse parabola, through the points."""
    if before[0] == other[0]:
        return -here[1] * (here[0] - before[0]) / (here[1] - before[1])
    slope, slope_other = ((f - here[1]) / (x - here[0]) for x, f in (before, other))
    return -here[1] * (other[1] * slope_other - before[1] * slope) / (slope_other * slope * (other[1] - before[1]))
