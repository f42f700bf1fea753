"""What probes measured is compared as verdicts are, as a family of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.stats.compare import compare
from analysis.stats.secondary import probe_metrics, secondary
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
