"""What had been declared when results were first looked at.

A test holds for seeds that were fixed before: seeds added, or left out, once a difference has been seen make chance
look like an effect. So the first look at an arm is written down, beside the runs: the tracking store is a mirror that
can be made again, and this cannot.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from analysis.store.schema import Arm, Design
from runners.data.atomic import write_atomically
from runners.planning.plan import Plan
from runners.planning.recipe import run_key
from runners.runs.records import read_record

JUDGED_BY = ("metric", "alpha", "margin")


def seen(plan: Plan, root: Path) -> Design:
    """The plan's declaration, with what had been declared at the first look."""
    design, looks = plan.design(), _read(root)
    mine: dict[str, Any] = looks.get(design.experiment, {})
    keys = _keys(plan)

    def compared(arm: Arm) -> Arm:
        then = mine.get("arms", {}).get(keys.get(arm.name))
        return replace(arm, looked=len(then)) if then and set(then) != set(arm.run_keys) else arm

    arms = tuple(map(compared, design.arms))
    return replace(design, arms=arms, looked=mine.get("judged_by", {}))


def note(plan: Plan, shown: Iterable[str], root: Path) -> None:
    """Write down that a difference of these arms was shown; what was declared at an earlier look stays."""
    design, keys, shown = plan.design(), _keys(plan), set(shown)
    if not shown:
        return
    with FileLock(root / "looks.lock"):
        looks = _read(root)
        mine = looks.setdefault(design.experiment, {})
        before = json.dumps(mine)
        if "judged_by" not in mine:
            variants = sum(arm.role == "variant" for arm in design.arms)
            mine["judged_by"] = {name: getattr(design, name) for name in JUDGED_BY} | {"variants": variants}
            mine["first"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        for arm in design.compared:
            if arm.name in shown:
                mine.setdefault("arms", {}).setdefault(keys[arm.name], list(arm.run_keys))
        if json.dumps(mine) != before:
            write_atomically(_file(root), json.dumps(looks, indent=1))


def _keys(plan: Plan) -> dict[str, str]:
    """Arm -> a name of what it is whatever its seeds; the control against itself is another arm than the control."""
    return {arm.name: f"{arm.role}-{run_key(arm.recipe.identity(), 0)}" for arm in plan.arms}


def _read(root: Path) -> dict[str, Any]:
    try:
        return read_record(_file(root), "the file as it was; or none, which forgets what was declared at first looks")
    except FileNotFoundError:
        return {}


def _file(root: Path) -> Path:
    return root / "looks.json"
