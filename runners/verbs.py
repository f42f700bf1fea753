"""What each verb of the command line does; returns its exit code."""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from llama_variants.errors import ConfigError

RUNS = Path("runs")
CACHE = Path("cache")
REPORTS = Path("reports")
PROGRESS_EVERY_S = 10.0


def _load(options: argparse.Namespace) -> Any:
    from runners.planning.plan import load_plan

    return load_plan(options.experiment, base=options.base, seeds=options.seeds)


def _slots(options: argparse.Namespace, plan: Any) -> Any:
    from llama_variants.errors import Problem
    from runners.execution.sweep import Slots

    try:
        return Slots.choose(options.device, options.jobs, plan.arms[0].recipe.num_params)
    except ValueError as error:
        raise ConfigError([Problem(("--device",), options.device, str(error))]) from None


def _training(options: argparse.Namespace, stop_after: int | None = None) -> Any:
    from runners.execution.one_run import Options

    return Options(options.save_every, options.micro_batch, options.compile_mode, stop_after)


def plan(options: argparse.Namespace) -> int:
    """Show what an experiment would run."""
    from runners.preview import preview

    plan = _load(options)
    stages = [preview(stage, RUNS, _slots(options, plan)) for stage in plan.stages]
    if options.json:
        print(json.dumps(stages[0][1] | ({"confirm": stages[1][1]} if plan.confirm else {}), indent=1))
    else:
        print("\n\nthen, to confirm, on fresh seeds: ".join(table for table, _ in stages))
    return 0


def run(options: argparse.Namespace) -> int:
    """Carry out what is left of an experiment, and report."""
    from runners.data import DataError
    from runners.execution.sweep import run_plan
    from runners.verdicts import read_gates

    plan = _load(options)
    gates = read_gates(options.gate, plan)
    console = Console(soft_wrap=True, markup=False)
    slots = _slots(options, plan)
    failed = []
    try:
        for stage in plan.stages:
            failed += run_plan(
                stage,
                root=RUNS,
                cache=CACHE,
                slots=slots,
                options=_training(options),
                stop=options.stop,
                console=console,
                fresh=options.fresh,
            )
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    met = _print_report(plan, options, gates)
    return 1 if failed or not met else 0


def train(options: argparse.Namespace) -> int:
    """Carry out one run in this process."""
    import torch

    from llama_variants.errors import Problem
    from runners.execution.one_run import execute
    from runners.execution.sweep import made_apart, made_otherwise
    from runners.runs.folder import RunFolder
    from runners.tracking import Mirror

    plan = _load(options)
    run = plan.run_of(options.arm, options.index)
    stop_after, num_steps = options.stop_after, run.recipe.train.num_steps
    if stop_after is not None:
        stop_after += num_steps if stop_after < 0 else 0
        if not 0 < stop_after < num_steps:
            allowed = f"1 to {num_steps - 1}, or -1 to {1 - num_steps}"
            raise ConfigError([Problem(("--stop-after",), str(options.stop_after), allowed)])
    slots = _slots(options, plan)
    torch.set_num_threads(slots.threads)  # as a worker has it, so that the bits are the same
    first = options.first
    title = f"{run.arm} seed {run.seed}"
    folder = RunFolder(RUNS, run.key, echo=lambda text: print(f"{title}: {text}", flush=True))
    folder.on_row = _progress(title, run.recipe.train.num_steps)
    if first:
        print(f"{title}: {folder.path}, on {slots.devices[0]}", flush=True)
        outdated = (*made_otherwise(plan, RUNS, slots), *made_apart(plan, RUNS, slots))
        begins = options.fresh and (folder.status.state != "FINISHED" or run in outdated)
        if begins and not folder.forget():
            print(f"note: {title} is being trained, and left alone", flush=True)
        folder.create(run.recipe, run.seed)
    try:
        execute(folder, CACHE, slots.devices[0], _training(options, stop_after), options.stop)
    finally:
        if first:
            try:
                Mirror(plan, RUNS).sync(run)
            except Exception as error:  # the run folder is the truth, and `report` mirrors again
                print(f"note: MLflow took no metrics just now ({type(error).__name__}: {error})", file=sys.stderr)
    status = folder.status
    if first:
        print(f"{title}: {status.state} {status.reason}".rstrip(), f"({folder.path})")
    return 0 if status.state == "FINISHED" else 1


