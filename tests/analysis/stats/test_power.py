"""What a design can show, against the shipped procedure on simulated runs, one experiment at a time."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.stats.estimate import in_family, independent, looks_until, shares, within_blocks
from analysis.stats.power import Layout, blocks_needed, detectable_effect, power, sigma_interval
from analysis.store.schema import Prior

ALPHA = 0.05
SD = 0.02
TRUE = Prior(sd=0.02, df=4.5, source="the true sd")
WRONG = Prior(sd=0.05, df=8.0, source="of noisier arms")
LAYOUTS = {
    "pairs": Layout(blocks=5, family=1, alpha=ALPHA),
    "two blocks": Layout(blocks=2, family=1, alpha=ALPHA, prior=TRUE),
    "a family": Layout(blocks=5, family=6, alpha=ALPHA, prior=TRUE),
    "a prior of another sd": Layout(blocks=5, family=3, alpha=ALPHA, prior=WRONG),
    "looks": Layout(blocks=8, family=3, alpha=ALPHA, looks=(3, 5, 8), prior=TRUE),
    "looks without a prior": Layout(blocks=8, family=2, alpha=ALPHA, looks=(3, 5, 8)),
    "more blocks than looks": Layout(blocks=6, family=1, alpha=ALPHA, looks=(3, 4), prior=TRUE),
    "independent": Layout(blocks=(8, 3), family=3, alpha=ALPHA),
    "independent with a prior": Layout(blocks=(5, 2), family=2, alpha=ALPHA, prior=TRUE),
}


def called(layout: Layout, effect: float, generator: np.random.Generator) -> int:
    """The sign by which one simulated experiment calls its first variant, 0 where it does not; others differ by 0."""
    if isinstance(layout.blocks, tuple):
        n_control, n = layout.blocks
        control = generator.normal(0, SD, n_control)
        arms = {str(i): generator.normal(0 if i else effect, SD, n) for i in range(layout.family)}
        first = in_family({name: independent(control, x, layout.prior) for name, x in arms.items()}, layout.family)["0"]
        low, high = first.interval(layout.alpha)
        return int(low > 0) - int(high < 0)
    arms = {str(i): generator.normal(0 if i else effect, SD, layout.blocks) for i in range(layout.family)}
    looks = looks_until(layout.looks, layout.blocks)
    for look, share in zip(looks, shares(looks), strict=True):
        estimates = {name: replace(within_blocks(x[:look], layout.prior), share=share) for name, x in arms.items()}
        low, high = in_family(estimates, layout.family)["0"].interval(layout.alpha)
        if low > 0 or high < 0:
            return int(low > 0) - int(high < 0)
    return 0


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_effect_is_found_as_often_as_promised(name):
    layout, trials = LAYOUTS[name], 500
    effect = detectable_effect(SD, layout)
    assert power(-effect, SD, layout) == pytest.approx(0.8, abs=1e-3)
    generator = np.random.default_rng(1)
    found = sum(called(layout, effect, generator) > 0 for _ in range(trials))
    interval = stats.binomtest(found, trials).proportion_ci(0.999, "exact")
    assert interval.low < 0.8 < interval.high


@pytest.mark.parametrize("power_", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("n", [3, 5, 12])
def test_pairs_without_a_prior_are_the_noncentral_t(n, power_):
    """The textbook's power of a paired t test, by scipy."""
    effect = detectable_effect(1.0, Layout(blocks=n, family=2, alpha=ALPHA), power_)
    critical = stats.t.isf(ALPHA / 2 / 2, n - 1)
    assert stats.nct.sf(critical, n - 1, effect * n**0.5) == pytest.approx(power_, abs=0.015)


