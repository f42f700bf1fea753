"""The verdict table: its numbers against scipy, its words, and properties that hold for any runs."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.stats.compare import COLUMNS, VERDICTS, compare
from analysis.stats.estimate import independent
from analysis.stats.power import Layout, detectable_effect
from analysis.store.schema import Prior
from tests.analysis.tables import arm, change, design, frame

CONTROL = [10.0, 10.2, 10.4, 10.6]
PRIOR = Prior(sd=0.1, df=4.5, source="earlier arms")


def around(mean, spread=0.2, n=4):
    """Differences within blocks: evenly about a mean, in no order of the control's."""
    steps = spread * (np.arange(n) - (n - 1) / 2)
    return (mean + steps[np.argsort(np.arange(n) * 7 % 5, kind="stable")]).tolist()


def beside(differences, control=CONTROL):
    """The losses of an arm that differs by these from the control's."""
    return [a + b for a, b in zip(control, differences, strict=False)]


def judge(differences, plan, control=CONTROL):
    """The verdict table, by arm."""
    values = {"control": control} | {name: beside(its, control) for name, its in differences.items()}
    return compare(frame(values, plan), plan).set_index("arm")


# The numbers


def test_one_variant_without_a_prior_is_the_paired_t_test():
    control, variant = [10.0, 12.0, 11.0, 15.0, 13.0], [10.5, 12.4, 11.6, 15.3, 13.5]
    plan = design(arm("a", 5), control=5)
    row = compare(frame({"control": control, "a": variant}, plan), plan).set_index("arm").loc["a"]
    theirs = stats.ttest_rel(variant, control)
    interval, tost = theirs.confidence_interval(0.95), theirs.confidence_interval(0.90)
    assert row["p"] == row["p_adj"] == pytest.approx(theirs.pvalue)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((interval.low, interval.high))
    assert (row["tost_low"], row["tost_high"]) == pytest.approx((tost.low, tost.high))
    apart = np.subtract(variant, control)
    assert (row["df"], row["look"], row["n"], row["declared"]) == (4, 5, 5, 5)
    assert (row["delta"], row["mean"]) == pytest.approx((apart.mean(), np.mean(variant)))
    assert row["sigma"] == row["own_sd"] == pytest.approx(apart.std(ddof=1))
    assert row["correlation"] == pytest.approx(np.corrcoef(control, variant)[0, 1])
    welch = stats.ttest_ind(variant, control, equal_var=False).confidence_interval(0.95)
    assert row["independent_half"] == pytest.approx((welch.high - welch.low) / 2)


def test_a_family_is_bonferronis_intervals_and_holms_p_with_the_moderated_sd():
    values = {"a": around(0.25), "b": around(0.05, 0.05), "c": around(-0.3, 0.1)}
    table = judge(values, design(*(arm(name, 4) for name in values), prior=PRIOR))
    p = {}
    for name, its in values.items():
        row, own = table.loc[name], np.array(its)
        sigma = math.sqrt((4.5 * 0.01 + 3 * own.var(ddof=1)) / 7.5)
        se = sigma / 2
        half = stats.t.isf(0.05 / 2 / 3, 7.5) * se
        assert (row["sigma"], row["own_sd"], row["df"]) == pytest.approx((sigma, own.std(ddof=1), 7.5))
        assert (row["ci_low"], row["ci_high"]) == pytest.approx((own.mean() - half, own.mean() + half))
        p[name] = 2 * stats.t.sf(abs(own.mean()) / se, 7.5)
        assert row["p"] == pytest.approx(p[name])
        tost = stats.t.isf(0.05, 7.5) * se  # not simultaneous: who calls an arm equivalent errs by that arm
        assert (row["tost_low"], row["tost_high"]) == pytest.approx((own.mean() - tost, own.mean() + tost))
    first, second, third = sorted(p, key=p.__getitem__)
    assert table.loc[first, "p_adj"] == pytest.approx(3 * p[first])
    assert table.loc[second, "p_adj"] == pytest.approx(max(3 * p[first], 2 * p[second]))
    assert table.loc[third, "p_adj"] == pytest.approx(max(2 * p[second], p[third]))


