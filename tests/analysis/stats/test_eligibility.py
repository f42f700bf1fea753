"""Which runs count, and what bars an arm from a verdict."""

import math

import numpy as np
import pandas as pd
import pytest

from analysis.report.figures import throughput
from analysis.stats.compare import compare
from analysis.store.schema import Prior
from tests.analysis.tables import arm, change, design, frame

CONTROL = [10.0, 10.2, 10.4, 10.6, 10.3]
LIKE = [10.1, 10.1, 10.5, 10.8, 10.2]  # differs by 0.1, -0.1, 0.1, 0.2, -0.1
FAR = [20.1, 20.1, 20.5, 20.8, 20.2]
NUMBERS = ["n", "mean", "delta", "ci_low", "ci_high", "p", "p_adj", "sigma", "df", "own_sd", "tost_low", "tost_high"]


def plan_of(*arms, **fields):
    return design(*arms, control=5, **fields)


def table_of(plan, values, *changes):
    runs = frame({"control": CONTROL} | values, plan)
    for key, columns in changes:
        runs = change(runs, key, **columns)
    return compare(runs, plan).set_index("arm")


FAILED = {"status": "FAILED", "reason": "no disk", "final__val_loss": math.nan}
PLAN = plan_of(arm("a", 5), arm("b", 5))
BOTH = {"a": FAR, "b": LIKE}


# Runs that are missing


@pytest.mark.parametrize("broken", ["a-1", "control-1"])
def test_the_block_of_a_failed_run_is_left_out_and_said(broken):
    """Its comparison is the one that never had this block; only what the design could see is as declared."""
    table = table_of(PLAN, BOTH, (broken, FAILED))
    values = {"control": CONTROL} | BOTH
    without = {name: losses[:1] + losses[2:] for name, losses in values.items()}
    fewer = design(arm("a", 4), arm("b", 4), control=4)
    expected = compare(frame(without, fewer), fewer).set_index("arm")
    touched = ["a"] if broken == "a-1" else ["a", "b"]
    pd.testing.assert_frame_equal(table.loc[touched, NUMBERS], expected.loc[touched, NUMBERS], check_dtype=False)
    for name in touched:
        row = table.loc[name]
        assert (row["verdict"], row["declared"], row["gates_failed"]) == (expected.loc[name, "verdict"], 5, 0)
        assert f"left out: block 1: {broken[:-2]} FAILED (no disk)" in row["why"]
    if broken == "a-1":
        assert table.loc["b", "n"] == 5
        assert "left out" not in table.loc["b", "why"]


def test_a_block_that_broke_in_both_is_left_out_once():
    why = table_of(PLAN, BOTH, ("a-1", FAILED), ("control-1", FAILED)).loc["a", "why"]
    assert "left out: block 1: control FAILED (no disk), a FAILED (no disk)" in why


@pytest.mark.parametrize("state", ["RUNNING", "KILLED", "SCHEDULED", ""])
@pytest.mark.parametrize("side", ["a", "control"])
def test_a_run_that_is_not_done_leaves_its_arm_undecided(side, state):
    runs = frame({"control": CONTROL} | BOTH, PLAN)
    key = f"{side}-4"
    runs = change(runs, key, status=state, final__val_loss=math.nan) if state else runs[runs["run_key"] != key]
    table = compare(runs, PLAN).set_index("arm")
    row = table.loc["a"]
    assert row["verdict"] == "undecided"
    assert row["why"] == "4 of 5 blocks done" + (f"; {side} of block 4 {state}" if state else "")
    assert row["delta"] == pytest.approx(10 + 0.075)
    assert row[["ci_low", "ci_high", "p", "p_adj", "mde", "look", "tost_low"]].isna().all()
    assert table.loc["b", "verdict"] == ("equivalent" if side == "a" else "undecided")


def test_a_missing_arm_leaves_the_others_their_family():
    table = table_of(PLAN, {"a": FAR})
    assert (table.loc["b", "verdict"], table.loc["b", "why"]) == ("undecided", "0 of 5 blocks done")
    pd.testing.assert_series_equal(table.loc["a", NUMBERS[:6]], table_of(PLAN, BOTH).loc["a", NUMBERS[:6]])


@pytest.mark.parametrize("prior", [None, Prior(sd=0.1, df=4.5, source="x")])
@pytest.mark.parametrize("independent", [False, True])
def test_where_every_run_of_the_control_failed_nothing_is_decided(independent, prior):
    plan = plan_of(arm("a", 5), arm("twin", 5, "check", expect="same"), independent=independent, prior=prior)
    failed = [(f"control-{i}", FAILED) for i in range(5)]
    table = table_of(plan, {"a": FAR, "twin": LIKE}, *failed)
    assert table["verdict"].tolist() == ["", "undecided", "undecided"]
    assert table["n"].tolist() == [0, 5, 5]
    assert "control FAILED (no disk)" in table.loc["a", "why"] or "control run 0 FAILED" in table.loc["a", "why"]
    assert table["delta"].isna().all()


