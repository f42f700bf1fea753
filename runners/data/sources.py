"""Documents of any source, in one order and without exact duplicates."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runners.data import packages
from runners.data.config import DataConfig, DataError, FilesSource, HubSource, PackagesSource

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
        for pin in sorted(getattr(source, split), key=packages.domain):
            for _, text in packages.read_texts(packages.fetch(pin, self.cache), source.extensions):
                yield Document(packages.domain(pin), text)

    def _from_datasets(self, source: FilesSource | HubSource, split: Split) -> Iterator[Document]:
        if isinstance(source, HubSource):
            rows = _load(source.dataset, source.config, split=getattr(source, split), revision=source.revision)
            yield from _texts(rows, source.text_field, source.dataset)
            return
        for file in source.files(split):
            kind = _FORMATS.get(file.suffix)
            if kind is None:
                rows = _load("text", split="train", data_files=str(file), sample_by="document")
                yield from _texts(rows, "text", file.stem)
            else:
                yield from _texts(_load(kind, split="train", data_files=str(file)), source.text_field, file.stem)


def _load(*arguments: object, **options: object) -> object:
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(*arguments, streaming=True, **options)
    except Exception as error:  # whatever a hub, a script or a parser may raise
        raise DataError(f"datasets could not load {arguments[0]}: {type(error).__name__}: {error}") from None


def _texts(rows: object, field: str, domain: str) -> Iterator[Document]:
    for row in rows:  # type: ignore[attr-defined]
        if not isinstance(row.get(field), str):
            raise DataError(f"{domain}: a row without text in {field!r}; its fields are {', '.join(row)}")
        yield Document(domain, row[field])


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
