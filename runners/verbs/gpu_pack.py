"""`gpu-pack`: one folder with all that a machine with a card and no network needs."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from runners.verbs.common import CACHE, Context, verb
from runners.verbs.progress import print_now


@dataclass(frozen=True, kw_only=True)
class Options:
    """For what, and where to."""

    base: str | None
    python: list[str]
    out: Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of :class:`Options`."""
    parser.add_argument("--base", help="a base for all parts (default: smollm2-135m-8m, and the baseline's own)")
    text = "a version of Python to carry wheels for; several times for several (default 3.11 and 3.12)"
    parser.add_argument("--python", action="append", type=version, metavar="3.N", help=text)
    parser.add_argument(
        "--out", type=Path, default=Path("build/gpu-pack"), metavar="FOLDER", help="default build/gpu-pack"
    )


def version(text: str) -> str:
    """A version of Python, typed."""
    major, _, minor = text.partition(".")
    if major != "3" or not minor.isdecimal() or int(minor) < 11:
        raise argparse.ArgumentTypeError(f"{text!r} is no version of Python from 3.11 on, such as 3.12")
    return text


def gpu_pack(options: Options, context: Context) -> int:
    """Build the folder and say how large each part is. 1 where text or wheels cannot be had."""
    from runners.data.config import DataError
    from runners.gpu.pack import LIMIT, pack

    try:
        sizes = pack(options.out, options.base, options.python or ["3.11", "3.12"], CACHE, print_now)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, size in sizes.items():
        print(f"{name:<8} {size / 2**20:5.1f} MiB")
    print(f"{'in all':<8} {sum(sizes.values()) / 2**20:5.1f} MiB of at most {LIMIT / 2**20:.0f}: {options.out}")
    return 0


VERB = verb(
    Options,
    gpu_pack,
    add_arguments,
    summary="pack what a machine with a card and no network needs",
    description="Pack source, wheels and tokens into one folder for a machine with a card, torch and no network.",
    examples=("gpu-pack", "gpu-pack --python 3.12 --out build/gpu-pack", "gpu-pack --base tiny"),
)
