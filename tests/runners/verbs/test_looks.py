"""Blocks carried out from look to look: what is decided stops, the rest runs on, and a stop in between changes nothing.

Runs are finished with made-up losses; folders, store and verdicts are real.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from runners.execution.mirrors import Mirrors
from runners.execution.todo import statuses, unfinished
from runners.planning.plan import load_plan
from runners.runs import ledger
from runners.runs.signals import Stopped
from runners.verbs.run import run_to_looks
from runners.verdicts import judge
from tests.runners.conftest import MICRO_EXPERIMENT
from tests.runners.made_up import finish

ROOT, FILE = Path("runs"), Path("experiments/micro_theta.yaml")
EFFECTS = {"theta_100": 0.5, "theta_200": 0.0}
SCATTER = {"theta_100": 0.001, "theta_200": 0.2, "twin": 0.05}
MORE = "  theta_200: {model: {rotary: {theta: 200.0}}}\n"


def loss(run) -> float:
    """Decided early for theta_100, and never for theta_200."""
    generator = np.random.default_rng([run.seed, *map(ord, run.arm)])
    shared = np.random.default_rng(run.seed).normal()
    return 4.0 + 0.1 * shared + EFFECTS.get(run.arm, 0.0) + SCATTER.get(run.arm, 0.0) * generator.normal()


class Training:
    """Carries out what is left of a plan, and is stopped before its n-th run where asked to be."""

    def __init__(self, stop_before: int = -1) -> None:
        self.stop_before, self.made = stop_before, []

    def __call__(self, plan):
        for run in unfinished(plan, statuses(plan, ROOT)):
            if len(self.made) == self.stop_before:
                raise Stopped(15)
            finish([run], loss)
            self.made.append((run.arm, run.seed))
        return []


@pytest.fixture
def plan(project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")
    FILE.write_text(MICRO_EXPERIMENT + MORE + "looks: [2, 3, 4]\n")
    return load_plan(FILE)


def test_what_is_decided_stops_and_a_stop_in_between_changes_nothing(plan, capsys):
    training, mirrors = Training(), Mirrors(ROOT)
    assert run_to_looks(plan, training, mirrors) == []
    made = set(training.made)
    assert {seed for arm, seed in made if arm == "theta_100"} == {0, 1}
    assert {seed for arm, seed in made if arm == "theta_200"} == {0, 1, 2, 3} == {s for a, s in made if a == "control"}
    said = capsys.readouterr().out
    assert said.count("theta_100: worse after 2 blocks, +0.4997 [") == 1
    assert said.count("; it stops") == said.count(": worse") + said.count(": as expected")
    assert "theta_200: undecided after 2 blocks" in said
    assert "it runs on to 4 blocks" in said
    assert [one.name for one in ledger._read(ROOT)] == ["twin", "theta_100", "theta_200"]
    table = judge(plan, mirrors).set_index("arm")
    assert table["verdict"].to_dict() | {"twin": ""} == {
        "control": "", "twin": "", "theta_100": "worse", "theta_200": "undecided"
    }  # fmt: skip
    assert table["look"]["theta_100"] == 2

    # Everything is there: nothing is made, and the same is decided.
    again = Training()
    assert run_to_looks(plan, again, mirrors) == []
    assert again.made == []
    assert "theta_100: worse after 2 blocks" in capsys.readouterr().out

    # Stopped before any of its runs, and carried out again, it comes to the same.
    for stop_before in (1, 7, 8, 10):
        shutil.rmtree(ROOT)
        first, second = Training(stop_before), Training()
        with pytest.raises(Stopped):
            run_to_looks(plan, first, mirrors)
        run_to_looks(plan, second, mirrors)
        assert len(first.made) == stop_before
        assert set(first.made) | set(second.made) == made


def test_when_every_variant_is_decided_nothing_more_runs(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    FILE.write_text(MICRO_EXPERIMENT + "looks: [2, 4]\n")
    training = Training()
    run_to_looks(load_plan(FILE), training, Mirrors(ROOT, f"sqlite:///{project}/mlflow.db"))
    assert {seed for _, seed in training.made} == {0, 1}
    assert "every variant is decided" in capsys.readouterr().out


def test_without_mlflow_every_block_runs(plan, monkeypatch, capsys):
    mirrors = Mirrors(ROOT)
    monkeypatch.setattr(mirrors, "_found", False)
    training = Training()
    run_to_looks(plan, training, mirrors)
    assert len(training.made) == 16
    assert "looks are left out: verdicts are read from MLflow" in capsys.readouterr().out


def test_a_run_that_failed_at_a_look_counts_once_and_is_tried_again(plan):
    """At the next look too; and what is made up for by then did not fail."""

    class Failing(Training):
        def __call__(self, plan):
            super().__call__(plan)
            asked.append({(run.arm, run.seed) for run in plan.runs()})
            return [run for run in plan.runs() if (run.arm, run.seed) in (("twin", 0), ("theta_200", len(asked)))]

    asked: list[set[tuple[str, int]]] = []
    failed = run_to_looks(plan, Failing(), Mirrors(ROOT))
    names = [(run.arm, run.seed) for run in failed]
    assert len(set(names)) == len(names)
    assert ("theta_200", 3) in names
    assert ("theta_200", 1) not in names
