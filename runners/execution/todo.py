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
    """Finished runs that would have to be rerun, so that verdicts take each beside those of the other arm.

    By the verdicts' own rule (:func:`analysis.stats.eligibility.stands_alone`: of its own block, where seeds are
    blocks), with what is still to be carried out as made at ``now``; where one is rerun, those that had it for company
    may have to be, too. A CPU repeats its bits, and so do deterministic kernels; nothing drifts there.
    """
    if slots.devices[0] == "cpu" or all(arm.recipe.train.deterministic for arm in plan.arms):
        return []
    soon = _stamp(time.time() if now is None else now)
    times: dict[str, _Placed] = {}
    for run in plan.runs():
        status = known[run.key]
        done = status.state == "FINISHED"
        times.setdefault(run.arm, {})[run] = (_stamp(status.started), _stamp(status.ended)) if done else (soon, soon)
    control, *arms = times.values()  # the plan's first run is the control's
    again: set[PlannedRun] = set()
    pairs = [(arm, control) for arm in arms]
    if not plan.independent:
        pairs = [pair for arm in arms for pair in zip(_single(arm), _single(control), strict=False)]
    while pair := _first_alone(pairs):
        mine, others, run = pair
        # One that will be made now cannot move: another comes to keep it company.
        moved = run if mine[run] != (soon, soon) else list(others)[-1]
        again.add(moved)
        for placed in (one for both in pairs for one in both if moved in one):
            placed[moved] = (soon, soon)
    return [run for run in plan.runs() if run in again]


def _single(arm: _Placed) -> list[_Placed]:
    """Its runs, one by one: block by block."""
    return [{run: when} for run, when in arm.items()]


def _first_alone(pairs: Iterable[tuple[_Placed, _Placed]]) -> tuple[_Placed, _Placed, PlannedRun] | None:
    """Runs of an arm, those that they are compared with, and one of the first that stands alone beside the second."""
    from analysis.stats.eligibility import stands_alone

    for pair in pairs:
        for mine, others in sorted((pair, pair[::-1]), key=lambda sides: min(sides[0].values())):  # the oldest moves
            alone = stands_alone(list(mine.values()), list(others.values()))
            if any(alone):
                return mine, others, list(mine)[alone.index(True)]
    return None


def _stamp(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
