import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.stats.estimate import Noise, bartlett_p, control_p, family, t_quantile


@given(st.lists(st.integers(2, 9), min_size=2, max_size=6), st.integers(0, 10**6))
def test_bartletts_p_is_scipys(sizes, seed):
    generator = np.random.default_rng(seed)
    groups = [generator.normal(scale=1 + i, size=n) for i, n in enumerate(sizes)]
    noise = Noise.of({str(i): x for i, x in enumerate(groups)})
    assert noise.pool_p == pytest.approx(stats.bartlett(*groups).pvalue, rel=1e-9, abs=1e-300)
    twice = np.array([[x.var(ddof=1)] * 2 for x in groups])
    assert bartlett_p(twice, np.array(sizes) - 1) == pytest.approx([noise.pool_p] * 2)


@given(st.lists(st.integers(2, 9), min_size=3, max_size=6), st.integers(0, 10**6))
def test_the_control_is_held_against_all_others_by_an_f_test(sizes, seed):
    generator = np.random.default_rng(seed)
    groups = [generator.normal(size=n) for n in sizes]
    noise = Noise.of({str(i): x for i, x in enumerate(groups)})
    residuals = np.concatenate([x - x.mean() for x in groups[1:]])
    df = len(residuals) - len(groups) + 1
    expected = stats.f.sf(groups[0].var(ddof=1) / (residuals @ residuals / df), sizes[0] - 1, df)
    assert noise.control_p == pytest.approx(expected, rel=1e-9, abs=1e-300)
    twice = np.array([[x.var(ddof=1)] * 2 for x in groups])
    assert control_p(twice, np.array(sizes) - 1) == pytest.approx([noise.control_p] * 2)


def test_many_quiet_arms_do_not_outvote_a_noisy_control():
    generator = np.random.default_rng(1)
    control = np.array([-2.3, -1.4, -0.7, -0.2, 0.2, 0.7, 1.4, 2.3])
    quiet = {str(i): generator.permutation(control) / 2.3 for i in range(12)}
    noise = Noise.of({"control": control} | quiet)
    assert noise.pool_p > 0.12 > 0.01 > noise.control_p
    assert not noise.pools
    assert "control's F p" in noise.check
    assert family(control, quiet, [8] * 12, noise, 0.05)["0"].layout is None  # Welch's, not Dunnett's
    assert Noise.of({"control": control / 2.3} | quiet).pools
    assert np.isnan(Noise.of({"control": control[:1]} | quiet).control_p)
    assert np.isnan(Noise.of({"control": control, "0": quiet["0"]}).control_p)  # Bartlett's test asks the same


@given(st.floats(1e-12, 0.5), st.floats(1, 200))
def test_t_quantiles_are_scipys(tail, df):
    assert t_quantile(tail, df) == pytest.approx(stats.t.isf(tail, df), rel=1e-9, abs=1e-9)


def test_arms_of_one_run_have_no_spread():
    noise = Noise.of({"control": np.array([1.0, 2.0]), "single": np.array([9.0])})
    assert (noise.arms, noise.df, noise.sigma) == (("control",), 1, pytest.approx(0.5**0.5))
    assert noise.pools
