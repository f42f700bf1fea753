"""`run`: carry out what is left of an experiment, and report."""

from __future__ import annotations

import argparse
import functools
import sys
from dataclasses import dataclass

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
    from runners.verdicts import read_requirements

    required = read_requirements(options.require, plan)
    if required and mirrors.absent():
        allowed = "nothing where mlflow is not installed: verdicts are read from it"
        raise ConfigError([Problem(path=("--require",), received=", ".join(options.require), allowed=allowed)])
    console = Console(soft_wrap=True, markup=False)
    failed = []
    try:
        for stage in plan.stages:
            failed += run_plan(
                stage,
                root=RUNS,
                cache=CACHE,
                slots=slots,
                options=functools.partial(run_options, options),
                stop=context.stop,
                console=console,
                fresh=options.fresh,
                mirrors=mirrors,
            )
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if mirrors.absent():
        print("not judged: verdicts are read from MLflow. Where it is installed, `report` judges these run folders.")
        return 1 if failed else 0
    met = print_report(plan, mirrors, options, required)
    return 1 if failed or not met else 0


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
