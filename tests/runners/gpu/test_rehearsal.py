"""`make gpu-pack`, `make gpu` and `make gpu-import`, rehearsed on a processor at `BASE=tiny` with few steps.

The packed folder lies in an empty directory, on a machine that has torch, transformers and no network. It is stopped
once by its minutes, goes on, and what comes of it is entered into a clone.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runners.gpu import manifest
from runners.gpu.pack import LIMIT
from tests.conftest import ROOT
from tests.runners.conftest import clean_environment
from tests.runners.gpu.bare_machine import make_machine
from tests.test_readme import copy_tracked

FEWER = {
    "experiments/base/tiny.yaml": {
        "num_steps: 1200": "num_steps: 20",
        "warmup_steps: 60": "warmup_steps: 4",
        "every_steps: 200": "every_steps: 20",
        "num_windows: 512": "num_windows: 32",
        "seeds: {control: 8, check: 3, variant: 3, budget: 4}": "seeds: {control: 2, check: 1, variant: 1, budget: 1}",
    },
    "experiments/controls.yaml": {"{control: 8, check: 4}": "{control: 2, check: 1}"},
    "experiments/learning_rate_8m.yaml": {"{control: 3, variant: 2}": "{control: 2, variant: 1}"},
    "experiments/head_grouping.yaml": {"{control: 8, variant: 8}": "{control: 2, variant: 1}"},
}
FIVE = ("rotary-theta", "head-grouping", "mlp-width", "norm-eps", "head-tying")


def environment() -> dict[str, str]:
    dropped = ("PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL")
    return {key: value for key, value in clean_environment().items() if key not in dropped}


def git(folder: Path, *arguments: str) -> str:
    author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    done = subprocess.run(["git", *author, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def runners(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runners", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)


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
    """The project with fewer steps, committed; the corpus may be there already."""
    folder = tmp_path_factory.mktemp("clone")
    copy_tracked(folder)
    for name, changes in FEWER.items():
        text = (folder / name).read_text()
        for old, new in changes.items():
            assert text.count(old) == 1, (name, old)
            text = text.replace(old, new)
        (folder / name).write_text(text)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "fewer steps")
    (ROOT / "cache").mkdir(exist_ok=True)
    (folder / "cache").symlink_to(ROOT / "cache")
    (folder / ".git/info/exclude").write_text("/cache\n")
    return folder


@pytest.fixture(scope="module")
def machine(clone, tmp_path_factory) -> tuple[Path, Path]:
    """The packed folder in an empty directory, and the Python of a bare machine."""
    place = tmp_path_factory.mktemp("card")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    done = runners(clone, "gpu-pack", "--base", "tiny", "--python", version, "--out", place / "packed")
    assert done.returncode == 0, done.stderr
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
    assert re.search(r"^left +[\d.]+  of 0\.3 there are$", stopped.stdout, flags=re.MULTILINE)
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
    assert "| theta_1k | 1 |" in table
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
