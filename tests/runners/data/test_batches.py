"""Batches are a function of (seed, step), and each epoch sees each window once."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runners.data import DataError
from runners.data.batches import TokenSplit, window_order

sizes = {"count": st.integers(1, 40), "seq_len": st.integers(1, 5), "batch_size": st.integers(1, 9)}
seeds = st.integers(0, 2**31)


def split_of(num_tokens: int) -> TokenSplit:
    """Tokens 0, 1, 2, …, so that a window's first token says which window it is."""
    return TokenSplit("train", np.arange(num_tokens, dtype="<u4"), num_bytes=3 * num_tokens)


@given(seed=seeds, num_epochs=st.integers(1, 3), spare=st.integers(0, 4), **sizes)
def test_every_window_once_per_epoch(
    seed: int, num_epochs: int, spare: int, count: int, seq_len: int, batch_size: int
) -> None:
    split = split_of(count * seq_len + min(spare, seq_len - 1))
    needed = num_epochs * count
    steps = range(-(-needed // batch_size))
    options = {"seed": seed, "batch_size": batch_size, "seq_len": seq_len}
    seen = np.concatenate([split.batch(step, **options) for step in steps])[:needed]
    assert (np.diff(seen, axis=1) == 1).all()
    for epoch in np.split(seen[:, 0], num_epochs):
        assert sorted(epoch) == [i * seq_len for i in range(count)]


@given(seed=seeds, step=st.integers(0, 20), parts=st.integers(1, 4), **sizes)
def test_micro_batches_join_to_the_batch(
    seed: int, step: int, parts: int, count: int, seq_len: int, batch_size: int
) -> None:
    split = split_of(count * seq_len)
    whole = split.batch(step, seed=seed, batch_size=parts * batch_size, seq_len=seq_len)
    small = [split.batch(step * parts + i, seed=seed, batch_size=batch_size, seq_len=seq_len) for i in range(parts)]
    assert (whole == np.concatenate(small)).all()
    assert whole.dtype == np.int64
    assert whole.shape == (parts * batch_size, seq_len)


@given(seed=seeds, steps=st.permutations(range(12)))
def test_a_batch_does_not_depend_on_what_was_read_before(seed: int, steps: list[int]) -> None:
    split = split_of(7 * 4)
    options = {"seed": seed, "batch_size": 3, "seq_len": 4}
    expected = {}
    for step in range(12):
        window_order.cache_clear()
        expected[step] = split.batch(step, **options)
    for step in steps:
        assert (split.batch(step, **options) == expected[step]).all()


def test_seeds_and_epochs_have_their_own_orders() -> None:
    orders = [window_order(seed, epoch, 1000) for seed in range(3) for epoch in range(3)]
    expected_fixed_points = 1  # of one random permutation against another
    for i, left in enumerate(orders):
        for right in orders[:i]:
            assert (left == right).sum() < expected_fixed_points + 8


def test_the_order_is_pinned() -> None:
    assert window_order(0, 0, 8).tolist() == [7, 0, 6, 2, 4, 3, 1, 5]


@given(count=st.integers(1, 60), data=st.data())
def test_validation_windows_are_fixed_distinct_and_evenly_spread(count: int, data: st.DataObject) -> None:
    asked = data.draw(st.integers(1, count))
    windows = split_of(count * 3 + 2).windows(asked, 3)
    first = windows[:, 0] // 3
    assert first[0] == 0
    gaps = {int(b - a) for a, b in pairwise([*first, count])}
    assert gaps <= {count // asked, -(-count // asked)}


def test_too_few_tokens_are_an_error_with_numbers() -> None:
    with pytest.raises(DataError, match=r"train split has 9 tokens, less than one window of 10"):
        split_of(9).batch(0, seed=0, batch_size=1, seq_len=10)
    with pytest.raises(DataError, match=r"3 windows of 10 tokens, not 4"):
        split_of(39).windows(4, 10)


def test_units() -> None:
    split = split_of(105)
    assert split.epochs(400, 10) == 4
