import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.report.figures import throughput
from analysis.stats.compare import COLUMNS, compare
from analysis.stats.estimate import own_level
from tests.analysis.tables import arm, change, design, frame

CONTROL = [10.0, 10.2, 10.4, 10.6]
LIKE = [10.1, 10.3, 10.5]  # three runs as noisy as the control


def judge(values, plan, seeds=None):
    """The verdict table, by arm."""
    if seeds is None:
        seeds = {}
    return compare(frame({"control": CONTROL} | values, plan, seeds), plan).set_index("arm")


def around(mean, spread=0.2, n=3):
    return [mean + spread * (i - (n - 1) / 2) for i in range(n)]


# The numbers


def test_one_variant_is_students_t_test():
    row = judge({"a": [12.0, 12.3, 12.4]}, design(arm("a", 3))).loc["a"]
    theirs = stats.ttest_ind([12.0, 12.3, 12.4], CONTROL)
    interval = theirs.confidence_interval(0.95)
    assert row["delta"] == pytest.approx(12.2333333 - 10.3)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((interval.low, interval.high))
    assert row["p"] == row["p_adj"] == pytest.approx(theirs.pvalue)
    assert row["df"] == 5
    assert row["pooled"]
    assert (row["tost_low"], row["tost_high"]) == pytest.approx(theirs.confidence_interval(0.90))


def test_several_variants_are_dunnetts_test():
    values = {"a": around(10.9), "b": around(10.0, 0.3), "c": around(10.4, 0.25, 4)}
    table = judge(values, design(arm("a", 3), arm("b", 3), arm("c", 4)))
    theirs = stats.dunnett(*values.values(), control=CONTROL, rng=np.random.default_rng(0))
    interval = theirs.confidence_interval(0.95)
    rows = table.loc[list(values)]
    assert rows["p_adj"].to_numpy() == pytest.approx(theirs.pvalue, abs=1e-3)
    assert rows["ci_low"].to_numpy() == pytest.approx(interval.low, abs=0.005)
    assert rows["ci_high"].to_numpy() == pytest.approx(interval.high, abs=0.005)
    squares = sum(float(np.var(x) * len(x)) for x in (CONTROL, *values.values()))
    for name in ("control", *values):
        assert table.loc[name, ["sigma", "df"]].tolist() == pytest.approx([math.sqrt(squares / 10), 10])
    assert rows["pool_p"].iloc[0] == pytest.approx(stats.bartlett(CONTROL, *values.values()).pvalue)


def test_unequal_spreads_get_welchs_statistics_on_the_degrees_of_the_smaller_side():
    values = {"quiet": around(10.9, 0.001), "loud": around(14.0, 3.0)}
    table = judge(values, design(arm("quiet", 3), arm("loud", 3)))
    quiet, loud = table.loc["quiet"], table.loc["loud"]
    assert not quiet["pooled"]
    assert "variances differ" in quiet["flags"]
    assert quiet["pool_p"] < 0.1
    for name, row in (("quiet", quiet), ("loud", loud)):
        t = stats.ttest_ind(values[name], CONTROL, equal_var=False).statistic
        assert row["df"] == 2
        assert row["p"] == pytest.approx(2 * stats.t.sf(abs(t), 2))
        half = stats.t.isf(0.025 / 2, 2) * abs(row["delta"] / t)
        assert (row["ci_low"], row["ci_high"]) == pytest.approx((row["delta"] - half, row["delta"] + half))
    assert (quiet["p_adj"], loud["p_adj"]) == pytest.approx((2 * quiet["p"], max(2 * quiet["p"], loud["p"])))
    assert table.loc["control", "sigma"] == pytest.approx(np.std(CONTROL, ddof=1))


