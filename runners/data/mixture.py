"""Documents of several sources, interleaved by weight."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Set
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from llama_variants.errors import ConfigError, Problem
from runners.data.config import MixtureSource, in_part
from runners.data.sources import Document, Documents, Encode, Split

Item = TypeVar("Item")


BYTES_A_TOKEN = 8
"""So much text for each token of a mixture, at most, is a tokenizer learned from."""


def interleave(
    streams: Mapping[str, Iterator[Item]], shares: Mapping[str, float], size: Callable[[Item], int]
) -> Iterator[Item]:
    """Items of all ``streams``, so that at every moment each has had its share of the total size, within one item.

    The order depends on the sizes alone: of the streams that have had no more than their share, the one comes next
    whose next item it would be due to have finished first. It ends with the first stream that has no next item.
    Source: worst-case fair weighted fair queueing, Bennett and Zhang, doi:10.1109/INFCOM.1996.497885.
    """
    heads = {}
    had = dict.fromkeys(streams, 0)
    behind = list(streams)  # those whose next item is not known yet
    while True:
        for name in behind:
            try:
                heads[name] = next(streams[name])
            except StopIteration:
                return
        total = sum(had.values())
        ready = [name for name in streams if had[name] <= shares[name] * total * (1 + 1e-12)]  # but for rounding
        first = min(ready, key=lambda name: (had[name] + size(heads[name])) / shares[name])
        yield heads[first]
        had[first] += size(heads[first])
        behind = [first]


class Mixture:
    """What :class:`Documents` is for one source, for a mixture of several. A domain is named by its part, too.

    A text that stands in several parts belongs to the one that comes to it first; one that stands in the validation of
    any part is no training text. ``passes``: how often each part has been begun for training.
    """

    def __init__(self, source: MixtureSource, cache: Path) -> None:
        self.source = source
        self.parts = {name: Documents(part.source, cache) for name, part in source.parts.items()}
        self.passes: Counter[str] = Counter()
        self._twice: dict[Split, int] = {}
        self._held_out: Set[bytes] | None = None
        self._tokens = 0
        self._used_up = ""

    def fetch(self, say: Callable[[str], None]) -> None:
        """As :meth:`Documents.fetch`, of all parts."""
        for name, documents in self.parts.items():
            with in_part(name):
                documents.fetch(partial(_say_of, name, say))

    def read(self, split: Split) -> Iterator[Document]:
        """Validation: the texts of one part after another. Training: by weight, in bytes, as far as that goes.

        With ``tokens`` it goes to ``BYTES_A_TOKEN`` for each of them: a tokenizer is learned from about what it is for,
        and no source is read to its end for it.
        """
        if split == "validation":
            yield from self._in_turn()
            return
        most = math.inf if self.source.tokens is None else BYTES_A_TOKEN * self.source.tokens
        had = 0
        for document in self._interleaved(iter, _num_bytes):
            yield document
            had += _num_bytes(document)
            if had >= most:
                return

    def encoded(self, split: Split, encode: Encode) -> Iterator[tuple[Document, np.ndarray]]:
        """As :meth:`Documents.encoded`; training text interleaved by weight, in tokens.

        Raises ConfigError where a part is used up before the mixture has its tokens.
        """
        if split == "validation":
            yield from encode(self._in_turn())
            return
        had: Counter[str] = Counter()
        self._tokens = 0
        for document, ids in self._interleaved(encode, lambda pair: len(pair[1]) + 1):
            yield document, ids
            had[document.part] += len(ids) + 1
            self._tokens += len(ids) + 1
            if self.source.tokens and self._tokens >= self.source.tokens:
                return  # what is encoded ahead is not used
        if self.source.tokens:
            raise self._too_little(had[self._used_up], self.source.tokens)

    @property
    def counts(self) -> dict[Split, Counter[str]]:
        """As those of :class:`Documents`, of all parts."""
        found: dict[Split, Counter[str]] = {}
        for split, twice in self._twice.items():
            found[split] = Counter(duplicates=twice)
            for documents in self.parts.values():
                found[split] += documents.counts[split]
        return found

    @property
    def files(self) -> dict[Split, list[dict[str, Any]]]:
        """As those of :class:`Documents`, of all parts."""
        found: dict[Split, list[dict[str, Any]]] = {}
        for name, documents in self.parts.items():
            for split, files in documents.files.items():
                found.setdefault(split, []).extend({"part": name, **file} for file in files)
        return found

    def bad_rows(self, split: Split) -> str:
        """As :meth:`Documents.bad_rows`, of all parts."""
        found = {name: documents.bad_rows(split) for name, documents in self.parts.items()}
        return "; ".join(f"{name}: {words}" for name, words in found.items() if words)

    def share_read(self, split: Split) -> float | None:
        """As :meth:`Documents.share_read`."""
        if split == "train" and self.source.tokens:
            return self._tokens / self.source.tokens
        read = [documents.share_read(split) for documents in self.parts.values()]
        if split == "validation":  # of parts of which nobody knows how long they are
            return None
        passes = zip(self.source.parts.items(), read, strict=True)
        known = [(self.passes[name] - 1 + share) / part.max_epochs for (name, part), share in passes if share]
        return max(known, default=None)

    def _in_turn(self) -> Iterator[Document]:
        seen: set[bytes] = set()
        self._twice["validation"] = 0
        for name in self.parts:
            for document in self._part(name, "validation"):
                if document.digest in seen:
                    self._twice["validation"] += 1
                else:
                    seen.add(document.digest)
                    yield document

    def _part(self, name: str, split: Split) -> Iterator[Document]:
        with in_part(name):
            for document in self.parts[name].read(split):
                yield Document(f"{name}/{document.domain}", document.text, name)

    def _interleaved(
        self, encode: Callable[[Iterator[Document]], Iterator[Item]], size: Callable[[Item], int]
    ) -> Iterator[Item]:
        if self._held_out is None:
            self._held_out = frozenset[bytes]().union(*map(self._held_out_of, self.parts))
        self.passes.clear()
        self._twice["train"] = 0
        owners: dict[bytes, str] = {}
        with ExitStack() as stack:
            streams = {name: stack.enter_context(closing(self._passes(name, encode, owners))) for name in self.parts}
            yield from interleave(streams, self.source.shares, size)

    def _held_out_of(self, name: str) -> Set[bytes]:
        with in_part(name):
            return self.parts[name].held_out()

    def _passes(
        self, name: str, encode: Callable[[Iterator[Document]], Iterator[Item]], owners: dict[bytes, str]
    ) -> Generator[Item, None, None]:
        """One part as often as it may be read, without what other parts have come to before.

        What was encoded is looked at here, one at a time, since how far ahead that is done is nobody's business.
        """
        assert self._held_out is not None
        for number in range(self.source.parts[name].max_epochs):
            self.parts[name].keep_out(self._held_out)
            self.passes[name] += 1
            found = False
            for item in encode(self._part(name, "train")):
                document: Any = item[0] if isinstance(item, tuple) else item
                if owners.setdefault(document.digest, name) == name:
                    found = True
                    yield item
                elif not number:
                    self._twice["train"] += 1
            if not found:
                received = "no document that the other parts and validation lack"
                path = ("data", "source", "parts", name)
                raise ConfigError([Problem(path=path, received=received, allowed="a part with text of its own")])
        self._used_up = name

    def _too_little(self, had: int, tokens: int) -> ConfigError:
        """Of the part that is used up after ``had`` tokens of its own."""
        name = self._used_up
        most = self.source.parts[name].max_epochs
        received = f"a part that is used up: {had:,} tokens in {most} epochs, when the mixture has {self._tokens:,}"
        epochs = math.ceil(most * self.source.shares[name] * tokens / had)
        allowed = f"`max_epochs: {epochs}`, a smaller weight, or `tokens: {self._tokens}`"
        return ConfigError([Problem(path=("data", "source", "parts", name), received=received, allowed=allowed)])


def _num_bytes(document: Document) -> int:
    return len(document.text.encode())


def _say_of(name: str, say: Callable[[str], None], text: str) -> None:
    say(f"{name}: {text}")