def test_independent_seeds_are_compared_by_means():
    plan = design(arm("a", 3), arm("b", 3), independent=True)
    values = {"control": CONTROL, "a": [12.0, 12.3, 12.4], "b": [10.2, 10.4, 10.9]}
    row = compare(frame(values, plan), plan).set_index("arm").loc["a"]
    t = stats.ttest_ind(values["a"], CONTROL, equal_var=False).statistic
    half = stats.t.isf(0.05 / 2 / 2, 2) * row["delta"] / t
    assert (row["df"], row["n"], row["declared"], row["look"]) == (2, 3, 3, 3)
    assert row["p"] == pytest.approx(2 * stats.t.sf(abs(t), 2))
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((row["delta"] - half, row["delta"] + half))
    assert row["sigma"] == row["own_sd"] == pytest.approx(np.std(values["a"], ddof=1))
    assert row["independent_half"] == pytest.approx(half)
    assert math.isnan(row["correlation"])


def test_independent_seeds_know_no_looks():
    """Every arm has all of its runs at once; looks would only take alpha away."""
    values = {"control": CONTROL, "a": [12.0, 12.3, 12.4, 12.1]}
    plain, looked = (design(arm("a", 4), independent=True, looks=looks) for looks in ((), (2, 3, 4)))
    rows = [compare(frame(values, plan), plan).iloc[1] for plan in (plain, looked)]
    assert rows[0]["ci_low"] == rows[1]["ci_low"]
    assert rows[1]["look"] == 4


def test_one_independent_run_is_compared_where_the_base_knows_an_sd():
    values = {"control": CONTROL, "a": [12.0]}
    plan = design(arm("a", 1), independent=True, prior=PRIOR)
    row = compare(frame(values, plan), plan).iloc[1]
    expected = independent(np.array(CONTROL), np.array([12.0]), PRIOR)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(expected.interval(0.05))
    assert row["verdict"] == "worse"
    without = design(arm("a", 1), independent=True)
    assert compare(frame(values, without), without).iloc[1]["verdict"] == "undecided"


def test_the_controls_row_is_of_its_seeds():
    row = judge({"a": around(0.1)}, design(arm("a", 4), prior=PRIOR)).loc["control"]
    assert row["sigma"] == row["own_sd"] == pytest.approx(np.std(CONTROL, ddof=1))
    assert (row["df"], row["n"], row["verdict"], row["why"]) == (3, 4, "", "")
    assert row[["delta", "ci_low", "p", "p_adj", "p_programme", "mde", "look", "correlation"]].isna().all()


def test_what_the_runs_of_a_block_share_moves_nothing():
    """Another luck of every block, the same differences."""
    plan, values = design(arm("a", 4), arm("b", 4), prior=PRIOR), {"a": around(0.3), "b": around(0.0, 0.5)}
    tables = [judge(values, plan, control) for control in (CONTROL, [13.0, 9.0, 10.5, 11.1])]
    numbers = ["delta", "ci_low", "ci_high", "p", "p_adj", "sigma", "df", "mde", "tost_low", "tost_high"]
    rows = [table.loc[["a", "b"], numbers].to_numpy(float) for table in tables]
    assert rows[0] == pytest.approx(rows[1])
    assert tables[0].loc["a", "independent_half"] < tables[1].loc["a", "independent_half"]


def test_checks_stand_outside_the_family():
    plan = design(arm("twin", 4, "check", expect="same"), arm("a", 4), arm("b", 4))
    variants = {"a": around(0.6), "b": around(-0.3)}
    table = judge({"twin": around(0.1)} | variants, plan)
    theirs = stats.ttest_1samp(around(0.1), 0)
    assert table.loc["twin", "p_adj"] == pytest.approx(theirs.pvalue)
    assert table.loc["twin", "ci_low"] == pytest.approx(theirs.confidence_interval(0.95).low)
    assert math.isnan(table.loc["twin", "p_programme"])
    without = judge(variants, design(arm("a", 4), arm("b", 4)))
    pd.testing.assert_frame_equal(
        table.loc[["a", "b"], list(COLUMNS[2:21])], without.loc[["a", "b"], list(COLUMNS[2:21])]
    )


@pytest.mark.parametrize(("order", "factor"), [(1, 2), (2, 6), (7, 56), (10**6, math.inf)])
def test_the_programmes_p_grows_with_the_experiments_before(order, factor):
    row = judge({"a": around(0.6, 0.05)}, design(arm("a", 4), order=order)).loc["a"]
    assert row["p_programme"] == pytest.approx(min(1.0, factor * row["p_adj"]))
    assert row["verdict"] == "worse"  # which is about this experiment


