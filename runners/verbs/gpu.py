"""`gpu`: everything to run on a card, within a given number of minutes."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from runners.verbs.common import CACHE, Context, add_device, minutes, verb
from runners.verbs.progress import print_now

LEFT = 3
"""Exit code where the minutes are over and something is left."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What, on which base and device, for how long, and where the results go."""

    base: str | None
    device: str
    minutes: float | None
    parts: str
    out: Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of :class:`Options`."""
    parser.add_argument("--base", help="a base for all parts (default: smollm2-135m-8m, and the baseline's own)")
    add_device(parser)
    text = "stop after so many; the running step saves first (default: none)"
    parser.add_argument("--minutes", type=minutes, help=text)
    text = "of tests, bench, rate, noise, five and baseline, with commas between (default: all); their order stays"
    parser.add_argument("--parts", default="", metavar="NAMES", help=text)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), metavar="FOLDER", help="default gpu-results")


def gpu(options: Options, context: Context) -> int:
    """Carry out what is left. 1 where a step failed, 3 where the minutes were too few."""
    from llama_variants.errors import ConfigError, Problem
    from runners.gpu.parts import ABLATION_BASE, steps
    from runners.gpu.session import Session, check_out
    from runners.planning.plan import load_plan
    from runners.verbs.common import choose_slots

    check_out(options.out, options.base)
    parts = [part for part in map(str.strip, options.parts.split(",")) if part]
    slots = choose_slots(
        load_plan(Path("experiments/controls.yaml"), base=options.base or ABLATION_BASE), options.device
    )
    if options.device == "auto" and slots.devices[0] == "cpu":
        received = "auto, and PyTorch sees no card here"
        allowed = "a Python whose PyTorch sees the card; cpu rehearses all of it"
        raise ConfigError([Problem(path=("--device",), received=received, allowed=allowed)])
    device = slots.devices[0] if len(set(slots.devices)) == 1 else options.device
    session = Session(
        out=options.out,
        cache=CACHE,
        base=options.base,
        slots=slots,
        minutes=options.minutes,
        stop=context.stop,
        say=print_now,
    )
    failed, left = session.carry_out(steps(options.base, device, parts, options.out))
    for what, names in (("failed", failed), ("left", left)):
        if names:
            print(f"{what}: {', '.join(names)}", file=sys.stderr)
    if failed or left:
        print("the same command goes on with what is not done", file=sys.stderr)
    print(f"results: {options.out}")
    return 1 if failed else LEFT if left else 0


VERB = verb(
    Options,
    gpu,
    add_arguments,
    summary="run everything that needs a card",
    description="Carry out tests, bench, ablations and baseline on a card, within a given number of minutes.",
    examples=("gpu --minutes 9", "gpu --parts tests,bench,baseline", "gpu --base tiny --device cpu"),
)
