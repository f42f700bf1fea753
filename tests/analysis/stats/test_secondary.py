"""What probes measured is compared as verdicts are, as a family of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.report.probes import probe_text
from analysis.stats.compare import compare
from analysis.stats.secondary import paired_error, probe_metrics, secondary
from analysis.store.schema import Prior
from tests.analysis.tables import arm, design, frame

PLAN = design(
    arm("twin", 4, "check", expect="same"),
    arm("a", 4),
    arm("b", 4),
    control=4,
    margin=0.5,
    prior=Prior(sd=0.1, df=10, source=""),
)
CONTROL = np.array([4.0, 4.3, 4.1, 4.4])


def measured(generator: np.random.Generator, **probes: dict[str, float]):
    """Runs whose judged loss is better for ``a``, and what probes say: metric → effect by arm."""

    def values(effects):
        return {
            name: CONTROL + effects.get(name, 0.0) + generator.normal(0, 0.02, 4) * (name != "control")
            for name in ("control", "twin", "a", "b")
        }

    runs = frame(values({"a": -1.0}), PLAN)
    for metric, effects in probes.items():
        runs[f"probe/own/{metric}"] = frame(values(effects), PLAN)["final/val_loss"].to_numpy()
    return runs


@given(st.integers(0, 1000), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_each_metric_is_compared_at_its_share_of_alpha(seed, count):
    runs = measured(np.random.default_rng(seed), **{f"loss_{i}": {"a": 0.3 * i} for i in range(count)})
    table = secondary(runs, PLAN)
    assert list(dict.fromkeys(table["metric"])) == [f"probe/own/loss_{i}" for i in range(count)]
    for metric, part in table.groupby("metric"):
        plan = replace(PLAN, alpha=PLAN.alpha / count, prior=None, metric=str(metric))
        alone = compare(runs, plan)
        for column in ("arm", "delta", "ci_low", "ci_high", "verdict"):
            assert part[column].tolist() == pytest.approx(alone[column].tolist(), nan_ok=True)
        assert part["p_adj"].tolist() == pytest.approx((alone["p_adj"] * count).clip(upper=1).tolist(), nan_ok=True)


def test_the_opposite_of_the_judged_loss_is_said():
    runs = measured(np.random.default_rng(0), loss_past={"a": 1.0, "b": 1.0}, loss_near={"a": -1.0})
    notes = secondary(runs, PLAN).set_index(["metric", "arm"])["note"]
    assert notes["probe/own/loss_past", "a"] == "the opposite of final/val_loss"
    assert notes.drop(("probe/own/loss_past", "a")).eq("").all()


def test_runs_that_were_not_measured_leave_their_arm_open():
    runs = measured(np.random.default_rng(0), loss={"a": 1.0})
    runs.loc[(runs["arm"] == "a") & (runs["seed"] == runs["seed"].max()), "probe/own/loss"] = np.nan
    table = secondary(runs, PLAN).set_index("arm")
    assert table.loc["a", "verdict"] == "undecided"
    assert table.loc["b", "verdict"] == "equivalent"


def test_standard_errors_bits_and_shares_are_no_losses():
    names = ("loss", "loss_se", "bits_per_byte", "task_accuracy", "task_answer_loss", "of_a_plugin")
    runs = measured(np.random.default_rng(0), **{name: {} for name in names})
    assert probe_metrics(runs) == [f"probe/own/{name}" for name in ("loss", "of_a_plugin", "task_answer_loss")]


def test_metrics_are_in_the_order_of_their_numbers():
    names = [f"loss_past_window/{factor}x" for factor in (16, 1, 2)]
    runs = measured(np.random.default_rng(0), **{name: {} for name in names})
    assert [name.rsplit("/", 1)[1] for name in probe_metrics(runs)] == ["1x", "2x", "16x"]


def test_without_probes_there_is_nothing():
    runs = measured(np.random.default_rng(0))
    assert secondary(runs, PLAN).empty
    with pytest.raises(ValueError, match="lacks the columns"):
        secondary(runs, PLAN, ["probe/own/none"])


def scored(values: dict[str, list[float]], metric: str = "lm_eval/choice/acc"):
    """Runs whose judged loss says nothing, and what a task gave."""
    runs = measured(np.random.default_rng(0))
    runs[metric] = np.concatenate([values[name] for name in ("control", "twin", "a", "b")])
    return runs


SCORES = {
    "control": [0.30, 0.34, 0.32, 0.36],
    "twin": [0.31, 0.34, 0.31, 0.36],
    "a": [0.50, 0.53, 0.53, 0.55],
    "b": [0.21, 0.24, 0.23, 0.25],
}


def test_of_a_score_more_is_better_and_of_a_perplexity_less():
    """The same numbers, once each way: intervals are the same, words change places."""
    tables = [secondary(scored(SCORES, f"lm_eval/choice/{name}"), PLAN) for name in ("acc", "brier_score/lower")]
    for table, better, worse in zip(tables, "ab", "ba", strict=True):
        verdicts = table.set_index("arm")["verdict"]
        assert (verdicts[better], verdicts[worse], verdicts["twin"]) == ("better", "worse", "as expected")
    for column in ("mean", "delta", "ci_low", "ci_high"):
        assert tables[0][column].tolist() == pytest.approx(tables[1][column].tolist(), nan_ok=True)
    row = tables[0].set_index("arm").loc["a"]
    assert row["ci_low"] < row["delta"] < row["ci_high"]
    assert row["delta"] == pytest.approx(np.mean(SCORES["a"]) - np.mean(SCORES["control"]))


def test_a_margin_in_nats_makes_no_score_equivalent():
    """PLAN's is 0.5: in accuracy that would be everything."""
    values = SCORES | {"a": [0.30, 0.345, 0.315, 0.36], "b": [0.31, 0.335, 0.32, 0.36]}
    assert set(secondary(scored(values), PLAN)["verdict"]) == {"", "as expected", "undecided"}


