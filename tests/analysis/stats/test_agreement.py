"""Bands in which two runs of one recipe and seed may lie apart."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis.report.log_figure import log_figure
from analysis.stats.agreement import ALPHA, prior_band, scatter_band


@pytest.mark.parametrize("correlation", [0.0, 0.9])
@pytest.mark.parametrize("count", [3, 6, 12])
def test_runs_that_differ_in_rounding_alone_seldom_leave_the_band(count, correlation):
    """Rows of a run share its history, and their scatter grows: both as far as can be from what the band assumes."""
    rng, rows, trials = np.random.default_rng(7), 40, 400
    growth = np.geomspace(1e-7, 0.02, rows)  # as chaos does
    alarms = 0
    for _ in range(trials):
        noise = rng.standard_normal((count + 2, rows))
        for i in range(1, rows):
            noise[:, i] = correlation * noise[:, i - 1] + (1 - correlation**2) ** 0.5 * noise[:, i]
        runs = 5 + growth * noise
        alarms += bool((np.abs(runs[-1] - runs[-2]) > scatter_band(runs[:-2])).any())
    assert stats.binom.cdf(alarms, trials, ALPHA) < 0.999, f"{alarms} alarms in {trials}"


def test_a_difference_of_a_few_times_the_scatter_is_seen():
    runs = 5 + 0.01 * np.random.default_rng(0).standard_normal((12, 6))
    band = scatter_band(runs)
    assert (band < 0.1).all()
    assert (band > 0.02).all()


def test_where_runs_agree_to_the_last_bit_rounding_alone_is_allowed():
    runs = np.full((5, 10), 7.4)
    assert scatter_band(runs) == pytest.approx(7.4e-6)


def test_a_scatter_takes_two_runs():
    with pytest.raises(ValueError, match="1 runs show no scatter"):
        scatter_band(np.zeros((1, 4)))


def test_independent_rows_need_few_runs():
    rng, trials, alarms = np.random.default_rng(3), 400, 0
    for _ in range(trials):
        runs = 11 + 1e-3 * rng.standard_normal((4, 16))
        alarms += bool((np.abs(runs[-1] - runs[-2]) > scatter_band(runs[:-2], independent=True)).any())
    assert stats.binom.cdf(alarms, trials, ALPHA) < 0.999
    assert (scatter_band(runs[:-2], independent=True) < scatter_band(runs[:-2]) / 10).all()


def test_by_the_noise_between_seeds():
    """As many honest pairs leave it as are meant to, by scipy."""
    half, rows = prior_band(0.03, 6), 6
    one = 2 * stats.norm.sf(half, scale=0.03 * 2**0.5)
    assert one * rows == pytest.approx(ALPHA)


def test_the_figure_draws_both_curves_and_the_band():
    drawing = log_figure("t", [1, 2, 3], [3, 2, 1], [3, 2.1, float("nan")], [0.1, 0.2, 0.3])
    left, right = drawing.axes
    assert [line.get_ydata().tolist()[0] for line in left.lines] == [3, 3]
    assert len(right.collections) == 1
    assert right.lines[-1].get_ydata()[:2] == pytest.approx([1e-8, 0.1])
    assert not right.texts
    for here, said in (([3, 2], "equal to the last digit"), ([float("nan")] * 2, "nothing to compare")):
        (text,) = log_figure("t", [1, 2], [3, 2], here).axes[1].texts
        assert text.get_text() == said