@pytest.mark.parametrize("variant", [[10.3, 10.6, 10.9], [10.45, 10.75]])
def test_a_pooled_interval_is_no_narrower_than_the_arms_own_scatter_allows(variant):
    control = [10.0, 10.1, 10.2, 10.3, 10.4, 10.1, 10.2, 10.3]
    plan, level = design(arm("a", len(variant)), control=8, margin=0.1), own_level(8, len(variant))
    row = compare(frame({"control": control, "a": variant}, plan), plan).set_index("arm").loc["a"]
    pooled = stats.ttest_ind(variant, control)
    own = stats.ttest_ind(variant, control, equal_var=False)
    assert row["pooled"]
    assert pooled.confidence_interval(0.95).low > 0  # by pooling alone it would be worse
    interval = own.confidence_interval(1 - level * 0.05)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((interval.low, interval.high))
    assert row["p_adj"] == pytest.approx(own.pvalue / level)
    assert row["p"] == pytest.approx(pooled.pvalue)
    assert row["verdict"] == "undecided"
    assert "own scatter" in row["flags"]
    tost = own.confidence_interval(1 - 2 * level * 0.05)
    assert (row["tost_low"], row["tost_high"]) == pytest.approx((tost.low, tost.high))


@given(st.lists(st.floats(9, 11), min_size=2, max_size=5, unique=True), st.floats(0, 1.2))
def test_the_adjusted_p_and_the_interval_say_the_same(values, shift):
    values = [round(x + shift, 3) for x in values]
    row = judge({"a": values, "b": around(10.2)}, design(arm("a", len(values)), arm("b", 3))).loc["a"]
    if row["pooled"] and abs(row["p_adj"] - 0.05) > 1e-6:
        assert (row["p_adj"] < 0.05) == (row["ci_low"] > 0 or row["ci_high"] < 0)


def test_holms_p_never_falls_with_rank():
    values = {"a": around(10.9, 0.001), "b": around(10.89, 0.002), "loud": around(14.0, 4.0)}
    table = judge(values, design(*(arm(name, 3) for name in values)))
    rows = table.loc[list(values)].sort_values("p")
    assert 2 * rows["p"].iloc[1] < 3 * rows["p"].iloc[0]  # so the second has to take over the first one's
    assert rows["p_adj"].tolist() == pytest.approx([3 * rows["p"].iloc[0]] * 2 + [rows["p"].iloc[2]])


def test_one_seed_beside_unequal_spreads_borrows_from_the_control_alone():
    values = {"a": [12.0], "quiet": around(10.9, 0.001)}
    row = judge(values, design(arm("a", 1), arm("quiet", 3))).loc["a"]
    half = stats.t.isf(0.0125, 3) * np.std(CONTROL, ddof=1) * math.sqrt(1 + 1 / 4)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((1.7 - half, 1.7 + half))
    assert "sigma borrowed from control" in row["why"]


def test_checks_stand_outside_the_family():
    plan = design(arm("again", 3, "check", expect="same"), arm("a", 3), arm("b", 3))
    table = judge({"again": LIKE, "a": around(10.9), "b": around(10.0)}, plan)
    theirs = stats.ttest_ind(LIKE, CONTROL)
    assert table.loc["again", "p_adj"] == pytest.approx(theirs.pvalue)
    assert table.loc["again", "ci_low"] == pytest.approx(theirs.confidence_interval(0.95).low)
    without = judge({"a": around(10.9), "b": around(10.0)}, design(arm("a", 3), arm("b", 3)))
    assert table.loc["a", "ci_low"] == without.loc["a", "ci_low"]


def test_mde_is_the_effect_of_the_power_module():
    from analysis.stats.power import detectable_effect

    table = judge({"a": LIKE, "b": around(10.0, n=4)}, design(arm("a", 3), arm("b", 4)))
    for name, sizes in (("a", (3, 4)), ("b", (4, 3))):
        row = table.loc[name]
        assert row["mde"] == pytest.approx(detectable_effect(row["sigma"], 4, sizes, alpha=0.05))


