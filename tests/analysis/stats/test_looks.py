"""Arms judged look by look: what is decided stays, what is open says when it is judged next, and errors add up."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.stats.compare import COLUMNS, compare, decided
from analysis.stats.eligibility import Sample
from analysis.stats.estimate import in_family, within_blocks
from analysis.stats.looks import Judged, judge, word_of
from analysis.store.schema import Prior
from tests.analysis.tables import arm, change, design, frame

LOOKS = (3, 5, 8)
PRIOR = Prior(sd=0.1, df=4.5, source="x")
CONTROL = [10.0, 10.2, 10.4, 10.6, 10.3, 9.9, 10.1, 10.5]
STEPS = [0.05, -0.05, 0.02, -0.04, 0.03, 0.0, -0.02, 0.04]  # of a quiet arm
WIDE = [1.5, -1.4, 0.3, -1.2, 1.6, -0.7, 1.1, -1.3]  # of one that stays undecided


def plan_of(*arms, **fields):
    return design(*arms, control=8, **({"looks": LOOKS} | fields))


def losses(steps, shift=0.0, n=8):
    return [control + step + shift for control, step in zip(CONTROL[:n], steps, strict=False)]


def table_of(plan, values, control=CONTROL):
    return compare(frame({"control": control} | values, plan), plan).set_index("arm")


PLAN = plan_of(arm("a", 8), arm("b", 8))


@pytest.mark.parametrize(("done", "share"), [(3, 3 / 8), (5, 2 / 8), (8, 3 / 8)])
def test_each_look_spends_its_share_of_alpha(done, share):
    """The interval of an arm that stays open is the paired t interval of its look, at that look's part of alpha."""
    values = {"a": losses(WIDE, n=done), "b": losses(WIDE[::-1], n=done)}
    row = table_of(PLAN, values, CONTROL[:done]).loc["a"]
    theirs = stats.ttest_rel(values["a"], CONTROL[:done])
    interval, tost = theirs.confidence_interval(1 - share * 0.05 / 2), theirs.confidence_interval(1 - 2 * share * 0.05)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((interval.low, interval.high))
    assert (row["tost_low"], row["tost_high"]) == pytest.approx((tost.low, tost.high))
    assert (row["verdict"], row["look"], row["n"], row["declared"]) == ("undecided", done, done, 8)
    assert row["p"] == pytest.approx(theirs.pvalue)
    assert row["p_adj"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("done", "said"),
    [
        (2, "2 of 3 blocks done"),
        (3, "next look after 5 blocks"),
        (4, "next look after 5 blocks"),
        (5, "next look after 8 blocks"),
        (7, "next look after 8 blocks"),
        (8, "open after the last look, at 8 blocks"),
    ],
)
def test_an_open_arm_says_when_it_is_judged_next(done, said):
    row = table_of(PLAN, {"a": losses(WIDE, n=done), "b": losses(STEPS, n=done)}, CONTROL[:done]).loc["a"]
    assert row["verdict"] == "undecided"
    assert said in row["why"]
    assert "decided after" not in row["why"]


@pytest.mark.parametrize(("shift", "verdict"), [(0.8, "worse"), (-0.8, "better"), (0.0, "equivalent")])
def test_a_decided_arm_says_after_which_look(shift, verdict):
    table = table_of(PLAN, {"a": losses(STEPS, shift), "b": losses(WIDE)})
    assert table.loc["a", ["verdict", "look", "n"]].tolist() == [verdict, 3, 3]
    assert "decided after 3 blocks" in table.loc["a", "why"]
    assert table.loc["b", "look"] == 8


def test_what_needs_no_more_blocks_is_what_says_so_the_twin_too():
    plan = replace(
        PLAN, arms=(*PLAN.arms, arm("twin", 8, "check", expect="same"), arm("loose", 8, "check", expect="same"))
    )
    values = {"control": CONTROL[:3], "a": losses(STEPS, 0.8, 3), "b": losses(WIDE, n=3)}
    table = compare(frame(values | {"twin": losses(STEPS, n=3), "loose": losses(WIDE, n=3)}, plan), plan)
    assert table.set_index("arm")["verdict"][["twin", "loose"]].tolist() == ["as expected"] * 2
    assert decided(table, plan) == {"a", "twin"} == set(table.loc[table["why"].str.contains("decided after"), "arm"])


