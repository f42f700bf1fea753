"""What a command does once: a mirror for each stage, and one comparison of each, whoever asks for it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.report import export, sections
from analysis.report.export import NotebookError
from runners.cli import main
from runners.execution import mirrors as mirroring
from runners.execution import sweep
from runners.execution.mirrors import Mirrors
from runners.execution.slots import Slots
from runners.planning.plan import load_plan
from runners.runs.folder import RunFolder
from runners.runs.signals import StopRequest
from runners.verbs.common import OnExperiment
from runners.verbs.judge import _same_runs
from runners.verdicts import read_requirements, report
from tests.runners.conftest import clean_environment
from tests.runners.helpers import WATCH
from tests.runners.made_up import finish


@pytest.fixture
def done(project, monkeypatch):
    """A plan of two stages whose runs are all finished, with made-up losses."""
    monkeypatch.chdir(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")
    file = project / "experiments/micro_theta.yaml"
    file.write_text(file.read_text() + "confirm: {variants: [theta_100], blocks: 2}\n")
    plan = load_plan(file)
    places = {run: place for place, run in enumerate(run for stage in plan.stages for run in stage.runs())}
    finish(places, lambda run: 4.0 + 0.01 * (7 * places[run] % 5) + (0.5 if run.arm == "theta_100" else 0.0))
    return plan


def counted(monkeypatch, place, name):
    """Calls of a function or class, by its first argument's type."""
    calls, real = [], getattr(place, name)

    def counting(*arguments, **options):
        calls.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(place, name, counting)
    return calls


def test_a_command_mirrors_and_judges_each_stage_once(done, monkeypatch, capsys):
    from rich.console import Console

    made = counted(monkeypatch, mirroring, "Mirror")
    judged = counted(monkeypatch, sections, "compare")
    mirrors = Mirrors(Path("runs"))
    for stage in done.stages:
        sweep.run_plan(
            stage,
            root=Path("runs"),
            cache=Path("cache"),
            slots=Slots(("cpu",), 1),
            console=Console(),
            stop=StopRequest(),
            mirrors=mirrors,
        )
    reported = report(done, mirrors, Path("reports"), "make ablation")
    assert reported.text
    assert reported.missed(read_requirements(["better:theta_100"], done)) == [
        "required: theta_100 is worse, not better"
    ]
    assert len(made) == len(judged) == len(done.stages) == 2
    records = json.loads(reported.files["table"].read_text())
    assert [record["stage"] for record in records].count("confirm") == 2


def test_each_status_is_read_once_where_a_sweep_decides_what_to_do(done, monkeypatch):
    from runners.execution.todo import made_apart, made_otherwise, statuses, unfinished

    read = []
    real = RunFolder.status.fget
    monkeypatch.setattr(RunFolder, "status", property(lambda self: read.append(self.key) or real(self)))
    known, slots = statuses(done, Path("runs")), Slots(("cpu",), 1)
    assert unfinished(done, known) == []
    made_otherwise(done, Path("runs"), known, slots)
    made_apart(done, known, slots)
    assert sorted(read) == sorted(run.key for run in done.runs())


def test_a_command_with_nothing_left_to_run_loads_no_model(done, project):
    """A second `make ablation` only reports."""
    watched = subprocess.run(
        [sys.executable, "-c", WATCH, "modules", "run", "experiments/micro_theta.yaml", "--device", "cpu"],
        cwd=project,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert watched.returncode == 0, watched.stderr
    assert "theta_100" in watched.stdout
    modules = set((project / "modules").read_text().split())
    assert {"mlflow", "matplotlib"} <= modules
    assert not {"transformers", "llama_variants.model", "scipy.stats"} & modules


def test_printed_commands_can_be_typed():
    name = "experiments/my question's.yaml"
    command = _same_runs(OnExperiment(experiment=Path(name), base="my base", seeds=None))
    assert shlex.split(command) == ["make", "ablation", f"EXP={name}", "BASE=my base"]
    no_text = os.fsdecode(b"caf\xe9.yaml")
    assert _same_runs(OnExperiment(experiment=Path(no_text), base=None, seeds=None)).isascii()


def test_a_notebook_that_fails_costs_the_exit_code_and_not_the_verdict(done, monkeypatch, capsys):
    def broken(*arguments, **options):
        raise NotebookError("losses.ipynb, cell 2: ZeroDivisionError: division by zero")

    monkeypatch.setattr(export, "export", broken)
    assert main(["report", "experiments/micro_theta.yaml", "--notebooks"]) == 1
    said = capsys.readouterr()
    assert "theta_100" in said.out
    assert said.err.endswith("error: losses.ipynb, cell 2: ZeroDivisionError: division by zero\n")


def test_a_plan_whose_runs_were_made_otherwise_can_be_read_as_json(done, capsys):
    assert main(["plan", "experiments/micro_theta.yaml", "--json", "--device", "cpu"]) == 0
    made_otherwise = json.loads(capsys.readouterr().out)["made_otherwise"]
    assert sum(made_otherwise.values()) == 9
    assert all("device" in name for name in made_otherwise)
