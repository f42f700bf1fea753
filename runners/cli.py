"""The command line. Exit codes: 0 done; 1 a run failed; 2 the user's input is wrong; 130, 143 stopped by a signal."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_variants.errors import ConfigError
from runners import verbs
from runners.runs.signals import Stopped, StopRequest

STOPPING = "stopping: the step in hand is finished and saved; once more to stop at once"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    options = _parser().parse_args(arguments)
    options.first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    options.stop = StopRequest(says=STOPPING if options.first and options.verb is verbs.train else "")
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
    commands = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
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

    plan = verb("plan", verbs.plan, "show what an experiment would run, what it costs and what it could see")
    plan.add_argument("--json", action="store_true", help="print JSON")
    placed(plan)
    run = verb("run", verbs.run, "carry out an experiment's unfinished runs, then report")
    placed(run)
    trains(run)
    gated(run)
    train = verb("train", verbs.train, "carry out one run in this process")
    train.add_argument("arm", help="its arm, e.g. control")
    train.add_argument("index", type=int, nargs="?", default=0, help="which of the arm's seeds, from 0")
    placed(train, many=False)
    trains(train)
    text = "save and leave after this step; negative: so many before the end"
    train.add_argument("--stop-after", type=int, metavar="STEP", help=text)
    train.set_defaults(jobs=None)
    log = verb("log", verbs.log, "write the log of one finished run as text")
    log.add_argument("arm", nargs="?", default="control", help="its arm (default control)")
    log.add_argument("index", type=int, nargs="?", default=0, help="which of the arm's seeds, from 0")
    log.add_argument("--out", type=Path, metavar="FILE", help="where to write it (default: print it)")
    text = "instead, enter the float32 loss of each window of its first batch into FILE, for this platform"
    log.add_argument("--first-batch", action="store_true", help=text)
    placed(log, many=False)
    log.set_defaults(jobs=None)
    again = commands.add_parser("reproduce", help="make again what logs say, and hold it against them")
    again.description = "Make again what training logs say and hold it against them; judge a log of another project."
    again.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="training logs, or first batches (.json)")
    text = "steps to make again (default: all; on a processor none of a model too large for it)"
    again.add_argument("--steps", type=_positive, help=text)
    again.add_argument("--rows", type=_positive, default=4, help="windows of a first batch to compute (default 4)")
    again.add_argument("--device", help="auto, cpu, mps, cuda or cuda:N (default: cpu for a log of one, else auto)")
    again.add_argument("--threads", type=_positive, help="threads on a processor (default: the log's)")
    again.add_argument("--micro-batch", type=_positive, metavar="WINDOWS", help="at a time (default: the log's)")
    text = "compile the model: auto is as the log has it"
    again.add_argument("--compile", choices=("auto", "on", "off"), default="auto", dest="compile_mode", help=text)
    text = "of a log that names no recipe (default 49152, SmolLM2's)"
    again.add_argument("--vocab-size", type=_positive, default=49_152, metavar="N", help=text)
    again.add_argument("--out", type=Path, metavar="FILE", help="also write the log of the run made again")
    again.add_argument("--json", action="store_true", help="print JSON")
    again.set_defaults(verb=verbs.reproduce)
    report = verb("report", verbs.report, "print the verdicts of what has run and write the report")
    report.add_argument("--json", action="store_true", help="print the table as JSON")
    report.add_argument("--notebooks", action="store_true", help="also run the notebooks and export them as HTML")
    gated(report)
    text = "also keep declaration and runs, from MLflow, as a file in this folder (for `results`)"
    report.add_argument("--keep", type=Path, metavar="FOLDER", help=text)
    power = verb("power", verbs.power, "show which effect how many seeds of a variant can show")
    power.add_argument("--effect", type=_nats, metavar="NATS", help="how many seeds it takes (default: the margin)")
    power.add_argument("--json", action="store_true", help="print JSON")
    calibrate = verb("calibrate", verbs.calibrate, "show how often verdicts are right: simulated, and on finished runs")
    calibrate.add_argument("--trials", type=_positive, default=2000, help="simulated experiments a case")
    calibrate.add_argument("--losses", type=Path, metavar="CSV", help="a table of finished runs (arm, seed, loss)")
    calibrate.add_argument("--json", action="store_true", help="print JSON")
    bench = commands.add_parser("bench", help="measure training throughput, in turn with what it is compared to")
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
    bench.set_defaults(verb=verbs.bench)
    results = commands.add_parser("results", help="print the verdicts of results that were kept, as one table")
    results.description = "Compute the verdicts of results that `report --keep` kept, and print them as one table."
    results.add_argument("files", nargs="+", type=Path, metavar="FILE", help="what `report --keep` wrote")
    results.add_argument("--into", type=Path, metavar="FILE", help="a Markdown file to put it into, between its marks")
    results.set_defaults(verb=verbs.results)
    doctor = commands.add_parser("doctor", help="show what a model is made of and what it costs")
    doctor.description = "Show what a model is made of, layer by layer, and what it costs."
    doctor.add_argument("--model", default="smollm2-135m", help="a base, its YAML, or a folder of saved weights")
    doctor.add_argument("--plugin", action="append", default=[], metavar="MODULE", help="blocks of your own, tried out")
    doctor.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="e.g. head.type=untied")
    doctor.add_argument("--seq-len", type=_positive, help="window in tokens for FLOPs; the model's whole context")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(verb=verbs.doctor)
    blocks = commands.add_parser("blocks", help="list the registered blocks", description="List the registered blocks.")
    blocks.add_argument("type", nargs="?", help="one block, e.g. sliding_window: all that it says of itself")
    form = blocks.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--markdown", action="store_true", help="print the page that lies beside the blocks")
    blocks.set_defaults(verb=verbs.blocks)
    weights = commands.add_parser("weights", help="fetch the published weights that a base's tokenizer comes with")
    weights.description = "Fetch the GGUF file that a base's tokenizer comes out of, and print where it is."
    weights.add_argument("--base", default="smollm2-135m", help="the base")
    weights.set_defaults(verb=verbs.weights)
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
    from runners.planning.files import MAX_SEEDS

    if _positive(text) > MAX_SEEDS:
        raise argparse.ArgumentTypeError(f"{text} is more than {MAX_SEEDS}")
    return int(text)
