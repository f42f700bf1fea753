"""What of a plan is still to be carried out, and what of it cannot be compared with what would be made now."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from runners.execution.slots import Slots
from runners.planning.arms import PlannedRun
from runners.planning.plan import Plan
from runners.runs.folder import RunFolder, Status

if TYPE_CHECKING:
    from analysis.stats.eligibility import Times

    _Placed = dict[PlannedRun, Times]

Statuses = Mapping[str, Status]
"""By run key."""


def statuses(plan: Plan, root: Path) -> dict[str, Status]:
    """What is known of each run of the plan now, by its key; each folder is read once.

    Raises ConfigError for a damaged one, and for one that calls itself finished and lacks the last step.
    """
    return {run.key: RunFolder(root, run.key).checked_status() for run in plan.runs()}


def unfinished(plan: Plan, known: Statuses) -> list[PlannedRun]:
    """Runs of the plan that still have to be carried out, in order; a run that failed before is among them."""
    return [run for run in plan.runs() if known[run.key].state != "FINISHED"]


def made_otherwise(plan: Plan, root: Path, known: Statuses, slots: Slots) -> dict[PlannedRun, str]:
    """Runs done or begun in another stratum than new ones would have, and in what that differs, in words."""
    import torch

    from runners.runs.stratum import stratum, told

    device = torch.device(slots.devices[0])
    others: dict[PlannedRun, str] = {}
    for arm in plan.arms:
        now = None  # what is executed is looked up where there is something to compare it with
        for run in arm.runs:
            made = known[run.key].stratum
            if made and (known[run.key].state == "FINISHED" or RunFolder(root, run.key).checkpoints.exists()):
                now = now or stratum(arm.recipe, device, slots.threads)
                if other := told(made, now):
                    others[run] = other
    return others


def made_apart(plan: Plan, known: Statuses, slots: Slots, now: float | None = None) -> list[PlannedRun]:
    """Finished runs that would have to be made again, so that verdicts take each beside those of the other arm.

    By the verdicts' own rule (:func:`analysis.stats.eligibility.stands_alone`), with what is still to be carried out as
    made at ``now``; where one is made again, those that had it for company may have to be, too. A CPU repeats its bits,
    and so do deterministic kernels; nothing drifts there.
    """
    if slots.devices[0] == "cpu" or all(arm.recipe.train.deterministic for arm in plan.arms):
        return []
    soon = _stamp(time.time() if now is None else now)
    times: dict[str, _Placed] = {}
    for run in plan.runs():
        status = known[run.key]
        done = status.state == "FINISHED"
        times.setdefault(run.arm, {})[run] = (_stamp(status.started), _stamp(status.ended)) if done else (soon, soon)
    control = times.pop(plan.arms[0].name)
    again: set[PlannedRun] = set()
    while pair := _first_alone(control, times.values()):
        mine, others, run = pair
        # One that will be made now cannot move: another comes to keep it company.
        moved, arm = (run, mine) if mine[run] != (soon, soon) else (list(others)[-1], others)
        again.add(moved)
        arm[moved] = (soon, soon)
    return [run for run in plan.runs() if run in again]


def _first_alone(control: _Placed, arms: Iterable[_Placed]) -> tuple[_Placed, _Placed, PlannedRun] | None:
    """An arm, the one it is compared with, and a run of the first that stands alone beside the second."""
    from analysis.stats.eligibility import stands_alone

    for arm in arms:
        for mine, others in ((arm, control), (control, arm)):
            alone = stands_alone(list(mine.values()), list(others.values()))
            if any(alone):
                return mine, others, list(mine)[alone.index(True)]
    return None


def _stamp(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
