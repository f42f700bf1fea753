"""Solved tasks are counted, and compared by exact tests."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.stats.solved import ACCURACY, CURVE, has_task, solved
from tests.analysis.tables import arm, change, design, frame

PLAN = design(arm("nope", 6, "check", expect="worse"), arm("a", 6), arm("b", 6), control=6)
NONE = pd.DataFrame(columns=["run_key", "arm", "seed", "metric", "step", "tokens", "value"])


def outcomes(**accuracies: list[float]) -> pd.DataFrame:
    runs = frame({name: [4.0] * len(values) for name, values in accuracies.items()}, PLAN)
    order = {name: iter(values) for name, values in accuracies.items()}
    return runs.assign(**{ACCURACY: [next(order[name]) for name in runs["arm"]]})


counts = st.integers(0, 6)


@given(counts, counts, counts, counts)
@settings(max_examples=40, deadline=None)
def test_counts_are_compared_as_scipy_does(control, nope, a, b):
    held = {"control": control, "nope": nope, "a": a, "b": b}
    runs = outcomes(**{name: [0.97] * k + [0.1] * (6 - k) for name, k in held.items()})
    table = solved(runs, NONE, PLAN).set_index("arm")
    assert table["solved"].to_dict() == held
    p = {name: stats.fisher_exact([[k, 6 - k], [control, 6 - control]]).pvalue for name, k in held.items()}
    assert math.isnan(table.loc["control", "p"])
    assert table.loc["nope", "p_adj"] == pytest.approx(p["nope"])  # a check is compared alone
    first, second = sorted(("a", "b"), key=p.__getitem__)
    assert table.loc[first, "p_adj"] == pytest.approx(min(1, 2 * p[first]))
    assert table.loc[second, "p_adj"] == pytest.approx(max(min(1, 2 * p[first]), p[second]))
    for name in ("a", "b"):
        called = table.loc[name, "word"]
        assert (called == "undecided") == (table.loc[name, "p_adj"] >= PLAN.alpha)
        assert called != ("less often" if held[name] > control else "more often")


def test_all_against_none_is_found_with_six_blocks():
    runs = outcomes(control=[1.0] * 6, nope=[0.5] * 6, a=[0.1] * 6, b=[0.99] * 6)
    assert solved(runs, NONE, PLAN).set_index("arm")["word"].to_dict() == {
        "control": "",
        "nope": "less often",
        "a": "less often",
        "b": "undecided",
    }


def test_steps_to_solve_are_the_first_evaluation_s_and_the_median_run_s():
    runs = outcomes(control=[1.0] * 6, nope=[0.2] * 6, a=[1.0] * 4 + [0.2] * 2, b=[1.0] * 2 + [0.1] * 4)
    rows = [
        (run["run_key"], run["arm"], run["seed"], CURVE, step, step * 10.0, run[ACCURACY] if step >= 100 * k else 0.1)
        for k, run in enumerate(runs.to_dict("records"))
        for step in range(100, 3001, 100)
    ]
    table = solved(runs, pd.DataFrame(rows, columns=NONE.columns), PLAN).set_index("arm")
    assert table.loc["control", "steps"] == np.median([100, 100, 200, 300, 400, 500])
    assert math.isfinite(table.loc["a", "steps"])
    assert math.isinf(table.loc["b", "steps"])
    assert math.isinf(table.loc["nope", "steps"])


def test_without_runs_of_the_control_nothing_is_compared():
    table = solved(outcomes(nope=[0.2] * 6, a=[1.0] * 6, b=[0.1] * 6), NONE, PLAN)
    assert table["p_adj"].isna().all()
    assert table["word"].eq("").all()


def test_invalid_and_failed_runs_do_not_count():
    runs = outcomes(control=[1.0] * 6, nope=[0.2] * 6, a=[1.0] * 6, b=[1.0] * 6)
    runs = change(runs, "a-1", status="FAILED", invalid="the label shift is off")
    assert solved(runs, NONE, PLAN).set_index("arm").loc["a", "n"] == 5


def test_runs_without_a_task_have_none():
    runs = outcomes(control=[1.0] * 6, nope=[0.2] * 6, a=[1.0] * 6, b=[1.0] * 6)
    assert has_task(runs)
    assert not has_task(runs.drop(columns=ACCURACY))
    assert not has_task(runs.assign(**{ACCURACY: np.nan}))
