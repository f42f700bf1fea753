"""`train`: carry out one run in this process, or in those that torchrun started."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runners.verbs.common import (
    CACHE,
    RUNS,
    Context,
    OnExperiment,
    TrainingOptions,
    add_device,
    add_experiment,
    add_training,
    choose_slots,
    read_plan,
    run_options,
    verb,
)
from runners.verbs.progress import print_now, progress

if TYPE_CHECKING:
    from runners.execution.slots import Slots
    from runners.planning.arms import PlannedRun
    from runners.planning.plan import Plan
    from runners.runs.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Options(OnExperiment, TrainingOptions):
    """Which run, where and how."""

    arm: str
    index: int
    device: str
    stop_after: int | None  # a step; negative: so many before the end


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of :class:`Options`."""
    add_experiment(parser)
    parser.add_argument("arm", help="its arm, e.g. control")
    parser.add_argument("index", type=int, nargs="?", default=0, help="which of the arm's seeds, from 0")
    add_device(parser)
    add_training(parser)
    text = "save and leave after this step; negative: so many before the end"
    parser.add_argument("--stop-after", type=int, metavar="STEP", help=text)


def train(options: Options, context: Context) -> int:
    """Carry out the run, or go on with it. 1 where it does not finish, or its data cannot be had."""
    plan = read_plan(options)
    from runners.execution.mirrors import Mirrors

    run = plan.run_of(options.arm, options.index)
    mirrors = Mirrors(RUNS)
    stop_after = _step(options.stop_after, run.recipe.train.num_steps)
    slots = choose_slots(plan, options.device)
    import torch

    from runners.data import DataError, prepare
    from runners.data.overlap import refuse_overlap
    from runners.data.shards import known_sizes
    from runners.execution.one_run import execute
    from runners.runs.folder import RunFolder

    torch.set_num_threads(slots.threads)  # as a worker has it, so that the bits are the same
    title = f"{run.arm} seed {run.seed}"
    folder = RunFolder(RUNS, run.key, echo=lambda text: print_now(f"{title}: {text}"))
    folder.checked_status()  # a damaged one is refused before anything is written
    try:  # what is wrong with the text is said before there is a run
        plan.check_sizes(known_sizes(run.recipe.data, CACHE))
        say = print_now if context.first else lambda text: None
        corpus = prepare(run.recipe.data, CACHE, say, vocab_size=run.recipe.model.vocab_size)
        plan.check_sizes(corpus.sizes)
        refuse_overlap(corpus)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    folder.on_row = progress(title, run.recipe.train.num_steps)
    if context.first:
        print_now(f"{title}: {folder.path}, on {slots.devices[0]}")
        if options.fresh:
            _begin_again(plan, run, folder, slots)
        folder.create(run.recipe, run.seed)
    try:
        execute(folder, CACHE, slots.devices[0], run_options(options, stop_after), context.stop)
    finally:
        if context.first:
            mirrors.mirror(plan, run)
    status = folder.status
    if context.first:
        print(f"{title}: {status.state} {status.reason}".rstrip(), f"({folder.path})")
    return 0 if status.state == "FINISHED" else 1


def _step(stop_after: int | None, num_steps: int) -> int | None:
    """The step to stop after, counted from the start. Raises ConfigError where there is no such step."""
    if stop_after is None:
        return None
    step = stop_after + (num_steps if stop_after < 0 else 0)
    if not 0 < step < num_steps:
        from llama_variants.errors import ConfigError, Problem

        allowed = f"1 to {num_steps - 1}, or -1 to {1 - num_steps}"
        raise ConfigError([Problem(path=("--stop-after",), received=str(stop_after), allowed=allowed)])
    return step


def _begin_again(plan: Plan, run: PlannedRun, folder: RunFolder, slots: Slots) -> None:
    """Forget what the run has, where it is not done or cannot be compared with what would be made now."""
    from runners.execution.todo import made_apart, made_otherwise, statuses

    known = statuses(plan, RUNS)
    outdated = (*made_otherwise(plan, RUNS, known, slots), *made_apart(plan, known, slots))
    if (known[run.key].state != "FINISHED" or run in outdated) and not folder.forget():
        print_now(f"note: {run.arm} seed {run.seed} is being trained, and left alone")


VERB = verb(
    Options,
    train,
    add_arguments,
    summary="carry out one run in this process",
    examples=(
        "train experiments/baseline.yaml control --base tiny",
        "train experiments/head_grouping.yaml mqa 2 --device cuda:1",
        "train experiments/baseline.yaml control --stop-after -50",
    ),
    trains_here=True,
)
