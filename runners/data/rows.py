"""The rows of a local file as texts, one at a time; what is wrong with one says where it stands.

One policy for all formats: text is UTF-8; a byte-order mark at a file's start is dropped; line ends inside a text are
kept as the file has them, so that its bytes are counted exactly. Of a row only the text is looked at: its other fields
may hold what they like.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from llama_variants.errors import ConfigError, Problem
from runners.data.formats import DAMAGED, Reading, open_stream

if TYPE_CHECKING:
    import pyarrow.parquet as pq

FIELD = ("data", "source", "text_field")


@dataclass(frozen=True)
class BadRow:
    """A row that gives no text: where it stands in its file (``line 3``), and what was found there."""

    place: str
    found: str


def read_rows(file: Path, how: Reading, field: str) -> Iterator[str | BadRow]:
    """The text of each row of ``file``, in order; ``field`` names it where rows have several.

    Raises ConfigError where the file as a whole cannot be read: it is damaged, or has no such column.
    """
    try:
        if how.format == "parquet":
            yield from _parquet(file, how, field)
            return
        with open_stream(file, how.compression) as stream:
            if how.format == "text":
                yield as_text(stream.read().decode("utf-8", "surrogateescape"), "")
            elif how.format == "jsonl":
                yield from _json_lines(stream, field)
            elif how.format == "json":
                yield from _json(stream, field)
            else:
                yield from _delimited(file, stream, field, "\t" if how.format == "tsv" else ",")
    except ConfigError:  # a ValueError too
        raise
    except DAMAGED as error:
        received = f"{file}, which cannot be read to its end: {type(error).__name__}: {error}"
        raise ConfigError(
            [Problem(path=("data", "source"), received=received, allowed="a file that is whole")]
        ) from None


def as_text(value: object, place: str) -> str | BadRow:
    """The text that a row holds, if it is one and can be written as UTF-8."""
    if not isinstance(value, str):
        return BadRow(place, _kind(value))
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # A byte that is not UTF-8 was decoded to one of these (errors="surrogateescape").
        code = ord(value[error.start])
        line = value.count("\n", 0, error.start) + 1
        where = f"character {error.start + 1}" + (f", in line {line} of the text" if line > 1 else "")
        if 0xDC80 <= code <= 0xDCFF:
            return BadRow(place, f"the byte 0x{code - 0xDC00:02x}, which is not UTF-8, at {where}")
        return BadRow(place, f"half of a surrogate pair (U+{code:04X}) at {where}")
    return value


def _kind(value: object) -> str:
    kinds = ((bool, "true or false"), (int | float, "a number"), (list, "a list"), (tuple | dict, "an object"))
    return "null" if value is None else next((name for kind, name in kinds if isinstance(value, kind)), repr(value))


# Objects become tuples of pairs, which show a key that is there twice. Numbers of any length are no matter here.
_DECODE = json.JSONDecoder(object_pairs_hook=tuple, parse_int=float).decode


def _json_lines(stream: IO[bytes], field: str) -> Iterator[str | BadRow]:
    for number, line in enumerate(stream, start=1):
        text = line.decode("utf-8", "surrogateescape").strip(" \t\r\n")
        if text:
            yield _json_row(text, field, f"line {number}")


def _json_row(text: str, field: str, place: str) -> str | BadRow:
    try:
        return _from_object(_DECODE(text), field, place)
    except json.JSONDecodeError as error:
        return BadRow(place, f"no JSON: {error.msg.removesuffix(' at')} at column {error.colno}")
    except RecursionError:
        return BadRow(place, "JSON that is nested too deeply to read")


def _json(stream: IO[bytes], field: str) -> Iterator[str | BadRow]:
    """One value: a list of rows, or a row."""
    try:
        value = _DECODE(stream.read().decode("utf-8", "surrogateescape").strip(" \t\r\n") or "[]")
    except json.JSONDecodeError as error:
        yield BadRow(f"line {error.lineno}", f"no JSON: {error.msg.removesuffix(' at')} at column {error.colno}")
    except RecursionError:
        yield BadRow("", "JSON that is nested too deeply to read")
    else:
        rows = value if isinstance(value, list) else [value]
        for number, row in enumerate(rows, start=1):
            yield _from_object(row, field, f"row {number}")


def _from_object(row: object, field: str, place: str) -> str | BadRow:
    """The text of a row of JSON: an object with the field, or the text itself."""
    if isinstance(row, str):
        return as_text(row, place)
    if not isinstance(row, tuple):
        return BadRow(place, f"{_kind(row)} instead of an object")
    values = [value for key, value in row if key == field]
    if len(values) == 1:
        return as_text(values[0], place)
    if values:
        return BadRow(place, f"{field!r} {len(values)} times")
    return BadRow(place, f"no {field!r}; its fields are {_names([key for key, _ in row])}")


def _delimited(file: Path, stream: IO[bytes], field: str, delimiter: str) -> Iterator[str | BadRow]:
    """A header, then records as RFC 4180 has them: a quoted field may hold delimiters, quotes and line ends."""
    csv.field_size_limit(sys.maxsize)  # of a document there is no limit
    lines = (line.decode("utf-8", "surrogateescape") for line in stream)
    records = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        place = f"line {records.line_num + 1}"
        try:
            record = next(records, None)
        except csv.Error as error:
            if "unexpected end of data" in str(error):  # of how many rows, nobody can tell
                raise ValueError(f"a quote that is opened at or after {place} is never closed") from None
            yield BadRow(place, f"no record: {error}")
            continue
        if record is None:
            return
        if header is None:
            header = record
            if header.count(field) != 1:
                raise _no_column(file, field, header)
        elif len(record) == len(header):
            yield as_text(record[header.index(field)], place)
        elif record:  # a blank line is none
            yield BadRow(place, f"{len(record)} fields under {len(header)} names; a text with delimiters needs quotes")


def _parquet(file: Path, how: Reading, field: str) -> Iterator[str | BadRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source: Any = file
    if how.compression:  # it is read from its end, which only a whole file has
        with open_stream(file, how.compression) as stream:
            source = pa.BufferReader(stream.read())
    try:
        with pq.ParquetFile(source) as table:
            yield from _column(file, table, field)
    except pa.ArrowException as error:  # of several kinds, a codec that is not built in among them
        raise ValueError(str(error)) from None


def _column(file: Path, table: pq.ParquetFile, field: str) -> Iterator[str | BadRow]:
    import pyarrow as pa

    schema = table.schema_arrow
    if schema.names.count(field) != 1:
        raise _no_column(file, field, schema.names)
    kind = schema.field(field).type
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    view = getattr(pa.types, "is_string_view", lambda kind: False)(values)
    if not (pa.types.is_string(values) or pa.types.is_large_string(values) or view or pa.types.is_null(values)):
        problem = Problem(path=FIELD, where=str(file), received=f"{field!r} of type {kind}", allowed="a column of text")
        raise ConfigError([problem])
    number = 0
    for batch in table.iter_batches(batch_size=1024, columns=[field]):
        column = batch.column(0)
        if pa.types.is_dictionary(kind):
            column = column.dictionary_decode()
        for value in column.cast(pa.large_binary()).to_pylist():
            number += 1
            yield as_text(value if value is None else value.decode("utf-8", "surrogateescape"), f"row {number}")


def _no_column(file: Path, field: str, names: Sequence[str]) -> ConfigError:
    times = names.count(field)
    received = f"{field!r}, a column that is there {times} times" if times else f"{field!r}, which is no column"
    problem = Problem(path=FIELD, where=str(file), received=received, allowed=f"one of {_names(names)}")
    return ConfigError([problem])


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:20])) or "none"
    return f"{shown} and {len(names) - 20} more" if len(names) > 20 else shown
