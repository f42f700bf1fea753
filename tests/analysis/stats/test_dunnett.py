import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.stats import dunnett


@pytest.mark.parametrize(
    ("df", "published"),
    # Dunnett (1964), Biometrics 20:482, two-sided 5 %, equal group sizes, 1 to 5 treatments.
    [
        (10, (2.23, 2.57, 2.76, 2.89, 2.99)),
        (20, (2.09, 2.38, 2.54, 2.65, 2.73)),
        (math.inf, (1.96, 2.21, 2.35, 2.44, 2.51)),
    ],
)
def test_critical_values_are_the_published_ones(df, published):
    assert [round(dunnett.critical_value(0.05, 5, [5] * k, df), 2) for k in range(1, 6)] == list(published)


@given(st.integers(2, 9), st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 10**6))
def test_p_agrees_with_scipy(n_control, sizes, seed):
    rng = np.random.default_rng(seed)
    control, *arms = (rng.normal(size=n) for n in (n_control, *sizes))
    df = n_control + sum(sizes) - len(sizes) - 1
    pooled = sum(float(np.sum((x - x.mean()) ** 2)) for x in (control, *arms)) / df
    theirs = stats.dunnett(*arms, control=control, rng=np.random.default_rng(0)).pvalue
    for x, p in zip(arms, theirs, strict=True):
        t = (x.mean() - control.mean()) / math.sqrt(pooled * (1 / n_control + 1 / len(x)))
        assert dunnett.tail(t, n_control, sizes, df) == pytest.approx(p, abs=1e-3)


@given(st.floats(0.1, 30), st.integers(1, 9), st.integers(1, 9), st.integers(1, 40))
def test_one_arm_is_a_t_test(t, n_control, n, df):
    assert dunnett.tail(-t, n_control, [n], df) == pytest.approx(2 * stats.t.sf(t, df), rel=1e-12)


@given(st.integers(2, 9), st.lists(st.integers(1, 9), min_size=2, max_size=6), st.integers(2, 30))
def test_critical_value_inverts_the_tail(n_control, sizes, df):
    critical = dunnett.critical_value(0.05, n_control, sizes, df)
    assert dunnett.tail(critical, n_control, sizes, df) == pytest.approx(0.05, rel=1e-6)
    assert stats.t.isf(0.025, df) < critical < stats.t.isf(0.025 / len(sizes), df)


def test_far_tail_keeps_its_precision():
    assert 0 < dunnett.tail(60.0, 8, [3, 3], 12) <= 4 * stats.t.sf(60.0, 12)
