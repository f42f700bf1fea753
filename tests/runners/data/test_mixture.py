"""Mixtures: shares are the weights', within a document, in one order, and what a part lacks is said."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llama_variants import build_model
from llama_variants.errors import ConfigError
from runners.data import Corpus, DataConfig, prepare, shards
from runners.data.config import MixtureSource
from runners.data.held_out import held_out
from runners.data.mixture import BYTES_A_TOKEN, Mixture, interleave
from runners.data.overlap import document_at
from runners.data.shards import known_sizes
from runners.data.tokenizer import TextTokenizer
from runners.evaluation.loss_by_domain import LossByDomain
from runners.evaluation.subject import Subject

BPE = {"type": "bpe", "vocab_size": 300}
WEIGHTS = {"code": 3, "prose": 1, "talk": 0.5}


def texts(name: str, count: int) -> list[str]:
    drawn = random.Random(name)
    words = [f"{name}{i}" for i in range(40)]
    return [f"{i} " + " ".join(drawn.choices(words, k=drawn.randint(1, 120))) for i in range(count)]


def write(file: str, rows: list[str]) -> list[str]:
    Path(file).write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return [file]


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Three parts with 120 training texts each."""
    monkeypatch.chdir(tmp_path)
    return {
        name: {
            "weight": weight,
            "source": {
                "type": "files",
                "train": write(f"{name}.jsonl", texts(name, 120)),
                "validation": write(f"{name}-held.jsonl", texts(f"{name}-held", 9)),
            },
        }
        for name, weight in WEIGHTS.items()
    }


def config(parts: dict[str, Any], **more: Any) -> DataConfig:
    return DataConfig.model_validate({"source": {"type": "mixture", "parts": parts, **more}, "tokenizer": BPE})


def read(corpus: Corpus, split: str = "train") -> list[str]:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(corpus.folder / "tokenizer.json"))
    ends = np.load(corpus.folder / f"{split}.offsets.npy")
    tokens = getattr(corpus, split).tokens
    return [backend.decode(tokens[start : end - 1].tolist()) for start, end in itertools.pairwise(ends)]


@given(
    st.lists(
        st.tuples(st.floats(0.01, 100), st.lists(st.integers(1, 5000), min_size=1, max_size=60)), min_size=2, max_size=6
    )
)
def test_at_every_moment_each_stream_has_had_its_share_within_one_item(streams):
    total = sum(weight for weight, _ in streams)
    shares = {str(i): weight / total for i, (weight, _) in enumerate(streams)}
    items = {str(i): [(str(i), size) for size in sizes] for i, (_, sizes) in enumerate(streams)}
    largest = max(size for sizes in items.values() for _, size in sizes)
    had: Counter[str] = Counter()
    came: dict[str, list[tuple[str, int]]] = {name: [] for name in items}
    for name, size in interleave({name: iter(own) for name, own in items.items()}, shares, lambda item: item[1]):
        had[name] += size
        came[name].append((name, size))
        for one, share in shares.items():
            assert abs(had[one] - share * had.total()) <= largest * (1 + 1e-9)
    assert all(own == items[name][: len(own)] for name, own in came.items())
    assert any(own == items[name] for name, own in came.items())  # and until one is used up


def test_a_mixture_has_its_shares_and_validation_is_that_of_all_parts(parts):
    corpus = prepare(config(parts), Path("cache"))
    record = corpus.manifest["splits"]["train"]
    lengths = np.diff(np.load(corpus.folder / "train.offsets.npy"))
    for name, one in record["parts"].items():
        assert abs(one["tokens"] - WEIGHTS[name] / 4.5 * record["tokens"]) <= lengths.max()
    came: dict[str, list[str]] = {name: [] for name in parts}
    for number, text in enumerate(read(corpus)):
        name = next(name for name in parts if name in text)
        place = int(np.load(corpus.folder / "train.offsets.npy")[number])
        assert document_at(corpus, "train", place).startswith(f"{name}/{name}.jsonl, document {number + 1} of ")
        came[name].append(text)
    assert all(own == texts(name, 120)[: len(own)] for name, own in came.items())
    assert len(came["code"]) == 120  # the part that is used up first
    assert read(corpus, "validation") == [text for name in sorted(parts) for text in texts(f"{name}-held", 9)]
    held = corpus.manifest["splits"]["validation"]
    assert list(held["domains"]) == [f"{name}/{name}-held.jsonl" for name in sorted(parts)]
    assert sum(one["tokens"] for one in held["parts"].values()) == held["tokens"]


def test_the_order_follows_the_declaration_and_not_how_it_is_written_or_carried_out(parts, monkeypatch):
    corpus = prepare(config(parts), Path("cache"))
    turned = config(dict(reversed(parts.items())))
    assert turned.identity() == config(parts).identity()
    monkeypatch.setattr(shards, "_CHUNK", 100)
    assert prepare(turned, Path("elsewhere")).fingerprint == corpus.fingerprint
    other = config({**parts, "talk": {**parts["talk"], "weight": 0.6}})
    assert other.identity() != turned.identity()
    doubled = config({name: {**part, "weight": 2 * part["weight"]} for name, part in parts.items()})
    assert doubled.identity() == turned.identity()
    assert DataConfig.model_validate(other.model_dump(mode="json")).identity() == other.identity()


