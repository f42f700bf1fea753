"""`plan`: what an experiment would run, cost and be able to see, before anything runs."""

from __future__ import annotations

import argparse
import io
import json
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
from runners.verbs.effects import Known, smallest_effect, spread, unknown

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
        print("\n\nthen, to confirm, on fresh blocks: ".join(map(preview_text, previews)))
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
    independent: bool  # every arm has seeds of its own
    estimated_seconds: int
    estimate_basis: str
    looks: tuple[int, ...]
    smallest_detectable_effect: float | None  # the largest of `effects`
    effects: Mapping[str, float]  # by variant
    sd: float | None  # of a difference within a block; of a run, where seeds are independent
    sd_low: float | None
    sd_high: float | None
    sd_source: str  # or that it is not known
    margin: float
    screen: bool
    faults: Mapping[str, list[str]]  # what would make runs invalid, and of which arms
    files: Mapping[str, str]  # which the splits take, where they are local ones
    made_otherwise: Mapping[str, int]  # in what finished runs differ from those made now, and how many do
    warnings: list[str]  # of blocks that would decide nothing, and what to write instead


def preview(plan: Plan, root: Path, slots: Slots) -> Preview:
    """What can be said of the plan now, with what its run folders under ``root`` hold already."""
    from runners.execution.timing import estimate_seconds
    from runners.execution.todo import made_otherwise, statuses, unfinished
    from runners.runs import ledger
    from runners.training.gates import recipe_faults

    control, known = plan.arms[0], statuses(plan, root)
    todo, others = unfinished(plan, known), made_otherwise(plan, root, known, slots)
    seconds, basis = estimate_seconds(plan, root, todo, known, slots)
    scatter = spread(plan, root)
    effects = _effects(plan, scatter) if scatter and not plan.screen else {}
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
        independent=plan.independent,
        estimated_seconds=round(seconds),
        estimate_basis=basis,
        looks=plan.looks,
        smallest_detectable_effect=max(effects.values(), default=None),
        effects=effects,
        sd=scatter.sd if scatter else None,
        sd_low=scatter.low if scatter else None,
        sd_high=scatter.high if scatter else None,
        sd_source=scatter.source if scatter else unknown(plan),
        margin=plan.decide.margin,
        screen=plan.screen,
        faults=faults,
        files=_files(control),
        made_otherwise=dict(Counter(others[run] for run in others if known[run.key].state == "FINISHED")),
        warnings=ledger.warnings(plan, root),
    )


def _files(control: PlannedArm) -> dict[str, str]:
    from runners.data.config import FilesSource, MixtureSource

    source = control.recipe.data.source
    if not isinstance(source, FilesSource | MixtureSource):
        return {}
    return {split: taken for split in ("train", "validation") if (taken := source.taken(split))}


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


def _effects(plan: Plan, scatter: Known) -> dict[str, float]:
    """By variant, the smallest true difference that the declared design shows 4 times in 5."""
    variants = [arm for arm in plan.arms if arm.role == "variant"]
    found = {arm.name: smallest_effect(plan, scatter.of(arm), len(arm.runs)) for arm in variants}
    return {name: effect for name, effect in found.items() if effect is not None}


def preview_text(found: Preview) -> str:
    """The plan for a terminal."""
    from rich.console import Console

    from runners.execution.timing import duration

    out = io.StringIO()
    console = Console(file=out, width=200, soft_wrap=True, markup=False)
    tokens = f"{found.tokens_per_run:,} tokens a run"
    console.print(f"{found.name} · {found.base} · {tokens}\n{found.question}\n", highlight=False)
    console.print(_table(found.arms))
    most = "at most " if found.looks else ""
    how = f": {most}about {duration(found.estimated_seconds)} with {found.workers} at once (by {found.estimate_basis})"
    console.print(f"\n{found.runs} runs, {found.runs_left} left{how if found.runs_left else ''}", highlight=False)
    if found.looks:
        looks = ", ".join(map(str, found.looks))
        console.print(f"judged after {looks} blocks; a variant that is decided stops", highlight=False)
    for split, files in found.files.items():
        console.print(f"{split} files: {files}", highlight=False)
    for other, count in found.made_otherwise.items():
        console.print(
            f"note: {count} finished runs do not count beside runs made now, made with another {other}; "
            "ARGS=--fresh reruns them",
            highlight=False,
        )
    for fault, arms in found.faults.items():
        console.print(f"warning: runs of {', '.join(arms)} would be invalid: {fault}", highlight=False)
    for line in (*_power_lines(found), *found.warnings):
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
        what = ", ".join(diff)
        costs = (
            f"{row.num_params:,}",
            f"{row.params_delta:+.2%}",
            f"{row.flops_per_token / 1e6:,.2f}",
            f"{row.flops_delta:+.2%}",
        )
        table.add_row(row.arm, str(row.runs), str(row.done), *costs, what)
    return table


def _power_lines(found: Preview) -> list[str]:
    if found.screen:
        return ["one block: this screens, and gives numbers but no verdict"]
    if not any(row.role == "variant" for row in found.arms):
        return []
    if found.sd is None or found.smallest_detectable_effect is None:
        why = found.sd_source if found.sd is None else "too few runs"
        return [f"smallest detectable effect not known: {why}"]
    ranged = found.sd_low != found.sd_high
    what = "runs between seeds" if found.independent else "a difference within a block"
    span = f", from {found.sd_low:.4f} to {found.sd_high:.4f}" if ranged else ""
    typical = f"sd of {what} {found.sd:.4f}{span}: {found.sd_source}"
    by_size: dict[str, list[str]] = {}
    for name, effect in found.effects.items():
        by_size.setdefault(f"{effect:.4f}", []).append(name)
    told = [size if len(by_size) == 1 else f"{size} of {', '.join(names)}" for size, names in by_size.items()]
    lines = [f"smallest effect this design sees 4 times in 5: {'; '.join(told)}", f"  {typical}"]
    if wide := [name for name, effect in found.effects.items() if effect > found.margin]:
        whose = "" if len(wide) == len(found.effects) else f" for {', '.join(wide)}"
        lines.append(
            f"warning: that effect is larger than the margin of {found.margin:g}{whose}; "
            "small differences will come out undecided"
        )
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
