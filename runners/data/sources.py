"""Documents of any source, in one order and without exact duplicates."""

from __future__ import annotations

import glob
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from runners.data import packages
from runners.data.config import DataConfig, DataError, FilesSource, HubSource, PackagesSource, pin_name

Split = Literal["train", "validation"]
_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}  # any other file is one document of text


@dataclass(frozen=True)
class Document:
    """One text and what it is filed under: its package, its file, or its dataset."""

    domain: str
    text: str


class Documents:
    """The documents of both splits. A text that is in both belongs to validation alone.

    ``dropped`` counts the exact duplicates left out of each split, once that split has been read to its end.
    """

    def __init__(self, config: DataConfig, cache: Path) -> None:
        self.source = config.source
        self.cache = cache
        self.dropped: Counter[str] = Counter()
        self._held_out: set[bytes] | None = None

    def fetch(self, say: Callable[[str], None]) -> None:
        """Have every wheel here before work starts, so that one that cannot be had fails early."""
        if isinstance(self.source, PackagesSource):
            for pin in (*self.source.train, *self.source.validation):
                say(f"fetching {pin.partition(' ')[0]}")
                packages.fetch(pin, self.cache)

    def read(self, split: Split) -> Iterator[Document]:
        """Every document of ``split``, in an order that depends on the declaration alone. Empty texts are left out."""
        held_out: set[bytes] = set()
        if split == "train":
            if self._held_out is None:
                self._held_out = {_digest(document.text) for document in self._raw("validation")}
            held_out = self._held_out
        seen: set[bytes] = set()
        dropped = 0
        for document in self._raw(split):
            digest = _digest(document.text)
            if digest in seen or digest in held_out:
                dropped += 1
            elif document.text:
                seen.add(digest)
                yield document
        self.dropped[split] = dropped

    def _raw(self, split: Split) -> Iterator[Document]:
        if isinstance(self.source, PackagesSource):
            return self._from_packages(self.source, split)
        return self._from_datasets(self.source, split)

    def _from_packages(self, source: PackagesSource, split: Split) -> Iterator[Document]:
        for pin in sorted(getattr(source, split), key=pin_name):
            for _, text in packages.read_texts(packages.fetch(pin, self.cache), source.extensions):
                yield Document(pin_name(pin), text)

    def _from_datasets(self, source: FilesSource | HubSource, split: Split) -> Iterator[Document]:
        if isinstance(source, HubSource):
            name, _, bounds = getattr(source, split).rstrip("]").partition("[")  # "train" or "train[2000:50000]"
            start, _, stop = bounds.partition(":")
            rows = _rows(source.dataset, source.config, split=name, revision=source.revision)
            rows = islice(rows, int(start or 0), int(stop) if stop else None)
            yield from _texts(rows, source.text_field, source.dataset)
            return
        for file in source.files(split):
            kind = _FORMATS.get(file.suffix)
            options = {} if kind else {"sample_by": "document"}
            # Escaped, since datasets takes the name for a pattern, and finds nothing where it holds a bracket.
            rows = _rows(kind or "text", split="train", data_files=glob.escape(str(file)), **options)
            yield from _texts(rows, source.text_field if kind else "text", file.as_posix())


def _rows(*arguments: str | None, **options: Any) -> Iterator[dict[str, Any]]:
    """Rows of a dataset, streamed: nothing is converted or cached on disk."""
    import datasets

    datasets.disable_progress_bars()
    try:
        yield from datasets.load_dataset(*arguments, streaming=True, **options)
    except Exception as error:  # whatever a hub, a script or a parser may raise, at once or at some row
        name = options.get("data_files", arguments[0])
        raise DataError(f"datasets could not read {name}: {type(error).__name__}: {error}") from None


def _texts(rows: Iterator[dict[str, Any]], field: str, domain: str) -> Iterator[Document]:
    for row in rows:
        if not isinstance(row.get(field), str):
            raise DataError(f"{domain}: a row without text in {field!r}; its fields are {', '.join(row)}")
        yield Document(domain, row[field])


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
