"""`plan`: what an experiment would run, cost and be able to see, before anything runs."""

from __future__ import annotations

import argparse
import io
import json
import statistics
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from runners.verbs.common import (
    CACHE,
    RUNS,
    Context,
    OnExperiment,
    add_device,
    add_experiment,
    add_jobs,
    add_json,
    choose_slots,
    read_plan,
    verb,
)
from runners.verbs.effects import PAIRED, detectable, losses

if TYPE_CHECKING:
    from rich.table import Table

    from runners.execution.slots import Slots
    from runners.execution.todo import Statuses
    from runners.planning.arms import PlannedArm, PlannedRun
    from runners.planning.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Options(OnExperiment):
    """Which experiment, and where it would run."""

    as_json: bool
    device: str
    jobs: int | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of :class:`Options`."""
    add_experiment(parser)
    add_json(parser)
    add_device(parser)
    add_jobs(parser)


def plan(options: Options, context: Context) -> int:
    """Print the plan of each stage."""
    whole = read_plan(options)
    from runners.data.shards import known_sizes

    for stage in whole.stages:
        stage.check_sizes(known_sizes(stage.arms[0].recipe.data, CACHE))
    slots = choose_slots(whole, options.device, options.jobs)
    previews = [preview(stage, RUNS, slots) for stage in whole.stages]
    if options.as_json:
        declared, *confirm = map(asdict, previews)
        print(json.dumps(declared | ({"confirm": confirm[0]} if confirm else {}), indent=1))
    else:
        print("\n\nthen, to confirm, on fresh seeds: ".join(preview_text(one, whole.paired) for one in previews))
    return 0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm: its runs, what it costs for a token (FLOPs), and what differs from the control."""

    arm: str
    role: str
    runs: int
    done: int  # that count beside runs made now
    seeds: list[int]
    num_params: int
    params_delta: float  # over the control's, less 1
    flops_per_token: int
    flops_delta: float
    diff: Mapping[str, list[object]]  # path -> the control's value and the arm's
    solved: list[str]
    expect: str | None


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A plan before it is carried out. Effects and the margin are in the metric's unit."""

    name: str
    base: str
    question: str
    tokens_per_run: int
    arms: list[Row]
    runs: int
    runs_left: int
    workers: int
    estimated_seconds: int
    estimate_basis: str
    smallest_detectable_effect: float | None
    sigma: float | None
    sigma_source: str
    margin: float
    screen: bool
    faults: Mapping[str, list[str]]  # what would make runs invalid, and of which arms
    files: Mapping[str, str]  # which the splits take, where they are local ones
    made_otherwise: Mapping[str, int]  # in what finished runs differ from those made now, and how many do


def preview(plan: Plan, root: Path, slots: Slots) -> Preview:
    """What can be said of the plan now, with what its run folders under ``root`` hold already."""
    from runners.execution.todo import made_otherwise, statuses, unfinished
    from runners.training.gates import recipe_faults

    control, known = plan.arms[0], statuses(plan, root)
    todo, others = unfinished(plan, known), made_otherwise(plan, root, known, slots)
    seconds, basis = _estimate_seconds(plan, todo, known, slots)
    sigma, sigma_source = _sigma(plan, root)
    variants = [arm for arm in plan.arms if arm.role == "variant"]
    effect = None
    if sigma is not None and variants and not plan.screen:
        sizes = [len(arm.runs) for arm in variants]
        effect = max(detectable(plan, sigma, n, (*sizes[:i], *sizes[i + 1 :])) for i, n in enumerate(sizes))
    faults: dict[str, list[str]] = {}
    for arm in plan.arms:
        for fault in recipe_faults(arm.recipe.train):
            faults.setdefault(fault, []).append(arm.name)
    return Preview(
        name=plan.name,
        base=plan.base,
        question=plan.question,
        tokens_per_run=control.recipe.train.num_tokens,
        arms=[_row(arm, control, known, others) for arm in plan.arms],
        runs=len(plan.runs()),
        runs_left=len(todo),
        workers=len(slots.devices),
        estimated_seconds=round(seconds),
        estimate_basis=basis,
        smallest_detectable_effect=effect,
        sigma=sigma,
        sigma_source=sigma_source,
        margin=plan.decide.margin,
        screen=plan.screen,
        faults=faults,
        files=_files(control),
        made_otherwise=dict(Counter(others[run] for run in others if known[run.key].state == "FINISHED")),
    )


def _files(control: PlannedArm) -> dict[str, str]:
    from runners.data.config import FilesSource

    source = control.recipe.data.source
    return {split: source.taken(split) for split in ("train", "validation")} if isinstance(source, FilesSource) else {}


def _row(arm: PlannedArm, control: PlannedArm, known: Statuses, others: Container[PlannedRun]) -> Row:
    params, flops = arm.recipe.num_params, arm.recipe.flops_per_token
    return Row(
        arm=arm.name,
        role=arm.role,
        runs=len(arm.runs),
        done=sum(known[run.key].state == "FINISHED" and run not in others for run in arm.runs),
        seeds=[run.seed for run in arm.runs],
        num_params=params,
        params_delta=params / control.recipe.num_params - 1,
        flops_per_token=flops,
        flops_delta=flops / control.recipe.flops_per_token - 1,
        diff={path: list(pair) for path, pair in arm.diff.items()},
        solved=list(arm.solved),
        expect=arm.expect,
    )


