"""What verbs share: how one is declared, arguments that several take, and how a plan is read and placed."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from runners.runs.signals import StopRequest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from runners.execution.one_run import RunOptions
    from runners.execution.slots import Slots
    from runners.planning.plan import Plan

RUNS = Path("runs")
CACHE = Path("cache")
REPORTS = Path("reports")


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a verb has besides its options."""

    stop: StopRequest
    first: bool  # of the processes that torchrun started, or the only one


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One verb as the command line sees it; :func:`verb` makes them."""

    summary: str  # its line in the list of verbs
    description: str
    examples: tuple[str, ...]  # what to type behind `python -m runners`
    arguments: Callable[[argparse.ArgumentParser], None]  # adds them
    carry_out: Callable[[argparse.Namespace, Context], int]  # returns the exit code
    aliases: tuple[str, ...] = ()
    trains_here: bool = False  # in this process, so that a first signal is answered here
    prints_only: bool = False  # lives for a second, a third of which the garbage collector would take


OptionsT = TypeVar("OptionsT", bound="DataclassInstance")


def verb(
    options: type[OptionsT],
    handler: Callable[[OptionsT, Context], int],
    arguments: Callable[[argparse.ArgumentParser], None],
    *,
    summary: str,
    examples: Sequence[str],
    description: str = "",
    aliases: Sequence[str] = (),
    trains_here: bool = False,
    prints_only: bool = False,
) -> Verb:
    """A verb whose ``handler`` gets ``options``, a dataclass whose fields are named as the parsed arguments are."""

    def carry_out(parsed: argparse.Namespace, context: Context) -> int:
        return handler(options(**{field.name: getattr(parsed, field.name) for field in fields(options)}), context)

    return Verb(
        summary=summary,
        description=description or f"{summary[0].upper()}{summary[1:]}.",
        examples=tuple(examples),
        arguments=arguments,
        carry_out=carry_out,
        aliases=tuple(aliases),
        trains_here=trains_here,
        prints_only=prints_only,
    )


# Arguments that several verbs take, and the options that come of them


@dataclass(frozen=True, kw_only=True)
class OnExperiment:
    """An experiment, on its own base or another."""

    experiment: Path
    base: str | None
    seeds: int | None  # blocks of every arm


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How runs are carried out."""

    save_every: float  # seconds
    micro_batch: int | None  # windows
    compile_mode: str
    fresh: bool


def add_experiment(parser: argparse.ArgumentParser) -> None:
    """Those of :class:`OnExperiment`."""
    parser.add_argument("experiment", type=Path, help="an experiment's YAML")
    parser.add_argument("--base", help="a base to use instead of the experiment's own, e.g. tiny")
    parser.add_argument("--seeds", type=seeds, help="blocks of every arm; 1 screens, without verdicts")


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device``."""
    parser.add_argument("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N")


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """``--jobs``."""
    parser.add_argument("--jobs", type=positive, help="runs at once (one to a card; one to a core if small)")


def add_training(parser: argparse.ArgumentParser) -> None:
    """Those of :class:`TrainingOptions`."""
    text = "seconds between checkpoints; 0 saves after every step (default 120)"
    parser.add_argument("--save-every", type=seconds, default=120.0, metavar="SECONDS", help=text)
    text = "windows through the model at a time (default: as many as fit); changes losses by rounding only"
    parser.add_argument("--micro-batch", type=positive, metavar="WINDOWS", help=text)
    text = "compile the model: auto is on a GPU, and as it was begun; changes losses by rounding only"
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto", dest="compile_mode", help=text)
    text = "begin again what is not done, and what cannot be compared: made on another device, torch or code"
    parser.add_argument("--fresh", action="store_true", help=text)


def add_json(parser: argparse.ArgumentParser, text: str = "print JSON") -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", dest="as_json", help=text)


def positive(text: str) -> int:
    """A positive whole number, typed."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def not_negative(text: str) -> int:
    """A whole number, 0 or more, typed."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return int(text)


def seconds(text: str) -> float:
    """A finite number of seconds, 0 or more, typed."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def minutes(text: str) -> float:
    """A finite number of minutes above 0, typed."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of minutes above 0")
    return value


def nats(text: str) -> float:
    """The size of an effect, typed: finite and above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no size of an effect")
    return value


def seeds(text: str) -> int:
    """A number of blocks that the tracking store can hold, typed."""
    from runners.planning.files import MAX_BLOCKS

    if positive(text) > MAX_BLOCKS:
        raise argparse.ArgumentTypeError(f"{text} is more than {MAX_BLOCKS}")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


# What handlers begin with


def read_plan(options: OnExperiment) -> Plan:
    """The plan that the options mean. Raises ConfigError with every problem of its files."""
    from runners.planning.plan import load_plan

    return load_plan(options.experiment, base=options.base, seeds=options.seeds)


def choose_slots(plan: Plan, device: str, jobs: int | None = None) -> Slots:
    """Where the plan's runs would go. Raises ConfigError for a device that is not there."""
    from llama_variants.errors import ConfigError, Problem
    from runners.execution.slots import Slots

    try:
        return Slots.choose(device, jobs, plan.arms[0].recipe.num_params)
    except ValueError as error:
        raise ConfigError([Problem(path=("--device",), received=device, allowed=str(error))]) from None


def run_options(options: TrainingOptions, stop_after: int | None = None) -> RunOptions:
    """How runs are carried out, as the package that does it takes it; ``stop_after``: a step."""
    from runners.execution.one_run import RunOptions

    return RunOptions(
        save_every_s=options.save_every,
        micro_batch=options.micro_batch,
        compile_mode=options.compile_mode,
        stop_after=stop_after,
    )


def check_target(target: Path | None, inputs: Sequence[Path] = ()) -> None:
    """Raises ConfigError, before any work, where a file could not be written, or would replace one that is read."""
    from llama_variants.errors import ConfigError, Problem

    if target is None:
        return
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise ConfigError([Problem(path=("--out",), received=str(target), allowed="a file in a folder that is there")])
    if target.exists() and any(one.exists() and one.samefile(target) for one in inputs):
        raise ConfigError([Problem(path=("--out",), received=f"{target}, which is read", allowed="another file")])