def test_throughput_is_a_ratio_with_its_interval():
    plan = design(arm("a", 3))
    runs = frame({"control": CONTROL, "a": LIKE}, plan)
    runs["final/tokens_per_s"] = [100.0, 102, 101, 99, 110.0, 112, 111]
    row = compare(runs, plan).set_index("arm").loc["a"]
    logs = np.log(runs["final/tokens_per_s"].to_numpy())
    interval = stats.ttest_ind(logs[4:], logs[:4], equal_var=False).confidence_interval(0.95)
    ratio = np.exp(logs[4:].mean() - logs[:4].mean())
    assert row["tokens_per_s"] == pytest.approx(np.exp(logs[4:].mean()))
    assert row["tokens_per_s_delta"] == pytest.approx(ratio - 1)
    ends = row[["tokens_per_s_low", "tokens_per_s_high"]].astype(float)
    assert ends.tolist() == pytest.approx([np.expm1(interval.low), np.expm1(interval.high)])


@pytest.mark.parametrize(("compiled", "says"), [([0, 0, 0], "not compiled"), ([0, 1, 1], "partly compiled")])
def test_speed_is_not_compared_where_one_arm_is_compiled(compiled, says):
    plan = design(arm("a", 3), arm("b", 3))
    runs = frame({"control": CONTROL, "a": around(14.0), "b": LIKE}, plan)
    runs["final/tokens_per_s"] = [100.0, 102, 101, 99, 50, 52, 51, 110, 112, 111]
    runs["final/compiled"] = [1.0] * 4 + compiled + [1.0] * 3
    table = compare(runs, plan).set_index("arm")
    row = table.loc["a"]
    assert row["verdict"] == "worse"  # the losses are compared all the same
    assert f"{says}, the control compiled: speed and memory are not comparable" in row["flags"]
    assert row[["tokens_per_s_delta", "tokens_per_s_low", "memory_delta"]].isna().all()
    assert row["iso_verdict"] == ""
    assert np.isfinite(table.loc["b", "tokens_per_s_delta"])
    assert "compiled" not in table.loc["b", "flags"]


def test_costs_and_columns():
    plan = design(arm("a", 3, num_params=1100, flops_per_token=5400))
    table = compare(frame({"control": CONTROL, "a": around(14.0)}, plan), plan)
    assert tuple(table.columns) == COLUMNS
    assert table["arm"].tolist() == ["control", "a"]
    row = table.iloc[1]
    assert (row["params_delta"], row["flops_delta"], row["eval_se"]) == pytest.approx((0.1, -0.1, 0.25))
    assert row["why"] == "at 10.0 % more parameters and 10.0 % fewer FLOPs"


# The words


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        (around(14.0), "worse"),
        (around(6.0), "better"),
        (around(10.3), "equivalent"),
        (around(10.3, 2.0), "undecided"),
        ([9.2, 9.6, 10.7], "undecided"),
        ([9.9, 11.0, 11.4], "undecided"),
    ],
)
def test_verdicts(values, verdict):
    row = judge({"a": values}, design(arm("a", 3))).loc["a"]
    assert row["verdict"] == verdict
    assert "within margin" not in row["why"]


def test_a_small_clear_difference_is_worse_within_the_margin():
    row = judge({"a": around(10.9, 0.1)}, design(arm("a", 3), margin=2.0)).loc["a"]
    assert row["verdict"] == "worse"
    assert "within margin" in row["why"]


def test_equivalence_goes_by_the_ninety_percent_interval():
    plan = design(arm("a", 3))
    row = judge({"a": LIKE}, plan).loc["a"]
    between = (row["tost_high"] + row["ci_high"]) / 2  # inside it fits the 90 % interval but not the 95 % one
    assert judge({"a": LIKE}, design(arm("a", 3), margin=between)).loc["a", "verdict"] == "equivalent"
    assert judge({"a": LIKE}, design(arm("a", 3), margin=0.99 * row["tost_high"])).loc["a", "verdict"] == "undecided"


