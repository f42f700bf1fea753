"""Datasets and tokenizers of a hub on loopback, by way of `datasets` and `huggingface_hub` themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import PreTrainedTokenizerFast

from runners.data import DataError
from runners.data.hub import _keeping, _kept
from runners.data.rows import BadRow
from tests.conftest import ROOT
from tests.runners.data.hub import SHA, Hub, serving
from tests.runners.data.test_tokenizer import byte_level

CHILD = """
import json, pathlib, sys
import numpy as np
from tokenizers import Tokenizer
from runners.data import DataConfig, prepare
for line in sys.stdin:
    try:
        corpus = prepare(DataConfig.model_validate(json.loads(line)), pathlib.Path("cache"))
    except Exception as error:
        found = [type(error).__name__, str(error)]
    else:
        backend = Tokenizer.from_file(str(corpus.folder / "tokenizer.json"))
        ends = np.load(corpus.folder / "train.offsets.npy")
        found = [backend.decode(corpus.train.tokens[a : b - 1].tolist()) for a, b in zip(ends[:-1], ends[1:])]
    print(json.dumps(found), flush=True)
"""


def texts(name: str) -> list[str]:
    return [f"{name} {i} " + " ".join(f"w{(i * j) % 97}" for j in range(150)) for i in range(200)]


def set_(name: str = "rows", revision: str = SHA, tokenizer: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ten documents of 400 in two files."""
    source = {"type": "hub", "dataset": f"org/{name}", "train": "train[20:30]", "validation": "test[:5]"}
    return {"source": source | {"revision": revision}, "tokenizer": tokenizer or {"type": "bpe", "vocab_size": 300}}


def published(revision: str = SHA, path: str = "org/tokenizer") -> dict[str, Any]:
    return {"type": "pretrained", "path": path, "revision": revision}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """`org/rows` as JSON lines, `org/columns` the same as Parquet, `org/tokenizer`, and half of one."""
    for name in ("rows", "columns"):
        data = tmp_path / f"hub/datasets/org/{name}/data"
        data.mkdir(parents=True)
        for file in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
            rows = texts(file)
            if name == "rows":
                lines = "".join(json.dumps({"text": row}) + "\n" for row in rows)
                (data / f"{file}.jsonl").write_text(lines)
            else:
                pd.DataFrame({"text": rows}).to_parquet(data / f"{file}.parquet")
    saved = PreTrainedTokenizerFast(tokenizer_object=byte_level(add_prefix_space=False), eos_token="</s>")
    saved.save_pretrained(tmp_path / "hub/models/org/tokenizer")
    saved.save_pretrained(tmp_path / "hub/models/org/headless")
    (tmp_path / "hub/models/org/headless/tokenizer.json").unlink()
    with serving(tmp_path / "hub") as server:
        yield server


