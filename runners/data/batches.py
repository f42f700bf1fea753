"""Token shards on disk, and batches that are a function of (seed, step) alone.

Axes: b windows of a batch, t tokens of a window.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from runners.data.config import DataError, Sizes, file_sha256


@dataclass(frozen=True)
class TokenSplit:
    """One split: a flat array of token ids, documents one after another, each with its end-of-text token.

    ``tokens``: a read-only memory map (n,). ``num_bytes``: of the text in UTF-8.
    """

    name: str
    tokens: np.ndarray
    num_bytes: int

    def num_windows(self, seq_len: int) -> int:
        """Whole windows of ``seq_len`` tokens. Raises DataError when there is none."""
        count = len(self.tokens) // seq_len
        if not count:
            raise DataError(
                f"the {self.name} split has {len(self.tokens):,} tokens, less than one window of {seq_len:,}"
            )
        return count

    def epochs(self, num_tokens: int, seq_len: int) -> float:
        """How often a run of ``num_tokens`` sees each window of ``seq_len`` tokens."""
        return num_tokens / (self.num_windows(seq_len) * seq_len)

    def batch(self, step: int, *, seed: int, batch_size: int, seq_len: int) -> np.ndarray:
        """Batch number ``step`` (from 0): int64 (batch_size, seq_len).

        Windows do not overlap; each epoch visits every window once, in an order keyed by (seed, epoch); batches run on
        across the end of an epoch. Nothing is remembered between calls, so resuming is knowing a step number.
        """
        return self._windows(self.places(step, seed=seed, batch_size=batch_size, seq_len=seq_len), seq_len)

    def places(self, step: int, *, seed: int, batch_size: int, seq_len: int) -> np.ndarray:
        """Which windows of the split batch number ``step`` is made of: indices (batch_size,)."""
        count = self.num_windows(seq_len)
        places = np.arange(step * batch_size, (step + 1) * batch_size)
        return np.asarray([window_order(seed, int(place // count), count)[place % count] for place in places])

    def windows(self, num_windows: int, seq_len: int) -> np.ndarray:
        """``num_windows`` fixed windows spread evenly over the split: int64 (num_windows, seq_len).

        Raises DataError when the split has fewer.
        """
        return self._windows(self.fixed_places(num_windows, seq_len), seq_len)

    def fixed_places(self, num_windows: int, seq_len: int) -> np.ndarray:
        """Which windows of the split :meth:`windows` gives: indices (num_windows,)."""
        count = self.num_windows(seq_len)
        if num_windows > count:
            raise DataError(f"the {self.name} split has {count:,} windows of {seq_len:,} tokens, not {num_windows:,}")
        return np.asarray(np.arange(num_windows) * count // num_windows)

    def _windows(self, indices: np.ndarray, seq_len: int) -> np.ndarray:
        return np.stack([self.tokens[i * seq_len : (i + 1) * seq_len] for i in indices]).astype(np.int64)  # (b, t)


@lru_cache(maxsize=8)
def window_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """A permutation of ``count`` windows keyed by (seed, epoch).

    Sorts raw 64-bit words of numpy's Philox: those are fixed for good, while what numpy's Generator makes of them
    (its own permutation) may change between versions.
    """
    key = int.from_bytes(hashlib.sha256(f"data/{seed}/{epoch}".encode()).digest()[:16], "little")
    return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A built corpus: both splits, and the manifest that says where they come from."""

    folder: Path
    manifest: dict[str, Any]
    train: TokenSplit
    validation: TokenSplit

    @property
    def fingerprint(self) -> str:
        """16 hex digits over declaration and content: equal on every platform."""
        return str(self.manifest["fingerprint"])

    @property
    def sizes(self) -> Sizes:
        """How much there is, for :meth:`Recipe.size_problems`."""
        vocab = self.manifest["vocab_size"]
        return Sizes(train=len(self.train.tokens), validation=len(self.validation.tokens), vocab=vocab)

    @classmethod
    def open(cls, folder: Path, manifest: dict[str, Any]) -> Corpus:
        """Map a built corpus. Raises DataError when a file is not the size that its manifest says."""
        splits = {}
        for name in ("train", "validation"):
            record = manifest["splits"][name]
            file = folder / f"{name}.bin"
            size = file.stat().st_size if file.exists() else 0
            if size != record["tokens"] * np.dtype(manifest["dtype"]).itemsize:
                raise DataError(f"{file} has {size:,} bytes, not those of {record['tokens']:,} tokens; delete {folder}")
            tokens = np.memmap(file, dtype=manifest["dtype"], mode="r")
            splits[name] = TokenSplit(name, tokens, record["bytes"])
        return cls(folder=folder, manifest=manifest, train=splits["train"], validation=splits["validation"])

    def verify(self) -> None:
        """Read every file again. Raises DataError naming the first whose content is not what was built."""
        for name, digest in self.manifest["sha256"].items():
            file = self.folder / name
            if not file.exists() or file_sha256(file) != digest:
                raise DataError(f"{file} is not what was built; delete {self.folder}")