def test_a_missing_run_is_undecided_and_leaves_the_others_their_family():
    plan = design(arm("a", 3), arm("b", 3))
    table = judge({"a": LIKE, "b": LIKE[:2]}, plan)
    row = table.loc["b"]
    assert (row["verdict"], row["why"], row["n"], row["declared"]) == ("undecided", "2 of 3 runs finished", 2, 3)
    assert row["delta"] == pytest.approx(-0.1)
    assert np.isnan(row["ci_low"])
    assert np.isnan(row["p"])
    alone = judge({"a": LIKE}, design(arm("a", 3))).loc["a"]
    assert table.loc["a", "sigma"] == alone["sigma"]
    assert table.loc["a", "mde"] > alone["mde"]


def test_a_failed_run_counts_as_missing():
    plan = design(arm("a", 3))
    runs = frame({"control": CONTROL, "a": LIKE}, plan)
    runs = change(runs, "a-1", status="FAILED", reason="no disk", final__val_loss=math.nan)
    row = compare(runs, plan).set_index("arm").loc["a"]
    assert (row["verdict"], row["gates_failed"]) == ("undecided", 0)
    assert row["why"] == "2 of 3 runs finished: seed 5 FAILED (no disk)"


def test_a_run_that_was_made_twice_is_told():
    plan = design(arm("a", 3))
    runs = change(frame({"control": CONTROL, "a": LIKE}, plan), "a-1", finished=2)
    flags = compare(runs, plan).set_index("arm")["flags"]
    assert flags["a"] == "seed 5 finished more than once, the newest counts"
    assert not flags["control"]


def test_no_verdict_without_the_whole_control():
    table = compare(frame({"control": CONTROL[:3], "a": LIKE}, design(arm("a", 3))), design(arm("a", 3)))
    assert table["verdict"].tolist() == ["undecided", "undecided"]
    assert table["why"].tolist() == ["3 of 4 runs finished", "3 of 4 runs of the control finished"]


def test_nothing_has_run_yet():
    table = compare(frame({}, design(arm("a", 3))), design(arm("a", 3)))
    assert table["verdict"].tolist() == ["undecided", "undecided"]
    assert table["n"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"invalid": "labels are not shifted", "status": "FAILED"}, "seed 5: labels are not shifted"),
        ({"final__val_loss": math.nan}, "seed 5: final/val_loss is not a finite number"),
        ({"final__val_loss": math.inf}, "seed 5: final/val_loss is not a finite number"),
    ],
)
def test_an_invalid_run_spoils_its_arm(changed, reason):
    plan = design(arm("a", 3), arm("b", 3))
    runs = change(frame({"control": CONTROL, "a": LIKE, "b": around(10.0)}, plan), "a-1", **changed)
    table = compare(runs, plan).set_index("arm")
    assert table["verdict"].tolist() == ["", "invalid", "equivalent"]
    assert table.loc["a", "why"] == f"a {reason}"
    assert table["gates_failed"].tolist() == [0, 1, 0]
    assert table.loc["a", ["delta", "ci_low", "p"]].isna().all()


def test_an_invalid_run_of_the_control_spoils_every_arm():
    plan = design(arm("again", 2, "check", expect="same"), arm("a", 3))
    runs = change(frame({"control": CONTROL, "again": LIKE[:2], "a": LIKE}, plan), "control-1", invalid="not causal")
    table = compare(runs, plan)
    assert table["verdict"].tolist() == ["invalid"] * 3
    assert table["why"].tolist() == ["control seed 1: not causal"] * 3


