"""Causal self-attention with its head grouping.

Axes: b batch, t time, d model width, h query heads, g key/value heads, k size of a head.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from llama_variants.errors import Problem
from llama_variants.registry import ATTENTION, ROTARY, BlockConfig, Cost

if TYPE_CHECKING:
    from llama_variants.config import ModelConfig


class AttentionConfig(BlockConfig):
    """What every grouping declares: ``num_attention_heads`` (h) and ``head_dim`` (k)."""

    num_attention_heads: PositiveInt
    head_dim: PositiveInt

    @property
    def kv_heads(self) -> int:
        """g, the number of key/value heads."""
        raise NotImplementedError

    def resolved(self, model: ModelConfig) -> dict[str, Any]:
        """The number of key/value heads instead of any other way to write the grouping."""
        return {
            "type": self.type,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
        }

    def cost(self, model: ModelConfig, seq_len: int) -> Cost:
        """Four projections, and the products of scores and of values."""
        query, key = self.num_attention_heads * self.head_dim, self.kv_heads * self.head_dim
        projections = Cost.linear(model.hidden_size, query) * 2 + Cost.linear(model.hidden_size, key) * 2
        return projections + Cost(attention_flops=4 * query * seq_len)


@ATTENTION.register("gqa")
class LlamaAttention(nn.Module):
    """Grouped-query attention, the control: h query heads share g key/value heads, without biases.

    softmax(q kᵀ / sqrt(k)) v over earlier positions. Source: arXiv:2305.13245.

    Args:
        config: a ModelConfig; reads ``hidden_size``, ``attention`` and, when no rotary is given, ``rotary``.
        layer_idx: the layer's number.
        rotary: a built position encoding, shared by all layers; built from ``config.rotary`` when None.
    """

    class Config(AttentionConfig):
        """The grouping, as ``num_key_value_heads`` (g) or as ``queries_per_kv`` (h/g)."""

        alternatives: ClassVar = (frozenset({"num_key_value_heads", "queries_per_kv"}),)

        num_key_value_heads: PositiveInt | None = None
        queries_per_kv: PositiveInt | None = None

        @property
        def kv_heads(self) -> int:
            """g, from either form."""
            if self.num_key_value_heads is not None:
                return self.num_key_value_heads
            assert self.queries_per_kv is not None
            return self.num_attention_heads // self.queries_per_kv

        def problems(self, model: ModelConfig) -> Iterable[Problem]:
            """Query heads must share key/value heads evenly."""
            yield from super().problems(model)
            heads = self.num_attention_heads
            divisors = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
            for name in ("num_key_value_heads", "queries_per_kv"):
                value = getattr(self, name)
                if value is not None and heads % value:
                    yield Problem((name,), str(value), f"a divisor of the {heads} attention heads: {divisors}")

    def __init__(self, config: ModelConfig, layer_idx: int = 0, *, rotary: Any = None) -> None:
        super().__init__()
        attention = config.attention
        assert isinstance(attention, AttentionConfig)
        self.layer_idx = layer_idx
        self.num_heads, self.num_kv_heads = attention.num_attention_heads, attention.kv_heads
        self.head_dim = attention.head_dim
        size, query, key = (
            config.hidden_size,
            self.num_heads * self.head_dim,
            self.num_kv_heads * self.head_dim,
        )
        self.q_proj = nn.Linear(size, query, bias=False)
        self.k_proj = nn.Linear(size, key, bias=False)
        self.v_proj = nn.Linear(size, key, bias=False)
        self.o_proj = nn.Linear(query, size, bias=False)
        if rotary is None:
            rotary = ROTARY[config.rotary.type].from_config(config.rotary, self.head_dim)
        # In a tuple: a shared module belongs to the model, and is not listed again under every layer.
        self._rotary = (rotary,)

    def forward(self, x: Tensor, rotation: Any = None) -> Tensor:
        """``x`` (b, t, d) → (b, t, d). ``rotation``: what the rotary made of the positions; 0 … t-1 when None."""
        batch, time, _ = x.shape
        (rotary,) = self._rotary
        if rotation is None:
            rotation = rotary.rotation(torch.arange(time, device=x.device)[None])
        q = self.q_proj(x).view(batch, time, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        k = self.k_proj(x).view(batch, time, self.num_kv_heads, self.head_dim).transpose(1, 2)  # (b, g, t, k)
        v = self.v_proj(x).view(batch, time, self.num_kv_heads, self.head_dim).transpose(1, 2)  # (b, g, t, k)
        q, k = rotary.rotate(q, rotation), rotary.rotate(k, rotation)
        grouped = self.num_kv_heads != self.num_heads
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)  # (b, h, t, k)
        return self.o_proj(y.transpose(1, 2).reshape(batch, time, -1))  # (b, t, h·k) → (b, t, d)


@ATTENTION.register("mha")
class MultiHeadAttention(LlamaAttention):
    """Multi-head attention: a key/value head for every query head (g = h).

    Differs from the control by sharing nothing. Source: arXiv:1706.03762.
    """

    class Config(AttentionConfig):
        """No fields of its own."""

        @property
        def kv_heads(self) -> int:
            """One for each query head."""
            return self.num_attention_heads


@ATTENTION.register("mqa")
class MultiQueryAttention(LlamaAttention):
    """Multi-query attention: one key/value head for all query heads (g = 1).

    Differs from the control by sharing everything. Source: arXiv:1911.02150.
    """

    class Config(AttentionConfig):
        """No fields of its own."""

        @property
        def kv_heads(self) -> int:
            """One."""
            return 1
