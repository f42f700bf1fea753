"""Differences from a control with their errors, adjusted for how many are asked about; numbers only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from analysis.stats import dunnett

OWN_OUTLIERS = 4
"""Runs with which an arm shows its outliers by its own scatter."""

POOL_LEVEL = 0.12
"""Variances pool unless Bartlett's test rejects at this level. It sees little in three seeds; hence OWN_LEVEL."""

CONTROL_LEVEL = 0.01
"""Nor do they pool where an F test at this level finds the control noisier than all other arms together. Bartlett's
test shares its attention among all arms, while the control's error is in every difference: many quiet arms outvote a
noisy control in a pooled sigma, and then all look different at once."""

OWN_LEVEL = 1.35
"""Where variances pool, an arm's own scatter has its say too: by Welch's test of this arm alone, at this many times
alpha. A pooled sigma takes an arm of three seeds that scatters three times as widely as the control for different in
22 % of cases (8 control seeds), and Bartlett's test brings that to 14 % only; both tests together to 8 %. The price is
power: an effect must be 1.25 times as large at three seeds, 1.08 at five, to be found as often as by pooling alone.
`analysis.stats.power` counts it in. All of these are figures of :mod:`analysis.stats.simulation`."""

OWN_LEVEL_OF_TWO = 3.5
"""The same for an arm, or a control, of two runs. On one degree of freedom Welch's test is so wide that at 1.35 times
alpha hardly anything passes it (2.5 % false alarms in honest families, and effects twice as large to be found). The
wider gate lets more through where a variant of two seeds is noisier than it seems: `README.md` has the rates."""

_NAN = math.nan


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An arm's difference from the control, in the unit of its values, by a t statistic."""

    delta: float
    se: float
    df: float
    sigma: float  # spread between seeds behind `se`; of the differences, if paired
    critical: float = _NAN  # half width of the simultaneous interval, in standard errors, as far as `se` goes
    p_holm: float = _NAN
    layout: tuple[int, tuple[int, ...]] | None = None  # runs of the control and of each arm, where Dunnett's test holds
    own: Estimate | None = None  # by the scatter of these two arms alone, where `se` is pooled and it can be had
    own_level: float = OWN_LEVEL  # how many times alpha that one is taken at

    @property
    def p(self) -> float:
        """Two-sided, for this difference alone."""
        return 2 * float(special.stdtr(self.df, -abs(self.delta / self.se)))

    @property
    def p_adj(self) -> float:
        """Two-sided, for the whole family: Dunnett's, but no smaller than the arm's own scatter allows; or Holm's."""
        if self.layout is None:
            return self.p_holm
        joint = dunnett.tail(self.delta / self.se, *self.layout, self.df)
        return max(joint, self.own.p / self.own_level) if self.own else joint

    def interval(self, alpha: float) -> tuple[float, float]:
        """The simultaneous interval: by the pooled sigma or by the arm's own scatter, whichever is wider."""
        return self._around(max(self.critical * self.se, self._own_half(self.own_level * alpha / 2)))

    def equivalence_interval(self, alpha: float) -> tuple[float, float]:
        """The unadjusted 1 - 2 alpha interval: inside a margin, two one-sided tests at ``alpha`` show equivalence."""
        half = t_quantile(alpha, self.df) * self.se
        return self._around(max(half, self._own_half(self.own_level * alpha)))

    def widened(self, alpha: float) -> bool:
        """Whether the simultaneous interval is as wide as it is for the arm's own scatter."""
        return self._own_half(self.own_level * alpha / 2) > self.critical * self.se

    def _own_half(self, tail: float) -> float:
        return t_quantile(tail, self.own.df) * self.own.se if self.own else 0.0

    def _around(self, half: float) -> tuple[float, float]:
        return self.delta - half, self.delta + half


def own_level(n_control: int, n_arm: int) -> float:
    """At how many times alpha an arm's own scatter has its say."""
    return OWN_LEVEL_OF_TWO if min(n_control, n_arm) == 2 else OWN_LEVEL


def t_quantile(tail: float, df: float) -> float:
    """Student's t above which lies the probability ``tail``."""
    return float(-special.stdtrit(df, tail))


