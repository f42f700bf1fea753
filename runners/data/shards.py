"""From a declaration to token shards on disk: built once, whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from llama_variants.errors import ConfigError, Problem
from runners.data import tokenizer as tokenizers
from runners.data.atomic import whole_folder
from runners.data.batches import Corpus
from runners.data.config import (
    DataConfig,
    DataError,
    FilesSource,
    MixtureSource,
    Sizes,
    Source,
    too_large,
)
from runners.data.declared import local
from runners.data.manifest import dtype_of, open_built, read_manifest, write_manifest
from runners.data.mixture import Mixture
from runners.data.passages import distinct, holds_any
from runners.data.progress import Progress, Say, silent
from runners.data.sources import Document, Documents, Split
from runners.data.synthetic import SyntheticSource
from runners.data.tokenizer import TextTokenizer
from runners.data.tokenizer_config import BPETokenizer, PretrainedTokenizer

_CHUNK = 2**21  # characters encoded together: a second of work for one core
_AHEAD = 2  # such chunks are encoded while a third is written, so that no core waits for the last document of one
_SAMPLED = 64  # of so many documents, one is decoded again
MAX_LOST = 0.001
"""Of a text's characters. SmolLM2's own tokenizer has no token for a few control characters; one that lower-cases loses
a few in a hundred."""


def prepare(config: DataConfig, cache: Path, say: Say = silent, *, vocab_size: int | None = None) -> Corpus:
    """The corpus that ``config`` declares: opened from ``cache``, or built there.

    Args:
        config: the `data` section of a base.
        cache: folder for wheels and shards; safe to delete, safe to share between processes.
        say: receives a line now and then while building.
        vocab_size: of the model that it is for: a tokenizer with more is refused before it has tokenized anything.

    Raises:
        ConfigError: when the declaration cannot be met (no such file, no such tokenizer, one that is too large).
        DataError: when the environment fails (network, damaged wheel, damaged cache).
    """
    identity = config.identity()
    folder = _folder(identity, cache)
    manifest = folder / "manifest.json"
    if not manifest.exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_suffix(".lock")):  # a second process waits here, and then finds it built
                if not manifest.exists():
                    _build(config, identity, folder, cache, say, vocab_size)
        except OSError as error:
            raise DataError(f"could not build a corpus under {cache}: {error}") from error
    return open_built(folder)


def known_sizes(config: DataConfig, cache: Path) -> Sizes:
    """What is known of a corpus before it is built: exactly where it is built already, else its splits at most.

    A byte-level BPE makes no more tokens of a text than it has bytes, and one that ends each document. A tokenizer in a
    local folder is there to be counted. Raises ConfigError where it cannot be loaded.
    """
    with suppress(OSError, DataError):  # not built, or damaged, which is said when it is opened
        built = read_manifest(_folder(config.identity(), cache))
        tokens = {split: record["tokens"] for split, record in built["splits"].items()}
        return Sizes(**tokens, vocab=built["vocab_size"])
    if isinstance(config.tokenizer, PretrainedTokenizer) and local(config.tokenizer.path).is_dir():
        return Sizes(vocab=tokenizers.make(config.tokenizer, lambda: (), cache).vocab_size)
    if isinstance(config.source, SyntheticSource):
        each = config.source.task.length + 1
        counts = {"train": config.source.train * each, "validation": config.source.validation * each}
        return Sizes(**counts, vocab=config.source.task.num_symbols + 1)
    if isinstance(config.source, FilesSource | MixtureSource) and isinstance(config.tokenizer, BPETokenizer):
        most = {split: config.source.most_bytes(split) for split in ("train", "validation")}
        return Sizes(**most, vocab=config.tokenizer.vocab_size)
    return Sizes()


def _folder(identity: dict[str, Any], cache: Path) -> Path:
    """Where the corpus of an identity is, or would be."""
    return cache / "corpora" / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _build(
    config: DataConfig,
    identity: dict[str, Any],
    folder: Path,
    cache: Path,
    say: Say,
    vocab_size: int | None,
) -> None:
    with whole_folder(folder.with_suffix(".partial"), folder) as partial:
        documents = open_source(config.source, cache)
        documents.fetch(say)
        say("reading the text and making the tokenizer")
        tokenizer = tokenizers.make(config.tokenizer, lambda: (d.text for d in documents.read("train")), cache)
        if vocab_size is not None and tokenizer.vocab_size > vocab_size:
            raise ConfigError([too_large(tokenizer.vocab_size, vocab_size)])
        tokenizer.save(partial / "tokenizer.json")
        dtype = dtype_of(tokenizer)
        held = write_split(documents, "validation", tokenizer, dtype, partial, say)
        passages = distinct(np.fromfile(partial / "validation.bin", dtype)) if config.dedupe else None
        train = write_split(documents, "train", tokenizer, dtype, partial, say, without=passages)
        write_manifest(partial, identity, tokenizer, {"validation": held, "train": train}, documents)
    say(
        f"built {folder.name}: {train['tokens']:,} training tokens in {train['documents']:,} documents, "
        f"{held['tokens']:,} for validation"
    )


def open_source(source: Source, cache: Path) -> Documents | Mixture:
    """The documents of a source of any type."""
    return Mixture(source, cache) if isinstance(source, MixtureSource) else Documents(source, cache)


def write_split(
    documents: Documents | Mixture,
    split: Split,
    tokenizer: TextTokenizer,
    dtype: np.dtype[Any],
    folder: Path,
    say: Say,
    *,
    without: np.ndarray | None = None,
) -> dict[str, Any]:
    """Encode one split into ``split``.bin and its document offsets; returns its part of the manifest.

    Documents with a passage out of ``without`` (:func:`runners.data.passages.distinct`) are left out.
    """
    offsets = [0]
    num_bytes = 0
    shared: set[bytes] = set()  # in a mixture one may be met again
    domains: dict[str, dict[str, int]] = {}  # in order; the documents of one stand together, but in a mixture
    parts: dict[str, dict[str, int]] = {}
    numbers: dict[str, int] = {}
    places: list[int] = []  # of each document, the number of its domain
    end = np.asarray([tokenizer.end_id])
    losses = _Losses()

    def encode(texts: Iterable[Document]) -> Iterator[tuple[Document, np.ndarray]]:
        for document, ids in _encoded(tokenizer, texts):
            if without is not None and len(without) and holds_any(without, ids):
                shared.add(document.digest)
            else:
                yield document, ids

    with (folder / f"{split}.bin").open("wb") as file, closing(Progress(split, say)) as progress:
        for number, (document, ids) in enumerate(documents.encoded(split, encode)):
            if number and number % _SAMPLED == 0:
                losses.check()
            share = documents.share_read(split)
            progress.at(documents=len(offsets) - 1, num_bytes=num_bytes, tokens=offsets[-1], share=share)
            file.write(np.concatenate((ids, end)).astype(dtype).tobytes())
            size = len(document.text.encode())
            sampled = number % _SAMPLED == 0 or document.domain not in domains
            losses.look(tokenizer, document, ids, size, sampled=sampled)
            for records, name in ((domains, document.domain), (parts, document.part)):
                record = records.setdefault(name, {"start": offsets[-1], "tokens": 0, "bytes": 0})
                record["tokens"] += len(ids) + 1
                record["bytes"] += size
            places.append(numbers.setdefault(document.domain, len(numbers)))
            num_bytes += size
            offsets.append(offsets[-1] + len(ids) + 1)
        losses.check()
    if skipped := documents.bad_rows(split):
        say(f"{split}: {skipped}")
    if losses.lost:
        say(f"{split}: the tokenizer loses {losses.lost:,} characters, the first {losses.first}")
    counts = documents.counts[split]
    left_out = {
        "that validation has": counts["in_validation"],
        "with passages of validation": len(shared),
        "there twice": counts["duplicates"],
    }
    if told := ", ".join(f"{count:,} {why}" for why, count in left_out.items() if count):
        say(f"{split}: documents left out: {told}")
    np.save(folder / f"{split}.offsets.npy", np.asarray(offsets, dtype="<i8"))
    if isinstance(documents, Mixture):
        np.save(folder / f"{split}.domains.npy", np.asarray(places, dtype="<i4"))
    return {
        "tokens": offsets[-1],
        "documents": len(offsets) - 1,
        "bytes": num_bytes,
        "duplicates_dropped": counts["duplicates"] + counts["in_validation"],
        "in_validation": counts["in_validation"],
        "with_passages_of_validation": len(shared),
        "empty": counts["empty"],
        "bad_rows": counts["bad_rows"],
        "characters_lost": losses.lost,
        "domains": domains,
        **({"parts": parts} if isinstance(documents, Mixture) else {}),
    }


def _encoded(tokenizer: TextTokenizer, documents: Iterable[Document]) -> Iterator[tuple[Document, np.ndarray]]:
    """Each document and its token ids (t,), in order; the next ones are encoded while the caller works."""
    waiting: deque[tuple[list[Document], Future[list[np.ndarray]]]] = deque()
    with ThreadPoolExecutor(_AHEAD) as pool:  # its threads only wait: the tokenizer has its own, one a core
        for chunk in _chunks(documents):
            waiting.append((chunk, pool.submit(tokenizer.encode, [document.text for document in chunk])))
            if len(waiting) > _AHEAD:
                yield from _next(waiting)
        while waiting:
            yield from _next(waiting)


def _next(waiting: deque[tuple[list[Document], Future[list[np.ndarray]]]]) -> Iterator[tuple[Document, np.ndarray]]:
    chunk, encoded = waiting.popleft()
    return zip(chunk, encoded.result(), strict=True)


def _chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Consecutive documents of ``_CHUNK`` characters in all: by size, since one may be as long as thousands."""
    chunk: list[Document] = []
    size = 0
    for document in documents:
        chunk.append(document)
        size += len(document.text)
        if size >= _CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


