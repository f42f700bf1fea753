"""What a build says of itself: rates and shares, in lines or, on a real terminal, in one line that is drawn again."""

from __future__ import annotations

import itertools
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from runners.data import DataConfig, prepare, progress
from runners.data.sources import Documents
from tests.conftest import ROOT

TASK = {"type": "copy", "alphabet": 5, "distance": 3, "length": 9}
SYNTHETIC = {"type": "synthetic", "task": TASK, "train": 3000, "validation": 9}
NUMBERS = {"type": "numbers", "vocab_size": 6}
CONFIG = {"source": SYNTHETIC, "tokenizer": NUMBERS}
BUILD = f"""
import os, pathlib, pty, sys
from runners.data import DataConfig, prepare, progress
progress.LINE_EVERY_S = progress.REDRAW_EVERY_S = 0
config = DataConfig.model_validate({CONFIG!r})
prepare(config, pathlib.Path(sys.argv[1]), print)
"""


def test_lines_have_share_and_rate(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0)
    said: list[str] = []
    corpus = prepare(DataConfig.model_validate(CONFIG), tmp_path, said.append)
    lines = [line for line in said if line.startswith("train: ") and "tokens/s" in line]
    assert all(
        re.fullmatch(r"train: \d+% done, [\d,]+ documents, 0 MB, [\d,]+ tokens, [\d,]+ tokens/s", x) for x in lines
    )
    assert len(lines) == corpus.manifest["splits"]["train"]["documents"]
    assert lines[-1].startswith("train: 100% done")


def test_on_a_terminal_one_line_is_drawn_again_and_gone_at_the_end(tmp_path):
    import pty

    shown = bytearray()

    def read(descriptor: int) -> bytes:
        data = os.read(descriptor, 1024)
        shown.extend(data)
        return data

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    try:
        status = pty.spawn([sys.executable, "-c", BUILD, str(tmp_path)], read)
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    text = shown.decode()
    assert status == 0, text
    drawn = re.findall(r"\r(train: [^\r\n]* tokens/s?[^\r\n]*)\x1b\[K", text)
    assert len(drawn) > 100
    assert "\n" not in "".join(drawn)
    assert text.count("\r\x1b[K") == 2  # one a split
    assert re.search(r"\r\x1b\[K(train: documents left out: [^\r]*\r\n)?built ", text)


@pytest.mark.parametrize("kind", ["text", "jsonl", "jsonl.gz"])
def test_the_share_only_grows_and_ends_near_the_whole(tmp_path, kind):
    import gzip
    import json

    for split, count in (("train", 40), ("validation", 4)):
        texts = [f"{split} {i} {'word ' * i}" for i in range(count)]
        if kind == "text":
            for i, text in enumerate(texts):
                (tmp_path / f"{split}-{i}.txt").write_text(text)
        else:
            rows = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
            (tmp_path / f"{split}.{kind}").write_bytes(gzip.compress(rows) if kind.endswith("gz") else rows)
    ending = ".txt" if kind == "text" else f".{kind}"
    source: dict[str, Any] = {"type": "files"} | {
        split: [f"{tmp_path}/{split}*{ending}"] for split in ("train", "validation")
    }
    config = DataConfig.model_validate({"source": source, "tokenizer": {"type": "bpe", "vocab_size": 300}})
    documents = Documents(config.source, Path("cache"))
    shares = [documents.share_read("train") or 0 for _ in documents.read("train")]
    assert all(one <= other for one, other in itertools.pairwise([0, *shares]))
    assert shares[-1] == 0 if kind.endswith("gz") else 0.8 < shares[-1] <= 1
