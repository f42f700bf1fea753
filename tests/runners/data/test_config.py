"""The `data` section: what it refuses, and what its identity notices."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llama_variants.errors import ConfigError
from runners.data import DataConfig

PIN = "toy==1.0 sha256:" + "a" * 64
OTHER = "Other.Toy==2.0 sha256:" + "b" * 64
BPE = {"type": "bpe", "vocab_size": 300}
PACKAGES = {"type": "packages", "train": [PIN], "validation": [OTHER]}


def config(source: dict[str, Any] = PACKAGES, tokenizer: dict[str, Any] = BPE) -> DataConfig:
    return DataConfig.model_validate({"source": source, "tokenizer": tokenizer})


def files(tmp_path: Path) -> dict[str, Any]:
    for name in ("train", "validation"):
        (tmp_path / f"{name}.txt").write_text(name)
    return {"type": "files", "train": [f"{tmp_path}/train*"], "validation": [f"{tmp_path}/validation*"]}


@pytest.mark.parametrize(
    ("source", "tokenizer"),
    [
        (PACKAGES | {"train": ["toy==1.0"]}, BPE),
        (PACKAGES | {"train": ["toy>=1.0 sha256:" + "a" * 64]}, BPE),
        (PACKAGES | {"train": []}, BPE),
        (PACKAGES | {"train": [PIN, "other_toy==1.0 sha256:" + "c" * 64]}, BPE),  # of other-toy: held out
        (PACKAGES | {"typo": 1}, BPE),
        (PACKAGES, {"type": "bpe", "vocab_size": 256}),
        (PACKAGES, {"type": "bpe", "vocab_size": "300"}),
        ({"type": "hub", "dataset": "d", "train": "train[:9%]", "validation": "test", "revision": "r"}, BPE),
        ({"type": "hub", "dataset": "d", "train": "train", "validation": "test"}, BPE),
    ],
)
def test_refused(source: dict[str, Any], tokenizer: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        config(source, tokenizer)


def test_identity_is_json_and_survives_a_round_trip() -> None:
    data = config()
    again = DataConfig.model_validate(json.loads(json.dumps(data.model_dump(mode="json"))))
    assert json.dumps(again.identity()) == json.dumps(data.identity())


def test_identity_follows_every_declared_value() -> None:
    variants = [
        config(),
        config(PACKAGES | {"extensions": [".py"]}),
        config(PACKAGES | {"validation": [OTHER.replace("b", "c")]}),
        config(tokenizer=BPE | {"vocab_size": 301}),
        config(tokenizer=BPE | {"train_bytes": 9}),
    ]
    assert len({json.dumps(variant.identity()) for variant in variants}) == len(variants)


def test_identity_of_files_is_their_content_not_their_place(tmp_path: Path) -> None:
    left, right = tmp_path / "left", tmp_path / "right"
    left.mkdir()
    right.mkdir()
    one, other = config(files(left)), config(files(right))
    assert one.identity() == other.identity()
    (right / "train.txt").write_text("other")
    assert one.identity() != other.identity()


def test_a_glob_without_files_is_named(tmp_path: Path) -> None:
    source = files(tmp_path) | {"train": [f"{tmp_path}/*.nothing"]}
    with pytest.raises(ConfigError, match=r"data\.source\.train: received .*\*\.nothing', which matches no file"):
        config(source).identity()


def test_relative_globs_start_at_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = files(tmp_path)
    monkeypatch.chdir(tmp_path)
    relative = source | {"train": ["train.*"], "validation": ["**/validation.*"]}
    assert config(relative).identity() == config(source).identity()


def test_a_local_tokenizer_is_known_by_its_content(tmp_path: Path) -> None:
    data = config(tokenizer={"type": "pretrained", "path": str(tmp_path)})
    with pytest.raises(ConfigError, match="without tokenizer files"):
        data.identity()
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    before = data.identity()
    assert str(tmp_path) not in json.dumps(before)
    file.write_text("[]")
    os.utime(file, ns=(0, 0))  # a same-size rewrite within the clock's tick has another time in real life
    assert data.identity() != before


def test_a_hub_tokenizer_needs_a_revision() -> None:
    spec = {"type": "pretrained", "path": "owner/name"}
    with pytest.raises(ConfigError, match="no revision"):
        config(tokenizer=spec).identity()
    commit = "0123456789abcdef" * 2 + "01234567"
    assert config(tokenizer=spec | {"revision": commit}).identity()["tokenizer"]["revision"] == commit


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/1", "0123456", "0" * 39 + "G", "A" * 40])
def test_a_revision_that_can_move_is_no_identity(revision: str) -> None:
    tokenizer = {"type": "pretrained", "path": "owner/name", "revision": revision}
    with pytest.raises(ConfigError, match=r"data\.tokenizer\.revision: .*the 40 hex digits of a commit"):
        config(tokenizer=tokenizer).identity()
    hub = {"type": "hub", "dataset": "owner/set", "train": "train", "validation": "test", "revision": revision}
    with pytest.raises(ConfigError, match=r"data\.source\.revision: .*the 40 hex digits of a commit"):
        config(hub).identity()


def test_a_local_dataset_folder_is_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "one"}\n')
    hub = {"type": "hub", "dataset": str(tmp_path), "train": "train[:1]", "validation": "train[1:]", "revision": "r"}
    before = config(hub).identity()
    (tmp_path / "train.jsonl").write_text('{"text": "two!"}\n')
    assert config(hub).identity() != before


def test_home_is_expanded_in_every_local_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "train.jsonl").write_text('{"text": "one"}\n')
    tokenizer = {"type": "pretrained", "path": "~"}
    assert config(tokenizer=tokenizer).identity() == config(tokenizer=tokenizer | {"path": str(tmp_path)}).identity()
    hub = {"type": "hub", "dataset": "~/", "train": "train[:1]", "validation": "train[1:]", "revision": "r"}
    assert [name for name, _ in config(hub).identity()["source"]["files"]] == ["tokenizer.json", "train.jsonl"]
