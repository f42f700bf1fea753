import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.stats.compare import compare
from analysis.stats.worth import Scaling
from tests.analysis.tables import arm, change, design, frame

STRAIGHT = Scaling(
    factors=(0.5, 1.0, 2.0), ns=(4, 4, 4), means=(10.3, 10.0, 9.7), sds=(0.1, 0.1, 0.1)
)  # 0.3 nats a doubling
CONVEX = Scaling(factors=(0.5, 1.0, 2.0), ns=(3, 8, 3), means=(4.9, 4.5, 4.25), sds=(0.03, 0.03, 0.03))


@given(st.floats(0.51, 1.99))
def test_what_the_control_reaches_elsewhere_is_worth_just_that(factor):
    for scaling in (STRAIGHT, CONVEX):
        mean = float(scaling.loss(np.array([factor]))[0])
        assert scaling.worth(mean, 3, 0.01)[0] == pytest.approx(factor - 1, abs=1e-4)


def test_the_curve_goes_through_its_budgets():
    assert CONVEX.loss(np.array([0.5, 1.0, 2.0])) == pytest.approx([4.9, 4.5, 4.25])


@given(st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)))
def test_the_curve_falls_throughout(drops):
    means = (drops[0] + drops[1], drops[1], 0.0)
    curve = Scaling(factors=(0.5, 1.0, 2.0), ns=(3, 3, 3), means=means, sds=(0.1,) * 3).loss(np.linspace(0.5, 2, 200))
    assert (np.diff(curve) < 0).all()


@given(st.floats(-0.4, 0.5), st.floats(0.001, 0.3), st.integers(1, 8))
def test_worth_excludes_nothing_where_delta_excludes_zero(delta, half, n):
    at, low, high = CONVEX.worth(4.5 + delta, n, half)
    assert low <= at <= high
    if abs(abs(delta) - half) > 1e-3:
        assert (low < 0 < high) == (abs(delta) < half)
    if abs(delta) > 1e-6:
        assert math.copysign(1, at) == -math.copysign(1, delta)


def test_beyond_the_budgets_it_says_so():
    assert STRAIGHT.worth(11.0, 3, 0.01) == (-math.inf,) * 3
    assert STRAIGHT.worth(9.0, 3, 0.01) == (math.inf,) * 3
    at, low, high = STRAIGHT.worth(10.25, 3, 0.2)
    assert low == -math.inf
    assert -0.5 < at < high < 0


def test_the_interval_covers_as_often_as_it_says():
    """Simulated control, budgets and variant with one sigma; the interval from a t interval of the difference."""
    generator = np.random.default_rng(0)
    true, sigma, n, trials, held = CONVEX, 0.03, 3, 2000, 0
    factor = 0.8
    mean = float(true.loss(np.array([factor]))[0])
    for _ in range(trials):
        groups = [generator.normal(m, sigma, k) for m, k in zip(true.means, true.ns, strict=True)]
        variant = generator.normal(mean, sigma, n)
        df = n - 1 + len(groups[1]) - 1
        pooled = (variant.var(ddof=1) * (n - 1) + groups[1].var(ddof=1) * (len(groups[1]) - 1)) / df
        half = stats.t.isf(0.025, df) * math.sqrt(pooled * (1 / n + 1 / len(groups[1])))
        measured = Scaling(
            factors=true.factors, ns=true.ns, means=tuple(float(g.mean()) for g in groups), sds=(sigma,) * 3
        )
        _, low, high = measured.worth(float(variant.mean()), n, half)
        held += low <= factor - 1 <= high
    assert 0.935 < held / trials < 0.965


def test_equal_time_sets_the_variant_against_what_the_control_reaches_meanwhile():
    delta, low, high = STRAIGHT.at_equal_time(9.8, 4, 0.05, (0.5, 0.5, 0.5))  # half as fast: the control doubles
    assert delta == pytest.approx(9.8 - 9.7)
    assert (low, high) == pytest.approx((delta - 0.05, delta + 0.05))
    delta, low, high = STRAIGHT.at_equal_time(9.8, 4, 0.0, (1.0, 2**-0.5, 2**0.5))
    assert delta == pytest.approx(-0.2)
    assert (low, high) == pytest.approx((-0.2 - 0.15, -0.2 + 0.15))
    assert STRAIGHT.at_equal_time(9.8, 4, 0.05, (0.4, 0.39, 0.41)) is None


def budgets_design(*variants, **fields):
    half = arm("tokens_0.5x", 3, "budget", tokens=128_000)
    double = arm("tokens_2x", 3, "budget", tokens=512_000)
    return design(*variants, half, double, **fields)


VALUES = {
    "control": [10.0, 10.2, 10.4, 10.6],
    "tokens_0.5x": [13.2, 13.3, 13.4],
    "tokens_2x": [8.2, 8.3, 8.4],
}