def test_few_items_are_no_fault_and_no_certainty():
    """Scores take few values: equal differences would be an interval of no width."""
    values = SCORES | {"control": [0.25] * 4, "twin": [0.25] * 4, "a": [0.5] * 4, "b": [0.25, 0.25, 0.5, 0.25]}
    rows = secondary(scored(values), PLAN).set_index("arm")
    assert rows.loc["a", "verdict"] == "undecided"
    assert rows.loc["a", "note"].startswith("the same difference in every block: too few items")
    assert rows.loc["twin", ["verdict", "delta"]].tolist() == ["as expected", 0.0]
    assert rows.loc["a", "delta"] == 0.25
    assert (rows.loc["b", "verdict"], rows.loc["control", "verdict"]) == ("undecided", "")


@given(st.integers(0, 1000), st.integers(2, 40), st.booleans())
@settings(max_examples=20, deadline=None)
def test_the_paired_error_is_that_of_the_mean_difference_over_windows(seed, windows, independent):
    """Against the formula, block by block; what makes a window hard for both cancels, and so does a constant."""
    draw = np.random.default_rng(seed)
    plan = replace(PLAN, independent=independent)
    hard = draw.normal(4, 1, windows)
    losses = {key: hard + draw.normal(0, 0.1, windows) for one in PLAN.arms for key in one.run_keys}
    arms = {one.name: one for one in plan.arms}
    apart = np.mean([losses[f"a-{i}"] - losses[f"control-{i}"] for i in range(4)], axis=0)
    wanted = np.sqrt(np.sum((apart - apart.mean()) ** 2) / (windows - 1) / windows)
    assert paired_error(arms["a"], plan, losses) == pytest.approx(wanted)
    moved = {key: values + 3.0 * key.startswith("a-") for key, values in losses.items()}
    assert paired_error(arms["a"], plan, moved) == pytest.approx(wanted)
    assert np.isnan(paired_error(arms["control"], plan, losses))
    assert np.isnan(paired_error(arms["a"], plan, losses | {"a-0": losses["a-0"][1:]}))  # not the same windows
    del losses["control-3"]
    if not independent:  # the block is left out on both sides
        three = np.mean([losses[f"a-{i}"] - losses[f"control-{i}"] for i in range(3)], axis=0)
        assert paired_error(arms["a"], plan, losses) == pytest.approx(three.std(ddof=1) / windows**0.5)
        assert paired_error(arms["a"], plan, losses, upto=3) == pytest.approx(three.std(ddof=1) / windows**0.5)


def test_the_table_has_the_evaluation_s_error_where_windows_were_kept():
    runs = measured(np.random.default_rng(0), loss={"a": 1.0})
    assert secondary(runs, PLAN)["eval_se"].isna().all()
    assert "evaluation SE" not in probe_text(secondary(runs, PLAN), PLAN)
    kept = {key: {"probe/own/loss": np.arange(4.0) * (key != "b-0")} for key in runs["run_key"]}
    table = secondary(runs, PLAN, items=kept).set_index("arm")
    assert table["eval_se"].isna().to_dict() == {"control": True, "twin": False, "a": False, "b": False}
    assert (table.loc["twin", "eval_se"], table.loc["b", "eval_se"]) == (0.0, pytest.approx(0.1614, abs=1e-4))
    lines = probe_text(table.reset_index(), PLAN).splitlines()
    assert "evaluation SE" in lines[-5]
    assert "0.1614" in lines[-1]
