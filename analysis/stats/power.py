"""How many seeds show which effect, by the verdicts' own procedure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import optimize, special

from analysis.stats import dunnett
from analysis.stats.estimate import CONTROL_LEVEL, POOL_LEVEL, bartlett_p, control_p, own_level, t_quantile

_DRAWS = 4096  # sets of sample variances; given those the power is exact, so its error is well below one percent


def power(effect: float, sigma: float, n_control: int, n_arms: Sequence[int], *, alpha: float) -> float:
    """The chance that the first arm's true difference ``effect`` from the control is called by its sign.

    The whole procedure of :func:`analysis.stats.estimate.family` counts: the check whether variances pool, Dunnett's
    test with the arm's own scatter beside it, or Welch's. All seeds scatter alike and normally.

    Args:
        effect: size of the true difference; its sign does not matter.
        sigma: seed standard deviation of the metric, in the same unit.
        n_control: runs of the control.
        n_arms: runs of each arm of the family, first of the one that is asked about.
        alpha: chance of any false alarm in the family.

    Raises:
        ValueError: when a count is below 1, no arm has two runs, sigma is not positive, or alpha not between 0 and 1.
    """
    _check(sigma, n_control, n_arms, alpha)
    return _unit_power(abs(effect) / sigma, n_control, tuple(n_arms), alpha)


def call_chance(effect: float, sigma: float, n_control: int, n_arms: Sequence[int], *, alpha: float) -> float:
    """The chance that the first arm is called better or worse, rightly or wrongly; arguments as for :func:`power`."""
    _check(sigma, n_control, n_arms, alpha)
    return sum(_unit_power(sign * effect / sigma, n_control, tuple(n_arms), alpha) for sign in (-1, 1))


def detectable_effect(
    sigma: float, n_control: int, n_arms: Sequence[int], *, alpha: float, power: float = 0.8
) -> float:
    """The smallest true difference of the first arm that is called better or worse with chance ``power``.

    Arguments and errors as for :func:`power`; the result has sigma's unit.
    """
    _check(sigma, n_control, n_arms, alpha)
    if not 0 < power < 1:
        raise ValueError(f"power must lie between 0 and 1, not {power}")
    return sigma * _unit_effect(n_control, tuple(n_arms), alpha, power)


def detectable_effect_paired(
    sigma: float, n: int, num_variants: int, *, correlation: float, alpha: float, power: float = 0.8
) -> float:
    """The smallest true difference that a paired design of ``n`` seeds calls better or worse with chance ``power``.

    By :func:`analysis.stats.estimate.paired` and Bonferroni's intervals for ``num_variants``; ``correlation`` is that
    of a variant's run with the control's of the same seed, and both have the seed standard deviation ``sigma``.

    Raises:
        ValueError: for fewer than two seeds, or a correlation that leaves no differences.
    """
    if n < 2 or not -1 <= correlation < 1:
        raise ValueError(f"two or more seeds and a correlation in [-1, 1), not {n} and {correlation}")
    critical = t_quantile(alpha / 2 / num_variants, n - 1)
    return noncentrality(critical, n - 1, power) * sigma * math.sqrt(2 * (1 - correlation) / n)


def seeds_needed(
    effect: float,
    sigma: float,
    n_control: int,
    *,
    alpha: float,
    num_variants: int,
    power: float = 0.8,
    most: int = 100,
) -> int | None:
    """The fewest runs of each of ``num_variants`` variants with which ``effect`` is detectable.

    Two at least: a single run borrows the control's sigma, and cannot show whether it may.

    Returns:
        The number of runs, or ``None`` when not even ``most`` suffice: more runs of the control are then needed.
    """

    def seen(n: int) -> bool:
        return detectable_effect(sigma, n_control, [n] * num_variants, alpha=alpha, power=power) <= effect

    return next((n for n in range(2, most + 1) if seen(n)), None)


def seeds_needed_paired(
    effect: float, sigma: float, num_variants: int, *, correlation: float, alpha: float, most: int, power: float = 0.8
) -> int | None:
    """The fewest shared seeds, ``MIN_PAIRS`` or more, with which ``effect`` is detectable in pairs.

    Returns:
        Their number, or ``None`` when not even ``most`` suffice.
    """
    from analysis.stats.eligibility import MIN_PAIRS  # with pandas, which nothing else here needs

    def seen(n: int) -> bool:
        least = detectable_effect_paired(sigma, n, num_variants, correlation=correlation, alpha=alpha, power=power)
        return least <= effect

    return next((n for n in range(MIN_PAIRS, most + 1) if seen(n)), None)


def sigma_interval(sigma: float, df: float, level: float = 0.95) -> tuple[float, float]:
    """Interval of a standard deviation that was estimated as ``sigma`` on ``df`` degrees of freedom (chi-square)."""
    tail = (1 - level) / 2
    high, low = float(special.chdtri(df, tail)), 2 * float(special.gammaincinv(df / 2, tail))
    return sigma * math.sqrt(df / high), sigma * math.sqrt(df / low)


def noncentrality(critical: float, df: float = math.inf, power: float = 0.8) -> float:
    """The true effect, in standard errors, whose t statistic passes ``critical`` with chance ``power``.

    It counts passing on the effect's own side only; the other side would be an error of sign.
    """
    if math.isinf(df):
        return critical + float(special.ndtri(power))

    def gap(effect: float) -> float:
        return 1 - float(special.nctdtr(df, effect, critical)) - power

    return float(optimize.brentq(gap, 0.0, 4 * (critical + 6)))


def _check(sigma: float, n_control: int, n_arms: Sequence[int], alpha: float) -> None:
    if not n_arms or min(n_control, *n_arms) < 1 or max(n_control, *n_arms) < 2 or not sigma > 0:
        raise ValueError("every arm needs a run, one of them two, and sigma must be positive")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha}")


def _unit_power(effect: float, n_control: int, n_arms: tuple[int, ...], alpha: float) -> float:
    se = math.sqrt(1 / n_control + 1 / n_arms[0])
    return float(special.ndtr((effect - _half_widths(n_control, n_arms, alpha)) / se).mean())


@lru_cache(maxsize=4096)
def _unit_effect(n_control: int, n_arms: tuple[int, ...], alpha: float, power: float) -> float:
    """Detectable effect in units of sigma."""
    most = 2.0
    while _unit_power(most, n_control, n_arms, alpha) < power:
        most *= 2
    return float(optimize.brentq(lambda x: _unit_power(x, n_control, n_arms, alpha) - power, 0.0, most, xtol=1e-6))


@lru_cache(maxsize=256)
def _half_widths(n_control: int, n_arms: tuple[int, ...], alpha: float) -> np.ndarray:
    """Draws of the first arm's half width of the simultaneous interval, where sigma is 1. The mean is independent."""
    sizes = np.array([n_control, *n_arms])
    dfs = sizes - 1
    generator = np.random.default_rng(0)  # the same draws for every question: answers are reproducible
    variances = np.array([generator.chisquare(df, _DRAWS) / df if df else np.full(_DRAWS, np.nan) for df in dfs])
    many = dfs > 0
    df = int(dfs.sum())
    pooled = (dfs[many, None] * variances[many]).sum(axis=0) / df
    se = math.sqrt(1 / n_control + 1 / n_arms[0])
    half = dunnett.critical_value(alpha, n_control, n_arms, df) * np.sqrt(pooled) * se
    apart_se, apart_df = _apart(variances[0], variances[1], n_control, n_arms[0])
    if min(n_control, n_arms[0]) > 1:
        half = np.maximum(half, -special.stdtrit(apart_df, own_level(n_control, n_arms[0]) * alpha / 2) * apart_se)
        apart_df = np.full(_DRAWS, min(n_control, n_arms[0]) - 1.0)
    if many.sum() < 2 or np.isnan(apart_se).any():  # nothing to check, or no other way
        return half
    apart = -special.stdtrit(apart_df, alpha / 2 / len(n_arms)) * apart_se
    differ = bartlett_p(variances[many], dfs[many]) < POOL_LEVEL
    if many.sum() > 2 and many[0]:
        differ |= control_p(variances[many], dfs[many]) < CONTROL_LEVEL
    return np.where(differ, apart, half)


def _apart(v0: np.ndarray, v1: np.ndarray, n0: int, n1: int) -> tuple[np.ndarray, np.ndarray]:
    """Welch's standard error and degrees of freedom, as :func:`analysis.stats.estimate.welch` has them."""
    if min(n0, n1) == 1:
        known = v1 if n0 == 1 else v0
        return np.sqrt(known * (1 / n0 + 1 / n1)), np.full(len(v0), max(n0, n1) - 1.0)
    a, b = v0 / n0, v1 / n1
    return np.sqrt(a + b), (a + b) ** 2 / (a**2 / (n0 - 1) + b**2 / (n1 - 1))
