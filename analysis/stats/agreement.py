"""Whether two runs of one recipe and one seed, made on different machines, agree.

Machines sum in other orders, and training is chaotic: such runs drift apart, from the last digit on, until they differ
as much as the rounding of any two does. How much that is at which step is measured, by runs of the same recipe and
seed that were made in other ways, and a difference is held against that.

Axes: m runs, r rows of the log (a step's loss each, say), in the order of the steps.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special

ALPHA = 0.01  # that two runs which differ in rounding alone are said to disagree, in any row
REACH = 3  # rows before and after from which a row's scatter is taken too
ROUNDING = 1e-6  # of the value itself: as far as float32 sums go apart at once, before any chaos


def scatter_band(
    runs: np.ndarray, alpha: float = ALPHA, *, reach: int = REACH, independent: bool = False
) -> np.ndarray:
    """How far apart two runs may lie in each row, by the scatter of ``runs`` (m, r) that are known to be alike.

    The standard deviation over runs, pooled over the ``reach`` rows before and after, times Student's t with
    Bonferroni's correction for the number of rows, so that all rows of an honest run lie inside with probability
    1 - ``alpha``; roughly, since a row's own scatter is not quite what it is pooled with. Steps of a run share their
    history, so that the runs alone count as degrees of freedom; ``independent`` rows count themselves.

    Raises:
        ValueError: for a single run.
    """
    count, rows = runs.shape
    if count < 2:
        raise ValueError(f"{count} runs show no scatter")
    variances = runs.var(axis=0, ddof=1)
    near = [slice(max(0, i - reach), min(rows, i + reach + 1)) for i in range(rows)]
    pooled = np.array([variances[s].mean() for s in near])
    df = np.array([(count - 1) * (s.stop - s.start if independent else 1) for s in near])
    critical = -special.stdtrit(df, alpha / (2 * rows))
    return np.asarray(critical * np.sqrt(2 * pooled) + ROUNDING * np.abs(runs).mean(axis=0))


def prior_band(sigma: float, rows: int, alpha: float = ALPHA) -> float:
    """The same where only the standard deviation ``sigma`` between seeds is known: another rounding is no more."""
    return -float(special.ndtri(alpha / (2 * max(1, rows)))) * math.sqrt(2) * sigma