@dataclass(kw_only=True)
class _Losses:
    """Characters of a split that its tokens do not give back.

    All documents are looked at for text that is dropped, which shows in the number of bytes; those of a sample also for
    text that is replaced by as many others.
    """

    characters: int = 0
    lost: int = 0
    sampled: int = 0
    lost_in_sample: int = 0
    first: str = ""

    def look(self, tokenizer: TextTokenizer, document: Document, ids: np.ndarray, size: int, sampled: bool) -> None:
        """Count those of a document, whose text has ``size`` bytes."""
        text = document.text
        self.characters += len(text)
        if sampled or tokenizer.num_bytes(ids) != size:
            lost, words = tokenizer.lost(text, ids)
            self.lost += lost
            self.first = self.first or (words and f"of {document.domain} {words}")
            if sampled:
                self.sampled += len(text)
                self.lost_in_sample += lost

    def check(self) -> None:
        """Raises ConfigError where more than :data:`MAX_LOST` of all text, or of the sample, is lost."""
        if self.lost > MAX_LOST * self.characters or self.lost_in_sample > MAX_LOST * self.sampled:
            problem = Problem(
                path=("data", "tokenizer"),
                received=f"one that loses text, {self.lost:,} characters so far: {self.first}",
                allowed="a tokenizer that gives back what it is given, such as a byte-level BPE (type: bpe)",
            )
            raise ConfigError([problem])
