"""Passages that stand in both splits: found, named with their documents, and dropped on request."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_variants.errors import ConfigError
from runners.data import DataConfig, overlap, prepare
from runners.data.overlap import refuse_overlap, shared_passages
from runners.data.passages import LENGTH, holds_any, in_stretches, passage_hashes
from runners.training import gates

WORDS = ["alpha", "beta", "gamma", "delta", "eta", "theta", "iota", "kappa", "mu", "nu", "xi", "pi", "rho", "tau"]


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 20))
def test_digests_are_equal_exactly_where_passages_are(ids, length):
    tokens = np.asarray(ids, np.uint16)
    hashes = passage_hashes(tokens, length)
    passages = [tuple(ids[i : i + length]) for i in range(len(ids) - length + 1)]
    assert len(hashes) == len(passages)
    assert len(set(hashes.tolist())) == len(set(passages))
    assert len(set(zip(hashes.tolist(), passages, strict=True))) == len(set(passages))


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 20), st.integers(1, 70))
def test_in_stretches_the_digests_are_the_same(ids, length, stretch):
    tokens = np.asarray(ids, np.uint16)
    found = list(in_stretches(tokens, length, stretch))
    assert [start for start, _ in found] == list(range(0, max(0, len(ids) - length + 1), stretch))
    assert np.array_equal(np.concatenate([[], *(hashes for _, hashes in found)]), passage_hashes(tokens, length))


@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 3), min_size=3, max_size=40))
def test_what_is_held_is_a_passage_of_both(ids, others):
    wanted = np.unique(passage_hashes(np.asarray(others, np.uint16), 3))
    passages = {tuple(others[i : i + 3]) for i in range(len(others) - 2)}
    found = any(tuple(ids[i : i + 3]) in passages for i in range(len(ids) - 2))
    assert holds_any(wanted, np.asarray(ids, np.uint16), 3) == found


def test_every_run_s_own_gate_has_the_same_numbers():
    assert (overlap.PROBES, LENGTH, overlap.MAX_SHARED) == (gates.PROBES, gates.PROBE_TOKENS, gates.MAX_SHARED)


def text(seed: str, count: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Twelve training documents, of which number 5 holds all of the second validation document inside."""
    monkeypatch.chdir(tmp_path)
    Path("text").mkdir()
    for i in range(3):
        Path(f"text/held-{i}.txt").write_text(text(f"held{i}", 600))
    for i in range(12):
        inside = Path("text/held-1.txt").read_text() if i == 4 else ""
        Path(f"text/train-{i:02}.txt").write_text(f"{text(f'train{i}', 500)} {inside} {text(f'after{i}', 100)}")
    source = {"type": "files", "train": ["text/train-*.txt"], "validation": ["text/held-*.txt"]}

    def declared(**more) -> DataConfig:
        return DataConfig.model_validate({"source": source, "tokenizer": {"type": "bpe", "vocab_size": 280}, **more})

    return declared


def test_both_documents_are_named_with_the_passage(config):
    corpus = prepare(config(), Path("cache"))
    found = shared_passages(corpus)
    assert len(found) == pytest.approx(overlap.PROBES / 3, abs=3)
    assert {(one.validation, one.train) for one in found} == {
        ("text/held-1.txt, document 2 of 3", "text/train-04.txt, document 5 of 12")
    }
    assert all(one.text.strip() in Path("text/held-1.txt").read_text() for one in found)
    with pytest.raises(ConfigError) as error:
        refuse_overlap(corpus)
    said = str(error.value)
    assert said.count("text/held-1.txt, document 2 of 3 (validation) and text/train-04.txt, document 5 of 12") == 2
    assert "`dedupe: true` in data" in said
    assert shared_passages(corpus) == found  # from the file


def test_dedupe_drops_that_document_and_no_other(config):
    whole = prepare(config(), Path("cache"))
    said: list[str] = []
    corpus = prepare(config(dedupe=True), Path("cache"), said.append)
    assert any("documents left out: 1 with passages of validation" in line for line in said)
    record = corpus.manifest["splits"]["train"]
    assert (record["documents"], record["with_passages_of_validation"]) == (11, 1)
    assert "text/train-04.txt" not in record["domains"]
    assert shared_passages(corpus) == []
    refuse_overlap(corpus)
    assert np.array_equal(corpus.validation.tokens, whole.validation.tokens)
    start = whole.manifest["splits"]["train"]["domains"]["text/train-04.txt"]
    rest = np.concatenate(
        [whole.train.tokens[: start["start"]], whole.train.tokens[start["start"] + start["tokens"] :]]
    )
    assert np.array_equal(corpus.train.tokens, rest)


def test_near_duplicates_are_those_of_a_search_passage_by_passage(config):
    for i, share in ((12, 0.9), (13, 0.6), (14, 0.4), (15, 0.1)):
        words = Path(f"text/train-{i - 12:02}.txt").read_text().split()
        kept = int(share * len(words))
        Path(f"text/train-{i}.txt").write_text(" ".join(words[:kept]) + " " + text(f"new{i}", len(words) - kept))
    corpus = prepare(config(), Path("cache"))
    tokens, offsets = corpus.train.tokens, np.load(corpus.folder / "train.offsets.npy")
    hashes = passage_hashes(np.asarray(tokens)).tolist()
    seen: dict[int, int] = {}
    wanted = []
    for number in range(len(offsets) - 1):
        own = [h for h in hashes[offsets[number] : offsets[number + 1]] if h % 16 == 0]
        before = [seen.setdefault(h, number) < number for h in own]
        if own and sum(before) >= len(own) / 2:
            wanted.append(f"text/train-{number:02}.txt, document {number + 1} of {len(offsets) - 1}")
    assert overlap.near_duplicates(corpus, "train") == wanted
    assert {name[11:13] for name in wanted} == {"12", "13"}


def test_undeclared_it_is_in_no_recipe(config):
    assert "dedupe" not in config().model_dump()
    assert "dedupe" not in config().identity()
    assert config(dedupe=True).model_dump()["dedupe"] is True
    assert DataConfig.model_validate(config(dedupe=True).model_dump()) == config(dedupe=True)