def log(options: argparse.Namespace) -> int:
    """Write the log of one finished run."""
    import torch
    from transformers.utils import logging

    from llama_variants.errors import Problem
    from runners.data import prepare
    from runners.data.atomic import write_atomically
    from runners.reproduce.training_log import training_log
    from runners.runs.folder import RunFolder

    logging.disable_progress_bar()
    _check_target(options.out)
    plan = _load(options)
    run = plan.run_of(options.arm, options.index)
    if options.first_batch:
        return _first_batch(options, plan, run)
    folder = RunFolder(RUNS, run.key)
    made = folder.status.stratum
    if made and made.on_cpu and options.device == "auto":
        options.device = "cpu"  # where the run was made, the footer is computed
    slots = _slots(options, plan)
    torch.set_num_threads(slots.threads)
    if folder.status.state != "FINISHED" or not folder.final.exists():
        allowed = f"a finished run; make it by: python -m runners train {options.experiment} {run.arm} {options.index}"
        raise ConfigError([Problem(("arm",), f"{run.arm} seed {run.seed}, {folder.status.state}", allowed)])
    corpus = prepare(run.recipe.data, CACHE)
    text = training_log(*_named(plan, run, options), folder, corpus, torch.device(slots.devices[0]))
    if options.out:
        write_atomically(options.out, text)
        print(f"written: {options.out}")
    else:
        print(text, end="")
    return 0


def _check_target(target: Path | None, inputs: Sequence[Path] = ()) -> None:
    """Raises ConfigError, before any work, where a file could not be written, or would replace one that is read."""
    from llama_variants.errors import Problem

    if target is None:
        return
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise ConfigError([Problem(("--out",), str(target), "a file in a folder that is there")])
    if target.exists() and any(one.exists() and one.samefile(target) for one in inputs):
        raise ConfigError([Problem(("--out",), f"{target}, which is read", "another file")])


def _named(plan: Any, run: Any, options: argparse.Namespace) -> tuple[str, str]:
    """A run in words, and the command that makes it."""
    words = ["python", "-m", "runners", "train", str(options.experiment), run.arm, str(options.index)]
    words += [f"--{name}={value}" for name in ("base", "seeds") if (value := getattr(options, name))]
    command = shlex.join(words)
    return f"{plan.name} on {plan.base}, {run.arm}, seed {run.seed}", command


def _first_batch(options: argparse.Namespace, plan: Any, run: Any) -> int:
    import torch

    from llama_variants.errors import Problem
    from runners.data import prepare
    from runners.reproduce.first_batch import write_first_batch

    if options.out is None:
        raise ConfigError([Problem(("--out",), "nothing", "a file, with --first-batch")])
    torch.set_num_threads(os.cpu_count() or 1)
    corpus = prepare(run.recipe.data, CACHE, lambda text: print(text, flush=True))
    write_first_batch(options.out, run, *_named(plan, run, options), corpus)
    print(f"written: {options.out}")
    return 0


def reproduce(options: argparse.Namespace) -> int:
    """Make again what logs say."""
    from dataclasses import asdict

    from transformers.utils import logging

    from llama_variants.errors import Problem
    from runners.data import DataError
    from runners.reproduce.reproduce import Request
    from runners.reproduce.reproduce import reproduce as carry_out

    logging.disable_progress_bar()
    _check_target(options.out, options.logs)
    request = Request(
        options.logs,
        options.steps,
        options.rows,
        options.device,
        options.threads,
        options.micro_batch,
        {"auto": None, "on": True, "off": False}[options.compile_mode],
        options.out,
        options.vocab_size,
    )

    def say(text: str) -> None:
        print(text, file=sys.stderr if options.json else sys.stdout, flush=True)

    try:
        progress = functools.partial(_progress, say=say)
        agrees, outcomes = carry_out(request, REPORTS / "reproduce", CACHE, options.stop, say, progress)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # of the folder that runs and figures go to
        raise ConfigError([Problem(("reports",), str(error), "a folder that can be written")]) from None
    if options.json:
        told = [asdict(one) | {"verdict": one.verdict} for one in outcomes]
        for row in (row for one in told for row in one["rows"]):
            row |= {name: None for name, value in row.items() if value != value}  # JSON has no NaN
        print(json.dumps(told, indent=1, default=str, allow_nan=False))
    return 0 if agrees else 1


def _progress(title: str, num_steps: int, say: Any = None) -> Any:
    """Says a line for a logged step, every few seconds and at evaluations."""
    say = say or functools.partial(print, flush=True)
    began = time.monotonic()
    shown = -math.inf

    def on_row(step: int, metrics: Any) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown > PROGRESS_EVERY_S or "val/loss" in metrics:
            shown = now
            judged = f", val/loss {metrics['val/loss']:.4f}" if "val/loss" in metrics else ""
            speed = f"{metrics['throughput/tokens_per_s']:,.0f} tokens/s, {now - began:.0f} s gone"
            say(f"{title}: step {step}/{num_steps}, loss {metrics['train/loss']:.4f}{judged}, {speed}")

    return on_row


def report(options: argparse.Namespace) -> int:
    """Judge what has run."""
    from llama_variants.errors import Problem
    from runners.runs.folder import RunFolder
    from runners.verdicts import read_gates

    plan = _load(options)
    gates = read_gates(options.gate, plan)
    if all(RunFolder(RUNS, run.key).status.state == "NEW" for run in plan.runs()):
        allowed = f"an experiment with runs; start it by: python -m runners run {options.experiment}"
        raise ConfigError([Problem((), f"nothing to report: no run of {plan.name} on {plan.base}", allowed)])
    return 0 if _print_report(plan, options, gates) else 1