def environment(hub: Hub, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(hub.folder.parent / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**kept, **own, "PYTHONPATH": str(ROOT), **more}


def build(hub: Hub, *configs: dict[str, Any], **more: str) -> list[list[str]]:
    """What a process of its own, beside the hub, makes of each of the ``configs``: training texts, or an error."""
    hub.asked.clear()
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input="\n".join(map(json.dumps, configs)),
        cwd=hub.folder.parent,
        env=environment(hub, **more),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


WANTED = texts("train-00000-of-00002")[20:30]


@pytest.mark.slow
def test_a_slice_is_read_at_its_revision_once_and_no_other_file(hub):
    found = build(
        hub,
        set_("rows"),
        set_("columns"),
        set_("rows", tokenizer=published()),
        set_("rows", revision="4" * 40),
        set_("nowhere"),
        set_("rows", tokenizer=published("4" * 40)),
        set_("rows", tokenizer=published(path="org/nowhere")),
        set_("rows", tokenizer=published(path="org/headless")),
    )
    assert found[:3] == [WANTED, WANTED, WANTED]
    for (kind, said), words in zip(found[3:5], ("org/rows", "org/nowhere"), strict=True):
        assert kind == "DataError"
        assert f"datasets could not read {words}" in said
    for kind, said in found[5:]:
        assert kind == "ConfigError"
        assert "a tokenizer that transformers can load" in said
    contents = [one for one in hub.asked if one.startswith("GET /datasets/")]
    assert all(f"/resolve/{SHA}/" in one for one in contents)
    assert not hub.took("train-00001-of-00002.jsonl")
    assert not hub.took("train-00001-of-00002.parquet")
    # Once for the rows, and once for each split to see what kind of file it is; for the second tokenizer, never.
    assert sum("/rows/" in one and "train" in one for one in contents) <= 3

    offline = build(
        hub,
        set_("columns", tokenizer={"type": "bpe", "vocab_size": 310}),
        set_("columns", tokenizer=published()),
        HF_HUB_OFFLINE="1",
    )
    assert offline == [WANTED, WANTED]
    assert not hub.asked


@pytest.mark.slow
def test_a_connection_that_breaks_is_taken_up_and_a_missing_file_is_named(hub):
    hub.cuts = 3
    found = build(hub, set_("rows", tokenizer=published()), set_("columns", tokenizer=published()))
    assert found == [WANTED, WANTED]
    assert hub.cuts == 0
    hub.gone = {"train-00000-of-00002.jsonl"}
    base = hub.folder.parent / "base.json"
    base.write_text(json.dumps(set_("rows")))
    (hub.folder.parent / "cache").rename(hub.folder.parent / "before")  # of what was built
    command = [sys.executable, "-m", "runners", "data", "build", str(base.rename(base.with_suffix(".yaml")))]
    options: dict[str, Any] = {"cwd": hub.folder.parent, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run(command, env=environment(hub), **options)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: datasets could not read org/rows")
    assert "train-00000-of-00002.jsonl" in last
    alone = subprocess.run(command, env=environment(hub, HF_HUB_OFFLINE="1", HF_HOME="empty"), **options)
    assert alone.returncode == 1
    assert "error: datasets could not read org/rows" in alone.stderr
    assert "Offline" in alone.stderr
    assert "Traceback" not in done.stderr + alone.stderr
    assert not list(hub.folder.parent.glob("cache/corpora/*/manifest.json"))
    assert not list(hub.folder.parent.glob("cache/hub/*.jsonl.gz"))
    ((kind, said),) = build(
        hub, set_("columns", tokenizer=published()), HF_HUB_OFFLINE="1", HF_HOME=str(hub.folder / "empty")
    )
    assert kind == "DataError"
    assert "could not fetch the tokenizer org/tokenizer" in said


ROWS: list[str | BadRow] = ["one\ntwo\u2028", BadRow("row 2 of train", "null"), "", "é🙂"]


def test_rows_are_kept_whole_or_not_at_all(tmp_path):
    kept = tmp_path / "hub/rows.jsonl.gz"
    reading = _keeping(iter(ROWS), kept)
    assert next(reading) == ROWS[0]
    assert list(_keeping(iter(ROWS), kept)) == ROWS  # at the same time, by one that does not wait
    reading.close()
    assert not list(tmp_path.glob("hub/*.gz"))
    assert not list(tmp_path.glob("hub/*.partial"))
    assert list(_keeping(iter(ROWS), kept)) == ROWS
    assert list(_kept(kept)) == ROWS


def test_kept_rows_that_are_damaged_are_named(tmp_path):
    kept = tmp_path / "rows.jsonl.gz"
    assert list(_keeping(iter(ROWS * 50), kept)) == ROWS * 50
    whole = kept.read_bytes()
    noticed = 0
    for place in range(len(whole)):
        kept.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        try:
            assert list(_kept(kept)) == ROWS * 50  # a time or a name in the file's header
        except DataError as error:
            noticed += "rows.jsonl.gz is damaged" in str(error)
    assert noticed > len(whole) - 60
    kept.write_bytes(whole[:-9])
    with pytest.raises(DataError, match="delete it"):
        list(_kept(kept))
