"""How many blocks show which effect: by simulated experiments that go through the verdicts' own steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy import special

from analysis.stats.estimate import looks_until, moderate, shares, t_quantile
from analysis.store.schema import Prior

_DRAWS = 16384  # experiments: the chance of a call is then known to within 0.4 points


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What an experiment declares that bears on what it can show."""

    blocks: int | tuple[int, int]  # or runs of the control and of the arm, where seeds are independent
    family: int  # variants
    alpha: float
    looks: tuple[int, ...] = ()  # numbers of blocks, ascending; an arm is judged after its last block in any case
    prior: Prior | None = None


def detectable_effect(sd: float, layout: Layout, power: float = 0.8) -> float:
    """The smallest true difference that is called better or worse, by its sign, with chance ``power``.

    Where looks are declared, this takes it that the arm is not found equivalent at an early one; an effect well inside
    the margin may be.

    Args:
        sd: true standard deviation of a difference within a block (of a run, where seeds are independent); the result
            has its unit.
        layout: what is declared.
        power: between 0 and 1.

    Raises:
        ValueError: when a count is too small, sd is not positive, or alpha or power not between 0 and 1.
    """
    if not 0 < power < 1:
        raise ValueError(f"power must lie between 0 and 1, not {power}")
    return float(np.quantile(_least_effects(sd, layout), power))


def power(effect: float, sd: float, layout: Layout) -> float:
    """The chance that a true difference of this size is called by its sign; arguments as `detectable_effect` has."""
    return float((_least_effects(sd, layout) < abs(effect)).mean())


def blocks_needed(effect: float, sd: float, layout: Layout, most: int = 200) -> int | None:
    """The fewest blocks that show ``effect`` 4 times in 5, judged once; None where not even ``most`` do.

    Where seeds are independent: the fewest runs of the arm, beside the control's of ``layout``.
    """

    def seen(n: int) -> bool:
        blocks = n if isinstance(layout.blocks, int) else (layout.blocks[0], n)
        return detectable_effect(sd, replace(layout, blocks=blocks, looks=())) <= abs(effect)

    least = 2
    if seen(least):
        return least
    if not seen(most):
        return None
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if seen(middle) else (middle, most)
    return most


def sigma_interval(sigma: float, df: float, level: float = 0.95) -> tuple[float, float]:
    """Interval of a standard deviation that was estimated as ``sigma`` on ``df`` degrees of freedom (chi-square)."""
    tail = (1 - level) / 2
    high, low = float(special.chdtri(df, tail)), 2 * float(special.gammaincinv(df / 2, tail))
    return sigma * math.sqrt(df / high), sigma * math.sqrt(df / low)


@lru_cache(maxsize=512)
def _least_effects(sd: float, layout: Layout) -> np.ndarray:
    """For each of many experiments without an effect, the least one that, added, would be called: (draws,).

    An effect shifts the mean of the differences and nothing else, so that the experiment calls it as soon as it exceeds
    the half width of its interval less that mean, at any of its looks.
    """
    if not 0 < sd < math.inf:
        raise ValueError(f"a standard deviation is a positive number, not {sd}")
    if layout.family < 1 or not 0 < layout.alpha < 1:
        raise ValueError(f"a family of {layout.family} at alpha {layout.alpha}: 1 or more, and between 0 and 1")
    generator = np.random.default_rng(0)  # the same draws for every question: answers are reproducible
    if isinstance(layout.blocks, tuple):
        return _independent(sd, layout, layout.blocks, generator)
    looks = looks_until(layout.looks, layout.blocks)
    if looks[0] < 2:
        raise ValueError(f"{looks[0]} blocks: a verdict takes two or more")
    draws = sd * generator.standard_normal((_DRAWS, looks[-1]))
    found = np.full(_DRAWS, np.inf)
    for n, share in zip(looks, shares(looks), strict=True):
        seen = draws[:, :n]
        variance, df = moderate(seen.var(axis=1, ddof=1), n - 1, layout.prior)
        half = t_quantile(share * layout.alpha / 2 / layout.family, df) * np.sqrt(variance / n)
        found = np.minimum(found, half - seen.mean(axis=1))
    return found


def _independent(sd: float, layout: Layout, runs: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    if min(runs) < (1 if layout.prior else 2) or max(runs) < 2:
        raise ValueError(f"{runs} runs: two of each arm are needed, or one of either where an sd is known before")
    squares, least = np.zeros(_DRAWS), math.inf
    for n in runs:
        own = sd**2 * generator.chisquare(n - 1, _DRAWS) / (n - 1) if n > 1 else np.zeros(_DRAWS)
        variance, df = moderate(own, n - 1, layout.prior)
        squares, least = squares + variance / n, min(least, df)
    mean = sd * math.sqrt(sum(1 / n for n in runs)) * generator.standard_normal(_DRAWS)
    return np.asarray(t_quantile(layout.alpha / 2 / layout.family, least) * np.sqrt(squares) - mean)
