"""The command line. Exit codes: 0 done; 1 a run failed; 2 the user's input is wrong; 130, 143 stopped by a signal."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from llama_variants.errors import ConfigError
from runners.stop import Stopped, StopRequest

RUNS = Path("runs")
CACHE = Path("cache")
REPORTS = Path("reports")
PROGRESS_EVERY_S = 10.0
STOPPING = "stopping: the step in hand is finished and saved; once more to stop at once"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    options = _parser().parse_args(arguments)
    options.first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    options.stop = StopRequest(says=STOPPING if options.first and options.verb is _train else "")
    options.stop.install(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    try:
        return int(options.verb(options))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (Stopped, KeyboardInterrupt) as stopped:
        if options.first:
            print("stopped; the same command goes on with what is not done", file=sys.stderr)
        signum = getattr(stopped, "signum", signal.SIGINT)
        return 128 + signum if signum else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m runners", description="Architecture ablations of a 135M Llama.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.set_defaults(verb=function)
        sub.add_argument("experiment", type=Path, help="an experiment's YAML")
        sub.add_argument("--base", help="a base to use instead of the experiment's own, e.g. tiny")
        sub.add_argument("--seeds", type=_seeds, help="runs of every arm; 1 screens, without verdicts")
        return sub

    def placed(sub: argparse.ArgumentParser, many: bool = True) -> None:
        sub.add_argument("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N")
        if many:
            sub.add_argument("--jobs", type=_positive, help="runs at once (one to a card; one to a core if small)")

    def trains(sub: argparse.ArgumentParser) -> None:
        text = "seconds between checkpoints; 0 saves after every step (default 120)"
        sub.add_argument("--save-every", type=_seconds, default=120.0, metavar="SECONDS", help=text)
        text = "windows through the model at a time (default: as many as fit); changes losses by rounding only"
        sub.add_argument("--micro-batch", type=_positive, metavar="WINDOWS", help=text)
        text = "compile the model: auto is on a GPU, and as it was begun; changes losses by rounding only"
        sub.add_argument("--compile", choices=("auto", "on", "off"), default="auto", dest="compile_mode", help=text)
        text = "begin again what is not done, and what cannot be compared: made on another device, torch or code"
        sub.add_argument("--fresh", action="store_true", help=text)

    def gated(sub: argparse.ArgumentParser) -> None:
        text = "exit with 1 unless the verdict is one of these, e.g. better:mqa or better,equivalent:mqa"
        sub.add_argument("--gate", action="append", default=[], metavar="WORDS:VARIANT", help=text)

    plan = verb("plan", _plan, "show what an experiment would run, what it costs and what it could see")
    plan.add_argument("--json", action="store_true", help="print JSON")
    placed(plan)
    run = verb("run", _run, "carry out an experiment's unfinished runs, then report")
    placed(run)
    trains(run)
    gated(run)
    train = verb("train", _train, "carry out one run in this process")
    train.add_argument("arm", help="its arm, e.g. control")
    train.add_argument("index", type=int, nargs="?", default=0, help="which of the arm's seeds, from 0")
    placed(train, many=False)
    trains(train)
    text = "save and leave after this step; negative: so many before the end"
    train.add_argument("--stop-after", type=int, metavar="STEP", help=text)
    train.set_defaults(jobs=None)
    log = verb("log", _log, "write the log of one finished run as text")
    log.add_argument("arm", nargs="?", default="control", help="its arm (default control)")
    log.add_argument("index", type=int, nargs="?", default=0, help="which of the arm's seeds, from 0")
    log.add_argument("--out", type=Path, metavar="FILE", help="where to write it (default: print it)")
    placed(log, many=False)
    log.set_defaults(jobs=None)
    report = verb("report", _report, "print the verdicts of what has run and write the report")
    report.add_argument("--json", action="store_true", help="print the table as JSON")
    report.add_argument("--notebooks", action="store_true", help="also run the notebooks and export them as HTML")
    gated(report)
    power = verb("power", _power, "show which effect how many seeds of a variant can show")
    power.add_argument("--effect", type=_nats, metavar="NATS", help="how many seeds it takes (default: the margin)")
    power.add_argument("--json", action="store_true", help="print JSON")
    calibrate = verb("calibrate", _calibrate, "show how often verdicts are right: simulated, and on finished runs")
    calibrate.add_argument("--trials", type=_positive, default=2000, help="simulated experiments a case")
    calibrate.add_argument("--losses", type=Path, metavar="CSV", help="a table of finished runs (arm, seed, loss)")
    calibrate.add_argument("--json", action="store_true", help="print JSON")
    bench = verbs.add_parser("bench", help="measure training throughput, in turn with what it is compared to")
    bench.add_argument("what", choices=("peers", "blocks", "scaling", "paths", "jobs"))
    bench.add_argument("--base", help="a base (default: tiny on a CPU, else smollm2-135m)")
    bench.add_argument("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N")
    bench.add_argument("--rounds", type=_positive, default=5, help="measurements of each, in turn (default 5)")
    bench.add_argument("--seconds", type=_seconds, default=1.0, help="least time of a measurement (default 1)")
    bench.add_argument("--seq-len", type=_positive, help="window in tokens (default: the base's)")
    bench.add_argument("--tokens", type=_positive, help="tokens of a step (default: the base's)")
    bench.add_argument("--steps", type=_positive, default=400, help="steps of each run of `jobs` (default 400)")
    bench.add_argument("--threads", type=_positive, help="threads on a CPU (default: one to a core)")
    bench.add_argument("--only", default="", metavar="NAMES", help="contenders or variants, with commas between")
    bench.add_argument("--compile", choices=("auto", "on", "off"), default="auto", dest="compile_mode")
    bench.add_argument("--json", action="store_true", help="print JSON")
    bench.set_defaults(verb=_bench)
    doctor = verbs.add_parser("doctor", help="show what a model is made of and what it costs")
    doctor.description = "Show what a model is made of, layer by layer, and what it costs."
    doctor.add_argument("--model", default="smollm2-135m", help="a base, its YAML, or a folder of saved weights")
    doctor.add_argument("--plugin", action="append", default=[], metavar="MODULE", help="blocks of your own, tried out")
    doctor.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="e.g. head.type=untied")
    doctor.add_argument("--seq-len", type=_positive, help="window in tokens for FLOPs; the model's whole context")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(verb=_doctor)
    blocks = verbs.add_parser("blocks", help="list the registered blocks", description="List the registered blocks.")
    blocks.add_argument("type", nargs="?", help="one block, e.g. sliding_window: all that it says of itself")
    form = blocks.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--markdown", action="store_true", help="print the page that lies beside the blocks")
    blocks.set_defaults(verb=_blocks)
    weights = verbs.add_parser("weights", help="fetch the published weights that a base's tokenizer comes with")
    weights.description = "Fetch the GGUF file that a base's tokenizer comes out of, and print where it is."
    weights.add_argument("--base", default="smollm2-135m", help="the base")
    weights.set_defaults(verb=_weights)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def _nats(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no size of an effect")
    return value


def _seeds(text: str) -> int:
    from runners.experiment import MAX_SEEDS

    if _positive(text) > MAX_SEEDS:
        raise argparse.ArgumentTypeError(f"{text} is more than {MAX_SEEDS}")
    return int(text)


def _load(options: argparse.Namespace) -> Any:
    from runners.experiment import load_plan

    return load_plan(options.experiment, base=options.base, seeds=options.seeds)


def _slots(options: argparse.Namespace, plan: Any) -> Any:
    from llama_variants.errors import Problem
    from runners.sweep import Slots

    try:
        return Slots.choose(options.device, options.jobs, plan.arms[0].recipe.num_params)
    except ValueError as error:
        raise ConfigError([Problem(("--device",), options.device, str(error))]) from None


def _training(options: argparse.Namespace, stop_after: int | None = None) -> Any:
    from runners.execute import Options

    return Options(options.save_every, options.micro_batch, options.compile_mode, stop_after)


def _chosen_run(options: argparse.Namespace, plan: Any) -> Any:
    from llama_variants.errors import Problem, one_of

    runs = {arm.name: arm.runs for arm in plan.arms}
    if options.arm not in runs:
        raise ConfigError([Problem(("arm",), repr(options.arm), one_of(options.arm, runs))])
    if not 0 <= options.index < len(runs[options.arm]):
        raise ConfigError([Problem(("index",), str(options.index), f"0 to {len(runs[options.arm]) - 1}")])
    return runs[options.arm][options.index]


def _plan(options: argparse.Namespace) -> int:
    from runners.preview import preview

    plan = _load(options)
    stages = [preview(stage, RUNS, _slots(options, plan)) for stage in plan.stages]
    if options.json:
        print(json.dumps(stages[0][1] | ({"confirm": stages[1][1]} if plan.confirm else {}), indent=1))
    else:
        print("\n\nthen, to confirm, on fresh seeds: ".join(table for table, _ in stages))
    return 0


def _run(options: argparse.Namespace) -> int:
    from runners.data import DataError
    from runners.reporting import read_gates
    from runners.sweep import run_plan

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


def _train(options: argparse.Namespace) -> int:
    import torch

    from llama_variants.errors import Problem
    from runners.execute import execute
    from runners.store import RunFolder
    from runners.sweep import made_apart, made_otherwise
    from runners.tracking import Mirror

    plan = _load(options)
    run = _chosen_run(options, plan)
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


def _log(options: argparse.Namespace) -> int:
    import torch
    from transformers.utils import logging

    from llama_variants.errors import Problem
    from runners.data import prepare
    from runners.store import RunFolder, write_atomically
    from runners.training_log import training_log

    logging.disable_progress_bar()
    plan = _load(options)
    run = _chosen_run(options, plan)
    slots = _slots(options, plan)
    torch.set_num_threads(slots.threads)
    folder = RunFolder(RUNS, run.key)
    if folder.status.state != "FINISHED" or not folder.final.exists():
        allowed = f"a finished run; make it by: python -m runners train {options.experiment} {run.arm} {options.index}"
        raise ConfigError([Problem(("arm",), f"{run.arm} seed {run.seed}, {folder.status.state}", allowed)])
    title = f"{plan.name} on {plan.base}, {run.arm}, seed {run.seed}"
    text = training_log(title, folder, prepare(run.recipe.data, CACHE), torch.device(slots.devices[0]))
    if options.out:
        write_atomically(options.out, text)
        print(f"written: {options.out}")
    else:
        print(text, end="")
    return 0


def _progress(title: str, num_steps: int) -> Any:
    """Prints a line for a logged step, every few seconds and at evaluations."""
    began = time.monotonic()
    shown = -math.inf

    def on_row(step: int, metrics: Any) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown > PROGRESS_EVERY_S or "val/loss" in metrics:
            shown = now
            judged = f", val/loss {metrics['val/loss']:.4f}" if "val/loss" in metrics else ""
            speed = f"{metrics['throughput/tokens_per_s']:,.0f} tokens/s, {now - began:.0f} s gone"
            print(f"{title}: step {step}/{num_steps}, loss {metrics['train/loss']:.4f}{judged}, {speed}", flush=True)

    return on_row


def _report(options: argparse.Namespace) -> int:
    from llama_variants.errors import Problem
    from runners.reporting import read_gates
    from runners.store import RunFolder

    plan = _load(options)
    gates = read_gates(options.gate, plan)
    if all(RunFolder(RUNS, run.key).status.state == "NEW" for run in plan.runs()):
        allowed = f"an experiment with runs; start it by: python -m runners run {options.experiment}"
        raise ConfigError([Problem((), f"nothing to report: no run of {plan.name} on {plan.base}", allowed)])
    return 0 if _print_report(plan, options, gates) else 1


def _power(options: argparse.Namespace) -> int:
    from runners.preview import seeds_and_effects

    text, record = seeds_and_effects(_load(options), RUNS, options.effect)
    print(json.dumps(record, indent=1) if options.json else text)
    return 0


def _calibrate(options: argparse.Namespace) -> int:
    from runners.calibrate import calibrate

    console = Console(soft_wrap=True, markup=False, highlight=False, stderr=options.json)
    record = calibrate(_load(options), RUNS, REPORTS, options.trials, console, options.losses)
    if options.json:
        print(json.dumps(record, indent=1))
    return 0


def _bench(options: argparse.Namespace) -> int:
    import torch

    from llama_variants.errors import Problem
    from runners.bench.verb import Request, bench
    from runners.data import DataError
    from runners.determinism import resolve_device

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


def _doctor(options: argparse.Namespace) -> int:
    from llama_variants.summary import summary, summary_text
    from runners.doctor import load_model, parse_settings
    from runners.plugins import import_plugins, try_out

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


def _blocks(options: argparse.Namespace) -> int:
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


def _weights(options: argparse.Namespace) -> int:
    from runners.data import DataError
    from runners.data.weights import fetch_weights
    from runners.experiment import find_base, load_base

    base, _ = load_base(find_base(options.base))
    try:
        print(fetch_weights(base.data, CACHE))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _print_report(plan: Any, options: argparse.Namespace, gates: Mapping[str, set[str]]) -> bool:
    """Whether every gate is met."""
    from runners.reporting import report

    reported = report(plan, RUNS, REPORTS, _reproduce(options), notebooks=getattr(options, "notebooks", False))
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


def _reproduce(options: argparse.Namespace) -> str:
    """The command that makes the same runs."""
    words = [f"make ablation EXP={options.experiment}"]
    words += [f"{name}={value}" for name, value in (("BASE", options.base), ("SEEDS", options.seeds)) if value]
    return " ".join(words)