def test_with_many_blocks_and_a_known_sd_the_figure_is_the_textbooks():
    """(1.960 + 0.842) sd / sqrt(n)."""
    known = Prior(sd=SD, df=1e6, source="known")
    assert detectable_effect(SD, Layout(blocks=25, family=1, alpha=ALPHA, prior=known)) == pytest.approx(
        2.802 * SD / 5, rel=0.01
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_without_an_effect_a_call_by_either_sign_is_no_likelier_than_alpha(name):
    layout = LAYOUTS[name]
    either = 2 * power(0.0, SD, layout)  # by symmetry
    assert either <= layout.alpha / layout.family + 0.004


def test_more_of_anything_helps_and_a_larger_family_and_looks_cost():
    plain = Layout(blocks=5, family=2, alpha=ALPHA)
    effect = detectable_effect(1.0, plain)
    assert detectable_effect(1.0, replace(plain, blocks=8)) < effect
    assert detectable_effect(1.0, replace(plain, prior=Prior(sd=1.0, df=4.5, source="x"))) < effect
    assert detectable_effect(1.0, replace(plain, family=8)) > effect
    assert detectable_effect(1.0, replace(plain, alpha=0.01)) > effect
    assert detectable_effect(1.0, replace(plain, looks=(2, 5))) > effect
    assert detectable_effect(1.0, plain, 0.95) > effect
    assert detectable_effect(1.0, Layout(blocks=(8, 5), family=2, alpha=ALPHA)) < detectable_effect(
        1.0, Layout(blocks=(5, 5), family=2, alpha=ALPHA)
    )


@given(st.integers(2, 9), st.integers(1, 6), st.floats(0.1, 5), st.floats(0, 9))
@settings(max_examples=15)
def test_power_rises_with_the_effect_and_has_no_unit(n, family, sd, effect):
    layout = Layout(blocks=n, family=family, alpha=ALPHA, prior=Prior(sd=1.0, df=4.5, source="x"))
    scaled = replace(layout, prior=Prior(sd=1000.0, df=4.5, source="x"))
    low, high = power(effect, sd, layout), power(effect + 0.1 * sd, sd, layout)
    assert 0 <= low <= high <= 1
    assert power(-1000 * effect, 1000 * sd, scaled) == pytest.approx(low, abs=1e-3)
    assert power(detectable_effect(sd, layout, 0.6), sd, layout) == pytest.approx(0.6, abs=1e-3)


def test_looks_that_end_with_the_blocks_are_the_same_said_or_not():
    said, unsaid = (
        Layout(blocks=8, family=1, alpha=ALPHA, looks=(3, 5, 8), prior=TRUE),
        Layout(blocks=8, family=1, alpha=ALPHA, looks=(3, 5), prior=TRUE),
    )
    assert detectable_effect(SD, said) == detectable_effect(SD, unsaid)
    assert detectable_effect(
        SD, Layout(blocks=8, family=1, alpha=ALPHA, looks=(8, 12), prior=TRUE)
    ) == detectable_effect(SD, Layout(blocks=8, family=1, alpha=ALPHA, prior=TRUE))


@pytest.mark.parametrize("prior", [None, TRUE])
@pytest.mark.parametrize("effect", [0.5, 0.03, 0.02, -0.012])
def test_blocks_needed_is_the_fewest(effect, prior):
    layout = Layout(blocks=5, family=3, alpha=ALPHA, looks=(3, 5), prior=prior)  # judged once, whatever the looks
    n = blocks_needed(effect, SD, layout)
    assert n is not None
    assert detectable_effect(SD, Layout(blocks=n, family=3, alpha=ALPHA, prior=prior)) <= abs(effect)
    assert n == 2 or detectable_effect(SD, Layout(blocks=n - 1, family=3, alpha=ALPHA, prior=prior)) > abs(effect)


def test_runs_needed_beside_a_control():
    layout = Layout(blocks=(8, 3), family=3, alpha=ALPHA)
    n = blocks_needed(0.04, SD, layout)
    assert n is not None
    assert (
        detectable_effect(SD, Layout(blocks=(8, n), family=3, alpha=ALPHA))
        <= 0.04
        < detectable_effect(SD, Layout(blocks=(8, n - 1), family=3, alpha=ALPHA))
    )
    assert blocks_needed(0.01, SD, layout, most=30) is None  # a small control cannot be made up for


def test_no_number_of_blocks_shows_nothing():
    assert blocks_needed(0.0, SD, Layout(blocks=5, family=1, alpha=ALPHA)) is None
    assert blocks_needed(0.001, SD, Layout(blocks=5, family=1, alpha=ALPHA), most=20) is None


def test_sigmas_interval_is_chi_squares():
    for sigma, df in ((0.03, 7), (0.0165, 4.5)):
        low, high = sigma_interval(sigma, df)
        assert stats.chi2.cdf(df * (sigma / low) ** 2, df) == pytest.approx(0.975)
        assert stats.chi2.cdf(df * (sigma / high) ** 2, df) == pytest.approx(0.025)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"blocks": 1}, "two or more"),
        ({"blocks": 1, "prior": TRUE}, "two or more"),  # which is judged by no one either
        ({"looks": (1, 3)}, "two or more"),
        ({"blocks": (1, 1), "prior": TRUE}, "two of each"),
        ({"blocks": (5, 1)}, "two of each"),
        ({"blocks": (0, 5), "prior": TRUE}, "two of each"),
        ({"family": 0}, "family of 0"),
        ({"alpha": 0.0}, "alpha 0"),
        ({"alpha": 1.0}, "alpha 1"),
    ],
)
def test_impossible_designs_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        detectable_effect(1.0, replace(Layout(blocks=3, family=1, alpha=ALPHA), **wrong))


@pytest.mark.parametrize("sd", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_sd_is_refused(sd):
    with pytest.raises(ValueError, match="positive number"):
        detectable_effect(sd, Layout(blocks=3, family=1, alpha=ALPHA))


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_an_impossible_power_is_refused(chance):
    with pytest.raises(ValueError, match="power must"):
        detectable_effect(1.0, Layout(blocks=3, family=1, alpha=ALPHA), chance)