def test_strata_do_not_mix():
    plan = design(arm("a", 3), arm("b", 3))
    runs = frame({"control": CONTROL, "a": LIKE, "b": LIKE}, plan)
    table = compare(change(runs, "a-2", stratum="device=cuda threads=1"), plan).set_index("arm")
    assert table["verdict"].tolist() == ["", "invalid", "equivalent"]
    assert "by device: cpu (control seeds 0, 1, 2, 3, a seeds 4, 5), cuda (a seed 6)" in table.loc["a", "why"]
    assert "threads" not in table.loc["a", "why"]


@pytest.mark.parametrize("step", [0.0, 1e-15, 1e-7])
def test_seeds_that_change_nothing_are_invalid(step):
    """Also where the losses, which are computed in float32, were averaged in another order."""
    row = judge({"a": [10.1, 10.1 + step, 10.1 - step]}, design(arm("a", 3))).loc["a"]
    assert (row["verdict"], row["why"]) == ("invalid", "a: all seeds gave the same loss")


def test_arms_of_equal_losses_are_no_difference():
    """Spreads and a difference that float64 shows and float32 does not: this was worse, at p 1e-6."""
    plan = design(arm("a", 3), arm("b", 3))
    losses = {
        name: [10.0 + at + i * 1e-16 for i in range(4)] for name, at in (("control", 0), ("a", 1e-14), ("b", 0.5))
    }
    table = compare(frame({name: its[: len(its) - (name != "control")] for name, its in losses.items()}, plan), plan)
    assert table["verdict"].tolist() == ["invalid"] * 3
    assert table["p"].isna().all()


@pytest.mark.parametrize("step", [0.0, 1e-15])
def test_a_change_that_moves_no_pair_is_invalid(step):
    plan = design(arm("a", 5), control=5, paired=True)
    control = [10.0, 10.2, 10.4, 10.6, 10.9]
    mine = [loss + step * (-1) ** i for i, loss in enumerate(control)]
    row = (
        compare(frame({"control": control, "a": mine}, plan, {"control": range(5), "a": range(5)}), plan)
        .set_index("arm")
        .loc["a"]
    )
    assert row["verdict"] == "invalid"
    assert "the change did nothing" in row["why"]


def test_a_small_difference_that_float32_shows_is_judged():
    row = judge({"a": [10.1, 10.1 + 4e-6, 10.1 - 4e-6]}, design(arm("a", 3))).loc["a"]
    assert row["verdict"] != "invalid"


@pytest.mark.parametrize("screen", [True, False])
def test_one_against_one_is_a_screen(screen):
    plan = design(arm("a", 1), control=1, screen=screen)
    row = compare(frame({"control": [10.0], "a": [12.0]}, plan), plan).set_index("arm").loc["a"]
    assert row["verdict"] == "screen"
    assert row["delta"] == 2.0
    assert row[["ci_low", "ci_high", "p", "p_adj", "mde", "tost_low"]].isna().all()


def test_one_seed_borrows_the_controls_sigma():
    row = judge({"a": [12.0]}, design(arm("a", 1))).loc["a"]
    sigma = np.std(CONTROL, ddof=1)
    half = stats.t.isf(0.025, 3) * sigma * math.sqrt(1 + 1 / 4)
    assert (row["sigma"], row["df"], row["ci_low"]) == pytest.approx((sigma, 3, 1.7 - half))
    assert row["verdict"] == "worse"
    assert "one seed of a: sigma borrowed from control" in row["why"]


@pytest.mark.parametrize(
    ("expect", "values", "verdict", "why"),
    [
        ("same", LIKE, "as expected", ""),
        ("same", around(10.3, 3.0), "as expected", "not shown equivalent"),
        ("same", around(14.0), "differs", "chance, in at most 1 of 20 honest rows"),
        ("worse", around(14.0), "worse", "known-bad control, as expected"),
        ("worse", around(10.3, 2.0), "undecided", "known-bad control not seen: this design is too weak for its budget"),
        ("worse", around(6.0), "better", "known-bad control found better: do not trust this experiment"),
        ("worse", around(10.0, 0.1), "equivalent", "known-bad control makes no difference here"),
    ],
)
def test_checks_of_the_harness(expect, values, verdict, why):
    row = judge({"x": values}, design(arm("x", 3, "check", expect=expect))).loc["x"]
    assert row["verdict"] == verdict
    assert why in row["why"]


