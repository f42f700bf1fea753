"""Differences from a control with their errors, adjusted for how many are asked about; numbers only.

Every standard deviation is moderated: the variance of an arm's few runs is averaged with what earlier experiments on
the base know of such variances, each weighted by its degrees of freedom (Smyth 2004, doi:10.2202/1544-6115.1027). Arms
differ in how far pairing holds them together, so that no pooled variance would do, and a few blocks know little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import optimize, special

from analysis.store.schema import Prior

OUTLIERS_FROM = 4
"""Blocks with which an arm can show an outlier."""

MOST_PRIOR_DF = 100.0
"""Degrees of freedom at which a fitted prior stops: from there it hardly differs from a known variance."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An arm's difference from the control, in the unit of its values, by a t statistic."""

    delta: float
    se: float
    df: float
    sigma: float  # moderated: of a difference within a block, or of the arm's runs where seeds are independent
    family: int = 1  # comparisons that the interval holds for together
    share: float = 1.0  # of alpha, which this look may spend
    p_adj: float = math.nan  # Holm's, for family and looks

    @property
    def p(self) -> float:
        """Two-sided, for this difference alone."""
        return 2 * float(special.stdtr(self.df, -abs(self.delta) / self.se)) if self.se else float(not self.delta)

    def half(self, alpha: float) -> float:
        """Half width of the simultaneous interval (Bonferroni) at this look."""
        return t_quantile(self.share * alpha / 2 / self.family, self.df) * self.se

    def interval(self, alpha: float) -> tuple[float, float]:
        """The simultaneous interval: with the others of its family and looks, it holds with chance 1 - ``alpha``."""
        half = self.half(alpha)
        return self.delta - half, self.delta + half

    def equivalence_interval(self, alpha: float) -> tuple[float, float]:
        """The 1 - 2 alpha interval of this look: inside a margin, two one-sided tests show equivalence (TOST)."""
        half = t_quantile(self.share * alpha, self.df) * self.se
        return self.delta - half, self.delta + half


def t_quantile(tail: float, df: Any) -> Any:
    """Student's t above which lies the probability ``tail``; for an array of ``df``, one each."""
    return -special.stdtrit(df, tail)


def moderate(variance: Any, df: Any, prior: Prior | None) -> tuple[Any, Any]:
    """A sample variance averaged with the prior's, and the degrees of freedom of the average.

    Args:
        variance: on ``df`` degrees of freedom; what it is counts for nothing where ``df`` is 0. A number or an array.
        df: a number or an array.
        prior: None leaves the variance as it is.
    """
    if prior is None:
        return variance, df
    own = np.where(np.asarray(df) > 0, df * np.nan_to_num(variance), 0.0)
    return (prior.df * prior.sd**2 + own) / (prior.df + df), prior.df + df


def within_blocks(differences: np.ndarray, prior: Prior | None) -> Estimate:
    """From the differences of an arm's runs from the control's of the same blocks, (n,)."""
    n = len(differences)
    variance = float(differences.var(ddof=1)) if n > 1 else math.nan
    moderated, df = moderate(variance, n - 1, prior)
    sigma = math.sqrt(moderated)
    return Estimate(delta=float(differences.mean()), se=sigma / math.sqrt(n), df=float(df), sigma=sigma)


def independent(control: np.ndarray, values: np.ndarray, prior: Prior | None) -> Estimate:
    """From runs that share nothing, (n_control,) and (n,).

    The degrees of freedom are those of the side that has fewer, which never exceeds the error (Scheffé 1970, JASA
    65:1501); Welch's approximation does, far out in the tail where families look.
    """
    parts = [(moderate(float(x.var(ddof=1)) if len(x) > 1 else math.nan, len(x) - 1, prior)) for x in (control, values)]
    (v0, df0), (v1, df1) = parts
    se = math.sqrt(v0 / len(control) + v1 / len(values))
    delta = float(values.mean() - control.mean())
    return Estimate(delta=delta, se=se, df=float(min(df0, df1)), sigma=math.sqrt(v1))


