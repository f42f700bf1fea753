"""Tokenizers give back what they are given, whole or in pieces, and know how many bytes stand behind each token."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llama_variants.errors import ConfigError
from runners.data import Corpus, DataConfig, prepare
from runners.data import tokenizer as module
from runners.data.token_bytes import TokenBytes, token_bytes
from runners.data.tokenizer import TextTokenizer, make, pieces
from runners.data.tokenizer_config import BPETokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog; it's 12:30 and we're late.\n\n  Indented, twice  \n",
    "Déjà vu, naïve café, 漢字かな交じり文, смешанный текст, 🙂👍🏽 and \t tabs\r\nand carriage returns",
    "aaaa bbbb  cccc   dddd\n\n\n\neeee \u00a0\u2003 ffff\x1cgggg'll 'S don't 0x1F 3.14",
]


def own(vocab_size: int = 400) -> TextTokenizer:
    config = BPETokenizer(type="bpe", vocab_size=vocab_size)
    return make(config, lambda: TEXTS, Path("cache"))


@pytest.fixture(scope="module")
def bpe() -> TextTokenizer:
    return own()


def byte_fallback() -> Tokenizer:
    """As Llama 2's: a space is written as ▁, one is put before the text, and what is not known is spelled in bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    special = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([text.encode("ascii", "ignore").decode() for text in TEXTS], trainer)
    # Bytes are ordinary tokens there, not special ones: only then can the model spell with them.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(state))