@pytest.mark.parametrize(
    ("expect", "mean", "said"),
    [
        ("worse", 14.0, "as expected (worse)"),
        ("better", 14.0, "contradicts the expectation (better)"),
        ("same", 10.3, "as expected (same)"),
        ("same", 14.0, "contradicts the expectation (same)"),
    ],
)
def test_expectations_of_variants(expect, mean, said):
    assert said in judge({"a": around(mean)}, design(arm("a", 3, expect=expect))).loc["a", "why"]


def test_an_open_result_leaves_the_expectation_open():
    row = judge({"a": around(10.3, 2.0)}, design(arm("a", 3, expect="worse"))).loc["a"]
    assert row["verdict"] == "undecided"
    assert "stays open" in row["why"]


def test_outliers_are_flagged_and_kept():
    control = [10.0, 10.01, 10.02, 9.99, 10.0, 10.01, 9.98, 11.0]
    plan = design(arm("a", 3), control=8)
    table = compare(frame({"control": control, "a": [10.0, 10.01, 9.99]}, plan), plan).set_index("arm")
    assert table.loc["control", "flags"] == "outlier: seed 7"
    assert "outlier" not in table.loc["a", "flags"]
    assert table.loc["control", "n"] == 8
    assert table.loc["control", "mean"] == pytest.approx(np.mean(control))


def test_ordinary_seeds_are_seldom_called_outliers():
    rng, plan = np.random.default_rng(5), design(arm("a", 3), arm("b", 3), control=8)
    trials, flagged = 100, 0
    for _ in range(trials):
        runs = frame({"control": rng.normal(size=8), "a": rng.normal(size=3), "b": rng.normal(size=3)}, plan)
        flagged += bool(compare(runs, plan)["flags"].str.contains("outlier").any())
    assert flagged <= stats.binom.isf(0.001, trials, 0.05)


# Paired designs


def test_paired_runs_are_subtracted_seed_by_seed():
    seeds = [3, 1, 4, 2, 5]
    control, variant = [10.0, 12.0, 11.0, 15.0, 13.0], [10.5, 12.4, 11.6, 15.3, 13.5]
    plan = design(arm("a", 5), control=5, paired=True)
    values = {"control": control, "a": variant[::-1]}
    runs = frame(values, plan, {"control": seeds, "a": seeds[::-1]})
    row = compare(runs, plan).set_index("arm").loc["a"]
    theirs = stats.ttest_rel(variant, control)
    interval = theirs.confidence_interval(0.95)
    assert (row["p"], row["ci_low"], row["ci_high"]) == pytest.approx((theirs.pvalue, interval.low, interval.high))
    assert row["df"] == 4
    assert f"correlation {np.corrcoef(control, variant)[0, 1]:+.2f}" in row["flags"]


@pytest.mark.parametrize(
    ("n", "seeds", "why"), [(4, [0, 1, 2, 3], "needs 5 shared seeds"), (5, [0, 1, 2, 3, 9], "no run with seed 9")]
)
def test_paired_needs_enough_shared_seeds(n, seeds, why):
    plan = design(arm("a", n), control=5, paired=True)
    runs = frame({"control": around(10, n=5), "a": around(11, n=n)}, plan, {"a": seeds})
    row = compare(runs, plan).set_index("arm").loc["a"]
    assert row["verdict"] == "undecided"
    assert why in row["why"]


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_a_paired_variant_that_changes_nothing_is_invalid(shift):
    values = around(10, n=5)
    plan = design(arm("a", 5), arm("b", 5), control=5, paired=True)
    given = {"control": values, "a": [value + shift for value in values], "b": [12.1, 8.5, 9.0, 11.2, 13.0]}
    runs = frame(given, plan, {name: range(5) for name in given})
    table = compare(runs, plan).set_index("arm")
    assert table.loc["a", ["verdict", "why"]].tolist() == [
        "invalid",
        f"differs from the control by {shift:g} with every seed: the change did nothing",
    ]
    assert table.loc["b", "verdict"] == "undecided"  # the others are judged all the same