def test_one_complete_block_is_no_verdict():
    table = table_of(PLAN, BOTH, *((f"a-{i}", FAILED) for i in range(1, 5)))
    assert table.loc["a", "verdict"] == "undecided"
    assert table.loc["a", "why"].startswith("1 complete block, 2 are needed; block 1: a FAILED (no disk); block 2")


def test_an_arm_of_one_block_beside_a_whole_control_is_no_verdict():
    for prior in (None, Prior(sd=0.1, df=4.5, source="x")):
        plan = plan_of(arm("a", 1), arm("b", 5), prior=prior)
        row = table_of(plan, {"a": FAR[:1], "b": LIKE}).loc["a"]
        assert (row["verdict"], row["why"]) == ("undecided", "1 complete block, 2 are needed")
        assert row["delta"] == pytest.approx(10.1)


@pytest.mark.parametrize("independent", [False, True])
def test_nothing_has_run_yet(independent):
    plan = plan_of(arm("a", 5), independent=independent)
    table = compare(frame({}, plan), plan)
    assert table["verdict"].tolist() == ["", "undecided"]
    assert table["n"].tolist() == [0, 0]
    assert table["delta"].isna().all()


def test_independent_runs_are_waited_for_and_left_out_likewise():
    plan = plan_of(arm("a", 5), arm("b", 5), independent=True)
    waiting = {"status": "RUNNING", "final__val_loss": math.nan}
    table = table_of(plan, BOTH, ("a-1", FAILED), ("b-2", waiting))
    assert table.loc["a", ["verdict", "n"]].tolist() == ["worse", 4]
    assert table.loc["a", "mean"] == pytest.approx(np.mean([20.1, 20.5, 20.8, 20.2]))
    assert "left out: a run 1 FAILED (no disk)" in table.loc["a", "why"]
    assert table.loc["b", "verdict"] == "undecided"
    assert table.loc["b", "why"] == "4 of 5 runs of b finished; b run 2 RUNNING"


def test_more_blocks_of_one_arm_leave_the_others_as_they_were():
    longer = [*CONTROL, 10.7, 9.9]
    values = {"control": longer, "a": FAR, "b": [*LIKE, 10.6, 9.8]}
    plan = design(arm("a", 5), arm("b", 7), control=7)
    table = compare(frame(values, plan), plan).set_index("arm")
    pd.testing.assert_series_equal(table.loc["a", NUMBERS], table_of(PLAN, BOTH).loc["a", NUMBERS])
    assert table["n"].tolist() == [7, 5, 7]


# Runs that mean nothing


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"invalid": "labels are not shifted", "status": "FAILED"}, "seed 1: labels are not shifted"),
        ({"invalid": "labels are not shifted", "status": "RUNNING"}, "seed 1: labels are not shifted"),
        ({"final__val_loss": math.nan}, "seed 1: final/val_loss is not a finite number"),
        ({"final__val_loss": math.inf}, "seed 1: final/val_loss is not a finite number"),
    ],
)
@pytest.mark.parametrize("independent", [False, True])
def test_an_invalid_run_spoils_its_arm(changed, reason, independent):
    plan = plan_of(arm("a", 5), arm("b", 5), independent=independent)
    table = table_of(plan, {"a": FAR, "b": LIKE}, ("a-1", changed))
    assert table["verdict"].tolist() == ["", "invalid", "equivalent"]
    assert table.loc["a", "why"] == f"a {reason.replace('seed 1', 'seed 6') if independent else f'{reason}'}"
    assert table["gates_failed"].tolist() == [0, 1, 0]
    assert table.loc["a", ["delta", "ci_low", "p"]].isna().all()


def test_an_invalid_run_of_the_control_spoils_every_arm():
    plan = plan_of(arm("twin", 5, "check", expect="same"), arm("a", 5))
    table = table_of(plan, {"twin": LIKE, "a": FAR}, ("control-1", {"invalid": "not causal"}))
    assert table["verdict"].tolist() == ["invalid"] * 3
    assert table["why"].tolist() == ["control seed 1: not causal"] * 3


def test_strata_do_not_mix():
    table = table_of(PLAN, {"a": LIKE, "b": LIKE}, ("a-2", {"stratum": "device=cuda threads=1"}))
    assert table["verdict"].tolist() == ["", "invalid", "equivalent"]
    expected = "by device: cpu (control seeds 0, 1, 2, 3, 4, a seeds 0, 1, 3, 4), cuda (a seed 2)"
    assert expected in table.loc["a", "why"]
    assert "threads" not in table.loc["a", "why"]


