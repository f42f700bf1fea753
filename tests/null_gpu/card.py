"""The null card from Python: its log, its memory, and cuDNN's attention, which asks the card itself for its kernels."""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

_card = ctypes.CDLL(None)  # what was preloaded
_card.null_gpu_take.restype = ctypes.c_char_p
_card.null_gpu_limit.argtypes = [ctypes.c_size_t]

ATTENTION = {
    "cudnn": r"kernel cudnn_attention",
    "flash": r"kernel \S*flash_[fb]wd",
    "efficient": r"kernel \S*(fmha_cutlass|AttentionKernel|AttentionBackwardKernel)",
    "flex": r"triton \S*flex_attention",
}
LAUNCHES = ("kernel", "triton", "gemm", "memset")


def take() -> list[str]:
    """The events since the last call, one a line: their kind, a name, sizes."""
    return _card.null_gpu_take().decode().splitlines()


def limit_memory(gib: float) -> None:
    """Have the card refuse what goes beyond."""
    _card.null_gpu_limit(int(gib * 2**30))


def count(events: Iterable[str]) -> dict[str, int]:
    """How many events of each kind; copies by their direction, and ``launches`` in all."""
    found = Counter(line.split()[line.startswith("copy")] for line in events)
    found["pageable"] = sum(line.endswith(" pageable") for line in events)
    return {**found, "launches": sum(found[kind] for kind in LAUNCHES)}


def attention(events: Iterable[str], seq_len: int) -> list[str]:
    """Which kernels computed attention: ``math`` is where a product of all queries with all keys was kept."""
    written_out = re.compile(rf"gemm m{seq_len} n{seq_len} ")
    found = set()
    for line in events:
        found |= {name for name, pattern in ATTENTION.items() if re.match(pattern, line)}
        found |= {"math"} if written_out.match(line) else set()
    return sorted(found)


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    with_logsumexp: bool,
    dropout: float = 0.0,
    causal: bool = False,
    debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor | int | None, ...]:
    """As torch's meta function says: the output (b, h, t, k) lies in memory as the queries do."""
    _card.null_gpu_say(b"kernel cudnn_attention_forward 1,1,1")
    shape = (*query.shape[:3], value.shape[3])
    order = sorted(range(4), key=query.stride, reverse=True)
    out = torch.empty_permuted(shape, order, dtype=query.dtype, device=query.device)
    logsumexp = torch.empty((*query.shape[:3], 1), dtype=torch.float32, device=query.device)
    seed, offset = (torch.empty((), dtype=torch.long, device=query.device) for _ in range(2))
    return out, logsumexp, None, None, query.shape[2], key.shape[2], seed, offset, torch.empty(0, device=query.device)


def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *others: object, scale: float | None = None
) -> tuple[Tensor, ...]:
    _card.null_gpu_say(b"kernel cudnn_attention_backward 1,1,1")
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


_aten = torch.library.Library("aten", "IMPL")  # gone with this object
_aten.impl("_scaled_dot_product_cudnn_attention", _forward, "CUDA")
_aten.impl("_scaled_dot_product_cudnn_attention_backward", _backward, "CUDA")