def _estimate_seconds(plan: Plan, todo: Sequence[PlannedRun], known: Statuses, slots: Slots) -> tuple[float, str]:
    """Wall time of the runs left, from runs of this plan that are done, else from a matrix product timed now."""
    if not todo:
        return 0.0, "nothing is left to do"
    done = [s.ended - s.resumed for run in plan.runs() if (s := known[run.key]).state == "FINISHED"]
    workers = min(len(slots.devices), len(todo))
    if done:
        return statistics.median(done) * len(todo) / workers, "finished runs of this plan"
    from runners.execution.slots import training_flops_per_s

    rate = training_flops_per_s(slots)
    flops = sum(run.recipe.train.num_tokens * run.recipe.flops_per_token for run in todo)
    return flops / rate / workers, "a matrix product timed on this machine; within a factor of two or so"


def _sigma(plan: Plan, root: Path) -> tuple[float | None, str]:
    """Seed sd of the metric: as the base states it, or that of three or more finished control runs where larger."""
    values = losses(plan, plan.arms[0], root)
    stated = plan.decide.sigma
    if len(values) >= 3 and statistics.stdev(values) > (stated or 0.0):  # a few runs promise nothing better
        return statistics.stdev(values), f"{len(values)} control runs on this machine"
    return stated, plan.decide.sigma_source


def preview_text(found: Preview, paired: bool) -> str:
    """The plan for a terminal; ``paired``: variants take the control's seeds."""
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, width=200, soft_wrap=True, markup=False)
    tokens = f"{found.tokens_per_run:,} tokens a run"
    console.print(f"{found.name} · {found.base} · {tokens}\n{found.question}\n", highlight=False)
    console.print(_table(found.arms))
    minutes = found.estimated_seconds / 60
    left = f"{minutes / 60:,.1f} h" if minutes > 90 else f"{minutes:,.1f} min"
    how = f"about {left} with {found.workers} at once (by {found.estimate_basis})"
    console.print(
        f"\n{found.runs} runs, {found.runs_left} left{f': {how}' if found.runs_left else ''}", highlight=False
    )
    for split, files in found.files.items():
        console.print(f"{split} files: {files}", highlight=False)
    for other, count in found.made_otherwise.items():
        console.print(
            f"note: {count} finished runs do not count beside runs made now, made with another {other}; "
            "ARGS=--fresh makes them again",
            highlight=False,
        )
    for fault, arms in found.faults.items():
        console.print(f"warning: runs of {', '.join(arms)} would be invalid: {fault}", highlight=False)
    for line in _power_lines(found, paired):
        console.print(line, highlight=False)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _table(rows: Sequence[Row]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    columns: tuple[tuple[str, Literal["left", "right"]], ...] = (
        *(("arm", "left"), ("runs", "right"), ("done", "right"), ("parameters", "right"), ("", "right")),
        *(("MFLOP/token", "right"), ("", "right"), ("what differs from the control", "left")),
    )
    for name, justify in columns:
        table.add_column(name, justify=justify)
    for row in rows:
        diff = [
            f"{path.removeprefix('model.')} {_value(old)} → {_value(new)}{' (solved)' if path in row.solved else ''}"
            for path, (old, new) in row.diff.items()
        ]
        what = ", ".join(diff) or ("other seeds" if row.role == "check" else "")
        costs = (
            f"{row.num_params:,}",
            f"{row.params_delta:+.2%}",
            f"{row.flops_per_token / 1e6:,.2f}",
            f"{row.flops_delta:+.2%}",
        )
        table.add_row(row.arm, str(row.runs), str(row.done), *costs, what)
    return table


def _power_lines(found: Preview, paired: bool) -> list[str]:
    if found.screen:
        return ["one seed an arm: this screens, and gives numbers but no verdict"]
    effect, margin = found.smallest_detectable_effect, found.margin
    if not any(row.role == "variant" for row in found.arms):
        return []
    if effect is None:
        return ["smallest detectable effect not known: the base states no seed sd, and no control runs are done"]
    lines = [
        f"smallest effect this design sees 4 times in 5: {effect:.4f} "
        f"(seed sd {found.sigma:.4f}: {found.sigma_source}){f', {PAIRED}' if paired else ''}"
    ]
    if effect > margin:
        lines.append(f"warning: that is more than the margin of {margin:g}; small differences will come out undecided")
    return lines


def _value(value: object) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


VERB = verb(
    Options,
    plan,
    add_arguments,
    prints_only=True,
    summary="show what an experiment would run, what it costs and what it could see",
    examples=(
        "plan experiments/demo.yaml",
        "plan experiments/head_grouping.yaml --base tiny --seeds 5",
        "plan experiments/head_grouping.yaml --device cpu --json",
    ),
)
