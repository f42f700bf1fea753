import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.stats import dunnett, power
from analysis.stats.estimate import Noise, family

ALPHA = 0.05


@pytest.mark.parametrize(("n", "effect"), [(1, 0.0052), (3, 0.0030), (5, 0.0023)])
def test_with_many_runs_the_figures_are_the_textbooks(n, effect):
    # (1.960 + 0.842) * 0.0013 * sqrt(2 / n), the effect for n + n runs where sigma is known; here it nearly is.
    assert power.detectable_effect(0.0013, 400 * n, [400 * n], alpha=ALPHA) * 20 == pytest.approx(effect, rel=0.02)


def test_noncentrality_is_the_textbooks():
    assert power.noncentrality(1.959964) == pytest.approx(1.959964 + 0.841621, abs=1e-5)
    effect = power.noncentrality(2.5, 7, 0.9)
    t = stats.nct.rvs(7, effect, size=20_000, random_state=np.random.default_rng(0))
    assert (t > 2.5).mean() == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize(("n_control", "sizes"), [(4, (3,)), (8, (3, 3, 3)), (8, (1, 1)), (5, (2, 4, 1)), (1, (3, 3))])
def test_an_effect_is_found_as_often_as_promised(n_control, sizes):
    """By the shipped procedure on simulated runs, one family at a time."""
    sigma, trials = 0.02, 600
    effect = power.detectable_effect(sigma, n_control, sizes, alpha=ALPHA)
    assert power.power(-effect, sigma, n_control, sizes, alpha=ALPHA) == pytest.approx(0.8, abs=1e-4)
    generator = np.random.default_rng(1)
    found = 0
    for _ in range(trials):
        control = generator.normal(0, sigma, n_control)
        arms = {str(i): generator.normal(0 if i else effect, sigma, n) for i, n in enumerate(sizes)}
        estimates = family(control, arms, sizes, Noise.of({"control": control} | arms), ALPHA)
        found += estimates["0"].interval(ALPHA)[0] > 0
    interval = stats.binomtest(found, trials).proportion_ci(0.999, "exact")
    assert interval.low < 0.8 < interval.high


@pytest.mark.parametrize(("n", "price"), [(2, 1.26), (3, 1.25), (5, 1.08), (8, 1.05)])
def test_the_price_of_the_guards(n, price):
    """Against Dunnett's test alone, six variants beside eight control runs."""
    df = 7 + 6 * (n - 1)
    alone = power.noncentrality(dunnett.critical_value(ALPHA, 8, [n] * 6, df), df) * (1 / 8 + 1 / n) ** 0.5
    assert power.detectable_effect(1.0, 8, [n] * 6, alpha=ALPHA) / alone == pytest.approx(price, abs=0.01)


def test_without_an_effect_the_chance_of_a_call_is_the_level():
    # One arm of eight runs: its own scatter hardly ever has a say.
    assert power.call_chance(0.0, 0.02, 8, [8], alpha=ALPHA) == pytest.approx(ALPHA, abs=0.004)
    assert power.call_chance(9.0, 0.02, 8, [8], alpha=ALPHA) == pytest.approx(1)


def test_more_of_anything_helps_and_a_larger_family_costs():
    def effect(n_control=4, n=3, m=2):
        return power.detectable_effect(1.0, n_control, [n] * m, alpha=ALPHA)

    assert effect(n_control=8) < effect()
    assert effect(n=5) < effect()
    assert effect(m=8) > power.detectable_effect(1.0, 4, (3, *[9] * 3), alpha=ALPHA)


@given(st.integers(2, 9), st.lists(st.integers(1, 6), min_size=1, max_size=5), st.floats(0.1, 5), st.floats(0, 9))
@settings(max_examples=25, deadline=None)
def test_power_rises_with_the_effect_and_has_no_unit(n_control, sizes, sigma, effect):
    low = power.power(effect, sigma, n_control, sizes, alpha=ALPHA)
    high = power.power(effect + 0.1 * sigma, sigma, n_control, sizes, alpha=ALPHA)
    assert 0 <= low <= high <= 1
    assert power.power(1000 * effect, 1000 * sigma, n_control, sizes, alpha=ALPHA) == pytest.approx(low, abs=1e-9)


@pytest.mark.parametrize("effect", [0.004, 0.003, 0.0025])
def test_seeds_needed_is_the_fewest(effect):
    n = power.seeds_needed(effect, 0.0013, 8, alpha=ALPHA, num_variants=3)
    assert n is not None
    assert n > 2
    assert power.detectable_effect(0.0013, 8, [n] * 3, alpha=ALPHA) <= effect
    assert power.detectable_effect(0.0013, 8, [n - 1] * 3, alpha=ALPHA) > effect


def test_a_small_control_cannot_be_made_up_for():
    assert power.seeds_needed(0.001, 0.0013, 4, alpha=ALPHA, num_variants=1, most=30) is None


def test_sigmas_interval_is_chi_squares():
    sigma, df = 0.03, 7
    low, high = power.sigma_interval(sigma, df)
    assert stats.chi2.cdf(df * (sigma / low) ** 2, df) == pytest.approx(0.975)
    assert stats.chi2.cdf(df * (sigma / high) ** 2, df) == pytest.approx(0.025)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"n_control": 0}, {"n_arms": [0]}, {"n_arms": []}, {"sigma": -1.0}, {"alpha": 0.0}, {"power": 1.0}),
        {"n_control": 1, "n_arms": [1, 1]},
    ],
)
def test_impossible_designs_are_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        power.detectable_effect(**({"sigma": 1.0, "n_control": 3, "n_arms": [3], "alpha": 0.05} | wrong))


@pytest.mark.parametrize(("n", "arms", "correlation"), [(5, 1, 0.0), (8, 3, 0.5), (5, 6, -0.5)])
def test_an_effect_in_pairs_is_found_as_often_as_promised(n, arms, correlation):
    effect = power.detectable_effect_paired(0.02, n, arms, correlation=correlation, alpha=ALPHA)
    generator = np.random.default_rng(0)
    cov = 0.02**2 * np.array([[1, correlation], [correlation, 1]])
    pairs = generator.multivariate_normal([0, effect], cov, size=(4000, n))  # (trials, n, 2)
    p = stats.ttest_rel(pairs[..., 1], pairs[..., 0], axis=1, alternative="greater").pvalue
    assert (p < ALPHA / 2 / arms).mean() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(("n", "correlation"), [(1, 0.0), (5, 1.0)])
def test_impossible_pairs_are_refused(n, correlation):
    with pytest.raises(ValueError, match="two or more seeds and a correlation"):
        power.detectable_effect_paired(1.0, n, 1, correlation=correlation, alpha=ALPHA)