def judged(values, speeds=None):
    plan = budgets_design(*(arm(name, 3) for name in values))
    runs = frame(VALUES | values, plan)
    for name, speed in (speeds or {}).items():
        runs.loc[runs["arm"] == name, "final/tokens_per_s"] *= speed
    return compare(runs, plan).set_index("arm")


def test_the_table_has_the_worth_but_no_row_for_a_budget():
    table = judged({"a": [11.7, 11.8, 11.9], "b": [9.2, 9.3, 9.4], "c": [30.0, 30.1, 30.2]})
    assert list(table.index) == ["control", "a", "b", "c"]
    assert -0.5 < table.loc["a", "worth_low"] < table.loc["a", "worth"] < table.loc["a", "worth_high"] < 0
    assert table.loc["b", "worth"] > 0
    assert table.loc["c", "worth"] == -math.inf
    assert math.isnan(table.loc["control", "worth"])


def test_pairs_have_no_worth():
    """The error is that of differences, and the budgets' seeds are in no pair: the interval would be too narrow."""
    plan = replace(budgets_design(arm("a", 5), control=5), paired=True)
    values = {**VALUES, "control": [10.0, 10.2, 10.4, 10.6, 10.1], "a": [9.0, 9.3, 9.4, 9.7, 9.1]}
    runs = frame(values, plan, {"control": range(5), "a": range(5)})
    row = compare(runs, plan).set_index("arm").loc["a"]
    assert row["verdict"] == "better"
    assert row[["worth", "worth_low", "worth_high", "iso_delta"]].isna().all()


def test_the_ratio_of_speeds_has_unequal_ends():
    """Half as fast, or as fast: the interval of the ratio says, and none of equal halves around it could."""
    plan = design(arm("a", 3))
    runs = frame({"control": [10.0, 10.2, 10.4, 10.6], "a": [14.0, 14.1, 14.2]}, plan)
    runs["final/tokens_per_s"] = [1000.0, 1010, 990, 1000, 500, 660, 871]
    row = compare(runs, plan).set_index("arm").loc["a"]
    half = (row["tokens_per_s_high"] - row["tokens_per_s_low"]) / 2
    assert row["tokens_per_s_delta"] + half < row["tokens_per_s_high"]
    assert (row["iso_verdict"] == "worse per second") == (row["tokens_per_s_high"] <= 0)
    assert row["tokens_per_s_high"] > 0


def test_a_better_variant_at_half_the_speed_is_worse_per_second():
    table = judged({"slow": [9.2, 9.3, 9.4], "fast": [9.2, 9.3, 9.4]}, {"slow": 0.52, "fast": 1.2})
    assert table["verdict"].tolist()[1:] == ["better", "better"]
    assert table.loc["slow", "iso_verdict"] == "worse per second"
    assert table.loc["slow", "iso_low"] > 0
    assert "worse per second" in table.loc["slow", "why"]
    assert table.loc["fast", "iso_verdict"] == "better per second"


def test_without_budgets_only_agreement_of_loss_and_speed_tells():
    plan = design(arm("slow", 3), arm("fast", 3), arm("slow_bad", 3))
    values = {"slow": [7.0, 7.1, 7.2], "fast": [7.0, 7.1, 7.2], "slow_bad": [14.0, 14.1, 14.2]}
    runs = frame({"control": VALUES["control"]} | values, plan)
    runs["final/tokens_per_s"] *= runs["arm"].map({"slow": 0.7, "slow_bad": 0.7}).fillna(1.0)
    runs.loc[runs["arm"] == "fast", "final/tokens_per_s"] *= 1.5
    table = compare(runs, plan).set_index("arm")
    assert table["iso_verdict"].tolist() == ["", "", "better per second", "worse per second"]
    assert table["worth"].isna().all()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda runs: change(runs, "tokens_0.5x-1", status="RUNNING"),
        lambda runs: change(runs, "tokens_0.5x-1", stratum="device=gpu"),
        lambda runs: change(runs, "tokens_0.5x-1", invalid="a gate"),
    ],
)
def test_a_budget_that_is_not_whole_does_not_count(spoil):
    plan = budgets_design(arm("a", 3))
    runs = frame(VALUES | {"a": [11.7, 11.8, 11.9]}, plan)
    scaling = Scaling.of(spoil(runs), plan)
    assert scaling is not None
    assert scaling.factors == (1.0, 2.0)


def test_no_budgets_or_no_gain_from_tokens_is_no_scaling():
    plan = budgets_design(arm("a", 3))
    runs = frame(VALUES | {"a": [11.7, 11.8, 11.9]}, plan)
    assert Scaling.of(runs[runs["role"] != "budget"], plan) is None
    assert (
        Scaling.of(runs.assign(**{"final/val_loss": runs["final/val_loss"] + 9 * (runs["arm"] == "tokens_2x")}), plan)
        is None
    )
