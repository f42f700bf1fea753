import math

import numpy as np
import pytest
from scipy import stats

from analysis import power


@pytest.mark.parametrize(("n", "effect"), [(1, 0.0052), (3, 0.0030), (5, 0.0023)])
def test_known_sigma_gives_the_textbook_figures(n, effect):
    # (1.960 + 0.842) * 0.0013 * sqrt(2 / n)
    assert power.detectable_effect(0.0013, n, n, alpha=0.05, num_variants=1) == pytest.approx(effect, abs=6e-5)


@pytest.mark.parametrize("num_variants", [1, 3])
def test_the_effect_is_found_as_often_as_promised(num_variants):
    sigma, n_control, n, trials = 0.02, 4, 3, 1500
    df = n_control - 1 + num_variants * (n - 1)
    effect = power.detectable_effect(sigma, n_control, n, alpha=0.05, num_variants=num_variants, power=0.8, df=df)
    rng = np.random.default_rng(1)
    control = rng.normal(0, sigma, (trials, n_control))
    variants = rng.normal(effect, sigma, (trials, num_variants, n))
    squares = control.var(axis=1, ddof=1) * (n_control - 1) + variants.var(axis=2, ddof=1).sum(axis=1) * (n - 1)
    t = (variants[:, 0].mean(axis=1) - control.mean(axis=1)) / np.sqrt(squares / df * (1 / n_control + 1 / n))
    # Judged by an independent critical value: scipy's p at the value must be alpha.
    critical = stats.t.isf(0.025, df) if num_variants == 1 else _scipy_critical(n_control, n, num_variants)
    found = stats.binomtest(int((t > critical).sum()), trials).proportion_ci(0.999, "exact")
    assert found.low < 0.8 < found.high


def _scipy_critical(n_control: int, n: int, num_variants: int) -> float:
    """From the half width of the interval of scipy's Dunnett test on this layout, here one where it converges."""
    rng = np.random.default_rng(0)
    control, *arms = (rng.normal(size=k) for k in (n_control, *[n] * num_variants))
    df = n_control - 1 + num_variants * (n - 1)
    squares = sum(float(np.sum((x - x.mean()) ** 2)) for x in (control, *arms))
    interval = stats.dunnett(*arms, control=control, rng=rng).confidence_interval(0.95)
    return float((interval.high - interval.low)[0] / 2 / math.sqrt(squares / df * (1 / n_control + 1 / n)))


def test_more_of_anything_helps_and_a_larger_family_costs():
    def effect(n_control=4, n=3, m=2, df=None):
        return power.detectable_effect(1.0, n_control, n, alpha=0.05, num_variants=m, df=df)

    assert effect(n_control=8) < effect()
    assert effect(n=5) < effect()
    assert effect(m=5) > effect()
    assert effect(df=4) > effect()
    assert effect(df=10**6) == pytest.approx(effect(), rel=1e-4)


@pytest.mark.parametrize("effect", [0.003, 0.002, 0.0017])
def test_seeds_needed_is_the_fewest(effect):
    settings = {"alpha": 0.05, "num_variants": 3}
    n = power.seeds_needed(effect, 0.0013, 8, **settings)
    assert n is not None
    assert n > 1
    assert power.detectable_effect(0.0013, 8, n, **settings) <= effect
    assert power.detectable_effect(0.0013, 8, n - 1, **settings) > effect


def test_a_small_control_cannot_be_made_up_for():
    assert power.seeds_needed(0.001, 0.0013, 4, alpha=0.05, num_variants=1) is None


@pytest.mark.parametrize("wrong", [{"n_control": 0}, {"n_variant": 0}, {"sigma": -1.0}, {"alpha": 0.0}, {"power": 1.0}])
def test_impossible_designs_are_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        power.detectable_effect(
            **({"sigma": 1.0, "n_control": 3, "n_variant": 3, "alpha": 0.05, "num_variants": 1} | wrong)
        )
