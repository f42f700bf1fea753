"""Digests of passages of tokens: what stands in two texts is found without comparing them token by token."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

LENGTH = 64
"""Tokens of a passage that no two texts share by chance."""
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplying by it loses nothing modulo 2**64


def passage_hashes(tokens: np.ndarray, length: int = LENGTH) -> np.ndarray:
    """A 64-bit digest of the ``length`` tokens from each place on: uint64 (n - length + 1,), empty for fewer tokens.

    Equal passages have equal digests. Digests of stretches are joined to those of twice as long ones, so that the work
    grows with the logarithm of ``length``.
    """
    count = len(tokens) - length + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    level = (tokens.astype(np.uint64) + np.uint64(1)) * _BASE
    found, done, size = np.zeros(count, np.uint64), 0, 1
    while True:
        if length & size:
            found = _mixed(found * _BASE + level[done : done + count])
            done += size
        if 2 * size > length:
            return found
        level = _mixed(level[:-size] * _BASE + level[size:])
        size *= 2


def distinct(tokens: np.ndarray) -> np.ndarray:
    """The digests that passages of ``tokens`` have, each once, sorted."""
    return np.unique(np.concatenate([np.empty(0, np.uint64), *(hashes for _, hashes in in_stretches(tokens))]))


def in_stretches(tokens: np.ndarray, length: int = LENGTH, stretch: int = 2**20) -> Iterator[tuple[int, np.ndarray]]:
    """:func:`passage_hashes` of any number of tokens in bounded memory: each stretch's first place and digests."""
    for start in range(0, len(tokens) - length + 1, stretch):
        yield start, passage_hashes(tokens[start : start + stretch + length - 1], length)


def _mixed(hashes: np.ndarray) -> np.ndarray:
    return np.asarray((hashes ^ (hashes >> np.uint64(31))) * _BASE)


def holds_any(wanted: np.ndarray, tokens: np.ndarray, length: int = LENGTH) -> bool:
    """Whether ``tokens`` hold a passage whose digest is in ``wanted``, sorted and not empty."""
    hashes = passage_hashes(tokens, length)
    at = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
    return bool((wanted[at] == hashes).any())