def test_outliers_among_pairs_and_in_a_quiet_arm_are_flagged():
    control = [10.0, 12.0, 11.0, 15.0, 13.0, 9.0, 14.0, 10.5]
    odd = [value + step for value, step in zip(control, [0, 0.03, 0.01, 0.02, 30, 0, 0.02, 0.01], strict=True)]
    plan = design(arm("a", 8), control=8, paired=True)
    runs = frame({"control": control, "a": odd}, plan, {"control": range(8), "a": range(8)})
    assert "outlier: seed 4" in compare(runs, plan).set_index("arm").loc["a", "flags"]
    quiet = [20.0, 20.01, 19.99, 20.0, 21.0]
    row = judge({"a": quiet}, design(arm("a", 5), margin=0.1)).loc["a"]
    assert "outlier: seed 8" in row["flags"]


def test_shared_seeds_in_an_unpaired_design_decide_nothing():
    row = judge({"a": around(20)}, design(arm("a", 3)), seeds={"a": [3, 8, 9]}).loc["a"]
    assert row["verdict"] == "undecided"
    assert "shares seed 3 with the control" in row["why"]


def test_runs_on_other_data_are_invalid():
    plan = design(arm("a", 3), arm("b", 3))
    runs = frame({"control": CONTROL, "a": around(20), "b": around(20)}, plan)
    table = compare(change(runs, "a-1", data="d2"), plan).set_index("arm")
    assert table.loc["a", "verdict"] == "invalid"
    assert "runs on different data: d1 (control seeds 0, 1, 2, 3, a seeds 4, 6), d2 (a seed 5)" in table.loc["a", "why"]
    assert table.loc["b", "verdict"] == "worse"


@pytest.mark.parametrize(
    ("hours", "reproducible", "verdict"), [(13, False, "undecided"), (11, False, "worse"), (13, True, "worse")]
)
def test_drift_between_batches_is_not_taken_for_an_effect(hours, reproducible, verdict):
    plan = design(arm("a", 3))
    runs = frame({"control": CONTROL, "a": around(20)}, plan)
    later = pd.to_timedelta((runs["arm"] == "a") * hours, unit="h")
    runs = runs.assign(reproducible=reproducible, started=runs["started"] + later, ended=runs["ended"] + later)
    row = compare(runs, plan).set_index("arm").loc["a"]
    assert row["verdict"] == verdict
    assert ("apart in time" in row["why"]) == (verdict == "undecided")


def test_one_run_made_beside_the_variant_does_not_speak_for_the_others():
    plan = design(arm("a", 3))
    runs = frame({"control": CONTROL, "a": around(20)}, plan).assign(reproducible=False)
    early = pd.to_timedelta(runs["run_key"].isin(["control-0", "control-1"]) * 30, unit="D")
    runs = runs.assign(started=runs["started"] - early, ended=runs["ended"] - early)
    row = compare(runs, plan).set_index("arm").loc["a"]
    assert row["verdict"] == "undecided"
    assert row["why"].startswith("control seeds 0, 1 made apart in time")


@pytest.mark.parametrize("then", [3, 8])
def test_seeds_changed_after_a_look_decide_nothing(then):
    plan = design(arm("a", 5, looked=then), arm("b", 3), arm("again", 3, "check", expect="same", looked=2))
    values = {"control": CONTROL, "a": around(20, n=5), "b": around(20), "again": LIKE}
    table = compare(frame(values, plan), plan).set_index("arm")
    assert table.loc["again", "verdict"] == "as expected"  # a check asks nothing
    assert table.loc["a", "verdict"] == "undecided"
    assert f"declared seeds changed after a look, of a ({then} then, 5 now)" in table.loc["a", "why"]
    assert table.loc["b", "verdict"] == "worse"


