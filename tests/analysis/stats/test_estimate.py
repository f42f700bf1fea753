"""Estimates against scipy, against formulas written out here, and against what was drawn."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.stats.estimate import (
    MOST_PRIOR_DF,
    Estimate,
    fit_prior,
    in_family,
    independent,
    looks_until,
    moderate,
    outliers,
    programme_p,
    shares,
    t_quantile,
    within_blocks,
)
from analysis.store.schema import Prior

LOSSES = st.lists(st.floats(-1, 1).map(lambda x: round(x, 3)), min_size=2, max_size=9, unique=True).map(np.array)
PRIORS = st.builds(Prior, sd=st.floats(0.01, 3), df=st.floats(0.5, 60), source=st.just("drawn"))


@given(st.floats(1e-12, 0.5), st.floats(0.5, 200))
def test_t_quantiles_are_scipys(tail, df):
    assert t_quantile(tail, df) == pytest.approx(stats.t.isf(tail, df), rel=1e-9, abs=1e-9)


@given(LOSSES, st.floats(0.001, 0.2))
def test_without_a_prior_blocks_are_pairs(differences, alpha):
    estimate = within_blocks(differences, None)
    theirs = stats.ttest_rel(differences + 4, np.full(len(differences), 4.0))
    assert estimate.p == pytest.approx(theirs.pvalue, rel=1e-6)
    for mine, level in ((estimate.interval, 1 - alpha), (estimate.equivalence_interval, 1 - 2 * alpha)):
        interval = theirs.confidence_interval(level)
        assert mine(alpha) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)


@given(LOSSES, PRIORS)
def test_a_moderated_t_is_the_one_of_the_paper(differences, prior):
    """Smyth 2004, section 3: s~² = (d0 s0² + d s²) / (d0 + d), t on d0 + d degrees of freedom."""
    n, d = len(differences), len(differences) - 1
    mean = math.fsum(differences) / n
    s2 = math.fsum((x - mean) ** 2 for x in differences) / d
    posterior = (prior.df * prior.sd**2 + d * s2) / (prior.df + d)
    estimate = within_blocks(differences, prior)
    assert (estimate.delta, estimate.df) == pytest.approx((mean, prior.df + d), abs=1e-12)
    assert estimate.sigma == pytest.approx(math.sqrt(posterior))
    assert estimate.p == pytest.approx(2 * stats.t.sf(abs(mean) / math.sqrt(posterior / n), prior.df + d), rel=1e-6)


@given(LOSSES)
def test_a_prior_that_knows_little_or_all_changes_nothing_or_all(differences):
    none = within_blocks(differences, None)
    little = within_blocks(differences, Prior(sd=5.0, df=1e-12, source="a guess"))
    assert (little.sigma, little.df) == pytest.approx((none.sigma, none.df))
    sure = within_blocks(differences, Prior(sd=0.25, df=1e12, source="certain"))
    assert sure.sigma == pytest.approx(0.25)
    assert sure.p == pytest.approx(2 * stats.norm.sf(abs(sure.delta) * math.sqrt(len(differences)) / 0.25), rel=1e-6)


def test_one_block_has_the_priors_sd_and_nothing_without():
    one = within_blocks(np.array([0.3]), Prior(sd=0.1, df=4.5, source="x"))
    assert (one.delta, one.se, one.df, one.sigma) == pytest.approx((0.3, 0.1, 4.5, 0.1))
    assert math.isnan(within_blocks(np.array([0.3]), None).sigma)


def test_moderating_takes_arrays_and_degrees_of_freedom_each_its_own():
    prior = Prior(sd=0.5, df=3.0, source="x")
    variance, df = moderate(np.array([1.0, np.nan, 4.0]), np.array([1, 0, 7]), prior)
    assert variance == pytest.approx([(0.75 + 1) / 4, 0.25, (0.75 + 28) / 10])
    assert df == pytest.approx([4, 3, 10])


@given(LOSSES, LOSSES)
def test_independent_runs_get_welchs_statistic_on_the_degrees_of_the_smaller_side(control, values):
    estimate = independent(control, values, None)
    theirs = stats.ttest_ind(values, control, equal_var=False)
    df = min(len(control), len(values)) - 1
    assert estimate.df == df
    assert estimate.delta / estimate.se == pytest.approx(theirs.statistic, rel=1e-6, abs=1e-9)
    assert estimate.p == pytest.approx(2 * stats.t.sf(abs(theirs.statistic), df), rel=1e-6)
    assert estimate.p >= theirs.pvalue * (1 - 1e-6)  # Welch's own
    assert estimate.sigma == pytest.approx(values.std(ddof=1))


@given(LOSSES, LOSSES, PRIORS)
def test_independent_runs_are_moderated_side_by_side(control, values, prior):
    estimate = independent(control, values, prior)
    parts = [
        (prior.df * prior.sd**2 + float(((x - x.mean()) ** 2).sum())) / (prior.df + len(x) - 1)
        for x in (control, values)
    ]
    assert estimate.se == pytest.approx(math.sqrt(parts[0] / len(control) + parts[1] / len(values)))
    assert estimate.df == pytest.approx(prior.df + min(len(control), len(values)) - 1)


# The family


def estimate_of(p: float, share: float = 1.0) -> Estimate:
    """One with this two-sided p and ten degrees of freedom."""
    return Estimate(delta=float(stats.t.isf(p / 2, 10)), se=1.0, df=10, sigma=1.0, share=share)


def by_closed_testing(p: Sequence[float]) -> list[float]:
    """Adjusted p by its definition: the largest Bonferroni p of all intersections that a hypothesis is part of."""
    subsets = [s for k in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), k)]
    return [max(min(1.0, len(s) * min(p[j] for j in s)) for s in subsets if i in s) for i in range(len(p))]


@given(st.lists(st.floats(1e-9, 1), min_size=1, max_size=6), st.integers(0, 2), st.floats(0.05, 1))
def test_holms_p_is_that_of_closed_testing(p, absent, share):
    """Arms without runs count as if nothing spoke for them."""
    estimates = {str(i): estimate_of(x, share) for i, x in enumerate(p)}
    adjusted = in_family(estimates, len(p) + absent)
    expected = by_closed_testing([*(min(1.0, x / share) for x in p), *[1.0] * absent])
    assert [adjusted[str(i)].p_adj for i in range(len(p))] == pytest.approx(expected[: len(p)], rel=1e-6)


@given(st.floats(1e-6, 1), st.integers(1, 9), st.floats(0.01, 0.2), st.floats(0.05, 1))
def test_the_interval_and_bonferronis_p_say_the_same(p, size, alpha, share):
    (estimate,) = in_family({"a": estimate_of(p, share)}, size).values()
    bonferroni = size * estimate.p / share
    if abs(bonferroni - alpha) > 1e-6:
        assert (estimate.interval(alpha)[0] > 0) == (bonferroni < alpha)
    assert estimate.p_adj == pytest.approx(min(1.0, bonferroni))


def test_no_estimates_are_no_family():
    assert in_family({}, 3) == {}


# Looks and the programme


@given(st.lists(st.integers(2, 200), min_size=1, max_size=8, unique=True).map(sorted))
def test_the_looks_spend_all_of_alpha_and_no_more(looks):
    spent = shares(looks)
    assert len(spent) == len(looks)
    assert min(spent) > 0
    assert sum(spent) == pytest.approx(1)
    assert np.cumsum(spent) == pytest.approx(np.array(looks) / looks[-1])


@pytest.mark.parametrize(
    ("blocks", "looks"), [(8, (3, 5, 8)), (10, (3, 5, 8, 10)), (5, (3, 5)), (4, (3, 4)), (3, (3,)), (2, (2,))]
)
def test_an_arm_of_its_own_number_of_blocks_is_looked_at_after_the_last(blocks, looks):
    assert looks_until((3, 5, 8), blocks) == looks
    assert looks_until((), blocks) == (blocks,)


def test_a_programme_spends_alpha_once():
    """An experiment alarms where p_adj <= alpha / (m (m + 1)): over any number of them the chances add up to alpha."""
    levels = [1 / (m * (m + 1)) for m in range(1, 2000)]
    assert 0.999 < math.fsum(levels) <= 1
    for order, level in enumerate(levels[:50], 1):
        assert programme_p(0.05 * level, order) == pytest.approx(0.05)
    assert programme_p(0.01, 1) == 0.02
    assert programme_p(0.9, 1) == programme_p(1e-3, 10**9) == 1.0
    assert programme_p(0.0, 10**9) == 0.0
    with pytest.raises(ValueError, match="number 0"):
        programme_p(0.01, 0)


# The prior


@pytest.mark.parametrize(("sd", "df", "blocks"), [(0.0165, 4.5, 5), (0.3, 12.0, 8), (2.0, 3.0, 3)])
def test_the_prior_of_many_arms_is_found_again(sd, df, blocks):
    generator = np.random.default_rng(0)
    true = df * sd**2 / generator.chisquare(df, 2000)  # a scaled inverse chi-square
    variances = true * generator.chisquare(blocks - 1, 2000) / (blocks - 1)
    prior = fit_prior(variances, [blocks - 1] * 2000, "simulated")
    assert prior.sd == pytest.approx(sd, rel=0.03)
    assert prior.df == pytest.approx(df, rel=0.12)
    assert prior.source == "simulated"


@given(st.lists(st.tuples(st.floats(1e-9, 1e3), st.floats(0.5, 30)), min_size=3, max_size=8), st.floats(0.01, 100))
def test_any_three_arms_have_a_prior_in_the_unit_of_their_sds(arms, scale):
    variances, dfs = map(np.array, zip(*arms, strict=True))
    prior = fit_prior(variances, dfs, "drawn")
    assert 0 < prior.df <= MOST_PRIOR_DF
    assert 0 < prior.sd < math.inf
    scaled = fit_prior(variances * scale**2, dfs, "drawn")
    assert (scaled.sd, scaled.df) == pytest.approx((prior.sd * scale, prior.df), rel=1e-5)


def test_arms_that_hardly_differ_give_a_prior_that_is_nearly_certain():
    prior = fit_prior([0.04] * 6, [4] * 6, "equal")
    assert prior.df == MOST_PRIOR_DF
    assert prior.sd == pytest.approx(0.2, rel=0.2)


@pytest.mark.parametrize(
    ("variances", "says"), [([1.0, 2.0], "not of 2"), ([1.0, 0.0, 2.0], "positive"), ([1.0, math.nan, 2.0], "positive")]
)
def test_what_has_no_prior_is_refused(variances, says):
    with pytest.raises(ValueError, match=says):
        fit_prior(variances, [3.0] * len(variances), "x")


# Outliers


@given(LOSSES)
def test_a_deleted_residual_is_the_t_test_of_one_run_against_the_rest(values):
    found = outliers(values)
    n = len(values)
    if n < 4:
        assert found == []
        return
    for i in range(n):
        p = stats.ttest_ind(values[[i]], np.delete(values, i)).pvalue
        if abs(p * n - 0.05) > 1e-6:
            assert (i in found) == (p * n < 0.05)


@pytest.mark.parametrize("values", [[], [1.0], [1.0] * 6])
def test_where_nothing_varies_nothing_is_an_outlier(values):
    assert outliers(np.array(values)) == []


@pytest.mark.parametrize("n", [4, 5, 8, 20])
def test_ordinary_seeds_are_seldom_called_outliers(n):
    rng, trials = np.random.default_rng(5), 1000
    flagged = sum(bool(outliers(rng.normal(size=n))) for _ in range(trials))
    assert flagged <= stats.binom.isf(0.001, trials, 0.05)
