"""`blocks`: the registered blocks."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

from runners.verbs.common import Context, verb


@dataclass(frozen=True, kw_only=True)
class Options:
    """All blocks in one form, or all of one block."""

    type: str | None
    as_json: bool
    markdown: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of :class:`Options`."""
    parser.add_argument("type", nargs="?", help="one block, e.g. sliding_window: all that it says of itself")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", dest="as_json", help="print JSON")
    form.add_argument("--markdown", action="store_true", help="print the page that lies beside the blocks")


def blocks(options: Options, context: Context) -> int:
    """Print them. Raises ConfigError for a block that is not registered."""
    from llama_variants.errors import ConfigError, Problem, one_of
    from llama_variants.summary import block_text, blocks_markdown, blocks_table, blocks_text

    table = blocks_table()
    names = dict.fromkeys(row["type"] for row in table)
    if options.type is not None and options.type not in names:
        raise ConfigError([Problem(path=("type",), received=repr(options.type), allowed=one_of(options.type, names))])
    if options.type:
        print(block_text(options.type))
    elif options.as_json:
        print(json.dumps(table, indent=1))
    else:
        print((blocks_markdown() if options.markdown else blocks_text()).rstrip("\n"))
    return 0


VERB = verb(
    Options,
    blocks,
    add_arguments,
    prints_only=True,
    summary="list the registered blocks",
    examples=("blocks", "blocks sliding_window", "blocks --markdown > llama_variants/blocks/README.md"),
)