def test_other_measures_than_at_the_first_look_are_told():
    looked = {"metric": "final/val_loss", "alpha": 0.05, "margin": 0.5, "variants": 6}
    plan = design(arm("a", 3), looked=looked)
    control = compare(frame({"control": CONTROL, "a": LIKE}, plan), plan).iloc[0]
    assert control["flags"] == "changed since the first look: margin 0.5 then, 1.0 now, 6 variants then, 1 now"


# What is refused


def test_bad_frames_are_refused():
    plan = design(arm("a", 3))
    runs = frame({"control": CONTROL, "a": LIKE}, plan)
    with pytest.raises(ValueError, match="stratum"):
        compare(runs.drop(columns="stratum"), plan)
    with pytest.raises(ValueError, match="twice"):
        compare(pd.concat([runs, runs.tail(1)]), plan)
    with pytest.raises(ValueError, match="a-2"):
        compare(runs, design(arm("a", 2)))


# Properties

LOSS = st.floats(-1, 1, allow_subnormal=False).map(lambda x: round(x, 3))
NUMBERS = ["delta", "ci_low", "ci_high", "sigma", "mde", "tost_low", "tost_high"]


@st.composite
def tables(draw):
    """A design of a check and two variants, and runs that do not repeat a loss."""
    sizes = {"control": draw(st.integers(2, 5)), "again": 2, "a": draw(st.integers(1, 4)), "b": draw(st.integers(2, 4))}
    losses = draw(st.lists(LOSS, min_size=sum(sizes.values()), max_size=sum(sizes.values()), unique=True))
    values = {name: [losses.pop() for _ in range(n)] for name, n in sizes.items()}
    plan = design(
        arm("again", 2, "check", expect="same"), arm("a", sizes["a"]), arm("b", sizes["b"]), control=sizes["control"]
    )
    return frame(values, plan), plan


@given(tables(), st.floats(-3, 3))
def test_a_constant_added_to_all_losses_changes_no_comparison(table, shift):
    runs, plan = table
    moved = runs.assign(**{"final/val_loss": runs["final/val_loss"] + shift})
    before, after = compare(runs, plan), compare(moved, plan)
    assert after[NUMBERS].to_numpy() == pytest.approx(before[NUMBERS].to_numpy(), rel=1e-6, abs=1e-9, nan_ok=True)
    assert after["verdict"].tolist() == before["verdict"].tolist()


@given(tables(), st.floats(0.01, 100))
def test_intervals_scale_with_the_losses(table, scale):
    runs, plan = table
    scaled = runs.assign(**{"final/val_loss": runs["final/val_loss"] * scale})
    wider = design(*plan.arms[1:], control=len(plan.control.run_keys), margin=plan.margin * scale)
    before, after = compare(runs, plan), compare(scaled, wider)
    expected = before[NUMBERS].to_numpy() * scale
    assert after[NUMBERS].to_numpy() == pytest.approx(expected, rel=1e-6, abs=1e-9 * scale, nan_ok=True)
    assert after["verdict"].tolist() == before["verdict"].tolist()


@given(tables(), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(table, random):
    runs, plan = table
    order = list(range(len(runs)))
    random.shuffle(order)
    pd.testing.assert_frame_equal(compare(runs.iloc[order], plan), compare(runs, plan))


def test_speed_is_not_compared_across_hours_on_a_processor():
    """An earlier experiment's control met another load; on a card, which is a run's own, it would not matter."""
    plan = design(arm("b", 3))
    runs = frame({"control": [4.0, 4.1, 3.9, 4.0], "b": [4.0, 4.2, 4.1]}, plan)
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
