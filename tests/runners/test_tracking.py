"""The mirror against a real store that refuses, that others write to, and that a user has tidied up."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from analysis.load import load_design, load_runs
from runners.experiment import Plan, PlannedRun, load_plan
from runners.store import RunFolder
from runners.tracking import Mirror

ROOT = Path("runs")
FINAL = {"val/loss": 3.0, "final/val_loss": 3.0}


@pytest.fixture
def plan(project, monkeypatch) -> Plan:
    monkeypatch.chdir(project)
    # Absolute: within a process MLflow keeps the database that a relative name meant first.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")
    return load_plan(Path("experiments/micro_theta.yaml"))


def begun(run: PlannedRun) -> RunFolder:
    folder = RunFolder(ROOT, run.key)
    folder.create(run.recipe, run.seed)
    folder.begin("here", {}, "data")
    folder.log(1, {"train/loss": 5.0})
    return folder


def statuses(mirror: Mirror) -> list[str]:
    return sorted(run.info.status for run in mirror.client.search_runs([mirror.experiment_id]))


def test_what_a_store_refused_is_sent_again(plan, monkeypatch):
    run = plan.runs()[0]
    mirror, folder = Mirror(plan, ROOT), begun(run)
    send, refusals = mirror.client.log_batch, [True, False, True]

    def refusing(*arguments, metrics=(), **options):
        if metrics and refusals and refusals.pop(0):
            raise MlflowException("database is locked")
        return send(*arguments, metrics=metrics, **options)

    monkeypatch.setattr(mirror.client, "log_batch", refusing)
    with pytest.raises(MlflowException):
        mirror.sync(run)
    mirror.sync(run)
    folder.log(30, FINAL)
    folder.end("FINISHED")
    with pytest.raises(MlflowException):
        mirror.sync(run)
    mirror.sync(run)
    assert not refusals
    (stored,) = mirror.client.search_runs([mirror.experiment_id])
    assert stored.info.status == "FINISHED"
    assert stored.data.metrics == {"train/loss": 5.0, **FINAL}


def test_two_mirrors_make_one_run(plan):
    run = plan.runs()[0]
    mirrors = [Mirror(plan, ROOT), Mirror(plan, ROOT)]
    folder = begun(run)
    for mirror in mirrors:
        mirror.sync(run)
    folder.log(30, FINAL)
    folder.end("FINISHED")
    for mirror in mirrors:
        mirror.sync(run)
    assert statuses(mirrors[0]) == ["FINISHED"]


def test_an_attempt_that_was_killed_outright_is_closed_by_the_next(plan):
    run = plan.runs()[0]
    begun(run)
    Mirror(plan, ROOT).sync(run)
    folder = begun(run)  # as after kill -9: nobody ended the first attempt
    folder.log(30, FINAL)
    folder.end("INVALID", "causality")
    mirror = Mirror(plan, ROOT)
    mirror.sync(run)
    assert statuses(mirror) == ["FAILED", "KILLED"]
    (row,) = load_runs(plan.design()).to_dict("records")
    assert (row["status"], row["invalid"]) == ("FAILED", "causality")


def test_an_experiment_deleted_in_the_ui_comes_back(plan):
    run = plan.runs()[0]
    begun(run).end("FAILED", "why")
    first = Mirror(plan, ROOT)
    first.sync(run)
    first.client.delete_experiment(first.experiment_id)
    again = Mirror(plan, ROOT)
    again.sync(run)
    assert again.experiment_id == first.experiment_id
    assert statuses(again) == ["FAILED"]


def test_a_run_that_failed_before_it_began_has_a_time_and_an_attempt(plan):
    run = plan.runs()[0]
    folder = RunFolder(ROOT, run.key)
    folder.create(run.recipe, run.seed)
    folder.end("FAILED", "no disk")
    assert folder.status.attempt
    assert 0 < folder.status.started <= folder.status.ended


def test_a_report_is_one_run_with_the_files_and_no_run_of_an_arm(plan, tmp_path):
    mirror = Mirror(plan, ROOT)
    file = tmp_path / "report.html"
    for text in ("first", "second"):
        file.write_text(text)
        mirror.publish(f"| {text} |", [file])
    (run,) = mirror.client.search_runs([mirror.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.note.content"] == "| second |"
    assert mirror.client.get_experiment(mirror.experiment_id).tags["mlflow.note.content"] == "| second |"
    copy = mirror.client.download_artifacts(run.info.run_id, "report.html", str(tmp_path / "copy"))
    assert Path(copy).read_text() == "second"
    assert load_runs(plan.design()).empty
    assert not Path("mlruns").exists()


def test_the_first_look_at_verdicts_is_kept(plan):
    mirror = Mirror(plan, ROOT)
    control, again, theta = plan.design().arms
    assert load_design(plan.design().experiment).looked == {}
    mirror.look([control, theta])
    edited = Path("experiments/micro_theta.yaml")
    edited.write_text(edited.read_text() + "seeds: {variant: 5}\n")
    more = load_plan(edited)
    Mirror(more, ROOT).look(more.design().arms)
    assert load_design(plan.design().experiment).looked == {
        control.run_keys[0]: 3,
        theta.run_keys[0]: 2,
        again.run_keys[0]: 2,
    }
