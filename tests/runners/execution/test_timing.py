"""How long runs take, in numbers and in words, and what the progress of a sweep says of it."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.store.stratum import Stratum
from runners.execution import timing
from runners.execution.slots import Slots
from runners.execution.sweep import _Board
from runners.execution.timing import duration, estimate_seconds
from runners.execution.todo import statuses, unfinished
from runners.planning.plan import load_plan
from runners.runs.folder import RunFolder
from tests.runners.made_up import finish

ROOT = Path("runs")
UNITS = {"s": 1, "min": 60, "h": 3600, "days": 86400}


@pytest.fixture
def plan(project, monkeypatch):
    monkeypatch.chdir(project)
    return load_plan(Path("experiments/micro_theta.yaml"))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (92, "92 s"), (119.6, "2 min"), (840, "14 min"), (18_720, "5.2 h"), (172_800, "2 days")],
)
def test_durations_are_in_units_that_people_use(seconds, words):
    assert duration(seconds) == words
    assert duration(3652.5 * 3600) == "152 days"


@given(seconds=st.floats(1, 1e8))
def test_a_duration_in_words_is_right_to_its_last_digit(seconds):
    number, unit = duration(seconds).split()
    assert re.fullmatch(r"[\d,]+(\.\d)?", number)
    value = float(number.replace(",", "")) * UNITS[unit]
    assert abs(value - seconds) <= UNITS[unit] * (0.0501 if unit == "h" else 0.501)
    assert value >= UNITS[unit]


def took(run, seconds: float) -> None:
    """The run is done, and was so after that many seconds."""
    finish([run], lambda run: 4.0)
    file = RunFolder(ROOT, run.key).path / "status.json"
    status = json.loads(file.read_text())
    file.write_text(json.dumps(status | {"ended": status["resumed"] + seconds}))


def estimated(plan, workers: int) -> float:
    known = statuses(plan, ROOT)
    slots = Slots(("cpu",) * workers, 1)
    return estimate_seconds(plan, ROOT, unfinished(plan, known), known, slots)[0] - timing.WORKER_START_S


def test_runs_that_are_done_tell_how_long_the_others_take(plan):
    """Of their own arm where there are some: start-up counts, since it is in them."""
    for run, seconds in zip(plan.runs()[:3], (20.0, 30.0, 70.0), strict=True):
        took(run, seconds)
    assert estimated(plan, 1) == pytest.approx(2 * (20 + 30 + 70))
    # Of 20, 30, 70, 20, 30, 70 whoever is free takes the next: 20 + 70, and 30 + 20 + 30 + 70.
    assert estimated(plan, 2) == pytest.approx(150)
    assert estimate_seconds(plan, ROOT, [], {}, Slots(("cpu",), 1)) == (0.0, "nothing is left to do")


def test_before_any_run_is_done_each_one_s_start_counts(plan):
    known, slots = statuses(plan, ROOT), Slots(("cpu",), 1)
    seconds, basis = estimate_seconds(plan, ROOT, unfinished(plan, known), known, slots)
    assert seconds > timing.WORKER_START_S + 9 * timing.RUN_START_S["cpu"]
    assert "matrix product" in basis


def test_time_left_is_said_after_the_first_evaluation(plan):
    run = plan.runs()[0]
    folder = RunFolder(ROOT, run.key)
    folder.create(run.recipe, run.seed)
    board = _Board(plan, plan.runs(), ROOT)
    board.began = time.time() - 10.0
    folder.begin(Stratum(device="cpu"), {}, "data")
    row = {"tokens": 128.0, "train/loss": 5.0, "throughput/tokens_per_s": 1e4}
    folder.log(1, row)
    assert re.fullmatch(r"0 of 9 runs done, \d+ s gone", board.lines()[-1])
    folder.log(10, row | {"tokens": 1280.0, "val/loss": 5.0})
    assert re.fullmatch(r"0 of 9 runs done, \d+ s gone, \d+ min left", board.lines()[-1])


def test_time_left_does_not_count_what_was_done_before_a_resume(plan):
    run = plan.runs()[0]
    folder = RunFolder(ROOT, run.key)
    folder.create(run.recipe, run.seed)
    folder.begin(Stratum(device="cpu"), {}, "data")
    row = {"tokens": 1280.0, "train/loss": 5.0, "throughput/tokens_per_s": 1e4, "val/loss": 5.0}
    folder.log(10, row)
    time.sleep(0.01)
    board = _Board(plan, [run], ROOT)
    folder.begin(Stratum(device="cpu"), {}, "data", folder.log_file.stat().st_size)
    assert board.lines()[-1].endswith("gone")  # it was another process that evaluated
    folder.log(20, row | {"tokens": 2560.0})  # of 3840: what is left takes as long as what was done here
    assert re.fullmatch(r"0 of 1 runs done, (\d+ s) gone, \1 left", board.lines()[-1])
