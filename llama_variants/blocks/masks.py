"""Which keys each query sees.

Axes: b batch, t time (of the queries), s time of the keys (t and what a cache holds, or all that it has room for).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own convention)
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask

Mask = Tensor | BlockMask
"""Which keys each query sees, by element or, for compiled layers on a card, by block."""


def visible(
    time: int,
    past: int | Tensor,
    window: int | None,
    padding: Bool[Tensor, "b _"] | None,
    device: torch.device,
    *,
    total: int | None = None,
    documents: Int[Tensor, "_ t"] | None = None,
    by_block: bool = False,
) -> Bool[Tensor, "#b 1 t s"] | BlockMask | None:
    """Which keys each query sees; None where that is every earlier one, which needs no mask.

    Args:
        time: t, the number of queries; their positions are past … past + t - 1.
        past: keys in the cache; a tensor where the cache counts on the device.
        window: how many keys a query sees, itself included; all earlier ones when None.
        padding: False where a key is padding; keys after its end, which a cache of fixed size has, are.
        device: where the mask is made.
        total: s, where the cache is of a fixed size; past + t when None.
        documents: the number of each position's document, where a row holds several; only without a cache.
        by_block: whether a window and documents, without cache and padding, may be a BlockMask.
    """
    grows = not isinstance(past, Tensor) and total in (None, past + time)
    if total is None:
        assert not isinstance(past, Tensor)
        total = past + time
    if window is not None and window >= total:
        window = None
    if padding is None and window is None and documents is None and grows and (time == 1 or past == 0):
        return None
    if by_block and padding is None and grows and past == 0:
        if documents is not None:
            return document_blocks(documents, window)
        assert window is not None  # without one nothing is left to mask
        return window_blocks(window, time, device)
    key = torch.arange(total, device=device)
    query = (torch.arange(time, device=device) + past)[:, None]  # (t, 1)
    mask = key <= query  # (t, s)
    if window is not None:
        mask &= key > query - window
    mask = mask[None, None]  # (1, 1, t, s)
    if documents is not None:
        mask = mask & (documents[:, None, :, None] == documents[:, None, None, :])
    if padding is not None:
        padding = F.pad(padding, (0, total - padding.shape[1]), value=False)
        # A query that is padding itself sees itself: a row without any key would be not-a-number in some kernels.
        mask = mask & padding[:, None, None, :] | (key == query)
    return mask


@lru_cache(maxsize=32)
def window_blocks(window: int, time: int, device: torch.device) -> BlockMask:
    """The newest ``window`` keys of each of ``time`` queries, by blocks of 128: FlexAttention skips those outside.

    Kept: one object for all layers and steps, which compiled code then recognises.
    """

    with torch.inference_mode(False):  # it is kept for training too
        return create_block_mask(
            lambda _batch, _head, query, key: (key <= query) & (key > query - window),
            None,
            None,
            time,
            time,
            device=device,
        )


def document_blocks(documents: Int[Tensor, "b t"], window: int | None) -> BlockMask:
    """The keys of each query's own document, of them the newest ``window``, by blocks of 128.

    Args:
        documents: the number of each position's document.
        window: how many keys a query sees; all of its document's when None.
    """
    batch, time = documents.shape
    window = time if window is None else window
    return create_block_mask(
        lambda row, _head, query, key: (
            (key <= query) & (key > query - window) & (documents[row, query] == documents[row, key])
        ),
        batch,
        None,
        time,
        time,
        device=documents.device,
    )


def by_element(mask: Mask | None) -> Tensor | None:
    """``mask`` as a tensor (…, t, s), for attention that is not compiled."""
    if not isinstance(mask, BlockMask):
        return mask
    batch = mask.kv_indices.shape[0]
    return create_mask(mask.mask_mod, batch, None, *mask.seq_lengths, device=mask.kv_indices.device)


def extent(time: int, cache: Any, layer_idx: int = 0) -> tuple[int | Tensor, int]:
    """How many keys ``cache`` (a transformers Cache, or None) holds, and how many it gives back after ``time`` more.

    Raises ValueError for one that gives back the newest keys only: a layer's window is this package's own affair.
    """
    if cache is None:
        return 0, time
    total, first = cache.get_mask_sizes(time, layer_idx)
    if first:
        raise ValueError("the cache drops old keys; use DynamicCache() or StaticCache(config=model.config, …)")
    past = cache.get_seq_length(layer_idx)
    return past.clone() if isinstance(past, Tensor) else past, total  # which the cache counts up in place


def packed(input_ids: Int[Tensor, "b t"], end_id: int) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
    """Each token's position in its document, and the number of its document in the row, both from 0.

    ``end_id`` is the last token of a document.
    """
    first = F.pad(input_ids[:, :-1] == end_id, (1, 0))  # of a document, but for the row's first
    index = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    return index - torch.where(first, index, 0).cummax(dim=1).values, first.cumsum(dim=1)


def documents_of(
    position_ids: Int[Tensor, "#b t"], kept: Bool[Tensor, "b t"] | None, *, gaps: bool = True
) -> Int[Tensor, "_ t"]:
    """The number of each position's document, from 0: a new one begins where positions do not go on.

    They go on where a token's position is one more than that of the token before, or more by the padding between them:
    both ways of counting are in use. Without padding this is how transformers finds rows packed without a mask.

    Args:
        position_ids: of each token in its document.
        kept: False where a token is padding, which begins nothing.
        gaps: whether positions that leave some out begin a document too, and not only those that start again.
    """
    kept = torch.ones_like(position_ids, dtype=torch.bool) if kept is None else kept
    position_ids = position_ids.expand(kept.shape)
    index = torch.arange(kept.shape[1], device=kept.device).expand(kept.shape)
    newest = torch.where(kept, index, -1).cummax(dim=1).values
    before = F.pad(newest[:, :-1], (1, 0), value=-1)  # where the token before stands; -1 for none
    step = position_ids - position_ids.gather(1, before.clamp(min=0))
    goes_on = (step == 1) | (step == index - before) if gaps else step > 0
    starts = kept & (before >= 0) & ~goes_on
    return starts.cumsum(dim=1)
