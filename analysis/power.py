"""How many seeds show which effect."""

from __future__ import annotations

import bisect
import math

from scipy import optimize, stats

from analysis import dunnett


def noncentrality(critical: float, df: float = math.inf, power: float = 0.8) -> float:
    """The true effect, in standard errors, whose t statistic passes ``critical`` with chance ``power``.

    It counts passing on the effect's own side only; the other side would be an error of sign.
    """
    if math.isinf(df):
        return critical + float(stats.norm.ppf(power))

    def gap(effect: float) -> float:
        return float(stats.nct.sf(critical, df, effect)) - power

    return float(optimize.brentq(gap, 0.0, 4 * (critical + 6)))


def detectable_effect(
    sigma: float,
    n_control: int,
    n_variant: int,
    *,
    alpha: float,
    num_variants: int,
    power: float = 0.8,
    df: float | None = None,
) -> float:
    """The smallest true difference from the control that the design calls better or worse with chance ``power``.

    The level is that of the verdicts: two-sided ``alpha`` over the whole family by Dunnett's critical value, with
    ``n_variant`` runs in each of its arms; then the noncentral t.

    Args:
        sigma: seed standard deviation of the metric; the result has its unit.
        n_control: runs of the control.
        n_variant: runs of each variant.
        alpha: chance of any false alarm in the family.
        num_variants: arms of the family.
        power: chance of seeing the effect.
        df: degrees of freedom with which the design estimates sigma; ``None`` takes sigma as known, which is
            optimistic below some twenty degrees.

    Raises:
        ValueError: when a count is below 1, sigma is negative, or a probability is not between 0 and 1.
    """
    if min(n_control, n_variant, num_variants) < 1 or sigma < 0:
        raise ValueError("n_control, n_variant and num_variants must be at least 1, and sigma at least 0")
    if not (0 < alpha < 1 and 0 < power < 1):
        raise ValueError(f"alpha and power must lie between 0 and 1, not {alpha} and {power}")
    df = math.inf if df is None else df
    critical = dunnett.critical_value(alpha, n_control, [n_variant] * num_variants, df)
    return noncentrality(critical, df, power) * sigma * math.sqrt(1 / n_control + 1 / n_variant)


def seeds_needed(
    effect: float,
    sigma: float,
    n_control: int,
    *,
    alpha: float,
    num_variants: int,
    power: float = 0.8,
    df: float | None = None,
    most: int = 100,
) -> int | None:
    """The fewest runs of each variant with which ``effect`` is detectable; arguments as :func:`detectable_effect`.

    Returns:
        The number of runs, or ``None`` when not even ``most`` suffice: more runs of the control are then needed.
    """

    def seen(n: int) -> float:
        return -detectable_effect(sigma, n_control, n, alpha=alpha, num_variants=num_variants, power=power, df=df)

    counts = range(1, most + 1)
    index = bisect.bisect_left(counts, -effect, key=seen)
    return counts[index] if index < most else None
