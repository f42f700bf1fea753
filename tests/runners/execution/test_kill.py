"""kill -9, anywhere: what is resumed ends with the very bits of the run that was left alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import pytest

from runners.data import prepare
from runners.planning.bases import load_base
from runners.runs.folder import RunFolder
from tests.runners.children import Plan, finish, new_run, start, wait_for
from tests.runners.conftest import write_project
from tests.runners.helpers import exact

# Of the kills CI has a budget, the same ones each time; KILLS=all (`make test-kill`) has them all.
STORM = os.environ.get("KILLS") == "all"
TRIALS = range(60 if STORM else 20)
FIRST_WRITE, DELETION = range(8, 25), range(58, 66)  # each operation of one save, and of an older one's deletion
OPERATIONS = range(2, 92) if STORM else sorted({*FIRST_WRITE, *DELETION, 4, 32, 48, 80})


def some(numbers: Iterable[int], fast: Container[int]) -> list[Any]:
    """One test for each; those that are not fast are slow."""
    return [pytest.param(i, marks=() if i in fast else pytest.mark.slow) for i in numbers]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A project whose run was left alone once; it lies in straight/."""
    folder = write_project(tmp_path_factory.mktemp("kill"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        recipe = load_base(Path("experiments/base/micro.yaml"))[1]
        prepare(recipe.data, Path("cache"))
        run = new_run(folder, recipe)
    assert finish(Plan(folder, run.key)) == 0
    (folder / "runs").rename(folder / "straight")
    return folder


@pytest.fixture
def straight(place) -> list[Any]:
    (key,) = (path.name for path in (place / "straight").iterdir())
    rows = exact(RunFolder(place / "straight", key))
    assert [step for step, _ in rows[:-1]] == list(range(1, 31))
    return rows


@pytest.fixture
def run(place) -> RunFolder:
    """The same run, anew."""
    shutil.rmtree(place / "runs", ignore_errors=True)
    (config,) = (place / "straight").glob("*/config.yaml")
    run = RunFolder(place / "runs", config.parent.name)
    run.path.mkdir(parents=True)
    shutil.copy(config, run.path)
    return run


@pytest.mark.parametrize("trial", some(TRIALS, fast=range(6)))
def test_killed_at_any_time_and_again(place, run, straight, trial):
    """Killed up to three times, each at a random moment of training and of writing checkpoints."""
    generator = random.Random(trial)
    kills = 0
    for _ in range(generator.randint(1, 3)):
        child = start(Plan(place, run.key, save_every_s=generator.choice([0, 0, 0.05]), step_takes_s=0.03))
        resumed = run.status.resumed
        wait_for(lambda resumed=resumed: run.status.resumed > resumed, child)
        time.sleep(generator.uniform(0, 0.8))
        child.kill()
        child.join()
        kills += child.exitcode == -9
    assert finish(Plan(place, run.key)) == 0
    assert exact(run) == straight
    assert not run.checkpoints.exists()
    assert kills  # the first of them comes while at least the last steps are to be done
    print(f"{kills} kills")


@pytest.mark.parametrize("number", some(OPERATIONS, fast=range(16, 92, 16)))
def test_killed_before_each_operation_of_a_write(place, run, straight, number):
    """Five saves, two deletions of older ones included, are some eighty opens, renames and removals."""
    assert finish(Plan(place, run.key, die_at=number)) == -9
    left = sorted(path.name for path in run.checkpoints.glob("step-*"))
    assert finish(Plan(place, run.key)) == 0
    assert exact(run) == straight
    going_on = [line for line in run.events()[0] if line.startswith("going on after step")]
    assert going_on == ([f"going on after step {int(left[-1][5:])}"] if left else [])


@pytest.mark.parametrize("number", range(1, 11))
def test_killed_while_it_is_being_finished(place, run, straight, number):
    """After the last step, with a checkpoint there: weights are written, FINISHED is recorded, checkpoints go."""
    child = start(Plan(place, run.key, save_every_s=1000, step_takes_s=0.02))
    wait_for(lambda: len(run.rows()[0]) >= 20, child)
    child.terminate()
    child.join()
    assert finish(Plan(place, run.key, save_every_s=1000, die_at=number, after_steps=30)) == -9
    assert finish(Plan(place, run.key, save_every_s=1000)) == 0
    assert exact(run) == straight
    assert [line for line in run.events()[0] if line.startswith("going on after step")]  # nothing was trained anew


def test_a_resume_of_a_resume_is_straight_through(place, run, straight):
    """Stopped and gone on with at every fifth step."""
    while run.status.state != "FINISHED":
        child = start(Plan(place, run.key, save_every_s=1000, step_takes_s=0.02))
        rows = len(run.rows()[0])
        wait_for(lambda rows=rows: len(run.rows()[0]) >= rows + 5, child)
        child.terminate()
        child.join()
    assert exact(run) == straight
    steps = [int(line.split()[-1]) for line in run.events()[0] if line.startswith("going on after step")]
    assert len(steps) >= 3
    assert steps == sorted(set(steps))
    assert len({json.dumps(row) for row in run.rows()[0]}) == 30


def test_a_run_that_was_killed_before_its_checkpoints_were_deleted_has_them_deleted(place, run):
    assert finish(Plan(place, run.key)) == 0
    left = run.checkpoints / "step-00000010"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"0")
    assert finish(Plan(place, run.key)) == 0
    assert run.status.state == "FINISHED"
    assert not run.checkpoints.exists()