LATER = st.lists(st.floats(-50, 50), min_size=5, max_size=5)


@given(
    LATER,
    LATER,
    st.sampled_from([0.8, -0.8, 0.0]),
    st.sampled_from(["", "FAILED", "RUNNING", "invalid", "stratum", "data", "late", "seed"]),
    st.sampled_from(["a-6", "control-6"]),
)
def test_whatever_later_blocks_hold_a_decided_arm_stays_as_it_was(mine, others, shift, fault, key):
    """Its row is the one of the day of the look, to the last column."""
    early = frame({"control": CONTROL[:3], "a": losses(STEPS, shift, 3), "b": losses(WIDE, n=3)}, PLAN)
    late = {"control": CONTROL[:3] + others, "a": losses(STEPS, shift, 3) + mine, "b": losses(WIDE, n=3) + mine[::-1]}
    runs = frame(late, PLAN).assign(reproducible=False)
    changed = {
        "": {},
        "invalid": {"invalid": "not causal"},
        "stratum": {"stratum": "device=gpu"},
        "data": {"data": "d2"},
        "late": {"started": pd.Timestamp("2027-01-01", tz="UTC"), "ended": pd.Timestamp("2027-01-02", tz="UTC")},
        "seed": {"seed": 99},
    }
    runs = change(runs, key, **changed.get(fault, {"status": fault, "final__val_loss": math.nan}))
    speeds = dict(zip(early["run_key"], early["final/tokens_per_s"], strict=True))
    runs["final/tokens_per_s"] = runs["run_key"].map(speeds).fillna(7.0)
    before, after = (compare(its, PLAN).set_index("arm").loc["a"] for its in (early, runs))
    pd.testing.assert_series_equal(before, after)


@given(st.integers(0, 10**6), st.sampled_from([None, PRIOR]))
def test_an_arm_is_judged_at_the_first_look_that_decides_it(seed, prior):
    """By brute force: each look anew, as an experiment that ended there, until one decides."""
    generator = np.random.default_rng(seed)
    plan = replace(PLAN, prior=prior, margin=0.1)
    apart = {name: generator.normal(generator.choice([0.0, 0.15]), 0.1, 8) for name in "ab"}
    table = table_of(plan, {name: losses(its) for name, its in apart.items()})
    for name, its in apart.items():
        for before, look in zip((0, 3, 5), LOOKS, strict=True):
            estimate = replace(within_blocks(its[:look], prior), share=(look - before) / 8)
            (estimate,) = in_family({name: estimate}, 2).values()
            if word_of(estimate, plan) != "undecided":
                break
        row = table.loc[name]
        assert (row["verdict"], row["look"]) == (word_of(estimate, plan), look)
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(estimate.interval(0.05))


def test_without_looks_there_is_one_judgement_at_the_whole_of_alpha():
    values = {"a": losses(STEPS, 0.8), "b": losses(WIDE)}
    plain, last = plan_of(arm("a", 8), arm("b", 8), looks=()), plan_of(arm("a", 8), arm("b", 8), looks=(8,))
    numbers = list(COLUMNS[2:11])
    pd.testing.assert_frame_equal(table_of(plain, values)[numbers], table_of(last, values)[numbers])
    assert "decided after" not in table_of(plain, values).loc["a", "why"]
    assert table_of(plain, values).loc["a", "look"] == 8


def test_an_arm_of_other_blocks_than_the_looks_is_judged_after_its_last():
    control = [*CONTROL, 10.2, 10.7]
    plan = design(arm("short", 4), arm("long", 10), arm("first", 2), control=10, looks=LOOKS, prior=PRIOR, margin=0.01)
    values = {"short": losses(WIDE, n=4), "long": [*losses(WIDE), 11.3, 9.6], "first": losses(WIDE, n=2)}
    table = table_of(plan, values, control)
    assert table["look"].tolist()[1:] == [4, 10, 2]
    for name, share in (("short", 1 / 4), ("long", 2 / 10), ("first", 1)):
        row = table.loc[name]
        half = stats.t.isf(share * 0.05 / 2 / 3, row["df"]) * row["sigma"] / math.sqrt(row["n"])
        assert row["ci_high"] - row["delta"] == pytest.approx(half)
        assert "open after the last look" in row["why"]


