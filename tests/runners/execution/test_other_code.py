"""A store with finished runs, and then an edit of the code: which runs still count, and what is said of the others."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.runners.conftest import clean_environment

RELU = """
name: micro-relu
version: 1
question: Does a gate matter?
base: micro
variants: {relu: {model: {mlp: {type: relu, intermediate_size: 64}}}}
"""


@pytest.fixture
def command(project, tmp_path_factory):
    """``python -m runners`` in the project's folder, by a copy of this program whose files may be edited."""
    copy = tmp_path_factory.mktemp("program")
    for package in ("llama_variants", "runners", "analysis"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    environment = clean_environment() | {"PYTHONPATH": str(copy)}

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "runners", *map(str, arguments)]
        return subprocess.run(words, cwd=project, env=environment, capture_output=True, text=True, timeout=300)

    run.program = copy
    return run


def edit(file: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, file.read_text(), count=1)
    assert count == 1
    file.write_text(text)


@pytest.mark.slow
def test_a_new_block_costs_no_control_and_a_changed_constant_is_named(command, project):
    done = command("run", "experiments/micro_theta.yaml", "--jobs", 1)
    assert done.returncode == 0, done.stderr

    # CONTRIBUTING's example block, pasted where it says: every run of the control still counts.
    (project / "experiments/relu.yaml").write_text(RELU)
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    block = textwrap.dedent(contributing.split("   ```python\n")[1].split("   ```\n")[0])
    blocks = command.program / "llama_variants/blocks/mlp.py"
    blocks.write_text(blocks.read_text() + "\n\n" + block)
    plan = json.loads(command("plan", "experiments/relu.yaml", "--json").stdout)
    counts = {row["arm"]: (row["done"], row["runs"]) for row in plan["arms"]}
    assert counts == {"control": (3, 3), "twin": (3, 3), "relu": (0, 3)}
    assert (plan["runs_left"], plan["made_otherwise"]) == (3, {})
    done = command("run", "experiments/relu.yaml", "--jobs", 1)
    assert done.returncode == 0, done.stderr
    (row,) = re.findall(r"^relu +3 .*$", done.stdout, flags=re.MULTILINE)
    assert "invalid" not in row

    # One constant of RMSNorm: none counts, and the file is named, by the plan and by what would train.
    edit(command.program / "llama_variants/blocks/norm.py", r"self\.eps\)\.to", "2 * self.eps).to")
    said = command("plan", "experiments/relu.yaml").stdout
    assert re.search(r"^control +3 +0 ", said, flags=re.MULTILINE), said
    named = "made with another code of norm.rms: llama_variants/blocks/norm.py (LlamaRMSNorm)"
    assert f"note: 9 finished runs do not count beside runs made now, {named}" in said
    (project / "experiments/relu.yaml").write_text(RELU.replace("64", "32"))
    done = command("run", "experiments/relu.yaml", "--jobs", 1)
    assert named in done.stdout.replace("\n", " ")
    (file,) = project.glob("reports/micro-relu-micro/table.json")
    (row,) = (row for row in json.loads(file.read_text()) if row["arm"] == "relu")
    assert row["verdict"] == "invalid"
    assert "runs in more than one stratum, by code of norm.rms" in row["why"]


# What a mistake makes of `make check`


@pytest.fixture
def checkout(tmp_path) -> Path:
    for package in ("llama_variants", "runners", "analysis"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    if (cache := ROOT / ".mypy_cache").is_dir():  # of `make check`: what did not change is not looked at again
        shutil.copytree(cache, tmp_path / ".mypy_cache")
    return tmp_path


def checked(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


LINT_IMPORTS = (str(Path(sys.executable).parent / "lint-imports"), "--no-cache")


MISTAKES = [
    ("runners/elsewhere.py", "X = 1\n", "runners.elsewhere"),
    ("runners/training/elsewhere.py", "X = 1\n", "runners.training.elsewhere"),
    ("analysis/elsewhere.py", "X = 1\n", "analysis.elsewhere"),
    ("llama_variants/elsewhere.py", "X = 1\n", "llama_variants.elsewhere"),
    ("runners/data/config.py", "\nfrom runners.runs import ledger\n", "runners.data.config -> runners.runs"),
    ("runners/verbs/plan.py", "\nimport mlflow\n", "runners.verbs.plan -> mlflow"),
]


@pytest.mark.slow
def test_a_module_placed_nowhere_an_upward_import_and_another_s_mlflow_fail(checkout):
    assert checked(checkout, *LINT_IMPORTS).returncode == 0
    for file, text, _ in MISTAKES:
        with (checkout / file).open("a") as opened:
            opened.write(text)
    done = checked(checkout, *LINT_IMPORTS)
    assert done.returncode == 1
    for _, _, says in MISTAKES:
        assert says in done.stdout


@pytest.mark.slow
def test_an_undeclared_metric_fails(checkout):
    edit(checkout / "runners/training/state.py", '"train/loss": ', '"train/los": ')
    done = checked(checkout, sys.executable, "-m", "mypy")
    assert done.returncode == 1
    assert 'has no key "train/los"' in done.stdout or 'Extra key "train/los"' in done.stdout, done.stdout
