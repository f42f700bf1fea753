"""A machine that lacks packages: what trains does without those that training does not need, and says what it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.runners.conftest import clean_environment

EXPERIMENT = "experiments/micro_theta.yaml"
NOT_ON_A_CARD_MACHINE = (
    *("mlflow", "mlflow_skinny", "datasets", "gguf", "beartype", "accelerate", "peft", "lm_eval"),
    *("pandas", "scipy", "matplotlib"),
)

# What a Python without these packages would see: neither a module nor a version.
WITHOUT = """
import os, sys
ABSENT = set(os.environ["ABSENT"].split(","))

class Filtered:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else self.finder.find_spec(name, path, target)

    def find_distributions(self, context):
        for found in getattr(self.finder, "find_distributions", lambda context: ())(context):
            if (found.metadata["Name"] or "").replace("-", "_").lower() not in ABSENT:
                yield found

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Filtered(finder) for finder in sys.meta_path]
"""


@pytest.fixture
def without(project: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`python -m runners` in the project folder, where these packages are not installed; nor in its children."""
    (project / "site").mkdir()
    (project / "site/sitecustomize.py").write_text(WITHOUT)

    def run(absent: tuple[str, ...], *arguments: object) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(project / "site"), str(ROOT)])
        env = clean_environment() | {"PYTHONPATH": path, "ABSENT": ",".join(absent)}
        command = [sys.executable, "-m", "runners", *map(str, arguments)]
        return subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=300)

    return run


@pytest.mark.slow
def test_a_run_is_trained_evaluated_and_kept_without_what_training_does_not_need(project, without):
    done = without(NOT_ON_A_CARD_MACHINE, "train", EXPERIMENT, "control", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("note: mlflow is not installed: runs are not mirrored") == 1
    assert "Traceback" not in done.stderr
    (file,) = project.glob("runs/*/status.json")
    status = json.loads(file.read_text())
    assert status["state"] == "FINISHED"
    assert status["environment"]["mlflow"] == "absent"
    assert status["environment"]["torch"] != "absent"
    assert (file.parent / "final/model.safetensors").exists()
    log = without(NOT_ON_A_CARD_MACHINE, "log", EXPERIMENT, "control", "--device", "cpu")
    assert log.returncode == 0, log.stderr
    assert "# final: validation loss" in log.stdout
    assert not (project / "mlflow.db").exists()


@pytest.mark.slow
def test_an_experiment_runs_without_mlflow_and_is_judged_where_it_is(project, without, cli):
    given = (EXPERIMENT, "--seeds", 1)
    done = without(NOT_ON_A_CARD_MACHINE, "run", *given, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("note: mlflow is not installed") == 1
    assert "not judged" in done.stdout
    judged = without(("mlflow", "mlflow_skinny"), "report", *given)
    assert judged.returncode == 2
    assert "error: the package mlflow is not installed, and `report` needs it" in judged.stderr
    judged = cli("report", *given)
    assert judged.returncode == 0, judged.stderr
    assert "theta_100" in judged.stdout


def test_a_verdict_that_cannot_be_had_is_not_required(project, without):
    done = without(NOT_ON_A_CARD_MACHINE, "run", EXPERIMENT, "--require", "better:theta_100", "--device", "cpu")
    assert done.returncode == 2
    assert "--require: received better:theta_100; allowed: nothing where mlflow is not installed" in done.stderr
    assert not (project / "runs").exists()


def test_tasks_without_lm_eval_are_refused_with_how_to_get_it(project, without):
    done = without(("lm_eval",), "evaluate", EXPERIMENT, "--tasks", "arc_easy")
    assert done.returncode == 2, done.stderr
    assert "--tasks: received tasks, without the package lm_eval; allowed: them, after: python -m pip" in done.stderr
    assert not (project / "runs").exists()


@pytest.mark.parametrize("package", ["pydantic", "yaml"])
def test_a_package_that_is_needed_is_named_with_how_to_get_it(project, without, package):
    done = without((package,), "plan", EXPERIMENT)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: the package {package} is not installed, and `plan` needs it")
    assert "pip install -r requirements.lock" in done.stderr
    assert without((package,), "plan", "--help").returncode == 0