def test_a_block_that_broke_is_left_out_of_every_look():
    runs = frame({"control": CONTROL, "a": losses(WIDE), "b": losses(STEPS, 0.8)}, PLAN)
    table = compare(change(runs, "a-1", status="FAILED"), PLAN).set_index("arm")
    assert table.loc["a", ["n", "look"]].tolist() == [7, 8]
    assert "left out: block 1: a FAILED" in table.loc["a", "why"]
    assert table.loc["b", ["n", "look"]].tolist() == [3, 3]


def test_a_look_with_too_few_complete_blocks_gives_way_to_the_next():
    """Its share of alpha is spent on nothing; the arm is not lost."""
    runs = frame({"control": CONTROL, "a": losses(STEPS, 0.8), "b": losses(WIDE)}, PLAN)
    for key in ("a-0", "a-1"):
        runs = change(runs, key, status="FAILED")
    table = compare(runs, PLAN).set_index("arm")
    assert table.loc["a", ["verdict", "n", "look"]].tolist() == ["worse", 3, 5]
    early = compare(runs[runs["seed"] < 4], PLAN).set_index("arm")
    assert early.loc["a", "verdict"] == "undecided"
    assert early.loc["a", "why"] == "2 of 5 blocks done; block 0: a FAILED; block 1: a FAILED"


def test_an_invalid_run_on_the_way_to_the_next_look_is_not_waited_over():
    runs = frame({"control": CONTROL[:4], "a": losses(WIDE, n=4), "b": losses(STEPS, 0.8, 4)}, PLAN)
    table = compare(change(runs, "a-3", invalid="not causal"), PLAN).set_index("arm")
    assert table["verdict"].tolist() == ["", "invalid", "worse"]
    assert table.loc["a", "why"] == "a seed 3: not causal"


def test_equal_differences_at_the_first_look_are_no_certainty():
    """Three differences of one size have no variance; without a prior they would be called at p = 0."""
    steps = [0.25, 0.25, 0.25, *WIDE[3:]]
    table = table_of(PLAN, {"a": losses(steps), "b": losses(STEPS, 0.8)})
    assert table.loc["a", "verdict"] == "invalid"
    assert "the change did nothing" in table.loc["a", "why"]


def test_the_twin_is_judged_alone_at_each_look():
    plan = plan_of(arm("twin", 8, "check", expect="same"), arm("a", 8), arm("b", 8))
    table = table_of(plan, {"twin": losses(WIDE), "a": losses(STEPS, 0.8), "b": losses(WIDE)})
    row = table.loc["twin"]
    theirs = stats.ttest_rel(losses(WIDE), CONTROL).confidence_interval(1 - 3 / 8 * 0.05)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((theirs.low, theirs.high))
    assert row["look"] == 8


@pytest.mark.parametrize(("family", "prior"), [(1, None), (3, None), (3, PRIOR)])
def test_the_looks_together_err_no_oftener_than_alpha(family, prior):
    """In simulated experiments without an effect: any arm of the family called better or worse at any look.

    With a prior the arms' sds come from it; without, all have one.
    """
    generator, trials, alarms = np.random.default_rng(2), 600, 0
    names = [f"v{i}" for i in range(family)]
    plan = plan_of(*(arm(name, 8) for name in names), prior=prior, margin=1e-9)
    runs = frame({"control": CONTROL} | {name: losses(STEPS) for name in names}, plan)
    control, *samples = (Sample.of(declared, runs, plan.metric) for declared in plan.arms)
    for _ in range(trials):
        true = prior.sd * (prior.df / generator.chisquare(prior.df, family)) ** 0.5 if prior else np.full(family, 0.1)
        drawn = [
            replace(s, values=control.values + generator.normal(0, sd, 8)) for s, sd in zip(samples, true, strict=True)
        ]
        results = judge(control, drawn, family, plan)
        assert all(isinstance(result, Judged) for result in results.values())
        alarms += any(word_of(result.estimate, plan) != "undecided" for result in results.values())
    assert stats.binom.cdf(alarms, trials, 0.05) < 0.999, f"{alarms} alarms in {trials}"
    assert alarms > 0.01 * trials  # nor are they so shy that they would hardly find anything
