"""Which keys each query sees, by element and by block."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask

from llama_variants.blocks.masks import by_element, documents_of, packed, visible


@given(st.integers(1, 700), st.integers(2, 700))
@settings(max_examples=25, deadline=None)
def test_a_window_by_block_is_the_window_by_element(window, time):
    """And no block is entered that holds nothing, nor masked where nothing in it is hidden."""
    cpu, block = torch.device("cpu"), 128
    mask = visible(time, 0, window, None, cpu, by_block=True)
    if window >= time:
        assert mask is None
        return
    expected = visible(time, 0, window, None, cpu)
    assert isinstance(mask, BlockMask)
    assert torch.equal(by_element(mask), expected)
    side = -(-time // block) * block
    padded = torch.zeros(side, side, dtype=torch.bool)
    padded[:time, :time] = expected[0, 0]
    parts = padded.view(side // block, block, side // block, block)
    entered, whole = parts.any(dim=3).any(dim=1), parts.all(dim=3).all(dim=1)
    full = BlockMask.from_kv_blocks(mask.full_kv_num_blocks, mask.full_kv_indices, seq_lengths=(time, time))
    assert torch.equal(mask.to_dense()[0, 0].bool(), entered)
    assert torch.equal(full.to_dense()[0, 0].bool(), whole)


ROWS = st.integers(1, 300).flatmap(
    lambda time: st.lists(st.lists(st.integers(0, 9), min_size=time, max_size=time), min_size=1, max_size=3)
)


@given(ROWS, st.none() | st.integers(1, 300))
@settings(max_examples=50, deadline=None)
def test_documents_by_block_are_those_by_element(rows, window):
    """And as somebody would write it who walks along the row."""
    tokens = torch.tensor(rows)
    batch, time = tokens.shape
    positions, documents = packed(tokens, 0)
    mask = torch.zeros(batch, 1, time, time, dtype=torch.bool)
    for row in range(batch):
        start = 0
        for query in range(time):
            mask[row, 0, query, max(start, query + 1 - (window or time)) : query + 1] = True
            assert positions[row, query] == query - start
            start = query + 1 if tokens[row, query] == 0 else start
    assert torch.equal(documents, documents_of(positions, None))
    given = {"past": 0, "window": window, "padding": None, "documents": documents, "device": torch.device("cpu")}
    assert torch.equal(visible(time, **given), mask)
    blocks = visible(time, **given, by_block=True)
    assert isinstance(blocks, BlockMask)
    assert torch.equal(by_element(blocks), mask)


@pytest.mark.parametrize("given", [{"padding": torch.ones(1, 9, dtype=torch.bool)}, {"past": 3, "total": 12}])
def test_padding_and_a_cache_take_a_mask_by_element(given):
    arguments = {"past": 0, "padding": None} | given
    mask = visible(9, window=2, device=torch.device("cpu"), by_block=True, **arguments)
    assert isinstance(mask, torch.Tensor)


def test_a_padded_query_sees_itself():
    """Not nothing: a row without any key is not-a-number in some kernels."""
    padding, cpu = torch.tensor([[False, False, True, True]]), torch.device("cpu")
    seen = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert visible(4, 0, None, padding, cpu)[0, 0].int().tolist() == seen
    assert visible(1, 3, 2, None, cpu)[0, 0].int().tolist() == [[0, 0, 1, 1]]
    assert visible(1, 3, 4, None, cpu) is None