def results(options: argparse.Namespace) -> int:
    """Print, or put into a page, the table of results that were kept."""
    from analysis.report import results as kept
    from llama_variants.errors import Problem
    from runners.data.atomic import write_atomically

    try:
        table = kept.results_markdown(options.files)
        text = kept.insert(options.into.read_text(), table) if options.into else table
    except (OSError, ValueError) as error:
        raise ConfigError([Problem(("FILE",), str(error), "results by `report --keep`; a page with marks")]) from None
    if options.into:
        write_atomically(options.into, text)
    else:
        print(text)
    return 0


def power(options: argparse.Namespace) -> int:
    """Show what how many seeds can see."""
    from runners.preview import seeds_and_effects

    text, record = seeds_and_effects(_load(options), RUNS, options.effect)
    print(json.dumps(record, indent=1) if options.json else text)
    return 0


def calibrate(options: argparse.Namespace) -> int:
    """Show how often verdicts are right."""
    from runners.calibrate import calibrate

    console = Console(soft_wrap=True, markup=False, highlight=False, stderr=options.json)
    record = calibrate(_load(options), RUNS, REPORTS, options.trials, console, options.losses)
    if options.json:
        print(json.dumps(record, indent=1))
    return 0


def bench(options: argparse.Namespace) -> int:
    """Measure throughput."""
    import torch

    from llama_variants.errors import Problem
    from runners.bench.suite import Request, bench
    from runners.data import DataError
    from runners.runs.machine import resolve_device

    try:
        device = resolve_device(options.device)
    except ValueError as error:
        raise ConfigError([Problem(("--device",), options.device, str(error))]) from None
    torch.set_num_threads(options.threads or torch.get_num_threads())
    request = Request(
        options.what,
        device,
        options.base,
        options.rounds,
        options.seconds,
        options.seq_len,
        options.tokens,
        tuple(filter(None, map(str.strip, options.only.split(",")))),
        options.compile_mode,
        options.steps,
    )
    console = Console(soft_wrap=True, markup=False, highlight=False, stderr=options.json)
    try:
        record = bench(request, CACHE, REPORTS / "bench", console)
    except (DataError, RuntimeError) as error:  # of the data, of a peer, or no memory
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(record, indent=1, default=str))
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Show what a model costs."""
    from llama_variants.summary import summary, summary_text
    from runners.doctor import load_model, parse_settings
    from runners.planning.plugins import import_plugins, try_out

    if problems := import_plugins(options.plugin, Path()):
        raise ConfigError(problems)
    config = load_model(options.model).override(parse_settings(options.set))
    if problems := try_out(config) if options.plugin else []:
        raise ConfigError(problems)
    print(
        json.dumps(summary(config, options.seq_len), indent=1)
        if options.json
        else summary_text(config, options.seq_len)
    )
    return 0


def blocks(options: argparse.Namespace) -> int:
    """List the blocks."""
    from llama_variants.errors import Problem, one_of
    from llama_variants.summary import block_text, blocks_markdown, blocks_table, blocks_text

    names = [row["type"] for row in blocks_table()]
    if options.type is not None and options.type not in names:
        raise ConfigError([Problem(("type",), repr(options.type), one_of(options.type, dict.fromkeys(names)))])
    if options.type:
        print(block_text(options.type))
    elif options.json:
        print(json.dumps(blocks_table(), indent=1))
    else:
        print((blocks_markdown() if options.markdown else blocks_text()).rstrip("\n"))
    return 0


def weights(options: argparse.Namespace) -> int:
    """Fetch the published weights."""
    from runners.data import DataError
    from runners.data.weights import fetch_weights
    from runners.planning.bases import find_file, load_base

    base, _ = load_base(find_file("base", options.base))
    try:
        print(fetch_weights(base.data, CACHE))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _print_report(plan: Any, options: argparse.Namespace, gates: Mapping[str, set[str]]) -> bool:
    """Whether every gate is met."""
    from runners.verdicts import report

    notebooks, keep = getattr(options, "notebooks", False), getattr(options, "keep", None)  # `run` has neither
    reported = report(plan, RUNS, REPORTS, _same_runs(options), notebooks=notebooks, keep=keep)
    if getattr(options, "json", False):
        print(reported.files["table"].read_text())
    else:
        print(f"\n{reported.text}\n")
        for name in ("report", "markdown", "table"):
            print(f"{name + ':':<9} {reported.files[name]}")
        print(f"compare the runs in the MLflow UI: make ui, {reported.page}")
    missed = reported.missed(gates)
    for line in missed:
        print(line, file=sys.stderr)
    return not missed


def _same_runs(options: argparse.Namespace) -> str:
    """The command that makes the same runs."""
    words = [f"make ablation EXP={options.experiment}"]
    words += [f"{name}={value}" for name, value in (("BASE", options.base), ("SEEDS", options.seeds)) if value]
    return " ".join(words)
