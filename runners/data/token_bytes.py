"""How many bytes of text stand behind given tokens of a corpus: what losses per byte are computed with."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path

import numpy as np

from runners.data.batches import Corpus
from runners.data.tokenizer import TextTokenizer


class TokenBytes:
    """Bytes of text behind each token of the validation split, by its place.

    The token that ends a document stands for none. Where a character is made of several tokens each counts with its own
    bytes. So the parts of a split add up to its text, however it is cut.
    """

    def __init__(self, corpus: Corpus) -> None:
        from tokenizers import Tokenizer

        backend = Tokenizer.from_file(str(corpus.folder / "tokenizer.json"))
        self._inside, self._first = TextTokenizer(backend, corpus.manifest["end_id"]).bytes_of
        self._tokens = corpus.validation.tokens
        self._offsets = np.load(corpus.folder / "validation.offsets.npy")
        counts = np.bincount(self._tokens, minlength=len(self._inside))
        starts, ends = self._tokens[self._offsets[:-1]], self._tokens[self._offsets[1:] - 1]
        total = counts @ self._inside - self._inside[ends].sum() + (self._first - self._inside)[starts].sum()
        # 1 for a tokenizer that gives back its text. Others were once allowed: theirs add up to the text all the same.
        self._scale = corpus.validation.num_bytes / int(total) if total > 0 else 0.0

    def at(self, places: np.ndarray) -> np.ndarray:
        """Bytes behind the tokens at ``places`` of the split: float64, in the same shape."""
        ids = self._tokens[places]
        counts = np.where(self._among_offsets(places), self._first[ids], self._inside[ids])
        return np.where(self._among_offsets(places + 1), 0, counts) * self._scale

    def predicted(self, windows: np.ndarray, seq_len: int) -> np.ndarray:
        """Bytes (n,) behind the tokens that are predicted in each of the ``windows`` (n,): all but its first."""
        places: np.ndarray = windows[:, None] * seq_len + np.arange(1, seq_len)  # (n, t-1)
        return np.asarray(self.at(places).sum(axis=1))

    def bits_per_byte(self, loss_nats: float, windows: np.ndarray, seq_len: int) -> float:
        """``loss_nats``, the mean over all predicted tokens of the ``windows`` (n,), for each byte of their text."""
        nats = loss_nats * len(windows) * (seq_len - 1)
        return float(nats / (math.log(2) * self.predicted(windows, seq_len).sum()))

    def _among_offsets(self, places: np.ndarray) -> np.ndarray:
        """Whether a document begins at each of the places, or the last one has ended."""
        return np.asarray(self._offsets[np.searchsorted(self._offsets, places)] == places)


def token_bytes(corpus: Corpus) -> TokenBytes:
    """That of a corpus, computed from its files once in a process."""
    return _token_bytes(corpus.folder, corpus.fingerprint)


@lru_cache(maxsize=4)
def _token_bytes(folder: Path, fingerprint: str) -> TokenBytes:
    return TokenBytes(Corpus.open(folder, json.loads((folder / "manifest.json").read_text())))
