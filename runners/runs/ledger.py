"""Every comparison whose difference was shown, and with what it had been declared.

A test holds for blocks that were fixed before: blocks added, or left out, once a difference has been seen make chance
look like an effect. So a comparison is written down when it is first shown, by what is compared and not by the name of
the experiment, beside the runs: the tracking store is a mirror that can be rebuilt, and this cannot. The same list
says how many experiments a control has served.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from analysis.store.schema import Design, Role
from runners.data.atomic import write_atomically
from runners.planning.arms import PlannedArm
from runners.planning.plan import Plan
from runners.planning.recipe import run_key
from runners.runs.records import damaged, read_record

JUDGED_BY = ("metric", "alpha", "margin", "variants")
REMEDY = "the file as it was; or none, which forgets every comparison that was shown"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One arm's difference from a control, as it was declared when it was first shown."""

    control: str  # what it is, whatever its name and its seeds
    arm: str
    name: str
    role: Role
    experiment: str
    seeds: tuple[int, ...]  # of the arm
    control_seeds: tuple[int, ...]  # of the control's runs that it is compared with: the same where seeds are blocks
    looks: tuple[int, ...]  # () is once, after all blocks
    metric: str
    alpha: float
    margin: float
    variants: int  # of its experiment: they share alpha
    family: str  # digest of which those are, on which runs and at which looks, whether shown yet or not
    when: str  # it was first shown; UTC

    @property
    def pair(self) -> tuple[str, str]:
        """What is compared."""
        return self.control, self.arm

    def same_as(self, other: Comparison) -> bool:
        """Whether both judge the same runs at the same looks."""
        mine, others = ((one.pair, set(one.seeds), set(one.control_seeds), one.looks) for one in (self, other))
        return mine == others

    def overlaps(self, other: Comparison) -> bool:
        """Whether both compare the same, and share runs."""
        return self.pair == other.pair and not (
            set(self.seeds).isdisjoint(other.seeds) and set(self.control_seeds).isdisjoint(other.control_seeds)
        )


_COMPARISONS = TypeAdapter(tuple[Comparison, ...])


def seen(plan: Plan, root: Path) -> Design:
    """The plan's declaration, with what bars its arms, and which experiment it is of those that its control has served.

    Raises ConfigError for a damaged ledger.
    """
    shown, mine = _read(root), _comparisons(plan)
    variants = [one for one in mine if one.role == "variant"]
    changed: dict[str, tuple[Any, Any]] = {}
    for one in variants:
        if then := next((other for other in shown if other.overlaps(one)), None):
            pairs = {key: (getattr(then, key), getattr(one, key)) for key in JUDGED_BY}
            changed = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]} | changed
    looked = {} if plan.screen else {one.name: _barred(one, shown) for one in variants}
    design = plan.design()
    arms = tuple(replace(arm, looked=looked.get(arm.name, "")) for arm in design.arms)
    return replace(design, arms=arms, changed=changed, order=_order(mine, shown))


def note(plan: Plan, shown: Iterable[str], root: Path) -> None:
    """Write down that differences of these arms from the control are shown; what stands written stays as it is.

    To be called before they are, since it gives the experiment its place among those that the control has served. A
    screen is none. Raises ConfigError for a damaged ledger.
    """
    names, mine = set(shown), [] if plan.screen else _comparisons(plan)
    if not names & {one.name for one in mine}:
        return
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / "ledger.lock"):
        before = _read(root)
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        held = [one for one in before if one.family == mine[0].family]
        new = [
            replace(one, when=now)
            for one in mine
            if one.name in names and not any(one.same_as(other) for other in held)
        ]
        if new:
            comparisons = [asdict(one) for one in (*before, *new)]
            write_atomically(_file(root), json.dumps({"comparisons": comparisons}, indent=1))


