"""What a difference in loss is worth: in training data, and at equal training time.

The control, trained and decayed on fewer and more tokens, gives its loss as a function of the budget; between the
budgets that ran it is interpolated in the logarithm of the tokens. A variant's loss is then compared with that curve:
at which budget would the control have reached it, and what would the control have reached in the time that it took?
Both are read block by block: the curve at any point is a weighted sum of the control's losses, so a block's distance
from it has an error that the blocks show, and an interval holds the budgets from which the variant cannot be told
(Fieller's way to an interval of a ratio).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.polynomial import Polynomial

from analysis.stats.eligibility import MIN_BLOCKS, Sample, bar, complete
from analysis.stats.estimate import Estimate, looks_until, moderate, t_quantile
from analysis.store.schema import Design, Prior

_POINTS = 2001


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """The control's final loss at several numbers of training tokens, in the blocks that all of them have."""

    factors: tuple[float, ...]  # ascending, in units of the design's tokens; 1 among them
    blocks: tuple[int, ...]
    losses: np.ndarray  # (factors, blocks)
    alpha: float
    prior: Prior | None = None

    @classmethod
    def of(cls, runs: pd.DataFrame, design: Design) -> Scaling | None:
        """From the runs of the control and of its budgets (:func:`analysis.store.load.load_runs`).

        A budget counts once the blocks of the first look are done, made like the control's. None where seeds are
        independent, where no budget counts, and where more tokens did not lower the loss.
        """
        if design.independent or not design.budgets:
            return None
        control = Sample.of(design.control, runs, design.metric)
        places = [(1.0, control)]
        for arm in design.budgets:
            sample = Sample.of(arm, runs, design.metric)
            barred = bar(control, sample, design)
            done = complete(control, sample, looks_until(design.looks, sample.declared)[0])
            if arm.tokens and done.blocks and not done.awaited and (barred is None or barred[0] == "screen"):
                places.append((arm.tokens / design.tokens_per_run, sample))
        blocks = tuple(sorted(set.intersection(*(set(sample.blocks) for _, sample in places))))
        if len(places) < 2 or not blocks:
            return None
        places.sort(key=lambda place: place[0])
        factors, samples = zip(*places, strict=True)
        losses = np.array([[sample.by_block[block] for block in blocks] for sample in samples])
        if any(more >= fewer for fewer, more in pairwise(losses.mean(axis=1))):
            return None
        return cls(factors=factors, blocks=blocks, losses=losses, alpha=design.alpha, prior=design.prior)

    @property
    def means(self) -> np.ndarray:
        """Of each budget, (factors,)."""
        return np.asarray(self.losses.mean(axis=1))

    def loss(self, factor: np.ndarray) -> np.ndarray:
        """The control's loss at ``factor`` times the tokens, each inside the range of ``factors``."""
        return _weights(np.log2(factor), np.log2(self.factors), self.means) @ self.means

    def worth(self, values: Mapping[int, float], estimate: Estimate) -> tuple[float, float, float]:
        """The data that a variant's difference is worth, and its interval, as fractions of the control's tokens.

        Args:
            values: the variant's loss by block.
            estimate: of its difference from the control, whose family and look the interval takes over.

        Returns:
            -0.24 where the control reaches the variant's loss with 24 % fewer tokens; infinite beyond the budgets that
            ran, NaN where fewer than two blocks have them all, or more tokens did not lower the loss in these.
        """
        x = np.linspace(math.log2(self.factors[0]), math.log2(self.factors[-1]), _POINTS)
        found = self._distance(x, values, estimate)
        if found is None:
            return math.nan, math.nan, math.nan
        distance, error = found
        at = float(np.interp(0.0, distance, x, left=-math.inf, right=math.inf))
        held = np.flatnonzero(np.abs(distance) <= error)
        if not held.size:
            return _fraction(at), _fraction(at), _fraction(at)
        low = -math.inf if held[0] == 0 else float(x[held[0]])
        high = math.inf if held[-1] == _POINTS - 1 else float(x[held[-1]])
        return _fraction(at), _fraction(min(low, at)), _fraction(max(high, at))  # whatever the grid is

    def at_equal_time(
        self, values: Mapping[int, float], estimate: Estimate, speed: Sequence[float]
    ) -> tuple[float, float, float] | None:
        """A variant's loss minus the control's after equal time, with an interval in both losses and speeds.

        Args:
            values: the variant's loss by block.
            estimate: of its difference from the control.
            speed: its throughput over the control's, with the ends of the interval: (ratio, low, high).

        Returns:
            None where that time lies outside the budgets that ran, or as for :meth:`worth`.
        """
        ends = [-math.log2(ratio) for ratio in speed]
        if min(ends) < math.log2(self.factors[0]) or max(ends) > math.log2(self.factors[-1]):
            return None
        x = np.array([ends[0], *np.linspace(min(ends), max(ends), 101)])
        found = self._distance(x, values, estimate)
        if found is None:
            return None
        distance, error = found
        return float(distance[0]), float((distance - error).min()), float((distance + error).max())

    def _distance(
        self, x: np.ndarray, values: Mapping[int, float], estimate: Estimate
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """The variant less the curve at ``x``, and the half width that goes with it: (points,) each.

        At x = 0, and with all blocks, the two are the estimate's own.
        """
        shared = [place for place, block in enumerate(self.blocks) if block in values]
        if len(shared) < MIN_BLOCKS:
            return None
        mine = np.array([values[self.blocks[place]] for place in shared])
        losses = self.losses[:, shared]
        if any(more >= fewer for fewer, more in pairwise(losses.mean(axis=1))):
            return None
        apart = mine - _weights(x, np.log2(self.factors), losses.mean(axis=1)) @ losses  # points, blocks
        n = len(shared)
        variance, df = moderate(apart.var(axis=1, ddof=1), n - 1, self.prior)
        critical = t_quantile(estimate.share * self.alpha / 2 / estimate.family, df)
        return apart.mean(axis=1), critical * np.sqrt(variance / n)


def _weights(x: np.ndarray, knots: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Weights of the budgets' losses in the curve at ``x``: (points, budgets).

    Of the parabola (the polynomial) through all budgets; of straight lines where that would not fall throughout.

    Args:
        x: log2(tokens / the design's), (points,).
        knots: the budgets' own, ascending.
        means: their losses.
    """
    turns = Polynomial.fit(knots, means, len(knots) - 1).deriv().roots()
    if not any(abs(turn.imag) < 1e-9 and knots[0] <= turn.real <= knots[-1] for turn in turns):
        return np.stack([_lagrange(x, knots, i) for i in range(len(knots))], axis=-1)
    return np.stack([np.interp(x, knots, unit) for unit in np.eye(len(knots))], axis=-1)


def _lagrange(x: np.ndarray, knots: np.ndarray, i: int) -> np.ndarray:
    others = np.delete(knots, i)
    return np.prod([(x - other) / (knots[i] - other) for other in others], axis=0)


def _fraction(x: float) -> float:
    """Of the tokens more (or fewer), from their log2 ratio; infinite ends stay so."""
    return x if math.isinf(x) else 2.0**x - 1
