"""What logs promise: which run each of them is of, and how this checkout would make that run again."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from llama_variants.errors import ConfigError, Problem
from runners.execution.slots import SMALL_PARAMS
from runners.planning.arms import PlannedRun
from runners.planning.plan import Plan, load_plan
from runners.reproduce.log_compare import Known, Way
from runners.reproduce.same_run import check_comparable
from runners.reproduce.training_log import TrainingLog
from runners.runs.machine import platform_tag, resolve_device


@dataclass(frozen=True, kw_only=True)
class ReproduceRequest:
    """What `reproduce` was asked for; None is as the log has it, and for ``steps`` as many as are sensible."""

    files: Sequence[Path]
    steps: int | None = None
    rows: int = 4
    device: str | None = None
    threads: int | None = None
    micro_batch: int | None = None
    compiled: bool | None = None
    out: Path | None = None
    vocab_size: int = 49_152  # of a log that names no recipe


@dataclass(frozen=True, kw_only=True)
class Promise:
    """Logs of one run, and that run as this checkout would train it."""

    known: tuple[Known, ...]
    run: PlannedRun
    sigma: float | None  # seed sd of its last validation loss, as far as it is known
    device: torch.device
    steps: int  # to make again
    title: str
    command: str

    @property
    def whole(self) -> bool:
        """Whether all of its steps are to be made again."""
        return self.steps == self.run.recipe.train.num_steps


def read_logs(files: Sequence[Path]) -> list[Known]:
    """The logs in ``files``. Raises ConfigError naming every file that holds none."""
    known, problems = [], []
    for file in files:
        try:
            log = TrainingLog.parse(file.read_text(encoding="utf-8"))
            if log.is_ours:
                log.check_header()
            known.append(Known(file, log))
        except (OSError, ValueError, KeyError, TypeError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else error
            said = f"{file}: {error.strerror if isinstance(error, OSError) else what}"
            problems.append(
                Problem(
                    path=("LOG",),
                    received=said,
                    allowed="a training log: lines like `TIME - Step 10, Loss: 3.2, LR: 1e-3`",
                )
            )
    if problems:
        raise ConfigError(problems)
    return known


def by_run(known: Sequence[Known]) -> list[tuple[Known, ...]]:
    """The logs of ours, those of one run together."""
    groups: dict[str, list[Known]] = {}
    for one in known:
        if one.log.is_ours:
            groups.setdefault(one.log.header["recipe"], []).append(one)
    return [tuple(group) for group in groups.values()]


def promise_of(known: tuple[Known, ...], request: ReproduceRequest) -> Promise:
    """What the logs of one run promise. Raises ConfigError where this checkout would train another."""
    first = known[0]
    plan, run = run_of(first.file, first.log.header["command"])
    check_comparable(first.file, first.log.recipe, {**run.recipe.identity(), "seed": run.seed})
    seeds = plan.decide.seed
    sigma = seeds.sd if seeds and plan.decide.metric == "final/val_loss" else None
    device = _device(request, first)
    too_large = device.type == "cpu" and run.recipe.num_params >= SMALL_PARAMS
    num_steps = run.recipe.train.num_steps
    steps = min(num_steps, request.steps or (0 if too_large else num_steps))
    title = first.log.header["run"].partition(", key")[0]
    return Promise(
        known=known, run=run, sigma=sigma, device=device, steps=steps, title=title, command=first.log.header["command"]
    )


def run_of(file: Path, command: str) -> tuple[Plan, PlannedRun]:
    """The run that a command of ours makes, as this checkout would. Raises ConfigError, which names ``file``."""
    parser = argparse.ArgumentParser(prog="python -m runners train", exit_on_error=False)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("arm")
    parser.add_argument("index", type=int)
    parser.add_argument("--base")
    parser.add_argument("--seeds", type=int)
    try:
        start, words = (words := shlex.split(command))[:4], words[4:]
        chosen, rest = parser.parse_known_args(words)
        if start != ["python", "-m", "runners", "train"] or rest:
            raise ValueError(command)
    except (argparse.ArgumentError, ValueError, SystemExit):
        allowed = "python -m runners train EXPERIMENT ARM INDEX [--base BASE] [--seeds N]"
        problem = Problem(path=("command",), received=repr(command), allowed=allowed)
        raise ConfigError([problem], f"{file}: cannot compare") from None
    try:
        plan = load_plan(chosen.experiment, base=chosen.base, seeds=chosen.seeds)
        return plan, plan.run_of(chosen.arm, chosen.index)
    except ConfigError as error:
        raise ConfigError(error.problems, f"{file}: cannot compare; it was made by `{command}`") from None


def way_of(known: Sequence[Known], device: torch.device, request: ReproduceRequest) -> tuple[Way, Known]:
    """How to make the run again, and the log that this follows: one of this platform, where there is one."""
    here = platform_tag(device)
    lead = next((one for one in known if Way.of(one.log).platform == here), known[0])
    way = Way.of(lead.log)
    if (way.threads > 0) != (device.type == "cpu"):  # from another kind of device: its split says nothing here
        way = Way(
            platform=here, threads=1 if device.type == "cpu" else 0, micro_batch=0, compiled=device.type == "cuda"
        )
    compiled = way.compiled if request.compiled is None else request.compiled
    threads, micro_batch = request.threads or way.threads, request.micro_batch or way.micro_batch
    return replace(way, platform=here, threads=threads, micro_batch=micro_batch, compiled=compiled), lead


def _device(request: ReproduceRequest, one: Known) -> torch.device:
    on_processor = one.log.stratum.on_cpu
    name = request.device or ("cpu" if on_processor else "auto")
    try:
        return resolve_device(name)
    except ValueError as error:
        raise ConfigError([Problem(path=("--device",), received=name, allowed=str(error))]) from None
