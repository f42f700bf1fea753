"""In which format a local file holds its text, and how it is compressed.

``format: auto`` goes by the name, in any case and below a compression's suffix (``.jsonl.gz``, ``.NDJSON``,
``.csv.zst``), and checks the content against it. A name that says nothing is refused, and so is one that the content
contradicts: text is what a file is called, never what is left over.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast, get_args

from llama_variants.errors import ConfigError, Problem
from llama_variants.errors import Path as FieldPath

Format = Literal["text", "jsonl", "json", "csv", "tsv", "parquet"]
Compression = Literal["", "gzip", "bz2", "xz", "zstd"]

SUFFIXES: Mapping[Format, str] = {
    "jsonl": ".jsonl .ndjson .jsonlines",
    "json": ".json",
    "csv": ".csv",
    "tsv": ".tsv .tab",
    "parquet": ".parquet .pq .parq",
    "text": ".txt .text .md .markdown .rst .adoc .org .tex .log .html .htm .xml .css .yaml .yml .toml .ini .cfg "
    ".py .pyi .c .h .cc .cpp .hpp .cs .go .java .jl .js .kt .lua .m .php .pl .r .rb .rs .scala .sh .sql .swift .ts",
}
"""Of each format; in small letters."""
COMPRESSIONS: Mapping[Compression, tuple[bytes, str]] = {
    "gzip": (b"\x1f\x8b", ".gz .gzip"),
    "bz2": (b"BZh", ".bz2"),
    "xz": (b"\xfd7zXZ\x00", ".xz"),
    "zstd": (b"\x28\xb5\x2f\xfd", ".zst .zstd"),
}
"""The bytes that a file so compressed begins with, which decide, and the suffixes that it may bear."""
PARQUET = b"PAR1"
HEAD_BYTES = 2**16  # enough to see a first line

_BY_SUFFIX = {suffix: name for name, suffixes in SUFFIXES.items() for suffix in suffixes.split()}
_PACKED = tuple(suffix for _, suffixes in COMPRESSIONS.values() for suffix in suffixes.split())


@dataclass(frozen=True)
class Reading:
    """How one file is read."""

    format: Format
    compression: Compression

    @property
    def packed(self) -> bool:
        """Whether the file's size says nothing of how much text it holds."""
        return bool(self.compression) or self.format == "parquet"

    def __str__(self) -> str:
        return f"{self.format}, {self.compression}" if self.compression else self.format


def known() -> str:
    """Every format with its suffixes, for a message."""
    formats = "; ".join(f"{name} ({', '.join(suffixes.split())})" for name, suffixes in SUFFIXES.items())
    return f"{formats}; each also as {', '.join(_PACKED)}; or say what it is: `format: {'|'.join(get_args(Format))}`"


def reading(file: Path, declared: Format | Literal["auto"], path: FieldPath) -> Reading:
    """How ``file`` is to be read.

    Raises ConfigError, for the field at ``path``, where neither its name nor ``declared`` says so, where its content is
    not what they say, and where it cannot be opened.
    """

    def refused(what: str, allowed: str) -> ConfigError:
        return ConfigError([Problem(path=path, received=f"{file}, {what}", allowed=allowed)])

    try:
        with file.open("rb") as opened:
            compression = _compression(opened.read(8))
        with open_stream(file, compression) as stream:
            head = stream.read(HEAD_BYTES)
    except DAMAGED as error:
        raise refused(f"which cannot be read: {type(error).__name__}: {error}", "a file that is whole") from None
    suffix = _suffix(file.name)
    named = _BY_SUFFIX.get(suffix)
    is_parquet = head.startswith(PARQUET)
    if (named if declared == "auto" else declared) == "parquet" and not is_parquet:
        raise refused("which is no Parquet file by its content", f"what it is, as `format: {_but('parquet')}`")
    if declared != "auto":
        return Reading(declared, compression)
    if named is None and is_parquet:
        named = "parquet"
    if named is None:
        raise refused(f"whose suffix {suffix!r} says no format" if suffix else "which has no suffix", known())
    if is_parquet and named != "parquet":
        raise refused("which is Parquet by its content", f"the suffix .parquet, or `format: {named}` if it is meant so")
    if named == "text" and head.count(0) > len(head) / 10:
        raise refused("which holds zero bytes, as UTF-16 does and text in UTF-8 does not", "text in UTF-8")
    if named == "text" and (what := _is_json(head)):
        allowed = f"`format: {what}`, or `format: text` for one document with braces"
        raise refused(f"which holds {'JSON lines' if what == 'jsonl' else 'JSON'} by its content", allowed)
    return Reading(_json_family(named, head), compression)


def open_stream(file: Path, compression: Compression) -> IO[bytes]:
    """The content of ``file``, decompressed as it is read, without a byte-order mark at its start."""
    stream: io.BufferedReader
    if compression == "zstd":  # pyarrow has it; the standard library has it from Python 3.14 on
        import pyarrow as pa

        stream = io.BufferedReader(cast(Any, pa.input_stream(str(file), compression="zstd")))
    else:
        opener: Any = {"gzip": gzip.open, "bz2": bz2.open, "xz": lzma.open, "": open}[compression]
        stream = io.BufferedReader(opener(file, "rb"))
    if stream.peek(3)[:3] == codecs.BOM_UTF8:
        stream.read(3)
    return cast(IO[bytes], stream)


DAMAGED = (OSError, EOFError, lzma.LZMAError, zlib.error, ValueError)
"""What reading a damaged file raises."""


def summary(files: Iterable[tuple[Path, Reading]], names: int = 3) -> str:
    """How many files of each format there are, and the first names of each."""
    kinds: dict[str, list[str]] = {}
    for file, how in files:
        kinds.setdefault(str(how), []).append(file.as_posix())
    parts = []
    for kind, found in sorted(kinds.items(), key=lambda item: -len(item[1])):
        more = f" and {len(found) - names} more" if len(found) > names else ""
        parts.append(f"{len(found)} of {kind} ({', '.join(found[:names])}{more})")
    return "; ".join(parts)


def _compression(start: bytes) -> Compression:
    return next((name for name, (magic, _) in COMPRESSIONS.items() if start.startswith(magic)), "")


def _suffix(name: str) -> str:
    """The suffix that names the format: the last one below a compression's."""
    name = name.lower()
    packed = next((end for end in _PACKED if name.endswith(end)), "")
    return Path(name.removesuffix(packed)).suffix


def _but(name: str) -> str:
    return "|".join(one for one in get_args(Format) if one != name)


def _json_family(named: Format, head: bytes) -> Format:
    """Rows of JSON, one a line or all in one value, whichever of both suffixes a file has."""
    if named == "jsonl" and head.lstrip().startswith(b"["):
        return "json"
    return "jsonl" if named == "json" and _starts_with_object(head) else named


def _is_json(head: bytes) -> Format | None:
    """Which form of JSON a file has, as far as a head shows that: a first line, or a list or an object as a whole."""
    if _starts_with_object(head):
        return "jsonl"
    if len(head) == HEAD_BYTES or not head.lstrip().startswith((b"[", b"{")):
        return None
    try:
        return "json" if json.loads(head) else None
    except (ValueError, RecursionError):
        return None


def _starts_with_object(head: bytes) -> bool:
    """Whether the first line is an object of JSON, as far as a head shows that."""
    line, end, _ = head.lstrip().partition(b"\n")
    if not line.startswith(b"{"):
        return False
    if not end and len(head) == HEAD_BYTES:  # the line goes on
        return line[1:].lstrip().startswith(b'"')
    try:
        return bool(json.loads(line))
    except (ValueError, RecursionError):
        return False
