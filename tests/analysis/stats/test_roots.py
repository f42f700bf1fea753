from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from analysis.stats.roots import root


@given(
    shift=st.floats(-3, 3),
    curve=st.floats(0, 5),
    low=st.floats(-20, -4),
    high=st.floats(4, 20),
    xtol=st.sampled_from([2e-12, 1e-6]),
)
def test_the_root_is_scipy_s(shift, curve, low, high, xtol):
    def function(x: float) -> float:
        return math.tanh(x - shift) + curve * (x - shift) ** 3

    assert root(function, low, high, xtol=xtol) == pytest.approx(brentq(function, low, high, xtol=xtol), abs=xtol / 100)


def test_ends_and_a_function_without_a_root():
    assert root(lambda x: x, 0.0, 1.0) == 0.0
    assert root(lambda x: x - 1, 0.0, 1.0) == 1.0
    with pytest.raises(ValueError, match="no change of sign"):
        root(lambda x: x * x + 1, -1.0, 1.0)
