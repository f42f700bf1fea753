"""Documents of any source, in one order and without exact duplicates."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llama_variants.errors import ConfigError, Problem
from runners.data import hub, packages
from runners.data.config import FilesSource, HubSource, PackagesSource, pin_name
from runners.data.rows import BadRow, read_rows
from runners.data.synthetic import SyntheticSource

Split = Literal["train", "validation"]
Encode = Callable[[Iterable["Document"]], Iterator[tuple["Document", np.ndarray]]]


@dataclass(frozen=True)
class Document:
    """One text and what it is filed under: its package, its file, or its dataset; in a mixture also its ``part``."""

    domain: str
    text: str
    part: str = ""

    @property
    def digest(self) -> bytes:
        """Of the text."""
        return hashlib.sha256(self.text.encode()).digest()


class Documents:
    """The documents of both splits. A text that is in both belongs to validation alone.

    ``counts``: of each split, how many texts were left out as far as it has been read: ``duplicates``,
    ``in_validation``, ``empty`` and ``bad_rows``. ``files``: of a split's files, how each was read, and its rows.
    """

    def __init__(self, source: PackagesSource | FilesSource | HubSource | SyntheticSource, cache: Path) -> None:
        self.source = source
        self.cache = cache
        self.counts: dict[Split, Counter[str]] = {}
        self.files: dict[Split, list[dict[str, Any]]] = {}
        self._whole: set[Split] = set()
        self._held_out: Set[bytes] | None = None
        self._first_bad: dict[Split, str] = {}
        self._shares: dict[Split, float] = {}

    def fetch(self, say: Callable[[str], None]) -> None:
        """Have every wheel here before work starts, so that one that cannot be had fails early; say what is taken."""
        if isinstance(self.source, PackagesSource):
            for pin in (*self.source.train, *self.source.validation):
                say(f"fetching {pin.partition(' ')[0]}")
                packages.fetch(pin, self.cache)
        if isinstance(self.source, FilesSource):
            for split in ("train", "validation"):
                say(f"{split}: {self.source.taken(split)}")

    def read(self, split: Split) -> Iterator[Document]:
        """Every document of ``split``, in an order that depends on the declaration alone. Empty texts are left out.

        Raises ConfigError at a row without text, where such are not to be skipped, and when nothing is left.
        """
        held_out = self.held_out() if split == "train" else frozenset()
        seen: set[bytes] = set()
        counts: Counter[str] = Counter()
        if split not in self._whole:
            self.counts[split] = counts
        for document in self._raw(split, counts):
            digest = document.digest
            if not document.text:
                counts["empty"] += 1
            elif digest in held_out:
                counts["in_validation"] += 1
            elif digest in seen:
                counts["duplicates"] += 1
            else:
                seen.add(digest)
                yield document
        self._whole.add(split)
        if not seen:
            raise self._nothing(split, counts)
        if split == "validation" and self._held_out is None:
            self._held_out = seen  # not read again before training text

    def encoded(self, split: Split, encode: Encode) -> Iterator[tuple[Document, np.ndarray]]:
        """Every document of ``split`` with its token ids (t,), which ``encode`` makes."""
        return encode(self.read(split))

    def held_out(self) -> Set[bytes]:
        """Digests of the validation texts, none of which is training text."""
        if self._held_out is None:
            self._held_out = {document.digest for document in self._raw("validation", Counter())}
        return self._held_out

    def keep_out(self, digests: Set[bytes]) -> None:
        """Have ``digests`` in place of those of its own validation texts."""
        self._held_out = digests

    def share_read(self, split: Split) -> float | None:
        """How much of a split has been read by now (0 … 1); None where only reading it to the end would tell."""
        return self._shares.get(split)

    def bad_rows(self, split: Split) -> str:
        """How many rows of a split that has been read were skipped, and the first, in words; empty where none was."""
        count = self.counts[split]["bad_rows"]
        return f"{count:,} rows without text skipped, the first at {self._first_bad[split]}" if count else ""

    def _nothing(self, split: Split, counts: Counter[str]) -> ConfigError:
        words = {
            "in_validation": "stand in validation too, which keeps what is in both",
            "empty": "are empty",
            "bad_rows": "give no text",
        }
        reasons = [f"{counts[name]:,} {what}" for name, what in words.items() if counts[name]]
        if split in self._first_bad:
            reasons.append(f"the first at {self._first_bad[split]}")
        received = f"no document: {', '.join(reasons) or 'it has no rows'}"
        allowed = "text" if split == "validation" else "text that validation does not have"
        return ConfigError([Problem(path=("data", "source", split), received=received, allowed=allowed)])

    def _raw(self, split: Split, counts: Counter[str]) -> Iterator[Document]:
        if isinstance(self.source, PackagesSource):
            return self._from_packages(self.source, split)
        if isinstance(self.source, FilesSource):
            return self._from_files(self.source, split, counts)
        if isinstance(self.source, SyntheticSource):
            return self._from_task(self.source, split)
        return self._from_hub(self.source, split, counts)

    def _from_task(self, source: SyntheticSource, split: Split) -> Iterator[Document]:
        for number, text in enumerate(source.documents(split), start=1):
            self._shares[split] = number / getattr(source, split)
            yield Document(source.task.type, text)

    def _from_packages(self, source: PackagesSource, split: Split) -> Iterator[Document]:
        pins = sorted(getattr(source, split), key=pin_name)
        wheels = [packages.fetch(pin, self.cache) for pin in pins]
        total, read = sum(packages.num_bytes(wheel, source.extensions) for wheel in wheels), 0
        for pin, wheel in zip(pins, wheels, strict=True):
            for _, text in packages.read_texts(wheel, source.extensions):
                read += len(text.encode())
                self._shares[split] = read / max(total, 1)
                yield Document(pin_name(pin), text)

    def _from_files(self, source: FilesSource, split: Split, counts: Counter[str]) -> Iterator[Document]:
        read_so: list[dict[str, Any]] = []
        if split not in self._whole:
            self.files[split] = read_so
        found = source.readings(split)
        total, read = sum(file.stat().st_size for file, _ in found), 0
        for file, how in found:
            rows: Counter[str] = Counter(rows=0, bad_rows=0)
            inside = 0
            for row in read_rows(file, how, source.text_field):
                rows["rows"] += 1
                if isinstance(row, BadRow):
                    rows["bad_rows"] += 1
                    self._skip(split, file.as_posix(), row, counts)
                else:
                    if not how.packed:  # no more of the file than its text, of which nobody knows how it was packed
                        inside += len(row.encode())
                    self._shares[split] = (read + inside) / max(total, 1)
                    yield Document(file.as_posix(), row)
            read += file.stat().st_size
            read_so.append({"file": file.as_posix(), "read_as": str(how), **rows})

    def _from_hub(self, source: HubSource, split: Split, counts: Counter[str]) -> Iterator[Document]:
        _, first, last = hub.bounds(getattr(source, split))
        for number, row in enumerate(hub.read_dataset(source, split, self.cache), start=1):
            if last is not None:
                self._shares[split] = number / (last - first)
            if isinstance(row, BadRow):
                self._skip(split, source.dataset, row, counts)
            else:
                yield Document(source.dataset, row)

    def _skip(self, split: Split, name: str, row: BadRow, counts: Counter[str]) -> None:
        """Count a row that gives no text. Raises ConfigError where such are not to be skipped."""
        where = f"{name}, {row.place}" if row.place else name
        assert isinstance(self.source, FilesSource | HubSource)
        if self.source.on_bad_row == "error":
            wanted = f"text in {self.source.text_field!r}" if row.place else "UTF-8"
            allowed = f"{wanted}; `on_bad_row: skip` leaves out and counts what has none"
            raise ConfigError(
                [Problem(path=("data", "source", split), where=where, received=row.found, allowed=allowed)]
            )
        counts["bad_rows"] += 1
        self._first_bad.setdefault(split, f"{where}: {row.found}")
