"""What a difference in loss is worth: in training data, and at equal training time.

The control, trained and decayed on fewer and more tokens, gives its loss as a function of the budget; between the
budgets that ran it is interpolated in the logarithm of the tokens. A variant's loss is then set against that curve: at
which budget would the control have reached it, and what would the control have reached in the time that it took?
The curve at any point is a weighted mean of the arms' means, so the error of a variant's distance from it is known, and
an interval holds the budgets from which the variant cannot be told (Fieller's way to an interval of a ratio).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.polynomial import Polynomial

from analysis.stats.eligibility import Sample, bar
from analysis.store.schema import Design

_POINTS = 2001


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """The control's final loss at several numbers of training tokens."""

    factors: tuple[float, ...]  # ascending, in units of the design's tokens; 1 among them
    ns: tuple[int, ...]
    means: tuple[float, ...]
    sds: tuple[float, ...]  # between seeds; NaN for a single run

    @classmethod
    def of(cls, runs: pd.DataFrame, design: Design) -> Scaling | None:
        """From the runs of the control and of its budgets (:func:`analysis.store.load.load_runs`).

        None where no budget has all of its runs, made like the control's, or where more tokens did not lower the loss.
        """
        control = Sample.of(design.control, runs, design.metric)
        places = [(1.0, control)]
        for arm in design.budgets:
            sample = Sample.of(arm, runs, design.metric)
            barred = bar(control, sample, design)
            if arm.tokens and sample.n and (barred is None or barred[0] == "screen"):
                places.append((arm.tokens / design.tokens_per_run, sample))
        if len(places) < 2 or not control.n:
            return None
        places.sort(key=lambda place: place[0])
        factors, samples = zip(*places, strict=True)
        means = tuple(float(s.values.mean()) for s in samples)
        if any(more >= fewer for fewer, more in pairwise(means)):
            return None
        sds = tuple(float(s.values.std(ddof=1)) if s.n > 1 else math.nan for s in samples)
        return cls(factors=factors, ns=tuple(s.n for s in samples), means=means, sds=sds)

    def loss(self, factor: np.ndarray) -> np.ndarray:
        """The control's loss at ``factor`` times the tokens, each inside the range of ``factors``."""
        return self._weights(np.log2(factor)) @ np.array(self.means)

    def worth(self, mean: float, n: int, half: float) -> tuple[float, float, float]:
        """The data that a variant's difference is worth, and its interval, as fractions of the control's tokens.

        Args:
            mean: the variant's mean loss.
            n: its runs.
            half: half width of the interval of its difference from the control.

        Returns:
            -0.24 where the control reaches ``mean`` with 24 % fewer tokens; infinite beyond the budgets that ran.
        """
        x = np.linspace(math.log2(self.factors[0]), math.log2(self.factors[-1]), _POINTS)
        distance, error = self._distance(x, mean, n, half)
        at = float(np.interp(0.0, distance, x, left=-math.inf, right=math.inf))
        held = np.flatnonzero(np.abs(distance) <= error)
        if not held.size:
            return _fraction(at), _fraction(at), _fraction(at)
        low = -math.inf if held[0] == 0 else float(x[held[0]])
        high = math.inf if held[-1] == _POINTS - 1 else float(x[held[-1]])
        return _fraction(at), _fraction(low), _fraction(high)

    def at_equal_time(
        self, mean: float, n: int, half: float, speed: Sequence[float]
    ) -> tuple[float, float, float] | None:
        """A variant's loss minus the control's after equal time, with an interval in both losses and speeds.

        Args:
            mean: the variant's mean loss.
            n: its runs.
            half: half width of the interval of its difference from the control.
            speed: its throughput over the control's, with the ends of the interval: (ratio, low, high).

        Returns:
            None where that time lies outside the budgets that ran.
        """
        ends = [-math.log2(ratio) for ratio in speed]
        if min(ends) < math.log2(self.factors[0]) or max(ends) > math.log2(self.factors[-1]):
            return None
        x = np.array([ends[0], *np.linspace(min(ends), max(ends), 101)])
        distance, error = self._distance(x, mean, n, half)
        return float(distance[0]), float((distance - error).min()), float((distance + error).max())

    def _distance(self, x: np.ndarray, mean: float, n: int, half: float) -> tuple[np.ndarray, np.ndarray]:
        """The variant less the curve at ``x``, and the half width that goes with it; at x = 0 it is ``half``."""
        weights = self._weights(x)
        spread = 1 / n + (weights**2 / np.array(self.ns)).sum(axis=1)
        here = 1 / n + 1 / self.ns[self.factors.index(1.0)]
        return mean - weights @ np.array(self.means), half * np.sqrt(spread / here)

    def _weights(self, x: np.ndarray) -> np.ndarray:
        """Weights of the arms' means in the curve at ``x`` = log2(tokens / the design's): (points, arms).

        Of the parabola (the polynomial) through all budgets; of straight lines where that would not fall throughout.
        """
        knots = np.log2(self.factors)
        turns = Polynomial.fit(knots, self.means, len(knots) - 1).deriv().roots()
        if not any(abs(turn.imag) < 1e-9 and knots[0] <= turn.real <= knots[-1] for turn in turns):
            return np.stack([_lagrange(x, knots, i) for i in range(len(knots))], axis=-1)
        return np.stack([np.interp(x, knots, unit) for unit in np.eye(len(knots))], axis=-1)


def _lagrange(x: np.ndarray, knots: np.ndarray, i: int) -> np.ndarray:
    others = np.delete(knots, i)
    return np.prod([(x - other) / (knots[i] - other) for other in others], axis=0)


def _fraction(x: float) -> float:
    """Of the tokens more (or fewer), from their log2 ratio; infinite ends stay so."""
    return x if math.isinf(x) else 2.0**x - 1