def test_mde_is_the_effect_of_the_power_module():
    plan = design(arm("a", 4), arm("b", 6), control=6, prior=PRIOR, looks=(3, 6))
    table = judge({"a": around(0.0, 0.9), "b": around(0.0, 0.6, 6)}, plan, [*CONTROL, 10.1, 10.3])
    for name, layout in (
        ("a", Layout(blocks=4, family=2, alpha=0.05, looks=(3, 4), prior=PRIOR)),
        ("b", Layout(blocks=6, family=2, alpha=0.05, looks=(3, 6), prior=PRIOR)),
    ):
        row = table.loc[name]
        assert row["mde"] == pytest.approx(detectable_effect(row["sigma"], layout))


def test_throughput_is_a_ratio_with_its_interval():
    plan = design(arm("a", 4))
    runs = frame({"control": CONTROL, "a": beside(around(0.1))}, plan)
    runs["final/tokens_per_s"] = [100.0, 102, 101, 99, 110.0, 112, 111, 107]
    row = compare(runs, plan).set_index("arm").loc["a"]
    logs = np.log(runs["final/tokens_per_s"].to_numpy())
    interval = stats.ttest_rel(logs[4:], logs[:4]).confidence_interval(0.95)
    assert row["tokens_per_s"] == pytest.approx(np.exp(logs[4:].mean()))
    assert row["tokens_per_s_delta"] == pytest.approx(np.expm1(logs[4:].mean() - logs[:4].mean()))
    ends = row[["tokens_per_s_low", "tokens_per_s_high"]].astype(float)
    assert ends.tolist() == pytest.approx([np.expm1(interval.low), np.expm1(interval.high)])


@pytest.mark.parametrize(("compiled", "says"), [([0, 0, 0, 0], "not compiled"), ([0, 1, 1, 1], "partly compiled")])
def test_speed_is_not_compared_where_one_arm_is_compiled(compiled, says):
    plan = design(arm("a", 4), arm("b", 4))
    runs = frame({"control": CONTROL, "a": beside(around(4.0)), "b": beside(around(0.1))}, plan)
    runs["final/compiled"] = [1.0] * 4 + compiled + [1.0] * 4
    table = compare(runs, plan).set_index("arm")
    row = table.loc["a"]
    assert row["verdict"] == "worse"  # the losses are compared all the same
    assert f"{says}, the control compiled: speed and memory are not comparable" in row["flags"]
    assert row[["tokens_per_s_delta", "tokens_per_s_low", "memory_delta"]].isna().all()
    assert row["iso_verdict"] == ""
    assert np.isfinite(table.loc["b", "tokens_per_s_delta"])
    assert "compiled" not in table.loc["b", "flags"]


def test_costs_and_columns():
    plan = design(arm("a", 4, num_params=1100, flops_per_token=5400))
    table = compare(frame({"control": CONTROL, "a": beside(around(4.0))}, plan), plan)
    assert tuple(table.columns) == COLUMNS
    assert table["arm"].tolist() == ["control", "a"]
    row = table.iloc[1]
    assert (row["params_delta"], row["flops_delta"], row["eval_se"]) == pytest.approx((0.1, -0.1, 0.25))
    assert row["why"] == "at 10.0 % more parameters and 10.0 % fewer FLOPs"


# The words


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        (around(4.0), "worse"),
        (around(-4.0), "better"),
        (around(0.0), "equivalent"),
        (around(0.0, 2.0), "undecided"),
        (around(-0.6, 0.4), "undecided"),
        (around(0.6, 0.4), "undecided"),
    ],
)
def test_verdicts(differences, verdict):
    row = judge({"a": differences}, design(arm("a", 4))).loc["a"]
    assert row["verdict"] == verdict
    assert "within margin" not in row["why"]
    assert ("shows neither" in row["why"]) == (verdict == "undecided")


def test_a_small_clear_difference_is_worse_within_the_margin():
    row = judge({"a": around(0.6, 0.1)}, design(arm("a", 4), margin=2.0)).loc["a"]
    assert row["verdict"] == "worse"
    assert "within margin" in row["why"]


def test_equivalence_goes_by_the_ninety_percent_interval():
    row = judge({"a": around(0.1)}, design(arm("a", 4))).loc["a"]
    between = (row["tost_high"] + row["ci_high"]) / 2  # inside it fits the 90 % interval but not the 95 % one
    for margin, verdict in ((between, "equivalent"), (0.99 * row["tost_high"], "undecided")):
        assert judge({"a": around(0.1)}, design(arm("a", 4), margin=margin)).loc["a", "verdict"] == verdict


