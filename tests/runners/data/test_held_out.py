"""Text to evaluate on, in the tokens of the model that is evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llama_variants.errors import ConfigError
from runners.data import DataError, prepare
from runners.data.config import FilesSource
from runners.data.held_out import held_out
from runners.data.token_bytes import token_bytes
from runners.data.tokenizer import TextTokenizer


@pytest.fixture
def corpus(recipe):
    return prepare(recipe.data, Path("cache"))


@pytest.fixture
def tokenizer(corpus):
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(corpus.folder / "tokenizer.json"))
    return TextTokenizer(backend, corpus.manifest["end_id"])


def test_it_is_the_corpus_s_validation_text_token_by_token(recipe, corpus, tokenizer):
    text = held_out(recipe.data.source, tokenizer, Path("cache"))
    assert np.array_equal(text.validation.tokens, corpus.validation.tokens)
    assert text.validation.num_bytes == corpus.validation.num_bytes
    assert text.manifest["splits"]["validation"] == corpus.manifest["splits"]["validation"]
    places = np.arange(3)
    assert token_bytes(text).bits_per_byte(1.0, places, 32) == token_bytes(corpus).bits_per_byte(1.0, places, 32)


def test_the_training_part_is_not_read(recipe, tokenizer, project):
    for file in (project / "text").glob("train-*"):
        file.unlink()
    text = held_out(recipe.data.source, tokenizer, Path("cache"))
    assert text.train.tokens.tolist() == [tokenizer.end_id]
    assert len(text.validation.tokens) > 0


def test_it_is_built_once_and_again_when_the_text_or_the_tokenizer_changes(recipe, tokenizer, project):
    said: list[str] = []
    first = held_out(recipe.data.source, tokenizer, Path("cache"), said.append)
    assert held_out(recipe.data.source, tokenizer, Path("cache"), said.append).fingerprint == first.fingerprint
    assert len([text for text in said if text.startswith("tokenized")]) == 1
    file = project / "text/validation-00.txt"
    file.write_text(file.read_text() + " alpha")
    assert held_out(recipe.data.source, tokenizer, Path("cache")).fingerprint != first.fingerprint
    other = TextTokenizer(tokenizer.backend, tokenizer.end_id + 1)
    assert held_out(recipe.data.source, other, Path("cache")).fingerprint != first.fingerprint


def test_files_on_the_spot_need_no_training_text(tokenizer, tmp_path):
    file = tmp_path / "notes.jsonl"
    file.write_text("".join(json.dumps({"text": f"alpha beta gamma {i} " * 40}) + "\n" for i in range(5)))
    source = FilesSource(type="files", train=(str(file),), validation=(str(file),))
    text = held_out(source, tokenizer, Path("cache"))
    assert text.manifest["splits"]["validation"]["documents"] == 5


def test_a_cut_file_is_named(recipe, tokenizer):
    text = held_out(recipe.data.source, tokenizer, Path("cache"))
    with (text.folder / "validation.bin").open("r+b") as file:
        file.truncate(10)
    with pytest.raises(DataError, match=r"validation\.bin has 10 bytes, not those of"):
        held_out(recipe.data.source, tokenizer, Path("cache"))


def test_an_empty_text_is_refused(tokenizer, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    source = FilesSource(type="files", train=("x",), validation=(str(tmp_path / "empty.txt"),))
    with pytest.raises(ConfigError, match="no document"):
        held_out(source, tokenizer, Path("cache"))
