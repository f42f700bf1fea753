"""Rows of a dataset: of the hub, streamed once and then read from the cache, or of a local folder."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from runners.data.atomic import flush
from runners.data.config import DataError, HubSource
from runners.data.declared import local
from runners.data.rows import BadRow, as_text


def read_dataset(source: HubSource, split: str, cache: Path) -> Iterator[str | BadRow]:
    """The text of each row of a split, in order. No more is fetched than its slice, and that once.

    Raises DataError where the hub, or what was kept of it, cannot be read.
    """
    if local(source.dataset).is_dir():
        return _streamed(source, split)
    asked = [source.dataset, source.config, getattr(source, split), source.revision, source.text_field]
    kept = cache / "hub" / f"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]}.jsonl.gz"
    return _kept(kept) if kept.exists() else _keeping(_streamed(source, split), kept)


def bounds(slice_: str) -> tuple[str, int, int | None]:
    """Name, first row and the row after the last of a split such as ``train`` or ``train[2000:50000]``."""
    name, _, rest = slice_.rstrip("]").partition("[")
    start, _, stop = rest.partition(":")
    return name, int(start or 0), int(stop) if stop else None


def _streamed(source: HubSource, split: str) -> Iterator[str | BadRow]:
    name, first, last = bounds(getattr(source, split))
    folder = local(source.dataset)
    place = str(folder) if folder.is_dir() else source.dataset
    rows = _rows(place, source.config, split=name, revision=source.revision)
    for number, row in enumerate(islice(rows, first, last), start=first + 1):
        where = f"row {number} of {name}"
        if source.text_field in row:
            yield as_text(row[source.text_field], where)
        else:
            yield BadRow(where, f"no {source.text_field!r}; its fields are {', '.join(row)}")


def _rows(*arguments: str | None, **options: Any) -> Iterator[dict[str, Any]]:
    import datasets

    datasets.disable_progress_bars()
    try:
        yield from datasets.load_dataset(*arguments, streaming=True, **options)
    except Exception as error:  # whatever a hub, a script or a parser may raise, at once or at some row
        said = " ".join(str(error).split())
        raise DataError(f"datasets could not read {arguments[0]}: {type(error).__name__}: {said}") from None


def _keeping(rows: Iterator[str | BadRow], kept: Path) -> Iterator[str | BadRow]:
    """All ``rows``, which are in ``kept`` when the last one has been given; whoever stops before keeps nothing."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(".partial")
    lock = FileLock(kept.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:  # another one keeps them, here or in another process
        yield from rows
        return
    try:
        with gzip.open(partial, "wt", encoding="utf-8", compresslevel=1) as file:
            for row in rows:
                file.write(json.dumps([row.place, row.found] if isinstance(row, BadRow) else row) + "\n")
                yield row
        flush(partial)
        partial.replace(kept)
        flush(kept.parent)
    finally:
        partial.unlink(missing_ok=True)
        lock.release()


def _kept(file: Path) -> Iterator[str | BadRow]:
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                yield row if isinstance(row, str) else BadRow(*row)
    except (OSError, EOFError, ValueError, TypeError, zlib.error) as error:
        raise DataError(f"{file} is damaged ({type(error).__name__}: {error}); delete it") from None
