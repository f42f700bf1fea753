"""From a declaration to token shards on disk: built once, whole or not at all."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from llama_variants.errors import ConfigError, Problem
from runners.data import tokenizer as tokenizers
from runners.data.atomic import whole_folder
from runners.data.batches import Corpus
from runners.data.config import BPETokenizer, DataConfig, DataError, FilesSource, file_sha256
from runners.data.sources import Document, Documents, Split
from runners.data.tokenizer import TextTokenizer

_CHUNK = 64  # documents encoded together: a second or two of work
_SAY_EVERY_S = 5.0


def prepare(config: DataConfig, cache: Path, say: Callable[[str], None] = lambda text: None) -> Corpus:
    """The corpus that ``config`` declares: opened from ``cache``, or built there.

    Args:
        config: the `data` section of a base.
        cache: folder for wheels and shards; safe to delete, safe to share between processes.
        say: receives a line now and then while building.

    Raises:
        ConfigError: when the declaration cannot be met (no such file, no such tokenizer).
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
                    _build(config, identity, folder, cache, say)
        except OSError as error:
            raise DataError(f"could not build a corpus under {cache}: {error}") from error
    return Corpus.open(folder, json.loads(manifest.read_text()))


def known_sizes(config: DataConfig, cache: Path) -> tuple[int, int] | None:
    """Tokens of both splits, training first: exactly where the corpus is built, else at most; None where not known.

    A byte-level BPE makes no more tokens of a text than it has bytes, and one that ends each document.
    """
    manifest = _folder(config.identity(), cache) / "manifest.json"
    if manifest.exists():
        splits = json.loads(manifest.read_text())["splits"]
        return splits["train"]["tokens"], splits["validation"]["tokens"]
    if isinstance(config.source, FilesSource) and isinstance(config.tokenizer, BPETokenizer):
        train, validation = (config.source.most_bytes(split) for split in ("train", "validation"))
        return (train, validation) if train is not None and validation is not None else None
    return None


def _folder(identity: dict[str, Any], cache: Path) -> Path:
    """Where the corpus of an identity is, or would be."""
    return cache / "corpora" / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _build(config: DataConfig, identity: dict[str, Any], folder: Path, cache: Path, say: Callable[[str], None]) -> None:
    with whole_folder(folder.with_suffix(".partial"), folder) as partial:
        documents = Documents(config, cache)
        documents.fetch(say)
        say("reading the text and making the tokenizer")
        tokenizer = tokenizers.make(config.tokenizer, lambda: (d.text for d in documents.read("train")), cache)
        tokenizer.save(partial / "tokenizer.json")
        dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
        splits = {
            split: _write_split(documents, split, tokenizer, dtype, partial, say) for split in ("validation", "train")
        }
        files = sorted(file.name for file in partial.iterdir())
        digests = {name: file_sha256(partial / name) for name in files}
        content = json.dumps([identity, digests], sort_keys=True)
        manifest = {
            "fingerprint": hashlib.sha256(content.encode()).hexdigest()[:16],
            "identity": identity,
            "dtype": dtype.str,
            "vocab_size": tokenizer.vocab_size,
            "end_id": tokenizer.end_id,
            "splits": splits,
            "sha256": digests,
            "files": documents.files,
        }
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))
    train, validation = splits["train"], splits["validation"]
    say(
        f"built {folder.name}: {train['tokens']:,} training tokens in {train['documents']:,} documents, "
        f"{validation['tokens']:,} for validation"
    )


def _write_split(
    documents: Documents,
    split: Split,
    tokenizer: TextTokenizer,
    dtype: np.dtype[Any],
    folder: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Encode one split into ``split``.bin and its document offsets; returns its part of the manifest."""
    offsets = [0]
    num_bytes = 0
    domains: dict[str, dict[str, int]] = {}  # in order; the documents of one stand together
    said = time.monotonic()
    end = np.asarray([tokenizer.end_id])
    stream = documents.read(split)
    with (folder / f"{split}.bin").open("wb") as file:
        while chunk := list(itertools.islice(stream, _CHUNK)):
            encoded = tokenizer.encode([document.text for document in chunk])
            for place, (document, ids) in enumerate(zip(chunk, encoded, strict=True)):
                file.write(np.concatenate((ids, end)).astype(dtype).tobytes())
                size = len(document.text.encode())
                # Sizes show what is dropped, in every document; whole texts, in a few, what is replaced.
                if tokenizer.num_bytes(ids) != size or (place == 0 and document.domain not in domains):
                    _check_whole(tokenizer, document, ids)
                record = domains.setdefault(document.domain, {"start": offsets[-1], "tokens": 0, "bytes": 0})
                record["tokens"] += len(ids) + 1
                record["bytes"] += size
                num_bytes += size
                offsets.append(offsets[-1] + len(ids) + 1)
            if time.monotonic() - said > _SAY_EVERY_S:
                say(f"{split}: {len(offsets) - 1:,} documents, {num_bytes / 1e6:,.0f} MB, {offsets[-1]:,} tokens")
                said = time.monotonic()
    if skipped := documents.bad_rows(split):
        say(f"{split}: {skipped}")
    np.save(folder / f"{split}.offsets.npy", np.asarray(offsets, dtype="<i8"))
    counts = documents.counts[split]
    return {
        "tokens": offsets[-1],
        "documents": len(offsets) - 1,
        "bytes": num_bytes,
        "duplicates_dropped": counts["duplicates"] + counts["in_validation"],
        "in_validation": counts["in_validation"],
        "empty": counts["empty"],
        "bad_rows": counts["bad_rows"],
        "domains": domains,
    }


def _check_whole(tokenizer: TextTokenizer, document: Document, ids: np.ndarray) -> None:
    """Raises ConfigError where the tokens of a document do not give back its text."""
    if lost := tokenizer.lost(document.text, ids):
        problem = Problem(
            path=("data", "tokenizer"),
            received=f"one that loses text: of {document.domain} {lost}",
            allowed="a tokenizer that gives back what it is given, such as a byte-level BPE (type: bpe)",
        )
        raise ConfigError([problem])