def test_runs_on_other_data_are_invalid():
    table = table_of(PLAN, {"a": FAR, "b": FAR}, ("a-1", {"data": "d2"}))
    assert table["verdict"].tolist() == ["", "invalid", "worse"]
    expected = "runs on different data: d1 (control seeds 0, 1, 2, 3, 4, a seeds 0, 2, 3, 4), d2 (a seed 1)"
    assert expected in table.loc["a", "why"]


@pytest.mark.parametrize("step", [0.0, 1e-15, 1e-7])
def test_seeds_that_change_nothing_are_invalid(step):
    """Also where the losses, which are computed in float32, were averaged in another order."""
    row = table_of(plan_of(arm("a", 5)), {"a": [10.1 + step * (i % 2) for i in range(5)]}).loc["a"]
    assert (row["verdict"], row["why"]) == ("invalid", "a: all seeds gave the same loss")


def test_arms_of_equal_losses_are_no_difference():
    """Spreads and a difference that float64 shows and float32 does not: this was worse, at p 1e-6."""
    losses = {name: [10.0 + at + i * 1e-16 for i in range(5)] for name, at in (("a", 1e-14), ("b", 0.5))}
    plan = plan_of(arm("a", 5), arm("b", 5))
    runs = frame({"control": [10.0 + i * 1e-16 for i in range(5)]} | losses, plan)
    table = compare(runs, plan)
    assert table["verdict"].tolist() == ["invalid"] * 3
    assert table["p"].isna().all()


@pytest.mark.parametrize("prior", [None, Prior(sd=0.1, df=4.5, source="x")])
@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("step", [0.0, 1e-15])
def test_a_change_that_moves_no_block_is_invalid(step, shift, prior):
    """With a prior its interval would be as wide as any, and a shift alone a difference."""
    plan = plan_of(arm("a", 5), arm("b", 5), prior=prior)
    mine = [loss + shift + step * (-1) ** i for i, loss in enumerate(CONTROL)]
    table = table_of(plan, {"a": mine, "b": LIKE})
    assert table.loc["a", "verdict"] == "invalid"
    assert table.loc["a", "why"].endswith("in every block: the change did nothing")
    assert f"by {shift:g} " in table.loc["a", "why"] or step
    assert table.loc["b", "verdict"] == "equivalent"  # the others are judged all the same


def test_a_twin_that_has_hardly_moved_is_as_expected():
    """After a few steps rounding has not grown yet: no fault, and no interval. The same bits are one, or a shift."""
    twin = arm("twin", 5, "check", expect="same")
    moved = table_of(plan_of(twin), {"twin": [loss - 2e-7 * (1 + i % 2) for i, loss in enumerate(CONTROL)]}).loc["twin"]
    assert (moved["verdict"], moved["n"]) == ("as expected", 5)
    assert moved["why"] == "its losses are the control's, as far as float32 shows them"
    for shift in (0.0, 1.0):
        row = table_of(plan_of(twin), {"twin": [loss + shift for loss in CONTROL]}).loc["twin"]
        assert row["verdict"] == "invalid"
    looked = plan_of(twin, looks=(2, 5))
    values = [loss - 2e-7 for loss in CONTROL]
    assert table_of(looked, {"twin": values}).loc["twin", ["verdict", "n"]].tolist() == ["as expected", 5]
    runs = frame({"control": CONTROL, "twin": values[:3]}, looked)
    assert compare(runs, looked).set_index("arm").loc["twin", "why"] == "3 of 5 blocks done"


def test_a_small_difference_that_float32_shows_is_judged():
    mine = [loss + 0.1 + 4e-6 * (-1) ** i for i, loss in enumerate(CONTROL)]
    row = table_of(plan_of(arm("a", 5)), {"a": mine}).loc["a"]
    assert row["verdict"] == "worse"


# Runs that cannot be compared


@pytest.mark.parametrize("screen", [True, False])
@pytest.mark.parametrize("independent", [True, False])
def test_one_against_one_is_a_screen(screen, independent):
    plan = design(arm("a", 1), control=1, screen=screen, independent=independent)
    row = compare(frame({"control": [10.0], "a": [12.0]}, plan), plan).set_index("arm").loc["a"]
    assert row["verdict"] == "screen"
    assert row["delta"] == 2.0
    assert row[["ci_low", "ci_high", "p", "p_adj", "mde", "tost_low"]].isna().all()


def test_a_seed_that_is_not_the_controls_of_its_block_decides_nothing():
    table = table_of(PLAN, {"a": FAR, "b": FAR}, ("a-3", {"seed": 9}))
    assert table.loc["a", ["verdict", "why"]].tolist() == ["undecided", "seed 9: not the control's of the same block"]
    assert table.loc["b", "verdict"] == "worse"
    shifted = frame({"control": CONTROL} | BOTH, PLAN, {"a": range(1, 6)})
    why = compare(shifted, PLAN).set_index("arm").loc["a", "why"]
    assert why == "seeds 1, 2, 3, 4, 5: not the control's of the same block"


