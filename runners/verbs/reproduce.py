"""`reproduce`: make again what logs say, and hold it against them."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from runners.verbs.common import CACHE, REPORTS, Context, add_json, check_target, positive, verb
from runners.verbs.progress import progress


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which logs, and how to make their runs again; None is as the log has it."""

    logs: list[Path]
    steps: int | None
    rows: int
    device: str | None
    threads: int | None
    micro_batch: int | None
    compile_mode: str
    vocab_size: int
    out: Path | None
    as_json: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of :class:`Options`."""
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="training logs, or first batches (.json)")
    text = "steps to make again (default: all; on a processor none of a model too large for it)"
    parser.add_argument("--steps", type=positive, help=text)
    parser.add_argument("--rows", type=positive, default=4, help="windows of a first batch to compute (default 4)")
    text = "auto, cpu, mps, cuda or cuda:N (default: cpu for a log of one, else auto)"
    parser.add_argument("--device", help=text)
    parser.add_argument("--threads", type=positive, help="threads on a processor (default: the log's)")
    parser.add_argument("--micro-batch", type=positive, metavar="WINDOWS", help="at a time (default: the log's)")
    text = "compile the model: auto is as the log has it"
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto", dest="compile_mode", help=text)
    text = "of a log that names no recipe (default 49152, SmolLM2's)"
    parser.add_argument("--vocab-size", type=positive, default=49_152, metavar="N", help=text)
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the log of the run made again")
    add_json(parser)


def reproduce(options: Options, context: Context) -> int:
    """Make again what the logs say. 1 where something departs or nothing was checked."""
    check_target(options.out, options.logs)
    from transformers.utils import logging

    from llama_variants.errors import ConfigError, Problem
    from runners.data.config import DataError
    from runners.reproduce.promise import ReproduceRequest
    from runners.reproduce.reproduce import reproduce as carry_out

    logging.disable_progress_bar()
    request = ReproduceRequest(
        files=options.logs,
        steps=options.steps,
        rows=options.rows,
        device=options.device,
        threads=options.threads,
        micro_batch=options.micro_batch,
        compiled={"auto": None, "on": True, "off": False}[options.compile_mode],
        out=options.out,
        vocab_size=options.vocab_size,
    )

    def say(text: str) -> None:
        print(text, file=sys.stderr if options.as_json else sys.stdout, flush=True)

    try:
        told = functools.partial(progress, say=say)
        agrees, outcomes = carry_out(request, REPORTS / "reproduce", CACHE, context.stop, say, told)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # of the folder that runs and figures go to
        problem = Problem(path=("reports",), received=str(error), allowed="a folder that can be written")
        raise ConfigError([problem]) from None
    if options.as_json:
        records = [asdict(one) | {"verdict": one.verdict} for one in outcomes]
        for row in (row for one in records for row in one["rows"]):
            row |= {name: None for name, value in row.items() if value != value}  # JSON has no NaN
        print(json.dumps(records, indent=1, default=str, allow_nan=False))
    return 0 if agrees else 1


VERB = verb(
    Options,
    reproduce,
    add_arguments,
    summary="make again what logs say, and hold it against them",
    description="Make again what training logs say and hold it against them; judge a log of another project.",
    examples=(
        "reproduce training.log",
        "reproduce training.log --steps 100 --json",
        "reproduce their.log --vocab-size 50257",
    ),
)
