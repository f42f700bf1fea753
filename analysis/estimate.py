"""Differences from a control with their errors, adjusted for how many are asked about; numbers only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from analysis import dunnett
from analysis.power import noncentrality

POOL_LEVEL = 0.1
"""Variances pool unless Bartlett's test rejects at this level.

A test of three seeds an arm sees little, so the level is liberal; raising it further hardly helps, because Welch's test
is itself off at three seeds. With 8 control seeds and three variants of 3 (20,000 simulated tables), false alarms come
to 6 % where all spreads are equal, 3 % where the variants' is half the control's, and 14 % where it is double: no check
rescues three seeds from that, only more seeds do."""

_NAN = math.nan


@dataclass(frozen=True)
class Estimate:
    """An arm's difference from the control, in the unit of its values, by a t statistic."""

    delta: float
    se: float
    df: float
    sigma: float  # spread between seeds behind `se`; of the differences, if paired
    critical: float = _NAN  # half width of the simultaneous interval, in standard errors
    p_adj: float = _NAN

    @property
    def p(self) -> float:
        """Two-sided, for this difference alone."""
        return 2 * float(stats.t.sf(abs(self.delta / self.se), self.df))

    @property
    def interval(self) -> tuple[float, float]:
        """The simultaneous interval."""
        return self.delta - self.critical * self.se, self.delta + self.critical * self.se

    def equivalence_interval(self, alpha: float) -> tuple[float, float]:
        """The unadjusted 1 - 2 alpha interval: inside a margin, two one-sided tests at ``alpha`` show equivalence."""
        half = float(stats.t.isf(alpha, self.df)) * self.se
        return self.delta - half, self.delta + half

    @property
    def detectable(self) -> float:
        """The smallest true difference whose simultaneous interval would exclude 0 with chance 0.8."""
        return noncentrality(self.critical, self.df) * self.se


@dataclass(frozen=True)
class Noise:
    """Spread between seeds within the arms of one family, the control among them."""

    sigma: float  # pooled over `arms`; NaN when none has two runs
    df: int
    pool_p: float  # Bartlett's; NaN when fewer than two arms have two runs
    arms: tuple[str, ...]  # that have two runs or more
    outliers: Mapping[str, list[int]]  # arm -> positions of runs far from the rest of it

    @property
    def pools(self) -> bool:
        """Whether one sigma serves all arms; so it does when there is nothing to check."""
        return not self.pool_p < POOL_LEVEL

    @classmethod
    def of(cls, samples: Mapping[str, np.ndarray]) -> Noise:
        """The noise of arms with the given values."""
        residuals = {name: values - values.mean() for name, values in samples.items() if len(values) > 1}
        df = sum(len(r) - 1 for r in residuals.values())
        squares = sum(float(r @ r) for r in residuals.values())
        checked = [samples[name] for name in residuals]
        return cls(
            sigma=math.sqrt(squares / df) if df else _NAN,
            df=df,
            pool_p=float(stats.bartlett(*checked).pvalue) if len(checked) > 1 else _NAN,
            arms=tuple(residuals),
            outliers={name: _outliers(r, squares, df) for name, r in residuals.items()},
        )


def _outliers(residuals: np.ndarray, squares: float, df: int) -> list[int]:
    """Runs that the others make unlikely: deleted residuals, t with one degree less, Bonferroni over all runs."""
    if df < 2:
        return []
    leaned = residuals**2 / (1 - 1 / len(residuals))
    rest = np.maximum(squares - leaned, 1e-12 * squares) / (df - 1)
    p = 2 * stats.t.sf(np.sqrt(leaned / rest), df - 1)
    return [int(i) for i in np.flatnonzero(p * (df + 1) < 0.05)]


def family(
    control: np.ndarray, arms: Mapping[str, np.ndarray], sizes: Sequence[int], noise: Noise, alpha: float
) -> dict[str, Estimate]:
    """Each arm against the control, with intervals that hold together with chance 1 - ``alpha``.

    Where the variances pool, by Dunnett's test; else by Welch's, with Holm's p and Bonferroni's intervals.

    Args:
        control: values of the control's runs.
        arms: values of each arm that can be judged.
        sizes: declared runs of every arm of the family, also of those that cannot be judged: they keep their place.
        noise: of the control and these arms.
        alpha: chance of any false alarm.
    """
    if not noise.pools:
        return bonferroni({name: welch(control, values) for name, values in arms.items()}, len(sizes), alpha)
    critical = dunnett.critical_value(alpha, len(control), sizes, noise.df) if arms else _NAN
    estimates = {}
    for name, values in arms.items():
        se = noise.sigma * math.sqrt(1 / len(control) + 1 / len(values))
        delta = float(values.mean() - control.mean())
        p_adj = dunnett.tail(delta / se, len(control), sizes, noise.df)
        estimates[name] = Estimate(delta, se, noise.df, noise.sigma, critical, p_adj)
    return estimates


def bonferroni(estimates: Mapping[str, Estimate], size: int, alpha: float) -> dict[str, Estimate]:
    """The estimates with Bonferroni's intervals and Holm's p for a family of ``size``.

    Holm's p is at most Bonferroni's, so it can fall below ``alpha`` where the interval still includes 0.
    """
    adjusted, p_adj = {}, 0.0
    for rank, name in enumerate(sorted(estimates, key=lambda name: estimates[name].p)):
        estimate = estimates[name]
        p_adj = min(1.0, max(p_adj, (size - rank) * estimate.p))
        critical = float(stats.t.isf(alpha / 2 / size, estimate.df))
        adjusted[name] = replace(estimate, critical=critical, p_adj=p_adj)
    return adjusted


def welch(control: np.ndarray, values: np.ndarray) -> Estimate:
    """Without a common sigma; a single run borrows the other side's, and two single runs give a bare difference."""
    n0, n1 = len(control), len(values)
    delta = float(values.mean() - control.mean())
    v0, v1 = (float(x.var(ddof=1)) if len(x) > 1 else _NAN for x in (control, values))
    if min(n0, n1) == 1:
        variance = v1 if n0 == 1 else v0
        return Estimate(delta, math.sqrt(variance * (1 / n0 + 1 / n1)), max(n0, n1) - 1, math.sqrt(variance))
    a, b = v0 / n0, v1 / n1
    df = (a + b) ** 2 / (a**2 / (n0 - 1) + b**2 / (n1 - 1)) if a + b > 0 else _NAN
    return Estimate(delta, math.sqrt(a + b), df, math.sqrt(v1))


def paired(control: np.ndarray, values: np.ndarray) -> Estimate:
    """Runs that share a seed subtracted from each other; both arrays in the same order of seeds."""
    differences = values - control
    sigma = float(differences.std(ddof=1))
    n = len(differences)
    return Estimate(float(differences.mean()), sigma / math.sqrt(n), n - 1, sigma)
