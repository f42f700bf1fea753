"""Which finished runs are carried out again on `--fresh`."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.stats.eligibility import stands_alone
from analysis.store.stratum import Stratum
from runners.execution.slots import Slots
from runners.execution.todo import made_apart, statuses
from runners.planning.plan import load_plan
from runners.runs.folder import RunFolder

HOUR = 3600.0
CARD, CPU = Slots(("cuda:0",), 1), Slots(("cpu",), 1)


@pytest.fixture
def finished(project, monkeypatch):
    """Marks runs of the plan as finished: the n-th from ``hours[n]`` on, for half an hour."""
    monkeypatch.chdir(project)
    plan = load_plan(Path("experiments/micro_theta.yaml"))

    def finish(hours):
        shutil.rmtree("runs", ignore_errors=True)
        for run, hour in zip(plan.runs(), hours, strict=False):
            folder = RunFolder(Path("runs"), run.key)
            folder.create(run.recipe, run.seed)
            folder.begin(Stratum(device="here"), {}, "data")
            folder.log(run.recipe.train.num_steps, {"final/val_loss": 3.0})
            folder.end("FINISHED")
            status = json.loads((folder.path / "status.json").read_text())
            status |= {"started": hour * HOUR, "ended": (hour + 0.5) * HOUR}
            (folder.path / "status.json").write_text(json.dumps(status))
        return plan

    return finish


@pytest.mark.parametrize(
    ("hours", "now", "apart"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7, 8], 100, []),  # all are done, side by side, however long ago
        ([0, 1, 2, 3, 4, 5, 6], 100, [6]),  # the control's last, whose block is still to be carried out
        ([0, 1, 2], 3, []),
        ([0, 1, 2], 30, []),  # one block whole, two to be carried out: all have company
        ([0, 30, 31, 32, 33, 34, 35], 36, [0]),  # the control's first, alone
        ([0, 30, 0, 30, 0, 30], 36, [0, 2, 4]),  # each has company, but not in its own block
    ],
)
def test_runs_apart_in_time_are_made_again(finished, hours, now, apart):
    plan = finished(hours)
    runs = plan.runs()
    made = made_apart(plan, statuses(plan, Path("runs")), CARD, now * HOUR)
    assert sorted(runs.index(run) for run in made) == apart
    assert made_apart(plan, statuses(plan, Path("runs")), CPU, now * HOUR) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # each example marks its own runs as done
@given(hours=st.lists(st.integers(0, 60), max_size=9))
def test_what_is_made_again_leaves_nothing_alone(finished, hours):
    """By the verdicts' own rule; and nothing is made again where that rule bars nothing."""
    now = 61
    plan = finished(hours)
    runs = plan.runs()
    made = made_apart(plan, statuses(plan, Path("runs")), CARD, now * HOUR)

    def barred(again):
        whens = [now if run in again or place >= len(hours) else hours[place] for place, run in enumerate(runs)]
        stamps = {
            run: (pd.Timestamp(when, unit="h"), pd.Timestamp(when + 0.5, unit="h"))
            for run, when in zip(runs, whens, strict=True)
        }
        control, *arms = ([[stamps[run]] for run in arm.runs] for arm in plan.arms)
        return any(stands_alone(*pair) != [False] for arm in arms for pair in zip(arm, control, strict=True))

    assert not barred(made)
    assert bool(made) == barred([])


def test_what_repeats_its_bits_needs_no_company(finished):
    plan = finished([0, 30, 31, 32, 33, 34, 35])

    def deterministic(arm):
        train = arm.recipe.train.model_copy(update={"deterministic": True})
        return replace(arm, recipe=replace(arm.recipe, train=train))

    arms = tuple(deterministic(arm) for arm in plan.arms)
    known = statuses(plan, Path("runs"))
    assert made_apart(replace(plan, arms=arms), known, CARD, 36 * HOUR) == []
