"""Which format a file is read in, compressed or not; which files a name stands for; and what identity sees of that."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from llama_variants.errors import ConfigError
from runners.data import DataConfig, prepare
from runners.data.config import FilesSource
from runners.data.formats import SUFFIXES, Reading
from runners.data.rows import read_rows

TEXTS = ["one, with a comma", 'two "quoted"\n\n  lines\r\n', "three\tcafé ∑ \u2028 end", "{}"]


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(content)
    return sink.getvalue().to_pybytes()


def delimited(delimiter: str) -> bytes:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows([["n", "text"], *([i, text] for i, text in enumerate(TEXTS))])
    return out.getvalue().encode()


def parquet() -> bytes:
    return pd.DataFrame({"n": range(len(TEXTS)), "text": TEXTS}).to_parquet()


ROWS = [{"n": i, "text": text} for i, text in enumerate(TEXTS)]
LONG = [{"text": text} for text in TEXTS]
CONTENT: dict[str, bytes] = {
    "jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
    "json": json.dumps(ROWS, indent=1).encode(),
    "csv": delimited(","),
    "tsv": delimited("\t"),
    "parquet": parquet(),
    "text": b"Some text.\n\nIn lines.\n",
}
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
    ".zstd": zstd,
}


def files_source(*train: str | Path, **fields: Any) -> FilesSource:
    return FilesSource.model_validate(
        {"type": "files", "train": list(map(str, train)), "validation": ["v.txt"], **fields}
    )


def rows_of(file: Path, **fields: Any) -> list[Any]:
    ((found, how),) = files_source(file, **fields).readings("train")
    return list(read_rows(found, how, "text"))


def expected(format: str) -> list[str]:
    return [CONTENT["text"].decode()] if format == "text" else TEXTS


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize(
    ("format", "suffix"), [(name, end) for name, ends in SUFFIXES.items() for end in ends.split()[:3]]
)
def test_every_format_by_its_compound_suffix_in_any_case(tmp_path, format, suffix, packed):
    for name in (f"a.b{suffix}{packed}", f"A.B{suffix}{packed}".upper()):
        file = tmp_path / name
        file.write_bytes(PACK[packed](CONTENT[format]))
        assert rows_of(file) == expected(format)


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("format", CONTENT)
def test_a_declared_format_needs_no_suffix(tmp_path, format, packed):
    file = tmp_path / "part-00000.unknown"
    file.write_bytes(PACK[packed](CONTENT[format]))
    assert rows_of(file, format=format) == expected(format)


@pytest.mark.parametrize(
    ("name", "content", "format"),
    [
        ("decompressed-by-a-browser.jsonl.gz", CONTENT["jsonl"], "jsonl"),
        ("compressed-unsaid.jsonl", gzip.compress(CONTENT["jsonl"]), "jsonl"),
        ("lines.json", CONTENT["jsonl"], "jsonl"),
        ("array.jsonl", CONTENT["json"], "json"),
        ("part-00000", CONTENT["parquet"], "parquet"),
        ("long.json", "".join(json.dumps({"n": "9" * 99_999, **row}) + "\n" for row in LONG).encode(), "jsonl"),
        (
            "several-members.jsonl.gz",
            b"".join(gzip.compress(line) for line in CONTENT["jsonl"].splitlines(True)),
            "jsonl",
        ),
        ("several-frames.jsonl.zst", b"".join(zstd(line) for line in CONTENT["jsonl"].splitlines(True)), "jsonl"),
    ],
)
def test_content_decides_what_a_name_leaves_open(tmp_path, name, content, format):
    file = tmp_path / name
    file.write_bytes(content)
    ((_, how),) = files_source(file).readings("train")
    assert how.format == format
    assert rows_of(file) == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("data.foo", b"text", r"data\.foo, whose suffix '\.foo' says no format; allowed: jsonl \(\.jsonl, \.ndjson"),
        ("data", b"text", r"data, which has no suffix; .*`format: text\|jsonl\|json\|csv\|tsv\|parquet`"),
        ("data.gz", gzip.compress(b"text", mtime=0), "which has no suffix"),
        ("data.tar.gz", gzip.compress(b"text", mtime=0), r"suffix '\.tar' says no format"),
        ("data.zip", b"PK\3\4", r"suffix '\.zip' says no format"),
        ("data.txt", CONTENT["jsonl"], r"JSON lines by its content; allowed: `format: jsonl`, or `format: text`"),
        ("data.md.gz", gzip.compress(CONTENT["jsonl"]), "JSON lines by its content"),
        ("data.txt", json.dumps({"text": "long " * 20_000}).encode() + b"\n", "JSON lines by its content"),
        (
            "data.txt",
            CONTENT["parquet"],
            r"is Parquet by its content; allowed: the suffix \.parquet, or `format: text`",
        ),
        (
            "data.parquet",
            CONTENT["jsonl"],
            "no Parquet file by its content; allowed: what it is, as `format: text|jsonl",
        ),
        ("data.pq", b"", "no Parquet file by its content"),
        ("data.jsonl.gz", gzip.compress(CONTENT["jsonl"] * 9)[:-9], "cannot be read: EOFError"),
        ("data.jsonl.zst", zstd(CONTENT["jsonl"])[:-9], "cannot be read: OSError: Truncated"),
    ],
)
def test_what_is_not_known_is_refused_with_what_is(tmp_path, name, content, says):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        files_source(file).readings("train")


def test_all_files_that_cannot_be_read_are_named_at_once(tmp_path):
    for name in ("a.jsonl", "b.foo", "LICENSE", "c.bar"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ConfigError) as error:
        files_source(tmp_path / "**").readings("train")
    assert [str(problem.received).partition(", ")[0].rpartition("/")[2] for problem in error.value.problems] == [
        "LICENSE",
        "b.foo",
        "c.bar",
    ]


ODD = [
    "a::b.jsonl",
    "d#a%20ta::x.jsonl",
    "data[1] (copy).jsonl",
    "what?.jsonl",
    "star*.jsonl",
    "new\nline.jsonl",
    ".hidden.jsonl",
    "zip:__x.jsonl",
]


@pytest.mark.parametrize("name", ODD)
def test_a_file_s_own_name_comes_before_what_it_means_as_a_glob(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for other in (*ODD, "data1 (copy).jsonl", "whatx.jsonl", "starry.jsonl"):
        Path(other).write_text(json.dumps({"text": other}))
    assert files_source(name).files("train") == [Path(name)]
    assert rows_of(Path(name)) == [name]


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(CONTENT["jsonl"])
    assert files_source("~/a.jsonl").files("train") == [tmp_path / "a.jsonl"]
    assert files_source("~/*.jsonl").files("train") == [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]


@pytest.mark.parametrize("name", ["folder", "folder/", "~/folder"])
def test_a_folder_is_refused_with_the_glob_of_what_is_in_it(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("folder/in").mkdir(parents=True)
    Path("folder/in/a.jsonl").write_bytes(CONTENT["jsonl"])
    Path("folder/in/.hidden.md").write_text("no")
    with pytest.raises(ConfigError, match=r"which is a folder; allowed: the files in it, as '.*' \(1\)$") as error:
        files_source(name).files("train")
    inside = str(error.value).partition("it, as '")[2].partition("'")[0]
    assert [file.name for file in files_source(inside).files("train")] == ["a.jsonl"]


@pytest.mark.parametrize("name", ["absent.jsonl", "~nobody-here/x.jsonl", "a" * 300, "dangling.jsonl", "v.txt/x"])
def test_a_name_of_nothing_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("v.txt").write_text("v")
    Path("dangling.jsonl").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="which matches no file"):
        files_source(name).files("train")


def test_hidden_files_are_taken_where_they_are_named_and_what_is_taken_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("set/.git").mkdir(parents=True)
    for name in ("a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl", ".h.jsonl", ".git/x.jsonl"):
        Path("set", name).write_bytes(CONTENT["jsonl"])
    Path("set/e.jsonl.gz").write_bytes(gzip.compress(CONTENT["jsonl"]))
    Path("set/README.md").write_text("About the set.")
    assert files_source("set/**").taken("train") == (
        "4 of jsonl (set/a.jsonl, set/b.jsonl, set/c.jsonl and 1 more); 1 of text (set/README.md); "
        "1 of jsonl, gzip (set/e.jsonl.gz)"
    )
    assert files_source("set/.*").files("train") == [Path("set/.h.jsonl")]


def identity(*train: str | Path, **fields: Any) -> dict[str, Any]:
    return files_source(*train, **fields).identity()


def test_identity_says_how_a_file_is_read_only_where_its_text_comes_out_otherwise_than_it_did(tmp_path, monkeypatch):
    """Runs on files that always gave these texts keep their names; a file that gave others has another one."""
    monkeypatch.chdir(tmp_path)
    Path("v.txt").write_text("held\n")
    as_before = {"a.jsonl": "jsonl", "a.json": "json", "a.parquet": "parquet", "a.txt": "text", "a.md": "text"}
    otherwise = {"a.ndjson": "jsonl", "A.JSONL": "jsonl", "a.csv": "csv", "a.pq": "parquet"}
    for name, format in (as_before | otherwise).items():
        Path(name).write_bytes(CONTENT[format])
    Path("a.jsonl.gz").write_bytes(gzip.compress(CONTENT["jsonl"]))
    Path("crlf.txt").write_bytes(b"one\r\ntwo\r\n")
    Path("bom.txt").write_bytes(b"\xef\xbb\xbfone\n")
    Path("text-without-suffix").write_text("one\n")
    for name in as_before:
        assert len(identity(name)["train"][0]) == 2
    for name, how in otherwise.items():
        assert identity(name)["train"][0][2:] == [how]
    assert identity("a.jsonl.gz")["train"][0][2:] == ["jsonl, gzip"]
    assert identity("crlf.txt")["train"][0][2:] == identity("bom.txt")["train"][0][2:] == ["text"]
    assert len(identity("text-without-suffix", format="text")["train"][0]) == 2
    assert identity("a.txt", format="text") == identity("a.txt")
    assert identity("a.txt").keys() == {"type", "text_field", "train", "validation"}
    assert identity("a.jsonl", on_bad_row="skip")["on_bad_row"] == "skip"


def test_a_plain_corpus_is_the_one_that_it_always_was(tmp_path, monkeypatch):
    """Golden, of the version before formats: every run on such files would be trained again."""
    monkeypatch.chdir(tmp_path)
    words = [" ".join(f"{word}{i % 37}" for i in range(400)) + " café ∑\n" for word in ("plain", "one", "two", "three")]
    Path("a.txt").write_text(words[0])
    Path("b.jsonl").write_text("".join(json.dumps({"text": word}) + "\n" for word in words[1:3]))
    Path("c.json").write_text(json.dumps([{"text": words[3]}]))
    Path("v.txt").write_text("held\n\nline " * 30)
    source = {"type": "files", "train": ["?.*"], "validation": ["v.txt"]}
    data = DataConfig.model_validate({"source": source, "tokenizer": {"type": "bpe", "vocab_size": 280}})
    corpus = prepare(data, Path("cache"))
    assert corpus.folder.name == "6778dcc72edd1efd"
    assert corpus.fingerprint == "56349dfcea14a861"


def test_a_reading_names_itself():
    assert str(Reading("csv", "zstd")) == "csv, zstd"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'[\n  {"text": "a"},\n  {"text": "b"}\n]\n', "which holds JSON by its content; allowed: `format: json`"),
        (b'{\n  "text": "a"\n}\n', "which holds JSON by its content"),
        ("hello world".encode("utf-16-le"), "zero bytes, as UTF-16 does"),
        ("hello".encode("utf-32-be"), "zero bytes, as UTF-16 does"),
    ],
)
def test_text_by_name_alone_is_looked_at(tmp_path, content, says):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(says)):
        files_source(f"{tmp_path}/a.txt").readings("train")


@pytest.mark.parametrize("text", ["[1] Knuth, 1997", "{braces} in a template", "[]", "[see below]\n[and here]", "{"])
def test_text_that_begins_like_json_is_text(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    ((_, how),) = files_source(f"{tmp_path}/a.txt").readings("train")
    assert how.format == "text"


def test_training_that_validation_has_whole_is_refused_before_anything_is_read(tmp_path):
    for name, text in (("a.txt", "one"), ("b.txt", "two"), ("copy-of-a.txt", "one")):
        (tmp_path / name).write_text(text)
    whole = {"type": "files", "train": [f"{tmp_path}/a.txt"], "validation": [f"{tmp_path}/copy-of-a.txt"]}
    with pytest.raises(ConfigError, match="files that validation has too, all of them"):
        FilesSource.model_validate(whole).identity()
    assert FilesSource.model_validate(whole | {"train": [f"{tmp_path}/*.txt"]}).identity()