@pytest.mark.parametrize(
    ("expect", "differences", "verdict", "why"),
    [
        ("same", around(0.1), "as expected", ""),
        ("same", around(0.0, 3.0), "as expected", "not shown equivalent"),
        ("same", around(4.0), "differs", "chance, in at most 1 of 20 honest rows"),
        ("worse", around(4.0), "worse", "known-bad control, as expected"),
        (
            "worse",
            around(0.0, 2.0),
            "undecided",
            "known-bad control not seen: these runs are too few, or too short, to tell bad from good",
        ),
        ("worse", around(-4.0), "better", "known-bad control found better: do not trust this experiment"),
        ("worse", around(0.0, 0.1), "equivalent", "known-bad control makes no difference here"),
    ],
)
def test_checks_of_the_harness(expect, differences, verdict, why):
    row = judge({"x": differences}, design(arm("x", 4, "check", expect=expect))).loc["x"]
    assert row["verdict"] == verdict
    assert why in row["why"]


@pytest.mark.parametrize(
    ("expect", "mean", "said"),
    [
        ("worse", 4.0, "as expected (worse)"),
        ("better", 4.0, "contradicts the expectation (better)"),
        ("same", 0.0, "as expected (same)"),
        ("same", 4.0, "contradicts the expectation (same)"),
    ],
)
def test_expectations_of_variants(expect, mean, said):
    assert said in judge({"a": around(mean)}, design(arm("a", 4, expect=expect))).loc["a", "why"]


def test_an_open_result_leaves_the_expectation_open():
    row = judge({"a": around(0.0, 2.0)}, design(arm("a", 4, expect="worse"))).loc["a"]
    assert row["verdict"] == "undecided"
    assert "stays open" in row["why"]


def test_a_holm_p_below_alpha_whose_interval_includes_0_is_explained():
    """The second of two is at its own alpha by Holm and at half of it by the interval."""
    values = {"clear": around(4.0, 0.1), "b": around(0.465)}
    table = judge(values, design(arm("clear", 4), arm("b", 4), margin=0.1))
    row = table.loc["b"]
    assert row["p_adj"] < 0.05
    assert row["ci_low"] < 0
    assert row["verdict"] == "undecided"
    assert "Holm's p is below alpha" in row["why"]


def test_outliers_are_flagged_and_kept():
    control = [10.0, 10.01, 10.02, 9.99, 10.0, 10.01, 9.98, 11.0]
    odd = [0, 0.03, 0.01, 0.02, 30, 0, 0.02, 0.01]
    plan = design(arm("a", 8), arm("b", 8), control=8, first_seed=100)
    table = judge({"a": odd, "b": around(0.0, n=8)}, plan, control)
    assert table.loc["control", "flags"] == "outlier: seed 107"
    assert "outlier: block 4" in table.loc["a", "flags"]
    assert "outlier" not in table.loc["b", "flags"]  # the control's odd seed is in its run too
    assert table["n"].tolist() == [8, 8, 8]
    assert table.loc["control", "mean"] == pytest.approx(np.mean(control))


def test_other_measures_than_at_the_first_look_are_flagged():
    plan = design(arm("a", 4), changed={"margin": (0.5, 1.0), "variants": (6, 1)})
    flags = judge({"a": around(0.1)}, plan)["flags"]
    assert flags["a"] == "changed since the first look: margin 0.5 then, 1.0 now, variants 6 then, 1 now"


# What is refused


def test_bad_frames_are_refused():
    plan = design(arm("a", 4))
    runs = frame({"control": CONTROL, "a": beside(around(0.1))}, plan)
    with pytest.raises(ValueError, match="stratum"):
        compare(runs.drop(columns="stratum"), plan)
    with pytest.raises(ValueError, match="twice"):
        compare(pd.concat([runs, runs.tail(1)]), plan)
    with pytest.raises(ValueError, match="a-3"):
        compare(runs, design(arm("a", 3)))


# Properties

LOSS = st.floats(-1, 1, allow_subnormal=False).map(lambda x: round(x, 3))
NUMBERS = ["delta", "ci_low", "ci_high", "sigma", "own_sd", "independent_half", "mde", "tost_low", "tost_high"]
PRIORS = st.none() | st.builds(Prior, sd=st.floats(0.05, 2), df=st.floats(0.5, 20), source=st.just("drawn"))


