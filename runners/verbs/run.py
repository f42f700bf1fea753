"""`run`: carry out what is left of an experiment, and report."""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runners.verbs.common import (
    CACHE,
    RUNS,
    Context,
    OnExperiment,
    TrainingOptions,
    add_device,
    add_experiment,
    add_jobs,
    add_training,
    choose_slots,
    read_plan,
    run_options,
    verb,
)
from runners.verbs.judge import Requiring, add_require, print_report

if TYPE_CHECKING:
    from runners.execution.mirrors import Mirrors
    from runners.planning.arms import PlannedRun
    from runners.planning.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Options(OnExperiment, TrainingOptions, Requiring):
    """Which experiment, where, how, and what it has to come to."""

    device: str
    jobs: int | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of :class:`Options`."""
    add_experiment(parser)
    add_device(parser)
    add_jobs(parser)
    add_training(parser)
    add_require(parser)


def run(options: Options, context: Context) -> int:
    """Carry out the experiment's unfinished runs, stage by stage, then judge all. 1 where a run failed."""
    plan = read_plan(options)
    from runners.execution.mirrors import Mirrors

    mirrors = Mirrors(RUNS)
    slots = choose_slots(plan, options.device, options.jobs)
    from rich.console import Console

    from llama_variants.errors import ConfigError, Problem
    from runners.data.config import DataError
    from runners.execution.sweep import run_plan
    from runners.runs import ledger

    if options.require and mirrors.absent():
        allowed = "nothing where mlflow is not installed: verdicts are read from it"
        raise ConfigError([Problem(path=("--require",), received=", ".join(options.require), allowed=allowed)])
    required: dict[str, set[str]] = {}
    if options.require:
        from runners.verdicts import read_requirements  # with pandas, scipy and matplotlib, which training does without

        required = read_requirements(options.require, plan)
    console = Console(soft_wrap=True, markup=False)
    for stage in plan.stages:
        for line in ledger.warnings(stage, RUNS):
            print(line, file=sys.stderr)
    carry_out = functools.partial(
        run_plan,
        root=RUNS,
        cache=CACHE,
        slots=slots,
        options=functools.partial(run_options, options),
        stop=context.stop,
        console=console,
        fresh=options.fresh,
        mirrors=mirrors,
    )
    failed = []
    try:
        for stage in plan.stages:
            failed += run_to_looks(stage, carry_out, mirrors) if stage.looks else carry_out(stage)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if mirrors.absent():
        print("not judged: verdicts are read from MLflow. Where it is installed, `report` judges these run folders.")
        return 1 if failed else 0
    met = print_report(plan, mirrors, options, required)
    return 1 if failed or not met else 0


def run_to_looks(stage: Plan, carry_out: Callable[[Plan], list[PlannedRun]], mirrors: Mirrors) -> list[PlannedRun]:
    """Carry out a plan from look to look; an arm that is decided runs no more blocks. Returns the runs that failed.

    What is decided follows from the runs alone, so that the same command, stopped anywhere, comes to the same. Where
    nothing can be judged all blocks are carried out.
    """
    if mirrors.absent():
        print("looks are left out: verdicts are read from MLflow. Every arm runs all of its blocks.", flush=True)
        return carry_out(stage)
    variants = {arm.name for arm in stage.arms if arm.role == "variant"}
    failed: dict[str, PlannedRun] = {}
    stopped: set[str] = set()
    for look, following in zip(stage.looks, (*stage.looks[1:], None), strict=True):
        part = stage.up_to(look, without=stopped)
        left, tried = carry_out(part), {run.key for run in part.runs()}
        failed = {key: run for key, run in failed.items() if key not in tried} | {run.key: run for run in left}
        if following is None:
            break
        from analysis.stats.compare import decided  # with pandas and scipy, which training does without
        from runners.verdicts import judge

        table = judge(stage, mirrors)
        done = decided(table, stage.design())
        for row in table.iloc[1:].to_dict("records"):
            if row["arm"] in done - stopped:
                print(f"{_found(row, look)}; it stops", flush=True)
            elif row["arm"] in variants - done and not variants <= done:
                print(f"{_found(row, look)}; it runs on to {following} blocks", flush=True)
        stopped |= done
        if variants and variants <= stopped:
            print("every variant is decided", flush=True)
            break
    return list(failed.values())


def _found(row: Mapping[Hashable, Any], look: int) -> str:
    """What a look shows of one arm, in words."""
    blocks = look if math.isnan(row["look"]) else round(row["look"])
    if math.isnan(row["ci_low"]):
        return f"{row['arm']}: {row['verdict']} after {blocks} blocks"
    size = f"{row['delta']:+.4f} [{row['ci_low']:+.4f}, {row['ci_high']:+.4f}]"
    return f"{row['arm']}: {row['verdict']} after {blocks} blocks, {size}"


VERB = verb(
    Options,
    run,
    add_arguments,
    summary="carry out an experiment's unfinished runs, then report",
    examples=(
        "run experiments/demo.yaml --device cpu",
        "run experiments/head_grouping.yaml --base tiny --seeds 1",
        "run experiments/head_grouping.yaml --require better,equivalent:mqa",
    ),
)