def test_shared_seeds_among_independent_ones_decide_nothing():
    plan = plan_of(arm("a", 5), independent=True)
    row = compare(frame({"control": CONTROL, "a": FAR}, plan, {"a": [3, 8, 9, 10, 11]}), plan).iloc[1]
    assert row["verdict"] == "undecided"
    assert "shares seed 3 with the control" in row["why"]


def test_an_arm_that_was_seen_before_with_other_blocks_decides_nothing():
    was = "3 blocks then, 5 now, as width-first"
    plan = plan_of(arm("a", 5, looked=was), arm("b", 5), arm("twin", 5, "check", expect="same", looked=was))
    table = table_of(plan, {"a": FAR, "b": FAR, "twin": LIKE})
    assert table.loc["twin", "verdict"] == "as expected"  # a check asks nothing
    assert table.loc["a", "verdict"] == "undecided"
    assert table.loc["a", "why"].startswith(f"seen before with other blocks ({was})")
    assert table.loc["b", "verdict"] == "worse"


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize(
    ("hours", "reproducible", "verdict"), [(13, False, "undecided"), (11, False, "worse"), (13, True, "worse")]
)
def test_drift_between_batches_is_not_taken_for_an_effect(hours, reproducible, verdict, independent):
    plan = plan_of(arm("a", 5), independent=independent)
    runs = frame({"control": CONTROL, "a": FAR}, plan)
    later = pd.to_timedelta((runs["arm"] == "a") * hours, unit="h")
    runs = runs.assign(reproducible=reproducible, started=runs["started"] + later, ended=runs["ended"] + later)
    row = compare(runs, plan).set_index("arm").loc["a"]
    assert row["verdict"] == verdict
    assert ("apart in time" in row["why"]) == (verdict == "undecided")


@pytest.mark.parametrize(("independent", "told"), [(False, "blocks 0, 1"), (True, "control seeds 0, 1")])
def test_one_run_made_beside_the_variant_does_not_speak_for_the_others(independent, told):
    plan = plan_of(arm("a", 5), independent=independent)
    runs = frame({"control": CONTROL, "a": FAR}, plan).assign(reproducible=False)
    early = pd.to_timedelta(runs["run_key"].isin(["control-0", "control-1"]) * 30, unit="D")
    runs = runs.assign(started=runs["started"] - early, ended=runs["ended"] - early)
    row = compare(runs, plan).set_index("arm").loc["a"]
    assert row["verdict"] == "undecided"
    assert row["why"].startswith(f"{told} made apart in time")


def test_blocks_made_days_apart_are_compared_where_each_is_side_by_side():
    plan = plan_of(arm("a", 5))
    runs = frame({"control": CONTROL, "a": FAR}, plan).assign(reproducible=False)
    later = pd.to_timedelta(runs["seed"] * 30, unit="D")
    runs = runs.assign(started=runs["started"] + later, ended=runs["ended"] + later)
    assert compare(runs, plan).iloc[1]["verdict"] == "worse"


def test_speed_is_not_compared_across_hours_on_a_processor():
    """An earlier experiment's control met another load; on a card, which is a run's own, it would not matter."""
    plan = plan_of(arm("b", 5))
    runs = frame({"control": CONTROL, "b": LIKE}, plan)
    beside = compare(runs, plan).iloc[1]
    assert math.isfinite(beside["tokens_per_s_delta"])
    late = runs["arm"] == "b"
    runs.loc[late, ["started", "ended"]] += pd.Timedelta(hours=1)
    apart = compare(runs, plan).iloc[1]
    assert math.isnan(apart["tokens_per_s_delta"])
    assert apart["iso_verdict"] == ""
    assert len(throughput(compare(runs, plan), plan, None).axes[0].containers) == 1  # the control alone
    assert (apart["delta"], apart["ci_low"], apart["verdict"]) == (beside["delta"], beside["ci_low"], beside["verdict"])
    runs["stratum"] = "device=NVIDIA-H100 torch=2.13.0"
    assert math.isfinite(compare(runs, plan).iloc[1]["tokens_per_s_delta"])


@pytest.mark.parametrize("column", ["final/tokens_per_s", "final/peak_memory_bytes", "final/val_loss_se"])
def test_what_was_not_logged_is_not_a_number_and_spoils_nothing(column):
    runs = frame({"control": CONTROL} | BOTH, PLAN).assign(**{column: math.nan})
    table = compare(runs, PLAN).set_index("arm")
    assert table["verdict"].tolist() == ["", "worse", "equivalent"]
    told = {"final/tokens_per_s": "tokens_per_s_delta", "final/peak_memory_bytes": "memory_delta"}
    assert table.loc["a":, told.get(column, "eval_se")].isna().all()
