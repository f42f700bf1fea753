"""Texts out of rows: one policy for marks and line ends, and exact errors for rows that give no text."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_variants.errors import ConfigError
from runners.data import Corpus, DataConfig, prepare
from runners.data.formats import Reading
from runners.data.rows import BadRow, read_rows

BOM = b"\xef\xbb\xbf"
MANY = "".join(json.dumps({"text": f"text number {i}"}) + "\n" for i in range(60))


def rows(file: Path, format: str, content: bytes, field: str = "text") -> list[str | BadRow]:
    file.write_bytes(content)
    return list(read_rows(file, Reading(format, ""), field))  # type: ignore[arg-type]


def built(folder: Path, train: Mapping[str, str | bytes], **fields: Any) -> Corpus:
    """A corpus of files in ``folder``, which is the current one."""
    for name, content in {"v.txt": "held out, " * 9, **train}.items():
        Path(folder, name).write_bytes(content.encode() if isinstance(content, str) else content)
    source = {"type": "files", "train": list(train), "validation": ["v.txt"], **fields}
    config = {"source": source, "tokenizer": {"type": "bpe", "vocab_size": 257}}
    return prepare(DataConfig.model_validate(config), folder / "cache")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("mark", [b"", BOM], ids=["plain", "marked"])
@pytest.mark.parametrize(
    "text", ["one\ntwo\n", "one\r\ntwo\r\n", "one\rtwo", "a mark \ufeff inside", "a\x85b\u2028c\x0bd", "nul\0nul"]
)
def test_marks_go_and_line_ends_stay_in_every_format(tmp_path, text, mark):
    contents = {
        "text": text.encode(),
        "jsonl": json.dumps({"text": text}).encode() + b"\r\n",
        "json": json.dumps([{"text": text}]).encode(),
        "csv": f'text,n\r\n"{text}",1\r\n'.encode(),
        "tsv": f'text\tn\n"{text}"\t1\n'.encode(),
    }
    for format, content in contents.items():
        assert rows(tmp_path / format, format, mark + content) == [text], format


@given(st.lists(st.text(), max_size=5))
def test_whatever_a_text_holds_its_bytes_come_back_from_every_format(made_once, texts):
    """But for what no UTF-8 holds (see below)."""
    folder = made_once("rows-of-any-text", lambda folder: None)
    texts = [text for text in texts if text.encode(errors="replace").decode() == text]
    table = pa.table({"text": pa.array(texts, pa.string())})
    pq.write_table(table, folder / "parquet")
    assert list(read_rows(folder / "parquet", Reading("parquet", ""), "text")) == texts
    quoted = ['"' + text.replace('"', '""') + '"' for text in texts]
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    assert rows(folder / "jsonl", "jsonl", lines.encode()) == texts
    assert rows(folder / "json", "json", json.dumps(texts).encode()) == texts
    assert rows(folder / "csv", "csv", "\n".join(["text", *quoted]).encode()) == texts


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"text": null}', "null"),
        ('{"text": 3}', "a number"),
        ('{"text": NaN}', "a number"),
        ('{"text": true}', "true or false"),
        ('{"text": ["a"]}', "a list"),
        ('{"text": {"a": 1}}', "an object"),
        ('{"txt": "a", "n": 1}', "no 'text'; its fields are 'txt', 'n'"),
        ("{}", "no 'text'; its fields are none"),
        ("[1]", "a list instead of an object"),
        ("7", "a number instead of an object"),
        ('{"text": "a", "text": "b"}', "'text' 2 times"),
        ('{"text": "ab\\ud83d"}', "half of a surrogate pair (U+D83D) at character 3"),
        ('{"text": "a\\nb\\udc01"}', "half of a surrogate pair (U+DC01) at character 4, in line 2 of the text"),
        (b'{"text": "caf\xe9"}', "the byte 0xe9, which is not UTF-8, at character 4"),
        ('{"text": "cut', "no JSON: Unterminated string starting at column 10"),
        ('{"text": "a"} {"text": "b"}', "no JSON: Extra data at column 15"),
        ('{"text": "raw \t tab"}', "no JSON: Invalid control character at column 15"),
        ('{"text": "a", "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "JSON that is nested too deeply to read"),
    ],
)
def test_a_bad_row_is_named_by_its_line_or_skipped_and_counted(here, line, found):
    bad = line if isinstance(line, bytes) else line.encode()
    content = MANY.encode() + b"\n" + bad + b"\n" + b'{"text": "the last one"}\n'
    with pytest.raises(ConfigError) as error:
        built(here, {"bad.jsonl": content})
    assert str(error.value) == (
        f"1 problem\n  bad.jsonl, line 62: data.source.train: received {found}; allowed: text in 'text'; "
        "`on_bad_row: skip` leaves out and counts what has none"
    )
    assert not list(here.glob("cache/corpora/*/*"))
    corpus = built(here, {"bad.jsonl": content}, on_bad_row="skip")
    split = corpus.manifest["splits"]["train"]
    assert (split["documents"], split["bad_rows"]) == (61, 1)
    assert corpus.manifest["files"]["train"] == [
        {"file": "bad.jsonl", "read_as": "jsonl", "rows": 62, "bad_rows": 1},
    ]


@pytest.mark.parametrize(
    "others",
    [
        '{"text": "a", "x": 1}\n{"text": "b", "x": "word"}\n{"text": "c", "x": {"y": []}}\n',
        '{"text": "a", "x": 1, "x": 2}\n{"text": "b"}\n{"text": "c", "y": NaN}\n',
        '{"text": "a", "x": ' + "9" * 6000 + '}\n{"text": "b", "x": "\\ud800"}\n{"y": 1e999, "text": "c"}\n',
        '{"text": "a", "2": "2020-01-01"}\n"b"\n{"text": "c", "": null}\n',
    ],
)
def test_other_fields_may_hold_what_they_like(tmp_path, others):
    assert rows(tmp_path / "a.jsonl", "jsonl", others.encode()) == ["a", "b", "c"]


def test_a_field_that_changes_its_type_after_many_megabytes_is_no_matter(here):
    first = json.dumps({"text": "x" * 1000, "n": 1}) + "\n"
    text = first * 11_000 + "".join(
        json.dumps({"text": f"late {i}", "n": {"now": "an object"}}) + "\n" for i in range(9)
    )
    corpus = built(here, {"late.jsonl": text})
    assert corpus.manifest["splits"]["train"]["documents"] == 10
    assert corpus.manifest["splits"]["train"]["duplicates_dropped"] == 10_999


def test_dates_and_numbers_in_text_stay_text(tmp_path):
    for text in ("2020-01-01", "1e3", "null", "NaN", ""):
        assert rows(tmp_path / "a.jsonl", "jsonl", json.dumps({"text": text}).encode()) == [text]
        assert rows(tmp_path / "a.csv", "csv", f'n,text\n1,"{text}"\n'.encode()) == [text]


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.csv", b"n,text\n1,one\n2,two, three\n", "a.csv, line 3: .*3 fields under 2 names; .*needs quotes"),
        ("a.csv", b'n,text\n1,"one\n\ntwo"\n2\n', "a.csv, line 5: .*1 fields under 2 names"),
        ("a.csv", b'n,text\n1,"one"two\n', "a.csv, line 2: .*no record: ',' expected after '\"'"),
        ("a.csv", b'n,text\n1,ok\n2,"never closed\n', "a.csv, .*a quote that is opened at or after line 3 is never"),
        ("a.tsv", b"n\ttext\n1\tcaf\xe9\n", "a.tsv, line 2: .*the byte 0xe9, which is not UTF-8, at character 4"),
        ("a.csv", b"n;text\n1;one\n", r"a.csv: .*'text', which is no column; allowed: one of 'n;text'"),
        ("a.csv", b"text,text\none,two\n", r"a.csv: .*'text', a column that is there 2 times"),
        ("a.json", b'[{"text": "a"}, {"text": 1}]', "a.json, row 2: .*a number"),
        (
            "a.json",
            b'[{"text": "a"},\n {"text": "b"]',
            "a.json, line 2: .*no JSON: Expecting ',' delimiter at column 14",
        ),
        ("a.txt", b"caf\xe9", "a.txt: .*the byte 0xe9, which is not UTF-8, at character 4; allowed: UTF-8; `on_bad"),
        ("a.txt", "text".encode("utf-16"), "a.txt, which holds zero bytes, as UTF-16 does"),
        ("a.jsonl.gz", gzip.compress(MANY.encode() * 999)[:-20], "a.jsonl.gz, which cannot be read to its end: EOFE"),
    ],
)
def test_every_format_says_what_is_wrong_and_where(here, name, content, found):
    with pytest.raises(ConfigError, match=found):
        built(here, {name: content})


def columns(**values: pa.Array) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(values), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("column", "given"),
    [
        (pa.array(["a", None, "c"]), ["a", BadRow("row 2", "null"), "c"]),
        (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (pa.array([], pa.string()), []),
        (pa.array([None], pa.null()), [BadRow("row 1", "null")]),
        (
            pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xe9")]),
            [BadRow("row 1", "the byte 0xe9, which is not UTF-8, at character 2")],
        ),
    ],
)
def test_any_column_of_text_in_parquet(tmp_path, column, given):
    content = columns(text=column, other=pa.array(range(len(column))))
    assert rows(tmp_path / "a.parquet", "parquet", content) == given


def test_parquet_says_which_columns_there_are(tmp_path):
    content = columns(**{"body": pa.array(["a"]), "a.b": pa.array(["dotted"]), "n": pa.array([1])})
    assert rows(tmp_path / "a.parquet", "parquet", content, "a.b") == ["dotted"]
    with pytest.raises(ConfigError, match=r"'text', which is no column; allowed: one of 'body', 'a\.b', 'n'"):
        rows(tmp_path / "a.parquet", "parquet", content)
    with pytest.raises(ConfigError, match=r"'n' of type int64; allowed: a column of text"):
        rows(tmp_path / "a.parquet", "parquet", content, "n")
    with pytest.raises(ConfigError, match="cannot be read to its end"):
        rows(tmp_path / "a.parquet", "parquet", content[:40])


def test_empty_shards_among_full_ones_are_no_fault(here):
    empty = pd.DataFrame({"text": pd.Series([], dtype=str)}).to_parquet()
    shards = {
        "a.jsonl": MANY,
        "b.jsonl": "",
        "c.parquet": empty,
        "d.csv": "",
        "e.csv": "text\n",
        "f.txt": "",
        "g.json": "[]",
    }
    corpus = built(here, {**shards, "h.jsonl": "\n\n", "i.jsonl.gz": gzip.compress(b""), "j.json": ""})
    split = corpus.manifest["splits"]["train"]
    assert (split["documents"], split["empty"], split["bad_rows"]) == (60, 1, 0)
    assert [record["rows"] for record in corpus.manifest["files"]["train"]] == [60, 0, 0, 0, 0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("train", "fields", "says"),
    [
        ({"a.jsonl": ""}, {}, "received no document: it has no rows; allowed: text that validation does not have"),
        ({"v.txt": "held out"}, {}, "received files that validation has too, all of them"),
        (
            {"a.json": json.dumps(["held out, " * 9])},
            {},
            "received no document: 1 stand in validation too, which keeps what is in both",
        ),
        ({"a.txt": "", "b.jsonl": '{"text": ""}'}, {}, "received no document: 2 are empty"),
        (
            {"a.jsonl": '{"txt": "one"}\n{"txt": "two"}\n'},
            {"on_bad_row": "skip"},
            "received no document: 2 give no text, the first at a.jsonl, line 1: no 'text'; its fields are 'txt'",
        ),
    ],
)
def test_a_split_of_nothing_says_what_became_of_its_rows(here, train, fields, says):
    with pytest.raises(ConfigError) as error:
        built(here, train, **fields)
    assert f"data.source.train: {says}" in str(error.value)


def test_what_is_in_both_splits_is_counted_apart_from_duplicates(here):
    corpus = built(here, {"a.jsonl": MANY + MANY + json.dumps({"text": "held out, " * 9})})
    split = corpus.manifest["splits"]["train"]
    assert (split["documents"], split["in_validation"], split["duplicates_dropped"]) == (60, 1, 61)


def test_skipped_rows_and_taken_files_are_said_while_building(here):
    said: list[str] = []
    Path("v.txt").write_text("held out, " * 9)
    Path("a.jsonl").write_text(MANY + '{"text": null}\n{"text": 1}\n')
    source = {"type": "files", "train": ["*.jsonl"], "validation": ["v.txt"], "on_bad_row": "skip"}
    config = {"source": source, "tokenizer": {"type": "bpe", "vocab_size": 257}}
    prepare(DataConfig.model_validate(config), Path("cache"), said.append)
    assert "train: 1 of jsonl (a.jsonl)" in said
    assert "validation: 1 of text (v.txt)" in said
    assert "train: 2 rows without text skipped, the first at a.jsonl, line 61: null" in said


def test_rows_of_a_dataset_are_held_to_the_same(here):
    Path("set").mkdir()
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(9)] + [None]}), "set/train.parquet")
    pq.write_table(pa.table({"text": ["held out"]}), "set/validation.parquet")
    source = {"type": "hub", "dataset": "set", "train": "train[2:]", "validation": "validation", "revision": "local"}
    config = {"source": source, "tokenizer": {"type": "bpe", "vocab_size": 257}}
    with pytest.raises(ConfigError, match=r"set, row 10 of train: data\.source\.train: received null; allowed: text"):
        prepare(DataConfig.model_validate(config), Path("cache"))
    config["source"] = source | {"on_bad_row": "skip"}
    split = prepare(DataConfig.model_validate(config), Path("cache")).manifest["splits"]["train"]
    assert (split["documents"], split["bad_rows"]) == (7, 1)
    config["source"] = source | {"text_field": "txt"}
    with pytest.raises(ConfigError, match=r"set, row 1 of validation: .*received no 'txt'; its fields are text"):
        prepare(DataConfig.model_validate(config), Path("cache"))


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_a_quote_that_is_never_closed_is_an_error_even_where_rows_are_skipped(here, on_bad_row):
    """Everything behind it would count as one row."""
    broken = 'text,n\nfine,0\n"open,1\n' + "lost,2\n" * 50
    with pytest.raises(ConfigError, match="a quote that is opened at or after line 3 is never closed"):
        built(here, {"a.csv": broken}, on_bad_row=on_bad_row)


def test_a_column_of_string_views_is_text(tmp_path):
    pq.write_table(pa.table({"text": pa.array(["a", None, "b"], pa.string_view())}), tmp_path / "v.parquet")
    found = list(read_rows(tmp_path / "v.parquet", Reading("parquet", ""), "text"))
    assert [row if isinstance(row, str) else None for row in found] == ["a", None, "b"]
