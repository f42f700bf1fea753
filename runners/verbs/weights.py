"""`weights`: the published weights that a base's tokenizer comes with."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

from runners.verbs.common import CACHE, Context, verb


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which base."""

    base: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of :class:`Options`."""
    parser.add_argument("--base", default="smollm2-135m", help="the base")


def weights(options: Options, context: Context) -> int:
    """Fetch the file and print where it is. 1 where it cannot be had."""
    from runners.planning.lookup import find_file

    file = find_file("base", options.base)
    from runners.data.config import DataError
    from runners.data.weights import fetch_weights
    from runners.planning.bases import load_base

    base, _ = load_base(file)
    try:
        print(fetch_weights(base.data, CACHE))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


VERB = verb(
    Options,
    weights,
    add_arguments,
    summary="fetch the published weights that a base's tokenizer comes with",
    description="Fetch the GGUF file that a base's tokenizer comes out of, and print where it is.",
    examples=("weights",),
)
