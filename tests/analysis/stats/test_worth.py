import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.stats.compare import compare
from analysis.stats.estimate import Estimate, within_blocks
from analysis.stats.worth import Scaling
from analysis.store.schema import Prior
from tests.analysis.tables import arm, change, design, frame

PRIOR = Prior(sd=0.03, df=4.5, source="x")
COMMON = np.array([0.0, 0.2, -0.1, 0.1])  # what the runs of a block share


def scaling(means, noise=None, prior=None) -> Scaling:
    """Budgets of half, once and twice the tokens, in as many blocks as ``noise`` has: (3, blocks)."""
    noise = np.tile(COMMON - COMMON.mean(), (3, 1)) if noise is None else noise
    losses = np.array(means)[:, None] + noise
    return Scaling(
        factors=(0.5, 1.0, 2.0), blocks=tuple(range(losses.shape[1])), losses=losses, alpha=0.05, prior=prior
    )


def judged(scaling: Scaling, values: dict[int, float]) -> Estimate:
    """The variant's difference from the control on the design's tokens."""
    place = scaling.factors.index(1.0)
    return within_blocks(np.array([x - scaling.losses[place, block] for block, x in values.items()]), scaling.prior)


def like(scaling: Scaling, loss: float, wiggle: float = 0.0) -> dict[int, float]:
    """A variant's runs: the control's of their block, at another mean loss."""
    steps = wiggle * np.array([1.0, -1.0, 0.5, -0.5])[: len(scaling.blocks)]
    control = scaling.losses[scaling.factors.index(1.0)]
    return dict(enumerate(control - control.mean() + loss + steps))


STRAIGHT = scaling((10.3, 10.0, 9.7))  # 0.3 nats a doubling
CONVEX = scaling((4.9, 4.5, 4.25))


@given(st.floats(0.51, 1.99))
def test_what_the_control_reaches_elsewhere_is_worth_just_that(factor):
    for curve in (STRAIGHT, CONVEX):
        values = like(curve, float(curve.loss(np.array([factor]))[0]), 0.001)
        assert curve.worth(values, judged(curve, values))[0] == pytest.approx(factor - 1, abs=1e-4)


def test_the_curve_goes_through_its_budgets():
    assert CONVEX.loss(np.array([0.5, 1.0, 2.0])) == pytest.approx([4.9, 4.5, 4.25])
    assert CONVEX.means == pytest.approx([4.9, 4.5, 4.25])


@given(st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)))
def test_the_curve_falls_throughout(drops):
    curve = scaling((drops[0] + drops[1], drops[1], 0.0)).loss(np.linspace(0.5, 2, 200))
    assert (np.diff(curve) < 0).all()


@given(st.floats(-0.4, 0.5), st.floats(0.0005, 0.2), st.sampled_from([None, PRIOR]))
def test_worth_excludes_nothing_where_delta_excludes_zero(delta, wiggle, prior):
    curve = scaling((4.9, 4.5, 4.25), prior=prior)
    values = like(curve, 4.5 + delta, wiggle)
    estimate = judged(curve, values)
    at, low, high = curve.worth(values, estimate)
    assert low <= at <= high
    if abs(abs(delta) - estimate.half(0.05)) > 2e-3:
        assert (low < 0 < high) == (abs(delta) < estimate.half(0.05))
    if abs(delta) > 1e-6:
        assert math.copysign(1, at) == -math.copysign(1, delta)


def test_beyond_the_budgets_it_says_so():
    for loss, worth in ((11.0, -math.inf), (9.0, math.inf)):
        values = like(STRAIGHT, loss, 0.001)
        assert STRAIGHT.worth(values, judged(STRAIGHT, values)) == (worth,) * 3
    values = like(STRAIGHT, 10.25, 0.1)
    at, low, high = STRAIGHT.worth(values, judged(STRAIGHT, values))
    assert low == -math.inf
    assert -0.5 < at < high < 0


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_the_interval_covers_as_often_as_it_says(correlation):
    """Simulated budgets and variant that share more or less of a block, as runs of one seed do."""
    generator, trials, held, factor, n = np.random.default_rng(0), 1500, 0, 0.8, 4
    mean = float(CONVEX.loss(np.array([factor]))[0])
    for _ in range(trials):
        shared, own = generator.normal(size=(1, n)), generator.normal(size=(4, n))
        noise = 0.03 * (correlation**0.5 * shared + (1 - correlation) ** 0.5 * own)
        measured = scaling((4.9, 4.5, 4.25), noise[:3])
        values = dict(enumerate(mean + noise[3]))
        _, low, high = measured.worth(values, judged(measured, values))
        held += low <= factor - 1 <= high
    assert 0.93 < held / trials < 0.97