def bartlett_p(variances: np.ndarray, dfs: np.ndarray) -> np.ndarray:
    """Bartlett's p for equal variances: of each column of ``variances`` (groups, …) on ``dfs`` degrees of freedom.

    ``scipy.stats.bartlett`` takes the values themselves, one experiment at a time; `analysis.stats.power` has
    thousands of variances. The tests hold the two together. Source: Snedecor and Cochran, Statistical Methods, 13.10.
    """
    df, each = dfs.sum(), dfs.reshape(-1, *[1] * (variances.ndim - 1))
    with np.errstate(divide="ignore", invalid="ignore"):  # a spread of zero: p is 0
        statistic = df * np.log((each * variances).sum(axis=0) / df) - (each * np.log(variances)).sum(axis=0)
    correction = 1 + (np.sum(1 / dfs) - 1 / df) / (3 * (len(dfs) - 1))
    return np.asarray(special.chdtrc(len(dfs) - 1, statistic / correction))


def control_p(variances: np.ndarray, dfs: np.ndarray) -> np.ndarray:
    """P of an F test, one-sided, of the first group's variance above that of all others; shapes as `bartlett_p`."""
    others = np.einsum("g,g...->...", dfs[1:], variances[1:]) / dfs[1:].sum()
    with np.errstate(divide="ignore", invalid="ignore"):  # no spread in the others: p is 0; nor in the first: NaN
        return np.asarray(special.fdtrc(dfs[0], dfs[1:].sum(), variances[0] / others))


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Spread between seeds within the arms of one family, the control first."""

    sigma: float  # pooled over `arms`; NaN when none has two runs
    df: int
    pool_p: float  # Bartlett's; NaN when fewer than two arms have two runs
    control_p: float  # of an F test, the control's variance above that of the others; NaN where Bartlett's says it all
    residuals: Mapping[str, np.ndarray]  # of the arms that have two runs or more

    @property
    def arms(self) -> tuple[str, ...]:
        """Those that have two runs or more."""
        return tuple(self.residuals)

    @property
    def pools(self) -> bool:
        """Whether one sigma serves all arms; so it does when there is nothing to check."""
        return not (self.pool_p < POOL_LEVEL or self.control_p < CONTROL_LEVEL)

    @property
    def check(self) -> str:
        """The tests of equal variances that were made, in words; "" for none."""
        told = [f"Bartlett p {self.pool_p:.2g}"] if not math.isnan(self.pool_p) else []
        told += [f"control's F p {self.control_p:.2g}"] if not math.isnan(self.control_p) else []
        return ", ".join(told)

    @property
    def outliers(self) -> dict[str, list[int]]:
        """Arm -> positions of its runs that lie far from the rest."""
        squares, found = self.df * self.sigma**2, {}
        for name, mine in self.residuals.items():
            far = set(outliers(mine, squares, self.df))
            if len(mine) >= OWN_OUTLIERS:  # beside noisier arms a quiet one's would not show
                far |= set(outliers(mine, float(mine @ mine), len(mine) - 1))
            found[name] = sorted(far)
        return found

    @classmethod
    def of(cls, samples: Mapping[str, np.ndarray]) -> Noise:
        """The noise of arms with the given values, the control's first."""
        residuals = {name: values - values.mean() for name, values in samples.items() if len(values) > 1}
        dfs = np.array([len(r) - 1 for r in residuals.values()])
        squares = np.array([float(r @ r) for r in residuals.values()])
        df = int(dfs.sum())
        variances = squares / dfs
        led = len(dfs) > 2 and next(iter(samples)) in residuals
        return cls(
            sigma=math.sqrt(squares.sum() / df) if df else _NAN,
            df=df,
            pool_p=float(bartlett_p(variances, dfs)) if len(dfs) > 1 else _NAN,
            control_p=float(control_p(variances, dfs)) if led else _NAN,
            residuals=residuals,
        )


def outliers(residuals: np.ndarray, squares: float, df: int) -> list[int]:
    """Positions of runs that the others make unlikely: deleted residuals, t with one degree less, Bonferroni over all.

    Args:
        residuals: of one arm, from its mean.
        squares: sum of squares of all residuals of the arms that are taken together.
        df: degrees of freedom of that sum.
    """
    if df < 2 or not squares > 0:
        return []
    leaned = residuals**2 / (1 - 1 / len(residuals))
    rest = np.maximum(squares - leaned, 1e-12 * squares) / (df - 1)
    p = 2 * special.stdtr(df - 1, -np.sqrt(leaned / rest))
    return [int(i) for i in np.flatnonzero(p * (df + 1) < 0.05)]


