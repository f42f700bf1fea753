"""`bench`: throughput in training and in generation, in turn with what it is compared to."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass

from runners.verbs.common import CACHE, REPORTS, Context, add_device, add_json, positive, seconds, verb


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure, on what, and how long."""

    what: str
    base: str | None
    device: str
    rounds: int
    seconds: float
    seq_len: int | None
    tokens: int | None
    steps: int
    threads: int | None
    only: str
    compile_mode: str
    batch: tuple[int, ...]
    context: tuple[int, ...]
    as_json: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of :class:`Options`."""
    parser.add_argument("what", choices=("peers", "blocks", "scaling", "decode", "paths", "jobs"))
    parser.add_argument("--base", help="a base (default: tiny on a CPU, else smollm2-135m)")
    add_device(parser)
    parser.add_argument("--rounds", type=positive, default=5, help="measurements of each, in turn (default 5)")
    parser.add_argument("--seconds", type=seconds, default=1.0, help="least time of a measurement (default 1)")
    parser.add_argument("--seq-len", type=positive, help="window in tokens (default: the base's)")
    parser.add_argument("--tokens", type=positive, help="tokens of a step (default: the base's)")
    parser.add_argument("--steps", type=positive, default=400, help="steps of each run of `jobs` (default 400)")
    parser.add_argument("--threads", type=positive, help="threads on a CPU (default: one to a core)")
    parser.add_argument("--only", default="", metavar="NAMES", help="contenders or variants, with commas between")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto", dest="compile_mode")
    text = "rows that `decode` generates at a time (default 1,8; on a card 1,8,64)"
    parser.add_argument("--batch", type=positives, default=(), metavar="N,N,…", help=text)
    text = "tokens of a row at its end in `decode` (default: a quarter, half and all of the model's longest)"
    parser.add_argument("--context", type=positives, default=(), metavar="N,N,…", help=text)
    add_json(parser)


def positives(text: str) -> tuple[int, ...]:
    """Positive whole numbers, typed with commas between; each once."""
    return tuple(dict.fromkeys(map(positive, text.split(","))))


def bench(options: Options, context: Context) -> int:
    """Measure, print and keep. 1 where data, a peer or memory cannot be had."""
    import torch
    from rich.console import Console

    from llama_variants.errors import ConfigError, Problem
    from runners.runs.machine import resolve_device

    try:
        device = resolve_device(options.device)
    except ValueError as error:
        raise ConfigError([Problem(path=("--device",), received=options.device, allowed=str(error))]) from None
    from runners.bench.suite import BenchRequest
    from runners.bench.suite import bench as carry_out
    from runners.data.config import DataError

    torch.set_num_threads(options.threads or torch.get_num_threads())
    request = BenchRequest(
        what=options.what,
        device=device,
        base=options.base,
        rounds=options.rounds,
        least_s=options.seconds,
        seq_len=options.seq_len,
        tokens=options.tokens,
        only=tuple(filter(None, map(str.strip, options.only.split(",")))),
        compile_mode=options.compile_mode,
        num_steps=options.steps,
        batches=options.batch,
        contexts=options.context,
    )
    console = Console(soft_wrap=True, markup=False, highlight=False, stderr=options.as_json)
    try:
        record = carry_out(request, CACHE, REPORTS / "bench", console)
    except (DataError, RuntimeError) as error:  # of the data, of a peer, or no memory
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.as_json:
        print(json.dumps(record, indent=1, default=str))
    return 0


VERB = verb(
    Options,
    bench,
    add_arguments,
    summary="measure throughput in training and in generation, in turn with what it is compared to",
    examples=(
        "bench peers --base tiny --device cpu --threads 1",
        "bench blocks --only attention=mqa,mlp=relu2 --rounds 9",
        "bench decode --base tiny --batch 1,8 --context 32,64",
    ),
)
