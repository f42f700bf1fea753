"""`make gpu-pack`, `make gpu` and `make gpu-import`, rehearsed on a processor at `BASE=tiny` with few steps.

The packed folder lies in an empty directory, on a machine that has torch, transformers and no network. It is stopped
once by its minutes, goes on, and what comes of it is entered into a clone.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from runners.gpu import manifest
from runners.gpu.pack import LIMIT
from tests.conftest import ROOT
from tests.runners.gpu.bare_machine import make_machine
from tests.runners.gpu.rehearsal import environment, git, make_clone, packed, runners

FIVE = ("rotary-theta", "head-grouping", "mlp-width", "norm-eps", "head-tying")


def make_gpu(folder: Path, python: Path, *variables: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "gpu", "BASE=tiny", "DEVICE=cpu", f"PYTHON={python}", *variables]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)


def records(results: Path) -> dict[str, dict[str, Any]]:
    """What is kept of each step."""
    return {file.stem: json.loads(file.read_text()) for file in (results / "steps").glob("*.json")}


def written(folder: Path) -> str:
    """What differs from the commit, and whether there are runs."""
    return git(folder, "status", "--porcelain") + " ".join(path.name for path in folder.glob("runs"))


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    return make_clone(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="module")
def machine(clone, tmp_path_factory) -> tuple[Path, Path]:
    """The packed folder in an empty directory, and the Python of a bare machine."""
    place = tmp_path_factory.mktemp("card")
    packed(clone, place / "packed")
    assert manifest.size(place / "packed") < LIMIT
    assert not written(clone)
    (place / "packed").rename(place / "project")
    return place / "project", make_machine(place / "python")


@pytest.mark.slow
def test_a_session_is_stopped_goes_on_and_is_entered(clone, machine):
    project, python = machine
    packages = "mlflow", "pandas", "scipy", "matplotlib", "pydantic", "jaxtyping", "pytest"
    for name in packages:
        assert subprocess.run([python, "-c", f"import {name}"], capture_output=True).returncode, name
    results = project / "gpu-results"

    # Too few minutes: the step in hand is stopped and saves; neither tests nor bench are begun, which cannot go on.
    stopped = make_gpu(project, python, "MINUTES=0.3")
    assert "Error 3" in stopped.stderr, stopped.stdout + stopped.stderr
    assert re.search(r"^left +[\d.]+  of MINUTES=0\.3$", stopped.stdout, flags=re.MULTILINE)
    left = re.search(r"^left: (.*)$", stopped.stderr, flags=re.MULTILINE)
    assert left is not None
    assert left[1].startswith("tests, peers, decode, ")
    assert manifest.faults(results, "results.json") == []
    first = records(results)
    assert sorted(step["code"] for step in first.values() if step["code"]) in ([130], [])  # []: between two steps
    assert not {name for name, step in first.items() if not step["code"]} & set(left[1].split(", "))
    before = {file.parent.name: file.read_text() for file in (project / "runs").glob("*/status.json")}
    finished = {key for key, text in before.items() if json.loads(text)["state"] == "FINISHED"}

    gone_on = make_gpu(project, python)
    assert gone_on.returncode == 0, gone_on.stdout + gone_on.stderr
    steps = records(results)
    assert len(steps) == 15
    assert {step["code"] for step in steps.values()} == {0}
    for name, step in first.items():
        assert steps[name]["seconds"] > step["seconds"] if step["code"] else steps[name] == step
    for key in finished:  # nothing that was done is done again
        assert (project / "runs" / key / "status.json").read_text() == before[key]
    assert 'failures="0"' in (results / "tests.xml").read_text()
    assert not list(results.rglob("*.safetensors"))
    again = make_gpu(project, python)
    assert again.returncode == 0
    assert ": python -m" not in again.stdout

    # What cannot be believed is refused, with nothing written.
    entered = clone.parent / "entered"
    git(clone.parent, "clone", "--quiet", str(clone), str(entered))
    (entered / "cache").symlink_to(ROOT / "cache")
    (entered / ".git/info/exclude").write_text("/cache\n")
    damaged = clone.parent / "damaged"
    shutil.copytree(results, damaged)
    (damaged / "training.log").write_text((damaged / "training.log").read_text().replace("Loss: 6", "Loss: 3", 1))
    (damaged / "tests.xml").unlink()
    refused = runners(entered, "gpu-import", damaged)
    assert refused.returncode == 2
    assert "training.log is not what was written" in refused.stderr
    assert "tests.xml is missing" in refused.stderr
    assert not written(entered)
    loss = entered / "runners/training/loss.py"
    text = loss.read_text()
    loss.write_text(text.replace("def ", "OTHER = 1\n\n\ndef ", 1))
    refused = runners(entered, "gpu-import", results)
    assert refused.returncode == 2
    assert "was made with another code of training" in refused.stderr
    loss.write_text(text)
    assert not written(entered)

    done = runners(entered, "gpu-import", results)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (entered / "training.log").read_bytes() == (results / "training.log").read_bytes()
    assert "replaced: training.log" in done.stdout
    changed = set(git(entered, "diff", "--name-only").split())
    assert {"README.md", "experiments/LOG.md", "training.log"} <= changed
    assert {f"experiments/results/{name}-tiny.json" for name in FIVE} <= changed
    assert not [name for name in changed if "bench" in name]  # a rehearsal's replace none
    page = (entered / "README.md").read_text()
    table = page.partition("<!-- results:begin -->")[2].partition("<!-- results:end -->")[0]
    assert "5.12k tokens a run" in table
    assert "| theta_1k | 2 |" in table
    entry = (entered / "experiments/LOG.md").read_text().split("\n## ")[1]
    assert "`make gpu` on cpu-x86_64: 15 steps done, 0 not (draft)" in entry
    assert "training losses at most 0 apart" in entry
    report = runners(entered, "report", "experiments/mlp_width.yaml", "--base", "tiny")
    assert report.returncode == 0, report.stderr
    once = runners(entered, "gpu-import", results)
    assert once.returncode == 0
    assert (entered / "experiments/LOG.md").read_text().count("`make gpu` on") == 1

    run = next((results / "runs").glob("*/events.log"))
    with run.open("a") as file:
        file.write("2026-01-01 00:00:00 another\n")
    manifest.write(results, "results.json", manifest.read(results, "results.json"))
    refused = runners(entered, "gpu-import", results)
    assert refused.returncode == 2
    assert f"run {run.parent.name} is here, and another" in refused.stderr


@pytest.mark.slow
def test_a_tree_with_changes_is_not_packed(clone, tmp_path):
    changed = tmp_path / "changed"
    git(tmp_path, "clone", "--quiet", str(clone), str(changed))
    (changed / "README.md").write_text("other")
    done = runners(changed, "gpu-pack", "--base", "tiny", "--out", tmp_path / "pack")
    assert done.returncode == 2
    assert "1 changed files: README.md" in done.stderr
    assert not (tmp_path / "pack").exists()
