"""The mirror against a real store that refuses, that others write to, and that a user has tidied up."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from analysis.report.explore import choose
from analysis.stats.compare import compare
from analysis.store import schema
from analysis.store.load import load_design, load_runs
from analysis.store.schema import Design
from analysis.store.stratum import Stratum
from llama_variants.errors import ConfigError
from runners.planning.arms import PlannedRun
from runners.planning.plan import Plan, load_plan
from runners.runs import ledger, proofs
from runners.runs.folder import RunFolder
from runners.tracking import Mirror
from tests.conftest import ROOT as PROJECT
from tests.runners.conftest import clean_environment

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
    folder.begin(Stratum(device="here"), {}, "data")
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
    assert (
        mirror.page == f"http://127.0.0.1:5000/#/experiments/{mirror.experiment_id}/runs?workflowType=machine_learning"
    )


def declared(plan: Plan) -> Design:
    """The design that the store has, once it was mirrored."""
    Mirror(plan, ROOT)
    return load_design(plan.design().experiment)


def edited(text: str, into: str = "") -> Plan:
    file = Path("experiments/micro_theta.yaml")
    file.write_text(file.read_text().replace(text, into) if text else file.read_text() + into)
    return load_plan(file)


def test_what_was_shown_is_known_whatever_becomes_of_the_store(plan):
    ROOT.mkdir(exist_ok=True)
    ledger.note(plan, ["theta_100"], ROOT)
    assert [arm.looked for arm in declared(plan).arms] == ["", "", ""]  # these very runs
    more = edited("", "blocks: 4\n")
    Path("mlflow.db").unlink()
    design = load_design_in_a_new_process(more)
    looked = {arm["name"]: arm["looked"] for arm in design["arms"]}
    assert looked == {"control": "", "twin": "", "theta_100": "3 blocks then, 4 now"}
    assert design["order"] == 2


def load_design_in_a_new_process(plan: Plan) -> dict[str, Any]:
    """MLflow keeps a database that is deleted under it; a new process makes a new one."""
    code = (
        "import json; from dataclasses import asdict; from pathlib import Path\n"
        "from runners.planning.plan import load_plan; from runners.tracking import Mirror\n"
        "from analysis.store.load import load_design\n"
        "plan = load_plan(Path('experiments/micro_theta.yaml')); Mirror(plan, Path('runs'))\n"
        "print(json.dumps(asdict(load_design(plan.design().experiment))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    design: dict[str, Any] = json.loads(done.stdout)
    return design


def test_a_proof_that_comes_later_makes_old_runs_count_and_the_report_says_so(plan):
    """Two runs of each arm, made with two versions of RMSNorm: invalid, until these are proven equal."""
    for place, run in enumerate(plan.runs()):
        folder = RunFolder(ROOT, run.key)
        folder.create(run.recipe, run.seed)
        folder.begin(
            Stratum(device="cpu-x", torch="2", threads=1, code={"norm.rms": "old" if place % 2 else "new"}), {}, "data"
        )
        folder.log(30, dict.fromkeys(FINAL, 3.0 + 0.01 * (7 * place % 5)) | SPEED)
        folder.end("FINISHED")

    def judged():
        mirror = Mirror(plan, ROOT)
        for run in plan.runs():
            mirror.sync(run)
        design = load_design(plan.design().experiment)
        return compare(load_runs(design), design).set_index("arm")

    assert "runs in more than one stratum, by code of norm.rms" in judged().loc["theta_100", "why"]
    proof = proofs.Proof(platform="cpu-x-torch2", losses=40, old="1", new="2", parts={"norm.rms": ["old", "new"]})
    proofs.FILE.write_text(json.dumps([proof.model_dump()]))
    row = judged().loc["theta_100"]
    assert row["verdict"] not in ("invalid", "")
    assert "other code of norm.rms, proven equal by the golden losses" in row["flags"]


SPEED = {"final/tokens_per_s": 1000.0, "final/peak_memory_bytes": 1e6, "final/compiled": 0.0, "final/val_loss_se": 0.01}


# What users do in the UI, and to the folder around the store


def finished(run: PlannedRun, loss: float = 3.0) -> RunFolder:
    folder = begun(run)
    folder.log(30, dict.fromkeys(FINAL, loss))
    folder.end("FINISHED")
    return folder


def mirrored(plan: Plan) -> Mirror:
    mirror = Mirror(plan, ROOT)
    for run in plan.runs():
        mirror.sync(run)
    return mirror


@pytest.mark.parametrize("value", [None, "edited"])
def test_tags_deleted_or_edited_in_the_ui_are_as_they_were(plan, value):
    run = plan.runs()[0]
    folder = RunFolder(ROOT, run.key)
    folder.create(run.recipe, run.seed)
    folder.begin(Stratum(device="here"), {"deterministic": "true"}, "data")
    folder.log(1, {"train/loss": 5.0})
    folder.end("FAILED", "why")
    client = mirrored(plan).client
    before = load_runs(plan.design())
    named = (schema.TAG_ARM, schema.TAG_RUN_KEY)
    for tag in (*schema.RUN_TAGS, schema.TAG_ATTEMPT, schema.TAG_REASON, schema.TAG_DETERMINISTIC):
        (mlflow_run_id,) = load_runs(plan.design())["mlflow_run_id"]
        if value is None:
            client.delete_tag(mlflow_run_id, tag)
        else:
            client.set_tag(mlflow_run_id, tag, value)
        mirrored(plan)
        again = load_runs(plan.design())
        if value and tag in named:  # the edited one is another run's now; this one has a new copy
            before["mlflow_run_id"] = again["mlflow_run_id"]
        pd.testing.assert_frame_equal(again, before, obj=tag)


def test_a_run_whose_parameters_a_store_did_not_take_gets_them_later(plan, monkeypatch):
    run = plan.runs()[0]
    finished(run)
    mirror = Mirror(plan, ROOT)

    def gone(*arguments, **options):
        raise MlflowException("connection refused")

    with monkeypatch.context() as broken:
        broken.setattr(mirror.client, "log_batch", gone)
        with pytest.raises(MlflowException):
            mirror.sync(run)
    for again in (mirror, Mirror(plan, ROOT)):
        again.sync(run)
    (stored,) = mirror.client.search_runs([mirror.experiment_id])
    assert stored.data.params[schema.PARAM_DATA] == "data"
    assert stored.data.params["num_params"] == str(run.recipe.num_params)


def test_a_reader_alone_says_which_run_lacks_what_and_what_writes_it(plan):
    begun(plan.runs()[0])
    mirror = mirrored(plan)
    (stored,) = mirror.client.search_runs([mirror.experiment_id])
    mirror.client.delete_tag(stored.info.run_id, schema.TAG_SEED)
    with pytest.raises(ValueError, match=r"\(control seed 0\) lacks the tags ablation.seed; `python -m runners report"):
        load_runs(plan.design())


def test_a_design_deleted_in_the_ui_is_written_again(plan):
    mirror = mirrored(plan)
    for tag in plan.design().to_tags():
        mirror.client._tracking_client.store.delete_experiment_tag(mirror.experiment_id, tag)
    mirrored(plan)
    assert load_design(plan.design().experiment) == plan.design()


def as_an_earlier_version(design: Design) -> str:
    """Its tag, as the version stored it whose seeds were no blocks."""
    head = json.loads(design.to_tags()[schema.TAG_DESIGN])
    for name in ("independent", "first_seed", "looks", "prior", "changed", "order"):
        del head[name]
    return json.dumps(head | {"paired": False, "sigma_prior": 0.03, "sigma_source": "", "looked": {}})


def test_a_design_of_an_earlier_version_is_named_passed_over_and_written_anew(plan):
    design = plan.design()
    mirror = mirrored(plan)
    finished(plan.runs()[0])
    mirrored(plan)
    old = as_an_earlier_version(design)
    mirror.client.set_experiment_tag(mirror.experiment_id, schema.TAG_DESIGN, old)
    with pytest.raises(LookupError, match="micro-theta-micro: its design is of another version.*runners report"):
        load_design(design.experiment)
    with pytest.raises(LookupError, match="no valid finished run of an experiment"):
        choose()
    with pytest.raises(LookupError, match="its design is of another version"):
        choose(design.experiment)
    mirrored(plan)
    assert load_design(design.experiment) == design
    assert choose()[0] == design


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_restored_experiment_brings_no_run_twice(plan, by_hand):
    """A run is deleted and mirrored anew; then the experiment is deleted and restored, and both are back."""
    run = plan.runs()[0]
    finished(run)
    mirror = mirrored(plan)
    client, experiment = mirror.client, mirror.experiment_id
    (deleted,) = client.search_runs([experiment])
    client.delete_run(deleted.info.run_id)
    (kept,) = mirrored(plan).client.search_runs([experiment])
    client.delete_experiment(experiment)
    if by_hand:
        client.restore_experiment(experiment)
        assert len(client.search_runs([experiment])) == 2
        assert load_runs(plan.design())["finished"].tolist() == [1]  # a reader alone is not misled either
    mirrored(plan)
    (left,) = client.search_runs([experiment])
    assert left.info.run_id in (kept.info.run_id, deleted.info.run_id)
    assert left.data.metrics == {"train/loss": 5.0, **FINAL}
    assert load_runs(plan.design())["finished"].tolist() == [1]


def test_another_attempt_is_no_duplicate(plan):
    run = plan.runs()[0]
    for _ in range(2):
        finished(run)
        mirror = mirrored(plan)
    assert len(mirror.client.search_runs([mirror.experiment_id])) == 2
    assert load_runs(plan.design())["finished"].tolist() == [2]


@pytest.mark.parametrize(("moved", "name"), [(True, "there"), (False, "a new place #1, 100 %")])
def test_files_of_a_project_that_was_moved_or_copied_go_where_it_is_now(plan, project, tmp_path_factory, moved, name):
    finished(plan.runs()[0])
    (project / "report.html").write_text("first")
    mirrored(plan).publish("| first |", [project / "report.html"])
    there = tmp_path_factory.mktemp("other") / name
    (shutil.move if moved else shutil.copytree)(project, there)
    code = (
        "from pathlib import Path\n"
        "from runners.planning.plan import load_plan; from runners.tracking import Mirror\n"
        "plan = load_plan(Path('experiments/micro_theta.yaml')); mirror = Mirror(plan, Path('runs'))\n"
        "Path('report.html').write_text('second'); mirror.publish('| second |', [Path('report.html')])\n"
        "run, = mirror.client.search_runs([mirror.experiment_id], \"tags.`ablation.report` = 'verdicts'\")\n"
        "Path('copy').mkdir(); print(mirror.client.download_artifacts(run.info.run_id, 'report.html', 'copy'))"
    )
    environment = {**clean_environment(), "PYTHONPATH": str(PROJECT)}
    subprocess.run([sys.executable, "-c", code], cwd=there, env=environment, check=True, capture_output=True)
    assert (there / "copy/report.html").read_text() == "second"
    assert [file.read_text() for file in there.glob("mlartifacts/*/artifacts/report.html")] == ["second"]
    left = [file.read_text() for file in project.glob("mlartifacts/*/artifacts/report.html")]
    assert left == ([] if moved else ["first"])


def test_two_experiments_that_would_have_one_name_are_not_mixed(plan, project):
    mirrored(plan)
    base = (project / "experiments/base/micro.yaml").read_text()
    (project / "experiments/base/theta-micro.yaml").write_text(base.replace("name: micro", "name: theta-micro"))
    edited("name: micro-theta", "name: micro")
    other = load_plan(Path("experiments/micro_theta.yaml"), base="theta-micro")
    assert other.design().experiment == plan.design().experiment == "micro-theta-micro"
    with pytest.raises(ConfigError, match="allowed: another name: micro-theta on micro is called that there"):
        Mirror(other, ROOT)
    assert load_design("micro-theta-micro") == plan.design()
    mirror = mirrored(plan)
    old = as_an_earlier_version(plan.design())
    mirror.client.set_experiment_tag(mirror.experiment_id, schema.TAG_DESIGN, old)
    with pytest.raises(ConfigError, match="allowed: another name: micro-theta on micro is called that there"):
        Mirror(other, ROOT)