@st.composite
def tables(draw):
    """A design of a check and two variants, and runs that do not repeat a loss; some blocks are missing."""
    blocks = draw(st.integers(2, 6))
    looks = draw(st.sampled_from([(), (2, blocks)])) if blocks > 2 else ()
    shared = {"independent": draw(st.booleans()), "prior": draw(PRIORS)}
    names = ("control", "twin", "a", "b")
    losses = draw(st.lists(LOSS, min_size=4 * blocks, max_size=4 * blocks, unique=True))
    values = {name: [losses.pop() for _ in range(blocks)] for name in names}
    values["b"] = values["b"][: draw(st.integers(0, blocks))]
    variants = (arm("twin", blocks, "check", expect="same"), arm("a", blocks), arm("b", blocks))
    plan = design(*variants, control=blocks, looks=() if shared["independent"] else looks, **shared)
    runs = frame(values, plan)
    broken = draw(st.sets(st.sampled_from(sorted(runs["run_key"])), max_size=2))
    return runs.assign(status=runs["status"].where(~runs["run_key"].isin(broken), "FAILED")), plan


@given(tables(), st.floats(-3, 3))
def test_a_constant_added_to_all_losses_changes_no_comparison(table, shift):
    runs, plan = table
    moved = runs.assign(**{"final/val_loss": runs["final/val_loss"] + shift})
    before, after = compare(runs, plan), compare(moved, plan)
    assert after[NUMBERS].to_numpy(float) == pytest.approx(
        before[NUMBERS].to_numpy(float), rel=1e-6, abs=1e-9, nan_ok=True
    )
    assert after["verdict"].tolist() == before["verdict"].tolist()
    assert set(after["verdict"]) <= {"", *VERDICTS}


@given(tables(), st.floats(0.01, 100))
def test_intervals_scale_with_the_losses(table, scale):
    runs, plan = table
    scaled = runs.assign(**{"final/val_loss": runs["final/val_loss"] * scale})
    known = plan.prior and Prior(sd=plan.prior.sd * scale, df=plan.prior.df, source="scaled")
    fields = {"independent": plan.independent, "looks": plan.looks, "prior": known}
    wider = design(*plan.arms[1:], control=len(plan.control.run_keys), margin=plan.margin * scale, **fields)
    before, after = compare(runs, plan), compare(scaled, wider)
    expected = before[NUMBERS].to_numpy(float) * scale
    assert after[NUMBERS].to_numpy(float) == pytest.approx(expected, rel=1e-6, abs=1e-9 * scale, nan_ok=True)
    assert after["verdict"].tolist() == before["verdict"].tolist()


@given(tables())
def test_mirrored_losses_have_mirrored_verdicts(table):
    runs, plan = table
    before, after = (
        compare(runs.assign(**{"final/val_loss": sign * runs["final/val_loss"]}), plan) for sign in (1, -1)
    )
    mirrored = {"better": "worse", "worse": "better"}
    assert after["verdict"].tolist() == [mirrored.get(word, word) for word in before["verdict"]]
    assert after["ci_low"].to_numpy() == pytest.approx(-before["ci_high"].to_numpy(), nan_ok=True)


@given(tables(), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(table, random):
    runs, plan = table
    order = list(range(len(runs)))
    random.shuffle(order)
    pd.testing.assert_frame_equal(compare(runs.iloc[order], plan), compare(runs, plan))


@given(tables())
def test_the_adjusted_p_is_never_under_p_nor_over_the_programmes(table):
    judged = compare(*table).dropna(subset="p_adj")
    assert (judged["p_adj"] >= judged["p"] * (1 - 1e-12)).all()
    programme = judged.dropna(subset="p_programme")
    assert (programme["p_programme"] >= programme["p_adj"]).all()
    excludes = (judged["ci_low"] > 0) | (judged["ci_high"] < 0)
    assert (judged.loc[excludes, "p_adj"] <= 0.05 + 1e-9).all()  # Holm's is at most Bonferroni's


def test_a_run_that_finished_twice_is_flagged():
    plan = design(arm("a", 4))
    runs = change(frame({"control": CONTROL, "a": beside(around(0.1))}, plan), "a-1", finished=2)
    flags = compare(runs, plan).set_index("arm")["flags"]
    assert flags["a"] == "seed 1 finished more than once, the newest counts"
    assert not flags["control"]
