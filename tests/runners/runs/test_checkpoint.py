"""Checkpoints that are torn, flipped, missing, malicious or of another model; and a disk that is full."""

from __future__ import annotations

import json
import os
import pickle
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analysis.store.stratum import Stratum
from llama_variants import build_model
from runners.data.config import file_sha256
from runners.execution.one_run import RunOptions, execute
from runners.planning.bases import load_base
from runners.planning.recipe import Recipe
from runners.runs.checkpoint import FILES, CheckpointError, Checkpoints, model_tensors
from runners.runs.folder import RunFolder
from runners.runs.signals import StopRequest
from tests.conftest import ROOT
from tests.runners.children import Plan, finish, new_run
from tests.runners.conftest import write_project
from tests.runners.helpers import exact, optimizer_of


@pytest.fixture
def heard() -> list[str]:
    return []


def written(recipe: Recipe, root: Path, heard: list[str], steps=(10, 20), losses=None):
    """A run with a checkpoint for each of ``steps``, its model and its optimizer."""
    run = RunFolder(root, "run")
    run.create(recipe, 0)
    run.log(10, {"train/loss": 1.0})
    model = build_model(recipe.model, seed=1)
    optimizer = optimizer_of(model, recipe.train)
    checkpoints = Checkpoints(run, 60, heard.append)
    for i, step in enumerate(steps):
        model(torch.zeros(1, 8, dtype=torch.long), labels=torch.zeros(1, 8, dtype=torch.long)).loss.backward()
        optimizer.step()
        state = {"step": step, "val_loss": losses[i] if losses else None}
        checkpoints.save(model, optimizer, state)
    checkpoints.wait()
    return checkpoints, model, optimizer


def test_all_comes_back(recipe, tmp_path, heard):
    checkpoints, model, optimizer = written(recipe, tmp_path / "runs", heard)
    found = checkpoints.newest()
    assert found.state["step"] == 20
    other = build_model(recipe.model, seed=2)
    other_optimizer = optimizer_of(other, recipe.train)
    found.restore(other, other_optimizer)
    for name, tensor in model_tensors(model).items():
        assert torch.equal(tensor, model_tensors(other)[name])
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        state, again = optimizer.state[p], other_optimizer.state[q]
        assert state.keys() == again.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(state[key], again[key]) and state[key].dtype == again[key].dtype for key in state)
    assert heard[0].startswith("checkpoint of step 10: 0.2 MB in ")