def byte_level(**options: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(**options)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def with_added_words() -> Tokenizer:
    tokenizer = byte_level(add_prefix_space=False)
    tokenizer.add_tokens([AddedToken("naïve café", normalized=False), AddedToken("  ", normalized=False)])
    return tokenizer


def digits_apart() -> Tokenizer:
    tokenizer = byte_level(add_prefix_space=False)
    parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    return tokenizer


LOSSLESS: dict[str, Callable[[], Tokenizer]] = {
    "as GPT-2": lambda: byte_level(add_prefix_space=False),
    "as SmolLM2": digits_apart,
    "with a space before": lambda: byte_level(add_prefix_space=True),
    "as Llama 2": byte_fallback,
    "with added words": with_added_words,
}


def corpus_with(folder: Path, tokenizer: Tokenizer, train: list[str], validation: list[str]) -> Corpus:
    """A corpus by a tokenizer that was published as files."""
    saved = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    saved.save_pretrained(folder / "tokenizer")
    for name, texts in (("train", train), ("validation", validation)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = {"type": "files", "train": [f"{folder}/train.jsonl"], "validation": [f"{folder}/validation.jsonl"]}
    config = {"source": source, "tokenizer": {"type": "pretrained", "path": str(folder / "tokenizer")}}
    return prepare(DataConfig.model_validate(config), folder / "cache")


@pytest.mark.parametrize("name", ["own", *LOSSLESS])
@given(
    st.lists(st.sampled_from(["word", " ", "\n", "  ", "\u00a0", "\x1c", "'s", "12", "é", "漢", "🙂", "\r", "\t", "."]))
)
def test_in_pieces_a_text_has_the_same_tokens(bpe, name, parts):
    text = "".join(parts)
    tokenizer = bpe if name == "own" else TextTokenizer(_tokenizer(name), 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE", 3)
        cut = list(pieces(text))
        (in_pieces,) = tokenizer.encode([text])
    assert "".join(cut) == text
    whole = tokenizer.backend.encode_batch([text], add_special_tokens=False)[0].ids
    assert in_pieces.tolist() == whole


def test_only_a_tokenizer_that_nothing_tells_is_in_pieces_works_in_pieces():
    can = {name for name in LOSSLESS if TextTokenizer(_tokenizer(name), 1).in_pieces}
    assert can == {"as GPT-2", "as SmolLM2"}


def test_a_long_document_goes_through_in_many_pieces_with_the_tokens_of_the_whole(bpe, monkeypatch):
    text = " ".join(TEXTS) * 2000
    assert len(list(pieces(text))) > 4
    (ids,) = bpe.encode([text])
    assert ids.tolist() == bpe.backend.encode(text, add_special_tokens=False).ids
    assert list(pieces("x" * 300_000)) == ["x" * 300_000]  # nowhere to cut
    learned = own().backend.to_str()
    monkeypatch.setattr(module, "_PIECE", 5)
    assert own().backend.to_str() == learned


@pytest.mark.parametrize("name", LOSSLESS)
@given(
    text=st.one_of(
        st.sampled_from([*TEXTS, " x", "  x", "\nx", ""]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    )
)
def test_the_bytes_behind_the_tokens_of_a_text_are_its_bytes(name, text):
    tokenizer = TextTokenizer(_tokenizer(name), 1)
    (ids,) = tokenizer.encode([text])
    assert tokenizer.lost(text, ids) == (0, "")
    taken = name == "with a space before" and text.startswith(" ")  # for the one that this tokenizer would have put
    assert tokenizer.num_bytes(ids) == len(text.encode()) - taken


_MADE: dict[str, Tokenizer] = {}


def _tokenizer(name: str) -> Tokenizer:
    if name not in _MADE:
        _MADE[name] = LOSSLESS[name]()
    return _MADE[name]


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("seq_len", [2, 3, 7, 32])
def test_windows_that_cover_a_split_have_its_bytes(tmp_path, name, seq_len):
    """Characters of several tokens, ends of documents and their first tokens stand anywhere in a window."""
    corpus = corpus_with(tmp_path, _tokenizer(name), ["Some other text."], [TEXTS[0], TEXTS[1] * 3, TEXTS[2], "x"])
    counts, split = token_bytes(corpus), corpus.validation
    assert split.num_bytes == len("".join([TEXTS[0], TEXTS[1] * 3, TEXTS[2], "x"]).encode())
    everywhere = counts.at(np.arange(len(split.tokens)))
    assert everywhere.sum() == split.num_bytes
    ends = np.load(corpus.folder / "validation.offsets.npy")[1:] - 1
    assert (everywhere[ends] == 0).all()
    windows = np.arange(len(split.tokens) // seq_len)
    firsts = everywhere[windows * seq_len].sum()
    rest = everywhere[len(windows) * seq_len :].sum()
    assert counts.predicted(windows, seq_len).sum() + firsts + rest == split.num_bytes
    some = windows[::2]
    nats = 2.5 * len(some) * (seq_len - 1)
    expected = nats / np.log(2) / counts.predicted(some, seq_len).sum()
    assert counts.bits_per_byte(2.5, some, seq_len) == pytest.approx(expected, rel=1e-12)


def test_the_bytes_of_a_corpus_are_computed_once_and_those_of_another_anew(tmp_path):
    for name, texts in (("a", TEXTS[:1]), ("b", TEXTS[1:])):
        (tmp_path / name).mkdir()
        corpus = corpus_with(tmp_path / name, _tokenizer("as GPT-2"), ["Other."], texts)
        assert token_bytes(corpus) is token_bytes(corpus)
        assert isinstance(token_bytes(corpus), TokenBytes)
        assert token_bytes(corpus).at(np.arange(len(corpus.validation.tokens))).sum() == corpus.validation.num_bytes


def words_alone() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "quick": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def lower_case() -> Tokenizer:
    tokenizer = byte_level(add_prefix_space=False)
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def drops_what_it_has_not_seen() -> Tokenizer:
    """No byte fallback and no unknown token: a character without a token of its own vanishes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.Fuse()
    special = ["</s>"]
    tokenizer.train_from_iterator(
        ["the quick brown fox"], trainers.BpeTrainer(special_tokens=special, show_progress=False)
    )
    return tokenizer


def composes() -> Tokenizer:
    tokenizer = byte_level(add_prefix_space=False)
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "texts", "says"),
    [
        (
            words_alone,
            ["The quick fox"],
            r"of .*\.jsonl 'The quick fox', from U\+0054 at character 1 on, which comes back as '<unk>",
        ),
        (
            lower_case,
            ["the Quick fox"],
            r"'Quick fox', from U\+0051 at character 5 on, which comes back as 'quick fox'",
        ),
        (composes, ["cafe\u0301"], r"from U\+0065 at character 4 on, which comes back as 'é'"),
        (
            drops_what_it_has_not_seen,
            ["the fox", *(["the quick fox"] * 70), "the " + "ó" * 90],
            r"of .*\.jsonl 'ó{20}', from U\+00F3 at character 5 on, which comes back as ' the",
        ),
    ],
)
def test_a_tokenizer_that_loses_text_is_refused_with_what_is_lost(tmp_path, tokenizer, texts, says):
    texts = [f"{text}{' the' * i}" for i, text in enumerate(texts)]
    with pytest.raises(ConfigError, match=says) as error:
        corpus_with(tmp_path, tokenizer(), texts, ["quick" if tokenizer is words_alone else "the brown fox"])
    assert "data.tokenizer: received one that loses text, " in str(error.value)
    assert "allowed: a tokenizer that gives back what it is given, such as a byte-level BPE" in str(error.value)
    assert not list(tmp_path.glob("cache/corpora/*/*"))


def test_a_few_characters_that_a_tokenizer_has_no_token_for_are_counted_and_said(tmp_path):
    """As SmolLM2's own loses some control characters. Their bytes are spread over the split's tokens."""
    train = [f"the quick fox{' the' * i}" for i in range(90)]
    corpus = corpus_with(tmp_path, drops_what_it_has_not_seen(), [*train, "the fóx"], ["the brown fox" * 90 + "ö"])
    counts = {name: split["characters_lost"] for name, split in corpus.manifest["splits"].items()}
    assert counts == {"train": 1, "validation": 1}
    everywhere = token_bytes(corpus).at(np.arange(len(corpus.validation.tokens)))
    assert everywhere.sum() == pytest.approx(corpus.validation.num_bytes, rel=1e-12)


def test_a_byte_level_tokenizer_without_all_bytes_loses_some():
    alphabet = [name for name in pre_tokenizers.ByteLevel.alphabet() if name != "\u0104"]  # stands for U+0004
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = TextTokenizer(tokenizer, 0)
    (ids,) = wrapped.encode(["end\x04 of text"])
    assert wrapped.lost("end\x04 of text", ids)[0] == 1
    assert wrapped.num_bytes(ids) == len("end of text")