def test_a_part_that_lacks_text_is_named_and_what_is_allowed_does(parts):
    alone = {name: prepare(config(parts), Path("cache")).manifest["splits"]["train"]["tokens"] for name in parts}
    wanted = 2 * alone["code"]
    with pytest.raises(ConfigError, match=r"data\.source\.parts\.code: received a part that is used up") as refused:
        prepare(config(parts, tokens=wanted), Path("cache"))
    allowed = refused.value.problems[0].allowed
    epochs, tokens = (int(allowed.split(f"{word}: ")[1].split("`")[0]) for word in ("max_epochs", "tokens"))
    assert prepare(config(parts, tokens=tokens), Path("cache")).sizes.train == tokens
    with pytest.raises(ConfigError, match="used up"):
        prepare(config({**parts, "code": {**parts["code"], "max_epochs": epochs - 1}}, tokens=wanted), Path("cache"))
    repeated = prepare(config({**parts, "code": {**parts["code"], "max_epochs": epochs}}, tokens=wanted), Path("cache"))
    record = repeated.manifest["splits"]["train"]
    assert 0 <= record["tokens"] - wanted < np.diff(np.load(repeated.folder / "train.offsets.npy")).max()
    counts = Counter(text for text in read(repeated) if "code" in text)
    assert set(counts) == set(texts("code", 120))
    assert max(counts.values()) == epochs
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_text_that_stands_twice_belongs_to_one_part_and_to_validation_before(parts):
    both, held = texts("both", 8), texts("prose-held", 9)
    for name in ("code", "talk"):
        write(f"{name}.jsonl", [*both, *texts(name, 40), *held])
    write("talk-held.jsonl", [*texts("talk-held", 9), held[0]])
    corpus = prepare(config(parts), Path("cache"))
    counts = Counter(read(corpus))
    assert max(counts.values()) == 1
    assert set(both) <= set(counts)
    assert not set(held) & set(counts)
    assert Counter(read(corpus, "validation"))[held[0]] == 1
    assert corpus.manifest["splits"]["validation"]["duplicates_dropped"] == 1


def test_problems_of_a_source_name_its_part(parts):
    parts["prose"]["source"]["train"] = ["absent*.jsonl"]
    with pytest.raises(ConfigError, match=r"data\.source\.parts\.prose\.source\.train: received 'absent"):
        config(parts).identity()
    parts["prose"]["source"]["train"] = write("bad.jsonl", ["text"])
    Path("bad.jsonl").write_text('{"other": 1}\n')
    with pytest.raises(ConfigError, match=r"data\.source\.parts\.prose\.source\.train: received no 'text'"):
        prepare(config(parts), Path("cache"))
    good, parts["prose"]["source"]["validation"] = parts["prose"]["source"]["validation"], ["bad.jsonl"]
    parts["prose"]["source"]["train"] = write("good.jsonl", texts("prose", 1))
    with pytest.raises(ConfigError, match=r"data\.source\.parts\.prose\.source\.validation: received no 'text'"):
        prepare(config(parts), Path("cache"))
    parts["prose"]["source"] |= {"train": write("bad.jsonl", texts("code", 1)), "validation": good}
    with pytest.raises(ConfigError, match=r"parts\.prose: received no document that the other parts"):
        prepare(config(parts), Path("cache"))


@pytest.mark.parametrize(
    "change",
    [
        {"weight": 0},
        {"weight": float("inf")},
        {"weight": -1},
        {"max_epochs": 0},
        {"source": {"type": "mixture"}},
        {"share": 1},
    ],
)
def test_wrong_parts_are_refused(parts, change):
    with pytest.raises(ValidationError):
        config({**parts, "code": {**parts["code"], **change}})
    with pytest.raises(ValidationError, match="at least 2"):
        config({"code": parts["code"]})


def test_a_tokenizer_is_learned_from_about_the_tokens_of_the_mixture(parts):
    source = config(parts, tokens=50).source
    assert isinstance(source, MixtureSource)
    read_for_it = [len(document.text.encode()) for document in Mixture(source, Path("cache")).read("train")]
    assert sum(read_for_it[:-1]) < 50 * BYTES_A_TOKEN <= sum(read_for_it)


def test_a_mixture_has_no_more_tokens_than_are_promised_before_it_is_built(parts):
    parts["talk"]["max_epochs"] = 3
    promised = known_sizes(config(parts), Path("cache"))
    corpus = prepare(config(parts), Path("cache"))
    assert promised.train is not None
    assert promised.validation is not None
    assert len(corpus.train.tokens) <= promised.train
    assert len(corpus.validation.tokens) <= promised.validation
    assert known_sizes(config(parts), Path("cache")) == corpus.sizes


def test_a_model_is_evaluated_on_the_validation_of_all_parts_whatever_their_weights(parts):
    from tokenizers import Tokenizer

    corpus = prepare(config(parts), Path("cache"))
    tokenizer = TextTokenizer(Tokenizer.from_file(str(corpus.folder / "tokenizer.json")), corpus.manifest["end_id"])
    judged = held_out(config(parts).source, tokenizer, Path("cache"))
    assert np.array_equal(judged.validation.tokens, corpus.validation.tokens)
    parts["code"]["weight"] = 1
    assert held_out(config(parts).source, tokenizer, Path("cache")).folder == judged.folder


def test_the_loss_is_reported_by_part_too(recipe, parts):
    corpus = prepare(config(parts), Path("cache"))
    subject = Subject(build_model(recipe.model, seed=1), recipe, corpus, 3)
    measured = LossByDomain(LossByDomain.Config())(subject)
    assert {f"val/loss_by_domain/{name}" for name in parts} < set(measured)
    for name in parts:  # each has one file
        assert measured[f"val/loss_by_domain/{name}"] == measured[f"val/loss_by_domain/{name}_{name}-held.jsonl"]
