"""How long the runs of a plan take, and durations in words."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runners.execution.slots import Slots, training_flops_per_s
from runners.planning.arms import PlannedRun
from runners.planning.plan import Plan
from runners.runs.folder import RunFolder, Status

if TYPE_CHECKING:
    from runners.execution.todo import Statuses

WORKER_START_S = 11.0  # of a process before its first run: it loads torch and transformers; measured on a slow core
RUN_START_S = {"cpu": 1.0, "cuda": 30.0}  # of a run before its first step: its gates, and compiled layers on a card


def duration(seconds: float) -> str:
    """A time span as people say it: "92 s", "14 min", "5.2 h", "12 days"."""
    for unit, size, upto in (("s", 1, 120), ("min", 60, 120 * 60), ("h", 3600, 48 * 3600)):
        if round(seconds / size) * size < upto:
            return f"{seconds / size:.1f} h" if unit == "h" else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:,.0f} days"


def estimate_seconds(
    plan: Plan, root: Path, todo: Sequence[PlannedRun], known: Statuses, slots: Slots
) -> tuple[float, str]:
    """Wall time of the runs in ``todo``, start-up included, and what it is judged by.

    That is runs of this plan that are done, each arm's own where there are some; else a matrix product timed now.
    """
    if not todo:
        return 0.0, "nothing is left to do"
    done = {run: _whole_s(root, run, known[run.key]) for run in plan.runs() if known[run.key].state == "FINISHED"}
    if done:
        rate = statistics.median(_flops(run) / seconds for run, seconds in done.items())
        basis, start_s = "finished runs of this plan", 0.0
    else:
        rate, start_s = training_flops_per_s(slots), RUN_START_S.get(slots.devices[0].split(":")[0], 1.0)
        basis = "a matrix product timed on this machine; within a factor of two or so"
    by_arm: dict[str, list[float]] = {}
    for run, seconds in done.items():
        by_arm.setdefault(run.arm, []).append(seconds)
    times = [statistics.median(by_arm[run.arm]) if run.arm in by_arm else start_s + _flops(run) / rate for run in todo]
    workers = [WORKER_START_S] * min(len(slots.devices), len(todo))
    for seconds in times:  # each run goes to the worker that is free first
        heapq.heapreplace(workers, workers[0] + seconds)
    return max(workers), basis


def _whole_s(root: Path, run: PlannedRun, status: Status) -> float:
    """Seconds that a finished run took: its start too, and what was before it was stopped and resumed."""
    trained = RunFolder(root, run.key).final_metrics().get("final/wall_time_s", 0.0)
    return max(status.ended - status.resumed, trained, 1e-3)


def _flops(run: PlannedRun) -> float:
    return float(run.recipe.train.num_tokens * run.recipe.flops_per_token)
