"""`gpu-import`: enter the results of `gpu` into this checkout."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from runners.verbs.common import REPORTS, RUNS, Context, verb
from runners.verbs.progress import print_now


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which results."""

    folder: Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of :class:`Options`."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what `gpu` wrote, gpu-results")


def gpu_import(options: Options, context: Context) -> int:
    """Enter them. Raises ConfigError, with nothing written, where they are damaged or made with other code."""
    from runners.gpu.enter import check, enter

    enter(check(options.folder, RUNS), RUNS, REPORTS, print_now)
    return 0


VERB = verb(
    Options,
    gpu_import,
    add_arguments,
    summary="enter the results of `gpu` into this checkout",
    examples=("gpu-import gpu-results",),
)
