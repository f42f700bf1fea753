"""Which finished runs are carried out again on `--fresh`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from runners.experiment import load_plan
from runners.store import RunFolder
from runners.sweep import Slots, made_apart

HOUR = 3600.0
CARD, CPU = Slots(("cuda:0",), 1), Slots(("cpu",), 1)


@pytest.fixture
def finished(project, monkeypatch):
    """Marks runs of the plan as finished: the n-th from ``hours[n]`` on, for half an hour."""
    monkeypatch.chdir(project)
    plan = load_plan(Path("experiments/micro_theta.yaml"))

    def finish(hours):
        for run, hour in zip(plan.runs(), hours, strict=False):
            folder = RunFolder(Path("runs"), run.key)
            folder.create(run.recipe, run.seed)
            folder.begin("here", {}, "data")
            folder.end("FINISHED")
            status = json.loads((folder.path / "status.json").read_text())
            status |= {"started": hour * HOUR, "ended": (hour + 0.5) * HOUR}
            (folder.path / "status.json").write_text(json.dumps(status))
        return plan

    return finish


@pytest.mark.parametrize(
    ("hours", "now", "apart"),
    [
        ([0, 1, 2, 3, 4, 5, 6], 100, []),  # all are done, side by side, however long ago
        ([0, 1, 2], 3, []),
        ([0, 1, 2], 30, [0, 1, 2]),  # what is still to be made would stand alone
        ([0, 10, 20], 30, []),  # one after another without a gap
        ([0, 30, 31, 32, 33, 34, 35], 36, [0]),
    ],
)
def test_runs_apart_in_time_are_made_again(finished, hours, now, apart):
    plan = finished(hours)
    runs = plan.runs()
    made = made_apart(plan, Path("runs"), CARD, now * HOUR)
    assert sorted(runs.index(run) for run in made) == apart
    assert made_apart(plan, Path("runs"), CPU, now * HOUR) == []


def test_what_repeats_its_bits_needs_no_company(finished):
    plan = finished([0, 1, 2])

    def deterministic(run):
        train = run.recipe.train.model_copy(update={"deterministic": True})
        return replace(run, recipe=replace(run.recipe, train=train))

    arms = tuple(replace(arm, runs=tuple(map(deterministic, arm.runs))) for arm in plan.arms)
    assert made_apart(replace(plan, arms=arms), Path("runs"), CARD, 30 * HOUR) == []
