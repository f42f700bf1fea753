"""Signals: the step in hand is finished and saved, nothing is done twice or left out, a second signal stops at once."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from analysis.store.load import load_curves, load_runs
from runners.planning.plan import load_plan
from runners.runs.folder import RunFolder
from runners.runs.signals import AGAIN_S, Stopped, StopRequest
from runners.tracking import Mirror
from tests.runners.children import Plan, finish, start, wait_for
from tests.runners.helpers import exact


@pytest.fixture
def request_():
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield StopRequest
    for signum, handler in before.items():
        signal.signal(signum, handler)


def test_raises_at_once_unless_deferring(request_):
    stop = request_()
    stop.install(signal.SIGTERM)
    with pytest.raises(Stopped, match="SIGTERM") as stopped:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert stopped.value.signum == signal.SIGTERM


def test_notes_the_first_and_raises_on_the_second(request_, monkeypatch, capfd):
    stop = request_(says="saving")
    stop.install(signal.SIGINT, signal.SIGTERM)
    stop.deferring = True
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)  # the same keystroke, passed on by a launcher
    assert stop.signum == signal.SIGINT
    assert capfd.readouterr().err == "saving\n"
    later = time.monotonic() + AGAIN_S + 0.1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    with pytest.raises(Stopped):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_patient_one_leaves_it_to_its_parent(request_, monkeypatch):
    stop = request_(patient=True)
    stop.install(signal.SIGTERM)
    stop.deferring = True
    os.kill(os.getpid(), signal.SIGTERM)
    later = time.monotonic() + 100
    monkeypatch.setattr(time, "monotonic", lambda: later)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.signum == signal.SIGTERM


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_stopped_within_a_step_and_gone_on_with(project, monkeypatch, signum, code):
    """In the tracking store too: one run, KILLED and then FINISHED, each step once."""
    monkeypatch.chdir(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")
    plan = load_plan(Path("experiments/micro_theta.yaml"))
    planned = plan.runs()[0]
    run = RunFolder(Path("runs"), planned.key)
    run.create(planned.recipe, planned.seed)
    assert finish(Plan(project, run.key)) == 0
    straight = exact(run)
    shutil.rmtree(run.path)
    run.create(planned.recipe, planned.seed)

    child = start(Plan(project, run.key, save_every_s=1000, step_takes_s=0.05))
    wait_for(lambda: len(run.rows()[0]) >= 7, child)
    sent = len(run.rows()[0])
    os.kill(child.pid, signum)
    child.join()
    assert child.exitcode == code
    assert (run.status.state, run.status.reason) == ("KILLED", f"stopped by {signal.Signals(signum).name}")
    saved = [line for line in run.events()[0] if line.startswith("checkpoint of step")]
    rows = len(run.rows()[0])
    assert sent <= rows <= sent + 2  # the one in hand, and one that was begun before the signal arrived
    assert len(saved) == 1
    assert saved[0].startswith(f"checkpoint of step {rows}:")
    attempt = run.status.attempt
    mirror = Mirror(plan, Path("runs"))
    mirror.sync(planned)
    (killed,) = mirror.client.search_runs([mirror.experiment_id])
    assert killed.info.status == "KILLED"

    assert finish(Plan(project, run.key)) == 0
    assert exact(run) == straight
    assert run.status.attempt == attempt
    Mirror(plan, Path("runs")).sync(planned)
    (finished,) = mirror.client.search_runs([mirror.experiment_id])
    assert (finished.info.run_id, finished.info.status) == (killed.info.run_id, "FINISHED")
    assert "ablation.reason" not in finished.data.tags
    for key in ("train/loss", "throughput/tokens_per_s"):
        assert [p.step for p in mirror.client.get_metric_history(finished.info.run_id, key)] == list(range(1, 31))
    curves = load_curves(load_runs(plan.design()))
    assert curves[curves["metric"] == "train/loss"]["value"].tolist() == [
        metrics["train/loss"] for _, metrics in straight[:-1]
    ]


def test_after_kill_9_the_log_is_cut_back_and_tracked_as_a_new_attempt(project, monkeypatch):
    """What was logged after the last checkpoint is done again; no step stands twice in a tracked run."""
    monkeypatch.chdir(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")
    plan = load_plan(Path("experiments/micro_theta.yaml"))
    planned = plan.runs()[0]
    run = RunFolder(Path("runs"), planned.key)
    run.create(planned.recipe, planned.seed)
    child = start(Plan(project, run.key, save_every_s=0.3, step_takes_s=0.05))
    wait_for(lambda: [line for line in run.events()[0] if "checkpoint of step" in line], child)
    rows = len(run.rows()[0])
    wait_for(lambda: len(run.rows()[0]) >= rows + 3, child)
    child.kill()
    child.join()
    mirror = Mirror(plan, Path("runs"))
    mirror.sync(planned)
    assert finish(Plan(project, run.key)) == 0
    mirror.sync(planned)
    runs = mirror.client.search_runs([mirror.experiment_id])
    assert sorted(stored.info.status for stored in runs) == ["FINISHED", "KILLED"]
    (row,) = load_runs(plan.design()).to_dict("records")
    assert row["status"] == "FINISHED"
    history = mirror.client.get_metric_history(row["mlflow_run_id"], "train/loss")
    assert [point.step for point in history] == list(range(1, 31))


def test_a_second_signal_stops_at_once(project, monkeypatch):
    """In the middle of a step that takes for ever."""
    monkeypatch.chdir(project)
    planned = load_plan(Path("experiments/micro_theta.yaml")).runs()[0]
    run = RunFolder(Path("runs"), planned.key)
    run.create(planned.recipe, planned.seed)
    child = start(Plan(project, run.key, save_every_s=1000, step_takes_s=100))
    wait_for(lambda: run.status.state == "RUNNING", child)
    time.sleep(1)
    os.kill(child.pid, signal.SIGINT)
    time.sleep(AGAIN_S + 0.2)
    assert child.is_alive()
    os.kill(child.pid, signal.SIGINT)
    child.join(timeout=10)
    assert child.exitcode == 130
    assert run.status.state == "KILLED"
    assert not run.checkpoints.exists()
