"""Passages of the validation text that stand in the training text, word for word, and the documents that hold them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from llama_variants.errors import ConfigError, Problem
from runners.data.atomic import write_atomically
from runners.data.batches import Corpus
from runners.data.passages import LENGTH, in_stretches, passage_hashes

PROBES = 64
"""Passages that are looked for, spread over the validation text."""
MAX_SHARED = 0.1
"""Of them; a licence text may well stand in both splits. The gate of every run has the same numbers."""


@dataclass(frozen=True, kw_only=True)
class Shared:
    """One passage in both splits; documents by their domain and their number in the split, from 1."""

    text: str
    validation: str
    train: str


def refuse_overlap(corpus: Corpus) -> None:
    """Raises ConfigError, with two of the passages, where a run would be shown what it is judged on.

    Every run of such a corpus would be invalid: it is said before the first one.
    """
    found = shared_passages(corpus)
    probes = len(_starts(np.asarray(corpus.validation.tokens)))
    if len(found) <= max(1, MAX_SHARED * probes):
        return
    shown = [f"{one.text.strip()[:80]!r} in {one.validation} (validation) and {one.train} (training)" for one in found]
    received = (
        f"{len(found)} of {probes} passages of validation in the training text, word for word: {'; '.join(shown[:2])}"
    )
    allowed = "`dedupe: true` in data, which drops training documents with such passages; or other text for validation"
    raise ConfigError([Problem(path=("data",), received=received, allowed=allowed)])


def shared_passages(corpus: Corpus) -> list[Shared]:
    """Those of ``PROBES`` passages, spread over the validation text, that stand in the training text; found once."""
    file = corpus.folder / f"overlap-{PROBES}x{LENGTH}.json"
    if file.exists():
        return [Shared(**one) for one in json.loads(file.read_text())]
    found = list(_find(corpus))
    with contextlib.suppress(OSError):  # a cache that cannot be written: it is found again
        write_atomically(file, json.dumps([asdict(one) for one in found], indent=1))
    return found


def _find(corpus: Corpus) -> Iterator[Shared]:
    from tokenizers import Tokenizer

    held, train = np.asarray(corpus.validation.tokens), np.asarray(corpus.train.tokens)
    length, starts = min(LENGTH, len(held)), _starts(held)
    wanted = np.concatenate([passage_hashes(held[start : start + length], length) for start in starts])
    first: dict[bytes, int] = {}
    for begin, hashes in in_stretches(train, length):
        for at in (begin + np.flatnonzero(np.isin(hashes, wanted))).tolist():
            first.setdefault(train[at : at + length].tobytes(), at)
    backend = Tokenizer.from_file(str(corpus.folder / "tokenizer.json"))
    for start in starts:
        passage = held[start : start + length]
        if (place := first.get(passage.tobytes())) is not None:
            yield Shared(
                text=backend.decode(passage.tolist(), skip_special_tokens=False),
                validation=document_at(corpus, "validation", int(start)),
                train=document_at(corpus, "train", place),
            )


def _starts(tokens: np.ndarray) -> np.ndarray:
    """Where the passages that are looked for begin: fewer than ``PROBES`` in a short text."""
    return np.unique(np.linspace(0, len(tokens) - min(LENGTH, len(tokens)), PROBES).astype(int))


def near_duplicates(corpus: Corpus, split: str) -> list[str]:
    """The documents of a split half of whose passages stand in earlier ones, in words.

    Of all passages those are compared whose digest ends in four zero bits: a sixteenth, the same ones of equal texts.
    """
    tokens, offsets = np.asarray(getattr(corpus, split).tokens), np.load(corpus.folder / f"{split}.offsets.npy")
    kept = []
    for start, hashes in in_stretches(tokens):
        places = np.flatnonzero(hashes & np.uint64(15) == 0)
        documents = np.searchsorted(offsets, start + places, side="right") - 1
        kept.append((hashes[places], documents.astype(np.int32)))
    if not kept:
        return []
    digests, document = map(np.concatenate, zip(*kept, strict=True))
    order = np.argsort(digests, kind="stable")  # equal ones side by side, the first of them in front
    digests, document = digests[order], document[order]
    new = np.append(True, digests[1:] != digests[:-1])[: len(digests)]
    seen = document[new][np.cumsum(new) - 1] < document
    counts = np.bincount(document, minlength=len(offsets) - 1)
    shares = np.bincount(document[seen], minlength=len(offsets) - 1) / np.maximum(counts, 1)
    return [document_at(corpus, split, int(offsets[i])) for i in np.flatnonzero((shares >= 0.5) & (counts > 0))]


def document_at(corpus: Corpus, split: str, place: int) -> str:
    """The document of a split that holds the token at ``place``, in words."""
    offsets = np.load(corpus.folder / f"{split}.offsets.npy")
    number = int(np.searchsorted(offsets, place, side="right"))
    domains = corpus.manifest["splits"][split]["domains"]
    index = corpus.folder / f"{split}.domains.npy"
    if index.exists():  # of a mixture, whose domains do not stand together
        domain = list(domains)[np.load(index)[number - 1]]
    else:
        domain = next(name for name, one in domains.items() if one["start"] <= place < one["start"] + one["tokens"])
    return f"{domain}, document {number:,} of {len(offsets) - 1:,}"