def test_a_blocks_luck_is_not_the_variants():
    """What all runs of a block share moves neither the worth nor its interval."""
    noise = 0.02 * np.random.default_rng(1).normal(size=(3, 4))
    found = []
    for luck in (0.0, np.array([0.5, -0.2, -0.3, 0.0])):
        curve = scaling((4.9, 4.5, 4.25), noise + luck)
        values = {block: float(curve.losses[1, block] + step) for block, step in enumerate([0.1, 0.12, 0.08, 0.11])}
        found.append(curve.worth(values, judged(curve, values)))
    assert found[0] == pytest.approx(found[1], abs=1e-9)


def test_equal_time_sets_the_variant_against_what_the_control_reaches_meanwhile():
    values = like(STRAIGHT, 9.8, 0.02)
    estimate = judged(STRAIGHT, values)
    half = estimate.half(0.05)
    delta, low, high = STRAIGHT.at_equal_time(values, estimate, (0.5, 0.5, 0.5))  # half as fast: the control doubles
    assert delta == pytest.approx(9.8 - 9.7)
    assert (low, high) == pytest.approx((delta - half, delta + half))
    delta, low, high = STRAIGHT.at_equal_time(values, estimate, (1.0, 2**-0.5, 2**0.5))
    assert delta == pytest.approx(-0.2)
    assert (low, high) == pytest.approx((-0.2 - 0.15 - half, -0.2 + 0.15 + half))
    assert STRAIGHT.at_equal_time(values, estimate, (0.4, 0.39, 0.41)) is None


@pytest.mark.parametrize("blocks", [(), (2,)])
def test_fewer_than_two_blocks_with_every_budget_are_worth_nothing(blocks):
    values = like(STRAIGHT, 9.8, 0.02)
    estimate, few = judged(STRAIGHT, values), {block: values[block] for block in blocks}
    assert all(map(math.isnan, STRAIGHT.worth(few, estimate)))
    assert STRAIGHT.at_equal_time(few, estimate, (0.9, 0.9, 0.9)) is None


def test_blocks_in_which_tokens_did_not_help_give_no_curve():
    """On average they do; in the two blocks that the variant has they do not, and the curve has no inverse."""
    noise = np.array([[0.0] * 4, [0.5, 0.5, -0.5, -0.5], [0.0] * 4])
    curve = scaling((4.9, 4.5, 4.25), noise)
    values = {0: 4.6, 1: 4.7}
    assert all(map(math.isnan, curve.worth(values, judged(curve, values))))


# In the table


def budgets_design(*variants, n=4, **fields):
    half = arm("tokens_0.5x", n, "budget", tokens=128_000)
    double = arm("tokens_2x", n, "budget", tokens=512_000)
    return design(*variants, half, double, control=n, **fields)


CONTROL = [10.0, 10.2, 10.4, 10.6]
VALUES = {
    "control": CONTROL,
    "tokens_0.5x": [13.2, 13.3, 13.55, 13.8],
    "tokens_2x": [8.2, 8.35, 8.6, 8.7],
}


def near(mean: float) -> list[float]:
    """A variant's losses at a mean distance from the control's."""
    return [x + mean + step for x, step in zip(CONTROL, (0.05, -0.05, 0.02, -0.02), strict=True)]


def table_of(values, speeds=None):
    plan = budgets_design(*(arm(name, 4) for name in values))
    runs = frame(VALUES | values, plan)
    for name, speed in (speeds or {}).items():
        runs.loc[runs["arm"] == name, "final/tokens_per_s"] *= speed
    return compare(runs, plan).set_index("arm")


def test_the_table_has_the_worth_but_no_row_for_a_budget():
    table = table_of({"a": near(1.5), "b": near(-1.0), "c": near(20.0)})
    assert list(table.index) == ["control", "a", "b", "c"]
    assert -0.5 < table.loc["a", "worth_low"] < table.loc["a", "worth"] < table.loc["a", "worth_high"] < 0
    assert table.loc["b", "worth"] > 0
    assert table.loc["c", "worth"] == -math.inf
    assert math.isnan(table.loc["control", "worth"])


def test_independent_seeds_have_no_worth():
    """The error is that of blocks, and there are none."""
    plan = budgets_design(arm("a", 4), independent=True)
    row = compare(frame(VALUES | {"a": near(-2.5)}, plan), plan).set_index("arm").loc["a"]
    assert row["verdict"] == "better"
    assert row[["worth", "worth_low", "worth_high", "iso_delta"]].isna().all()