def family(
    control: np.ndarray, arms: Mapping[str, np.ndarray], sizes: Sequence[int], noise: Noise, alpha: float
) -> dict[str, Estimate]:
    """Each arm against the control, with intervals that hold together with chance 1 - ``alpha``.

    Where the variances pool, by Dunnett's test, provided that Welch's test of the arm alone does not speak against it
    (:func:`own_level`). Else by Welch's statistics with Holm's p and Bonferroni's intervals, on the degrees of freedom
    of the smaller side: Welch's own approximation fails out in the tail where a family looks (14 % false alarms in a
    family of six at three seeds), while these never exceed alpha (Scheffé 1970, JASA 65:1501).

    Args:
        control: values of the control's runs.
        arms: values of each arm that can be judged.
        sizes: declared runs of every arm of the family, also of those that cannot be judged: they keep their place.
        noise: of the control and these arms.
        alpha: chance of any false alarm.
    """
    apart = {name: welch(control, values) for name, values in arms.items() if max(len(control), len(values)) > 1}
    if not noise.pools:
        careful = {
            name: replace(estimate, df=_least_df(len(control), len(arms[name]))) for name, estimate in apart.items()
        }
        return bonferroni(careful, len(sizes), alpha)
    critical = dunnett.critical_value(alpha, len(control), sizes, noise.df) if arms else _NAN
    estimates = {}
    for name, values in arms.items():
        se = noise.sigma * math.sqrt(1 / len(control) + 1 / len(values))
        delta = float(values.mean() - control.mean())
        own = apart[name] if min(len(control), len(values)) > 1 else None
        layout = len(control), tuple(sizes)
        level = own_level(len(control), len(values))
        estimates[name] = Estimate(
            delta=delta,
            se=se,
            df=noise.df,
            sigma=noise.sigma,
            critical=critical,
            layout=layout,
            own=own,
            own_level=level,
        )
    return estimates


def _least_df(n_control: int, n_arm: int) -> int:
    """Degrees of freedom of the side with fewer runs; of the other, where a single run borrows its spread."""
    least = min(n_control, n_arm)
    return (least if least > 1 else max(n_control, n_arm)) - 1


def bonferroni(estimates: Mapping[str, Estimate], size: int, alpha: float) -> dict[str, Estimate]:
    """The estimates with Bonferroni's intervals and Holm's p for a family of ``size``.

    Holm's p is at most Bonferroni's, so it can fall below ``alpha`` where the interval still includes 0.
    """
    adjusted, p_holm = {}, 0.0
    for rank, name in enumerate(sorted(estimates, key=lambda name: estimates[name].p)):
        estimate = estimates[name]
        p_holm = min(1.0, max(p_holm, (size - rank) * estimate.p))
        critical = t_quantile(alpha / 2 / size, estimate.df)
        adjusted[name] = replace(estimate, critical=critical, p_holm=p_holm)
    return adjusted


def welch(control: np.ndarray, values: np.ndarray) -> Estimate:
    """Without a common sigma; a single run borrows the other side's, and two single runs give a bare difference."""
    n0, n1 = len(control), len(values)
    delta = float(values.mean() - control.mean())
    v0, v1 = (float(x.var(ddof=1)) if len(x) > 1 else _NAN for x in (control, values))
    if min(n0, n1) == 1:
        variance = v1 if n0 == 1 else v0
        return Estimate(
            delta=delta, se=math.sqrt(variance * (1 / n0 + 1 / n1)), df=max(n0, n1) - 1, sigma=math.sqrt(variance)
        )
    a, b = v0 / n0, v1 / n1
    df = (a + b) ** 2 / (a**2 / (n0 - 1) + b**2 / (n1 - 1)) if a + b > 0 else _NAN
    return Estimate(delta=delta, se=math.sqrt(a + b), df=df, sigma=math.sqrt(v1))


def paired(control: np.ndarray, values: np.ndarray) -> Estimate:
    """Runs that share a seed subtracted from each other; both arrays in the same order of seeds."""
    differences = values - control
    sigma = float(differences.std(ddof=1))
    n = len(differences)
    return Estimate(delta=float(differences.mean()), se=sigma / math.sqrt(n), df=n - 1, sigma=sigma)
