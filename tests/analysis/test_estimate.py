import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.estimate import Noise, bartlett_p, t_quantile


@given(st.lists(st.integers(2, 9), min_size=2, max_size=6), st.integers(0, 10**6))
def test_bartletts_p_is_scipys(sizes, seed):
    generator = np.random.default_rng(seed)
    groups = [generator.normal(scale=1 + i, size=n) for i, n in enumerate(sizes)]
    noise = Noise.of({str(i): x for i, x in enumerate(groups)})
    assert noise.pool_p == pytest.approx(stats.bartlett(*groups).pvalue, rel=1e-9, abs=1e-300)
    twice = np.array([[x.var(ddof=1)] * 2 for x in groups])
    assert bartlett_p(twice, np.array(sizes) - 1) == pytest.approx([noise.pool_p] * 2)


@given(st.floats(1e-12, 0.5), st.floats(1, 200))
def test_t_quantiles_are_scipys(tail, df):
    assert t_quantile(tail, df) == pytest.approx(stats.t.isf(tail, df), rel=1e-9, abs=1e-9)


def test_arms_of_one_run_have_no_spread():
    noise = Noise.of({"control": np.array([1.0, 2.0]), "single": np.array([9.0])})
    assert (noise.arms, noise.df, noise.sigma) == (("control",), 1, pytest.approx(0.5**0.5))
    assert noise.pools
