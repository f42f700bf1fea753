"""`data`: build a corpus, look at it, check its files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runners.verbs.common import CACHE, Context, verb
from runners.verbs.progress import print_now

if TYPE_CHECKING:
    from runners.data.batches import Corpus
    from runners.data.config import DataConfig

WINDOWS, WINDOW, SHOWN = 10, 24, 5
"""Windows that `inspect` decodes, their tokens, and documents that it names of a kind."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to do with which data."""

    action: str
    what: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of :class:`Options`."""
    text = "build: tokenize it into cache/. inspect: also show what is in it. verify: read every file again"
    parser.add_argument("action", choices=("build", "inspect", "verify"), help=text)
    parser.add_argument("what", help="a base or data of experiments/, by its name or file")


def data(options: Options, context: Context) -> int:
    """Build, show or verify. 1 where the data cannot be had, or a file is not what was built."""
    config = _config(options.what)
    from runners.data import DataError, prepare
    from runners.data.overlap import refuse_overlap

    try:
        corpus = prepare(config, CACHE, print_now)
        if options.action == "verify":
            corpus.verify()
            print(f"{corpus.folder}: every file is what was built")
            return 0
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for line in _summary(corpus):
        print(line)
    if options.action == "inspect":
        for line in _details(corpus):
            print(line)
    refuse_overlap(corpus)
    return 0


def _config(what: str) -> DataConfig:
    """The data that a name or a file stands for. Raises ConfigError."""
    from llama_variants.errors import ConfigError, Problem, one_of
    from runners.planning import strict_yaml
    from runners.planning.bases import load_base, load_data
    from runners.planning.lookup import find_file

    file = Path(what)
    if not what.endswith((".yaml", ".yml")):
        known: list[str] = []
        for kind in ("base", "data"):
            try:
                file = find_file(kind, what)
                break
            except ConfigError as error:
                known.append(error.problems[0].allowed)
        else:
            allowed = f"a base or data: {'; '.join(known)}" if known else one_of(what, [])
            raise ConfigError([Problem(path=("WHAT",), received=repr(what), allowed=allowed)])
    written = strict_yaml.load(file).data
    return load_data(file) if isinstance(written, dict) and "source" in written else load_base(file)[0].data


def _summary(corpus: Corpus) -> Iterator[str]:
    yield f"{corpus.folder}: fingerprint {corpus.fingerprint}, {corpus.manifest['vocab_size']:,} token ids"
    for split in ("train", "validation"):
        record = corpus.manifest["splits"][split]
        size = f"{record['tokens']:,} tokens in {record['documents']:,} documents"
        text = record["tokens"] - record["documents"]
        yield f"{split:<10} {size}, {record['bytes'] / 1e6:,.1f} MB, {record['bytes'] / max(1, text):.2f} bytes a token"
        if parts := record.get("parts"):
            shares = [f"{name} {one['tokens'] / record['tokens']:.1%}" for name, one in parts.items()]
            yield f"{'':<10} parts, in tokens: {', '.join(shares)}"
        reasons = {
            "duplicates_dropped": "there twice or in validation",
            "with_passages_of_validation": "with passages of validation",
            "empty": "empty",
            "bad_rows": "rows without text",
        }
        if told := [f"{record[key]:,} {words}" for key, words in reasons.items() if record.get(key)]:
            yield f"{'':<10} left out: {', '.join(told)}"


def _details(corpus: Corpus) -> Iterator[str]:
    import numpy as np
    from tokenizers import Tokenizer

    from runners.data.overlap import PROBES, document_at, near_duplicates, shared_passages

    backend = Tokenizer.from_file(str(corpus.folder / "tokenizer.json"))
    for split in ("train", "validation"):
        domains = corpus.manifest["splits"][split]["domains"]
        largest = sorted(domains.items(), key=lambda pair: -pair[1]["tokens"])[:SHOWN]
        shown = ", ".join(f"{name} {one['tokens']:,}" for name, one in largest)
        more = f" and {len(domains) - SHOWN} more" if len(domains) > SHOWN else ""
        yield f"\n{split}: tokens by domain: {shown}{more}"
        offsets = np.load(corpus.folder / f"{split}.offsets.npy")
        sizes = np.diff(offsets)
        order = np.argsort(sizes, kind="stable")
        for words, few in (("shortest", order[:SHOWN]), ("longest", order[::-1][:SHOWN])):
            named = [f"{sizes[i]:,} ({document_at(corpus, split, int(offsets[i]))})" for i in few]
            yield f"{split}: {words} documents, in tokens: {'; '.join(named)}"
        alike = near_duplicates(corpus, split)
        first = f": {'; '.join(alike[:SHOWN])}" if alike else ""
        yield f"{split}: {len(alike):,} documents half of whose passages stand in earlier ones{first}"
    shared = shared_passages(corpus)
    yield f"\n{len(shared)} of {PROBES} passages of validation stand in the training text"
    yield from (f"  {one.text.strip()[:80]!r}: {one.validation} and {one.train}" for one in shared[:SHOWN])
    yield f"\n{WINDOWS} windows of the training text:"
    generator = np.random.Generator(np.random.Philox(0))
    for start in generator.integers(max(1, len(corpus.train.tokens) - WINDOW), size=WINDOWS):
        yield f"  {backend.decode(corpus.train.tokens[start : start + WINDOW].tolist(), skip_special_tokens=False)!r}"


VERB = verb(
    Options,
    data,
    add_arguments,
    summary="build a corpus, show what is in it, verify its files",
    examples=("data build tiny", "data inspect packages", "data verify experiments/base/tiny.yaml"),
)