def test_the_ratio_of_speeds_has_unequal_ends():
    """Half as fast, or as fast: the interval of the ratio says, and none of equal halves around it could."""
    plan = design(arm("a", 3), control=3)
    runs = frame({"control": [10.0, 10.2, 10.4], "a": [14.0, 14.1, 14.4]}, plan)
    runs["final/tokens_per_s"] = [1000.0, 1010, 990, 500, 660, 871]
    row = compare(runs, plan).set_index("arm").loc["a"]
    half = (row["tokens_per_s_high"] - row["tokens_per_s_low"]) / 2
    assert row["tokens_per_s_delta"] + half < row["tokens_per_s_high"]
    assert (row["iso_verdict"] == "worse per second") == (row["tokens_per_s_high"] <= 0)
    assert row["tokens_per_s_high"] > 0


def test_a_better_variant_at_half_the_speed_is_worse_per_second():
    table = table_of({"slow": near(-1.0), "fast": near(-1.0)}, {"slow": 0.52, "fast": 1.2})
    assert table["verdict"].tolist()[1:] == ["better", "better"]
    assert table.loc["slow", "iso_verdict"] == "worse per second"
    assert table.loc["slow", "iso_low"] > 0
    assert "worse per second" in table.loc["slow", "why"]
    assert table.loc["fast", "iso_verdict"] == "better per second"


def test_without_budgets_only_agreement_of_loss_and_speed_tells():
    values = {"slow": near(-3.2), "fast": near(-3.2), "slow_bad": near(3.8)}
    plan = design(*(arm(name, 4) for name in values))
    runs = frame({"control": CONTROL} | values, plan)
    runs["final/tokens_per_s"] *= runs["arm"].map({"slow": 0.7, "slow_bad": 0.7}).fillna(1.0)
    runs.loc[runs["arm"] == "fast", "final/tokens_per_s"] *= 1.5
    table = compare(runs, plan).set_index("arm")
    assert table["iso_verdict"].tolist() == ["", "", "better per second", "worse per second"]
    assert table["worth"].isna().all()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda runs: change(runs, "tokens_0.5x-1", status="RUNNING"),
        lambda runs: runs[runs["run_key"] != "tokens_0.5x-1"],
        lambda runs: change(runs, "tokens_0.5x-1", stratum="device=gpu"),
        lambda runs: change(runs, "tokens_0.5x-1", invalid="a gate"),
        lambda runs: change(runs, "tokens_0.5x-1", seed=7),
        lambda runs: runs.assign(status=runs["status"].where(runs["arm"] != "tokens_0.5x", "FAILED")),
    ],
)
def test_a_budget_that_is_not_whole_does_not_count(spoil):
    plan = budgets_design(arm("a", 4))
    found = Scaling.of(spoil(frame(VALUES | {"a": near(1.5)}, plan)), plan)
    assert found is not None
    assert found.factors == (1.0, 2.0)
    assert found.blocks == (0, 1, 2, 3)


def test_a_block_in_which_a_budget_broke_is_left_out():
    plan = budgets_design(arm("a", 4))
    found = Scaling.of(change(frame(VALUES | {"a": near(1.5)}, plan), "tokens_2x-1", status="FAILED"), plan)
    assert found is not None
    assert (found.factors, found.blocks) == ((0.5, 1.0, 2.0), (0, 2, 3))


def test_an_experiment_that_stops_at_a_look_has_its_worth():
    """Every arm is decided after two blocks of four, so nothing trains the budgets any further."""
    plan = budgets_design(arm("a", 4), looks=(2, 4), prior=Prior(sd=0.05, df=5, source="x"))
    values = {name: losses[:2] for name, losses in (VALUES | {"a": near(1.5)}).items()}
    row = compare(frame(values, plan), plan).set_index("arm").loc["a"]
    assert (row["verdict"], row["look"]) == ("worse", 2)
    assert -0.5 < row["worth_low"] < row["worth"] < row["worth_high"] < 0


def test_no_budgets_or_no_gain_from_tokens_is_no_scaling():
    plan = budgets_design(arm("a", 4))
    runs = frame(VALUES | {"a": near(1.5)}, plan)
    assert Scaling.of(runs[runs["role"] != "budget"], plan) is None
    flat = runs["final/val_loss"] + 9 * (runs["arm"] == "tokens_2x")
    assert Scaling.of(runs.assign(**{"final/val_loss": flat}), plan) is None
    assert Scaling.of(runs[runs["arm"] != "control"], plan) is None
