"""`results`: the verdicts of results that were kept, as one table."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from runners.verbs.common import Context, verb


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which files, and which page."""

    files: list[Path]
    into: Path | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of :class:`Options`."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="what `report --keep` wrote")
    parser.add_argument("--into", type=Path, metavar="FILE", help="a Markdown file to put it into, between its marks")


def results(options: Options, context: Context) -> int:
    """Print the table, or put it into a page. Raises ConfigError for files that are neither."""
    from analysis.report import results as kept
    from llama_variants.errors import ConfigError, Problem
    from runners.data.atomic import write_atomically

    try:
        table = kept.results_markdown(options.files)
        text = kept.insert(options.into.read_text(encoding="utf-8"), table) if options.into else table
    except (OSError, ValueError) as error:
        received = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        problem = Problem(path=("FILE",), received=received, allowed="results by `report --keep`; a page with marks")
        raise ConfigError([problem]) from None
    if options.into:
        write_atomically(options.into, text)
    else:
        print(text)
    return 0


VERB = verb(
    Options,
    results,
    add_arguments,
    summary="print the verdicts of results that were kept, as one table",
    description="Compute the verdicts of results that `report --keep` kept, and print them as one table.",
    examples=(
        "results experiments/results/norm-eps-tiny.json",
        "results experiments/results/norm-eps-tiny.json --into README.md",
    ),
)