def test_the_newest_two_and_the_best_are_kept(recipe, tmp_path, heard):
    losses = [5.0, 3.0, 4.0, None, 4.5, 4.4]
    checkpoints, _, _ = written(recipe, tmp_path / "runs", heard, range(1, 7), losses)
    kept = sorted(path.name for path in checkpoints.folder.iterdir())
    assert kept == ["step-00000002", "step-00000005", "step-00000006"]


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """A run with two checkpoints, to be copied and damaged."""
    folder = write_project(tmp_path_factory.mktemp("two"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        written(load_base(Path("experiments/base/micro.yaml"))[1], folder / "runs", [])
    return folder / "runs"


def newest_is(root: Path, damage) -> tuple[str, list[str]]:
    """Damage a copy's newest checkpoint; which one is then read, and what was said."""
    copy = root.parent / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(root, copy)
    said: list[str] = []
    damage(copy / "run/checkpoints/step-00000020")
    return Checkpoints(RunFolder(copy, "run"), 60, said.append).newest().path.name, said


@given(data=st.data())
def test_any_flipped_bit_is_noticed(two, data):
    name = data.draw(st.sampled_from([*FILES, "manifest.json"]))
    content = bytearray((two / "run/checkpoints/step-00000020" / name).read_bytes())
    place, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    content[place] ^= 1 << bit

    found, said = newest_is(two, lambda path: (path / name).write_bytes(content))
    if name == "manifest.json" and found == "step-00000020":  # the white space between its words says nothing
        assert json.loads(content) == json.loads((two / "run/checkpoints/step-00000020" / name).read_text())
        return
    assert found == "step-00000010"
    # What a flip in the manifest makes it say of a file is held against that file.
    assert any(file in said[0] for file in ([name] if name in FILES else [*FILES, "manifest.json"]))
    assert "going on from step-00000010" in said[0]


@given(data=st.data())
def test_any_cut_is_noticed(two, data):
    name = data.draw(st.sampled_from([*FILES, "manifest.json"]))
    size = (two / "run/checkpoints/step-00000020" / name).stat().st_size
    length = data.draw(st.integers(0, size - 1))
    found, said = newest_is(two, lambda path: os.truncate(path / name, length))
    assert found == "step-00000010"
    assert name in said[0]


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_missing_file_is_noticed(two, name):
    found, said = newest_is(two, lambda path: (path / name).unlink())
    assert found == "step-00000010"
    assert name in said[0]


def test_a_log_that_lost_its_end_is_noticed(two):
    found, said = newest_is(two, lambda path: None)
    assert (found, said) == ("step-00000020", [])

    def cut(path: Path) -> None:
        state = json.loads((path / "state.json").read_text())
        (path / "state.json").write_text(json.dumps(state | {"log_bytes": state["log_bytes"] + 1}))
        sign(path)

    found, said = newest_is(two, cut)
    assert found == "step-00000010"
    assert "metrics.jsonl" in said[0]


def sign(path: Path) -> None:
    """Write a manifest that vouches for whatever lies there."""
    files = {name: {"bytes": (path / name).stat().st_size, "sha256": file_sha256(path / name)} for name in FILES}
    (path / "manifest.json").write_text(json.dumps({"format": 1, "files": files}))


class Payload:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("name", FILES)
def test_a_pickle_under_another_name_is_refused_and_not_run(two, tmp_path, monkeypatch, name):
    """Even where its manifest is in order."""
    monkeypatch.chdir(tmp_path)
    torch.save(Payload(), "torch.pickle")
    for content in (pickle.dumps(Payload()), Path("torch.pickle").read_bytes()):

        def plant(path: Path, content=content) -> None:
            (path / name).write_bytes(content)
            sign(path)

        found, said = newest_is(two, plant)
        assert found == "step-00000010"
        assert name in said[0]
    assert not Path("executed").exists()
    pickle.loads(pickle.dumps(Payload()))  # it does what it should
    assert Path("executed").exists()


def test_none_readable_is_an_error_that_deletes_nothing(project, recipe):
    run = new_run(project, recipe)
    assert finish(Plan(project, run.key, die_at=100)) == -9
    kept = sorted(run.checkpoints.glob("step-*"))
    assert len(kept) >= 2
    for path in kept:
        (path / "optimizer.safetensors").write_bytes(b"torn")
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file() and file.parent != run.path}
    rows = run.log_file.read_bytes()
    assert finish(Plan(project, run.key)) == 1
    assert run.status.state == "FAILED"
    for path in kept:
        assert f"{path.name}: optimizer.safetensors has 4 bytes" in run.status.reason
    assert {file: file.read_bytes() for file in before} == before
    assert run.log_file.read_bytes() == rows


def test_another_models_checkpoint_is_refused(recipe, tmp_path, heard):
    found = written(recipe, tmp_path / "runs", heard)[0].newest()
    other = build_model(recipe.model.override({"num_hidden_layers": 1}))
    with pytest.raises(CheckpointError, match="another model's parameters"):
        found.restore(other, optimizer_of(other, recipe.train))


def test_a_checkpoint_of_other_code_does_not_go_on(project, recipe):
    run = new_run(project, recipe)
    assert finish(Plan(project, run.key, die_at=100)) == -9
    status = json.loads((run.path / "status.json").read_text())
    (run.path / "status.json").write_text(json.dumps(status | {"stratum": {"device": "abacus"}}))
    kept = sorted(run.path.rglob("step-*/*"))
    assert finish(Plan(project, run.key)) == 1
    assert "was made with another device abacus (now cpu-" in run.status.reason
    assert "--fresh" in run.status.reason
    assert sorted(run.path.rglob("step-*/*")) == kept
    assert run.forget()
    assert finish(Plan(project, run.key)) == 0


FULL_DISK = """
import shutil, subprocess, sys
from pathlib import Path

import torch

from runners.runs.checkpoint import Checkpoints
from runners.execution.one_run import execute
from runners.runs.signals import StopRequest
from runners.runs.folder import RunFolder
from runners.execution.one_run import RunOptions

key, mode = sys.argv[1:]
config = Path("runs", key, "config.yaml").read_text()
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", "runs"], check=True)
Path("runs", key).mkdir()
Path("runs", key, "config.yaml").write_text(config)
torch.set_num_threads(1)
ballast, said = Path("runs/ballast"), []

def fill():
    with ballast.open("ab", buffering=0) as file:
        try:
            while file.write(b"x" * 512):
                pass
        except OSError:
            pass

def listen(text):
    said.append(text)
    print(text)
    written = [line for line in said if line.startswith("checkpoint of step") and "MB" in line]
    failures = sum("checkpoint" in line and "not written" in line for line in said)
    if len(written) == 5 and not failures and not ballast.exists():
        fill()
    if failures and ballast.exists():
        print("intact", Checkpoints(RunFolder(Path("runs"), key), 60, print).newest().path.name)
        if mode == "at the end":
            fill()  # the oldest checkpoint has gone meanwhile, and left some room
        elif failures == 3:
            ballast.unlink()
    if "the end of the log not written" in text or "final weights not written" in text:
        ballast.unlink(missing_ok=True)

run = RunFolder(Path("runs"), key, echo=listen)
execute(run, Path("cache"), "cpu", RunOptions(save_every_s=0), StopRequest())
print(run.status.state, run.status.reason)
shutil.copytree(Path("runs", key), "copy")
"""


@pytest.mark.skipif(platform.system() != "Linux", reason="mounts a tmpfs")
@pytest.mark.parametrize("mode", ["soon", "at the end"])
def test_a_full_disk_stops_nothing(project, recipe, mode):
    """A real one, of two megabytes. It fills up after a checkpoint; there is room again after three failed writes, or
    only when all steps are done."""
    run = new_run(project, recipe)
    assert finish(Plan(project, run.key)) == 0
    straight = exact(run)
    shutil.rmtree(run.path)
    run.create(recipe, 5)
    alone = ["unshare", "--mount", *(() if os.geteuid() == 0 else ("--user", "--map-root-user"))]
    done = subprocess.run(
        [*alone, sys.executable, "-c", FULL_DISK, run.key, mode],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    failures = [line for line in lines if line.startswith("checkpoint of step") and "not written" in line]
    assert len(failures) >= 3
    assert all("No space left on device" in line and "training goes on, next try" in line for line in failures)
    first = lines.index(failures[0])
    written = [line for line in lines[:first] if line.startswith("checkpoint of step ")]
    newest = int(written[-1].split()[3].rstrip(":"))
    assert len(written) >= 5
    assert lines.count(f"intact step-{newest:08}") >= 3
    last = max(i for i, line in enumerate(lines) if "not written" in line)
    if mode == "soon":  # it was tried again
        assert any(line.startswith("checkpoint of step ") and "MB" in line for line in lines[last:])
    else:
        assert any("end of the log not written" in line or "final weights not written" in line for line in lines)
    assert "FINISHED " in lines
    (project / "copy").rename(run.path.with_name("after"))
    assert exact(RunFolder(project / "runs", "after")) == straight


def test_due_by_the_clock(recipe, tmp_path, heard, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    checkpoints, model, optimizer = written(recipe, tmp_path / "runs", heard, steps=())
    assert not checkpoints.due()
    now += 61
    assert checkpoints.due()
    checkpoints.save(model, optimizer, {"step": 1, "val_loss": None})
    checkpoints.wait()
    assert not checkpoints.due()
    shutil.rmtree(checkpoints.folder)
    checkpoints.folder.write_text("in the way")
    now += 61
    checkpoints.save(model, optimizer, {"step": 2, "val_loss": None})
    checkpoints.wait()
    assert "checkpoint of step 2 not written" in heard[-1]
    now += 9
    assert not checkpoints.due()
    now += 2
    assert checkpoints.due()


def test_what_could_not_be_read_never_comes_back(two):
    """A checkpoint that is ahead of the log now may be behind it later, and would then cut it in the middle."""
    copy = two.parent / "aside"
    shutil.copytree(two, copy)
    run, said = RunFolder(copy, "run"), []
    newest = copy / "run/checkpoints/step-00000020/optimizer.safetensors"
    content = newest.read_bytes()
    newest.write_bytes(content[:-1])
    with Checkpoints(run, 60, said.append) as checkpoints:
        found = checkpoints.newest()
        checkpoints.set_aside(found)
        assert len(said) == 1
        (aside,) = checkpoints.folder.glob("unreadable-step-00000020-*")
        (aside / newest.name).write_bytes(content)  # whole again
        assert checkpoints.newest().path.name == "step-00000010"
        assert len(said) == 1


def test_a_run_in_hand_is_not_forgotten(two):
    copy = two.parent / "held"
    shutil.copytree(two, copy)
    run = RunFolder(copy, "run")
    run.begin(Stratum(device="here"), {}, "")
    status = run.status
    with run.lock():
        assert not run.forget()
        assert run.status == status
        assert run.checkpoints.exists()
    assert run.forget()
    assert run.status.state == "NEW"
    assert sorted(path.name for path in run.path.iterdir() if "checkpoints" in path.name) == []


def test_a_run_whose_end_cannot_be_recorded_keeps_its_checkpoints(project, recipe, monkeypatch):
    """Else the next command would train it anew."""
    run = new_run(project, recipe)
    write = RunFolder._write

    def full(self, status):
        if status.state == "FINISHED":
            raise OSError(28, "No space left on device")
        write(self, status)

    monkeypatch.chdir(project)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "_write", full)
        execute(run, Path("cache"), "cpu", RunOptions(save_every_s=0), StopRequest())
    assert run.status.state == "RUNNING"
    assert list(run.checkpoints.glob("step-*"))
    execute(run, Path("cache"), "cpu", RunOptions(), StopRequest())
    assert run.status.state == "FINISHED"
    assert any(line.startswith("going on after step") for line in run.events()[0])
