"""`log`: the log of one finished run as text, or the losses of its first batch."""

from __future__ import annotations

import argparse
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runners.verbs.common import (
    CACHE,
    RUNS,
    Context,
    OnExperiment,
    add_device,
    add_experiment,
    check_target,
    choose_slots,
    read_plan,
    verb,
)
from runners.verbs.progress import print_now

if TYPE_CHECKING:
    from runners.planning.arms import PlannedRun
    from runners.planning.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Options(OnExperiment):
    """Which run, and where its log goes."""

    arm: str
    index: int
    out: Path | None
    first_batch: bool
    device: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of :class:`Options`."""
    add_experiment(parser)
    parser.add_argument("arm", nargs="?", default="control", help="its arm (default control)")
    parser.add_argument("index", type=int, nargs="?", default=0, help="which of the arm's seeds, from 0")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write it (default: print it)")
    text = "instead, enter the float32 loss of each window of its first batch into FILE, for this platform"
    parser.add_argument("--first-batch", action="store_true", help=text)
    add_device(parser)


def log(options: Options, context: Context) -> int:
    """Write the log. Raises ConfigError for a run that is not finished."""
    check_target(options.out)
    plan = read_plan(options)
    run = plan.run_of(options.arm, options.index)
    import torch
    from transformers.utils import logging

    from llama_variants.errors import ConfigError, Problem
    from runners.data.atomic import write_atomically
    from runners.data.shards import prepare
    from runners.reproduce.training_log import training_log
    from runners.runs.folder import RunFolder

    logging.disable_progress_bar()
    if options.first_batch:
        return _first_batch(options, plan, run)
    folder = RunFolder(RUNS, run.key)
    status = folder.status
    # Where the run was made, the footer is computed.
    on_cpu = status.stratum is not None and status.stratum.on_cpu
    device = "cpu" if on_cpu and options.device == "auto" else options.device
    slots = choose_slots(plan, device)
    torch.set_num_threads(slots.threads)
    if status.state != "FINISHED" or not folder.final.exists():
        words = ["python", "-m", "runners", "train", str(options.experiment), run.arm, str(options.index)]
        allowed = f"a finished run; make it by: {shlex.join(words)}"
        problem = Problem(path=("arm",), received=f"{run.arm} seed {run.seed}, {status.state}", allowed=allowed)
        raise ConfigError([problem])
    corpus = prepare(run.recipe.data, CACHE)
    text = training_log(*_named(plan, run, options), folder, corpus, torch.device(slots.devices[0]))
    if options.out:
        write_atomically(options.out, text)
        print(f"written: {options.out}")
    else:
        print(text, end="")
    return 0


def _named(plan: Plan, run: PlannedRun, options: Options) -> tuple[str, str]:
    """A run in words, and the command that makes it."""
    words = ["python", "-m", "runners", "train", str(options.experiment), run.arm, str(options.index)]
    words += [f"--{name}={value}" for name, value in (("base", options.base), ("seeds", options.seeds)) if value]
    command = shlex.join(words)
    return f"{plan.name} on {plan.base}, {run.arm}, seed {run.seed}", command


def _first_batch(options: Options, plan: Plan, run: PlannedRun) -> int:
    import torch

    from llama_variants.errors import ConfigError, Problem
    from runners.data.shards import prepare
    from runners.reproduce.first_batch import write_first_batch

    if options.out is None:
        raise ConfigError([Problem(path=("--out",), received="nothing", allowed="a file, with --first-batch")])
    torch.set_num_threads(os.cpu_count() or 1)
    corpus = prepare(run.recipe.data, CACHE, print_now)
    write_first_batch(options.out, run, *_named(plan, run, options), corpus)
    print(f"written: {options.out}")
    return 0


VERB = verb(
    Options,
    log,
    add_arguments,
    summary="write the log of one finished run as text",
    examples=(
        "log experiments/baseline.yaml --base tiny --out training.log",
        "log experiments/baseline.yaml control --first-batch --out first-batch.json",
    ),
)