def in_family(estimates: Mapping[str, Estimate], size: int) -> dict[str, Estimate]:
    """The estimates as ``size`` comparisons together: Bonferroni's intervals and Holm's p.

    Holm's p is at most Bonferroni's, so it can fall below alpha where the interval still includes 0.
    """
    adjusted, worst = {}, 0.0
    for rank, name in enumerate(sorted(estimates, key=lambda name: estimates[name].p / estimates[name].share)):
        estimate = estimates[name]
        worst = min(1.0, max(worst, (size - rank) * estimate.p / estimate.share))
        adjusted[name] = replace(estimate, family=size, p_adj=worst)
    return adjusted


def looks_until(looks: Sequence[int], blocks: int) -> tuple[int, ...]:
    """The looks of an arm with this many blocks: those before its last block, and one after it."""
    return (*(look for look in looks if look < blocks), blocks)


def shares(looks: Sequence[int]) -> tuple[float, ...]:
    """What each look may spend of alpha: in proportion to the blocks that it adds.

    The errors of the looks add up to alpha at most, whatever their correlation is.
    """
    return tuple((now - before) / looks[-1] for before, now in zip((0, *looks), looks, strict=False))


def programme_p(p_adj: float, order: int) -> float:
    """The adjusted p of a programme's experiment number ``order``, from 1: its share of alpha is 1 / (m · (m + 1)).

    These shares add up to 1 over any number of experiments, so a false alarm anywhere in the programme has chance alpha
    at most, though all experiments share their control's runs.

    Raises:
        ValueError: for an order below 1.
    """
    if order < 1:
        raise ValueError(f"experiments are counted from 1: this one cannot be number {order}")
    return min(1.0, order * (order + 1) * p_adj)


def fit_prior(variances: Any, dfs: Any, source: str) -> Prior:
    """The prior of arms with these variances, by moments of their logarithms (Smyth 2004, section 6.2).

    A few arms show little of how much arms differ. So the spread of their logarithms is taken at the upper end of a
    one-sided 75 % interval, which makes the prior count for less, the fewer they are: a family that holds the noisier
    arms among them would else be called too often (7.2 instead of 5 in 100 honest families of six).

    Raises:
        ValueError: for fewer than three arms, or an arm whose variance or degrees of freedom are not positive numbers.
    """
    v, d = np.asarray(variances, float), np.asarray(dfs, float)
    if len(v) < 3:
        raise ValueError(f"a prior takes the variances of three arms or more, not of {len(v)}")
    if not (np.isfinite(v) & np.isfinite(d) & (v > 0) & (d > 0)).all():
        raise ValueError("a prior takes variances and degrees of freedom that are positive numbers")
    e = np.log(v) - special.digamma(d / 2) + np.log(d / 2)
    spread = float(((e - e.mean()) ** 2).sum() / special.chdtri(len(e) - 1, 0.75))
    excess = spread - float(special.polygamma(1, d / 2).mean())
    if excess <= special.polygamma(1, MOST_PRIOR_DF / 2):  # the arms hardly differ
        df = MOST_PRIOR_DF
    else:
        half = optimize.brentq(lambda x: float(special.polygamma(1, x)) - excess, 1e-3, MOST_PRIOR_DF / 2)
        df = 2 * float(half)
    sd = math.exp((e.mean() + special.digamma(df / 2) - math.log(df / 2)) / 2)
    return Prior(sd=sd, df=df, source=source)


def outliers(values: np.ndarray) -> list[int]:
    """Positions that the others make unlikely: deleted residuals, t with one degree less, Bonferroni over all."""
    n = len(values)
    if n < OUTLIERS_FROM:
        return []
    residuals = values - values.mean()
    squares = float(residuals @ residuals)
    if not squares > 0:
        return []
    leaned = residuals**2 / (1 - 1 / n)
    rest = np.maximum(squares - leaned, 1e-12 * squares) / (n - 2)
    p = 2 * special.stdtr(n - 2, -np.sqrt(leaned / rest))
    return [int(i) for i in np.flatnonzero(p * n < 0.05)]