def warnings(plan: Plan, root: Path) -> list[str]:
    """What to say before anything is trained: which variants' blocks would decide nothing, and what to write instead.

    Raises ConfigError for a damaged ledger.
    """
    barred = {arm.name: arm for arm in seen(plan, root).arms if arm.looked}
    if not barred:
        return []
    shown, mine = _read(root), _comparisons(plan)
    pairs = {one.pair for one in mine if one.role == "variant"}
    beyond = 1 + max(max(one.control_seeds) for one in shown if one.pair in pairs)
    lines = [
        f"warning: {arm.name} was looked at before ({arm.looked}): these blocks decide nothing"
        for arm in barred.values()
    ]
    lines.append(f"  fresh blocks decide, in the experiment's file:  first_seed: {beyond}")
    then = [next(other for other in shown if other.overlaps(one)) for one in mine if one.name in barred]
    declared = {f"looks: {list(one.looks)}" if one.looks else f"blocks: {len(one.seeds)}" for one in then}
    # A second stage takes the blocks behind the declared ones: here those of then, if nobody has seen beyond them.
    ends = {(min(one.control_seeds), max(one.control_seeds)) for one in then}
    if not plan.confirms and len(declared) == 1 and ends == {(plan.first_seed, beyond - 1)}:
        blocks = max(len(arm.run_keys) for arm in barred.values())
        confirm = f"confirm: {{variants: [{', '.join(barred)}], blocks: {blocks}}}"
        lines.append(f"  or a second stage, beside `{declared.pop()}` as before:  {confirm}")
    return lines


def _comparisons(plan: Plan) -> list[Comparison]:
    """What the plan compares; budgets are not."""
    control, *arms = (arm for arm in plan.declared or plan.arms if arm.role != "budget")
    variants = sum(arm.role == "variant" for arm in arms)
    compared_with, experiment = _identity(control), plan.design().experiment
    made = []
    for arm in arms:
        seeds = tuple(run.seed for run in arm.runs)
        made.append(
            Comparison(
                control=compared_with,
                arm=_identity(arm),
                name=arm.name,
                role=arm.role,
                experiment=experiment,
                seeds=seeds,
                control_seeds=tuple(run.seed for run in control.runs) if plan.independent else seeds,
                looks=plan.looks if len(plan.looks) > 1 else (),
                metric=plan.decide.metric,
                alpha=plan.decide.alpha,
                margin=plan.decide.margin,
                variants=variants,
                family="",
                when="",
            )
        )
    whole = sorted((one.pair, one.seeds, one.control_seeds, one.looks) for one in made if one.role == "variant")
    family = hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:16]
    return [replace(one, family=family) for one in made]


def _identity(arm: PlannedArm) -> str:
    """A name of what it is, whatever its seeds; a check of a variant's recipe is another arm than the variant."""
    return f"{arm.role}-{run_key(arm.recipe.identity(), 0)}"


def _barred(one: Comparison, shown: Sequence[Comparison]) -> str:
    """With what an earlier look at this comparison was declared, where its blocks count here too; "" where none was."""
    then = next((other for other in shown if other.overlaps(one)), None)
    return "" if then is None or then.same_as(one) else _told(then, one)


def _told(then: Comparison, now: Comparison) -> str:
    """In what two declarations differ."""
    designs = ["blocks" if one.seeds == one.control_seeds else "independent seeds" for one in (then, now)]
    if designs[0] != designs[1]:
        words = f"{designs[0]} then, {designs[1]} now"
    elif set(then.seeds) == set(now.seeds) and set(then.control_seeds) == set(now.control_seeds):
        before, after = (f"after {list(one.looks)} blocks" if one.looks else "once" for one in (then, now))
        words = f"judged {before} then, {after} now"
    elif designs[0] != "blocks":
        before, after = (f"{len(one.seeds)} runs beside {len(one.control_seeds)}" for one in (then, now))
        words = f"{before} of the control then, {after} now"
    elif len(then.seeds) != len(now.seeds):
        words = f"{len(then.seeds)} blocks then, {len(now.seeds)} now"
    else:
        words = f"blocks from seed {min(then.seeds)} then, from {min(now.seeds)} now"
    return words if then.experiment == now.experiment else f"{words}; then in {then.experiment}"


def _order(mine: Sequence[Comparison], shown: Sequence[Comparison]) -> int:
    """Which experiment this is of all that its control has served, from 1; the same comparisons keep their place."""
    variants = [one for one in mine if one.role == "variant"]
    if not variants:
        return 1
    control, family = variants[0].control, variants[0].family
    places = list(dict.fromkeys(one.family for one in shown if one.control == control and one.role == "variant"))
    return 1 + (places.index(family) if family in places else len(places))


def _read(root: Path) -> tuple[Comparison, ...]:
    file = _file(root)
    try:
        return _COMPARISONS.validate_python(read_record(file, REMEDY).get("comparisons"))
    except FileNotFoundError:
        return ()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise damaged(file, f"{'.'.join(map(str, first['loc']))}: {first['msg']}", REMEDY) from None


def _file(root: Path) -> Path:
    return root / "ledger.json"
