"""Causal self-attention: head groupings, and what can be added to them.

Axes: b batch, t time (of the queries), s time of the keys (t and what a cache holds), d model width, h query heads,
g key/value heads, k size of a head.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own convention)
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from llama_variants.blocks.fused import project_together
from llama_variants.blocks.masks import Mask, by_element, extent, visible
from llama_variants.config import ModelConfig
from llama_variants.errors import Problem
from llama_variants.registry import ATTENTION, NORM, ROTARY, BlockConfig, Cost, residual_output
from llama_variants.types import Neutral, Ratio, to_fraction


def takes_groups(device: torch.device, dtype: torch.dtype, masked: bool) -> bool:
    """Whether PyTorch's fast kernels for queries of this kind take fewer key/value heads than query heads.

    On a card flash's and cuDNN's do, of 16 bits alone; flash's takes no mask, and cuDNN's is no deterministic one. What
    is left else is the memory-efficient kernel, which takes no groups:
    grouped heads would fall to `math`, which holds all scores, and be compared with another kernel's ``mha``.
    Source: torch's sdp_utils.cpp, which tells why with ``torch.backends.cuda.can_use_efficient_attention(…, True)``.
    """
    if device.type != "cuda":
        return True
    return dtype in (torch.float16, torch.bfloat16) and not (masked and torch.are_deterministic_algorithms_enabled())


def written_out(
    q: Float[Tensor, "b h t k"], k: Float[Tensor, "b g s k"], v: Float[Tensor, "b g s k"], mask: Tensor | None
) -> tuple[Float[Tensor, "b h t k"], Float[Tensor, "b h t s"]]:
    """Attention as PyTorch's kernels compute it, and its weights, which they do not give.

    Args:
        q: queries.
        k: keys.
        v: values.
        mask: as for :meth:`LlamaAttention.forward`.
    """
    time, total = q.shape[2], k.shape[2]
    k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for part in (k, v))  # (b, h, s, k)
    scores = q @ k.transpose(2, 3) * q.shape[3] ** -0.5  # (b, h, t, s)
    if mask is None:
        mask = torch.ones(time, total, dtype=torch.bool, device=q.device).tril(total - time)
    # Not minus infinity: a row without any key would be not-a-number.
    lowest = torch.finfo(scores.dtype).min
    scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
    return weights @ v, weights


class AttentionConfig(BlockConfig):
    """What every attention declares: ``num_attention_heads`` (h), ``head_dim`` (k) and ``bias`` of its projections."""

    num_attention_heads: PositiveInt
    head_dim: PositiveInt
    bias: Annotated[bool, Neutral(False)] = False

    @property
    def kv_heads(self) -> int:
        """g, the number of key/value heads."""
        raise NotImplementedError

    def window(self, model: ModelConfig) -> int | None:
        """How many keys a query sees, itself included; None for all earlier ones."""
        return None

    def resolved(self, model: ModelConfig) -> dict[str, Any]:
        """The number of key/value heads instead of any other way to write the grouping."""
        return super().resolved(model) | {"num_key_value_heads": self.kv_heads}

    def cost(self, model: ModelConfig, seq_len: int) -> Cost:
        """Four projections, and the products of scores and of values.

        A query sees half of all keys on average, or a window w of T: w - w²/2T.
        """
        query, key = self.num_attention_heads * self.head_dim, self.kv_heads * self.head_dim
        size = model.hidden_size
        projections = Cost.linear(size, query, self.bias) + Cost.linear(query, size, self.bias)
        projections += Cost.linear(size, key, self.bias) * 2
        window = min(self.window(model) or seq_len, seq_len)
        seen = window - Fraction(window * window, 2 * seq_len)
        return projections + Cost(
            attention_flops=4 * query * seq_len,
            causal_attention_flops=round(4 * query * seen),
            kv_cache_values=2 * key,
        )


class GroupedConfig(AttentionConfig):
    """The grouping, as ``num_key_value_heads`` (g) or as ``queries_per_kv`` (h/g)."""

    alternatives: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"num_key_value_heads", "queries_per_kv"}),)

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
                yield Problem(
                    path=(name,), received=str(value), allowed=f"a divisor of the {heads} attention heads: {divisors}"
                )


@ATTENTION.register("gqa")
class LlamaAttention(nn.Module):
    """Grouped-query attention, the control: h query heads share g key/value heads, without biases
    unless ``bias`` says so.

    softmax(q kᵀ / sqrt(k)) v over earlier positions. Source: arXiv:2305.13245.

    Args:
        config: a ModelConfig, plain data or a transformers LlamaConfig; ``hidden_size``, ``attention`` and, when no
            rotary is given, ``rotary`` are read.
        layer_idx: the layer's number.
        rotary: a built position encoding, shared by all layers; built from ``config.rotary`` when None.
    """

    also: ClassVar = ("mha", "mqa")
    """Blocks that are this class at other numbers of heads."""

    eager: bool = False
    """Whether attention is written out instead of left to PyTorch's kernels; the model sets it before each call."""
    record: list[Tensor] | None = None
    """Where the weights (b, h, t, s) go, which only attention that is written out has; the model sets it too."""

    class Config(GroupedConfig):
        """The grouping."""

    def __init__(self, config: Any, layer_idx: int = 0, *, rotary: Any = None) -> None:
        super().__init__()
        config = ModelConfig.of(config).layer(layer_idx)
        attention = config.block("attention", type(self))
        self.layer_idx = layer_idx
        self.num_heads, self.num_kv_heads = attention.num_attention_heads, attention.kv_heads
        self.head_dim = attention.head_dim
        self.window = attention.window(config)
        size, query, key = (
            config.hidden_size,
            self.num_heads * self.head_dim,
            self.num_kv_heads * self.head_dim,
        )
        self.q_proj = nn.Linear(size, query, bias=attention.bias)
        self.k_proj = nn.Linear(size, key, bias=attention.bias)
        self.v_proj = nn.Linear(size, key, bias=attention.bias)
        self.o_proj = residual_output(nn.Linear(query, size, bias=attention.bias))
        if rotary is None:
            rotary = ROTARY[config.rotary.type].from_config(config.rotary, self.head_dim)
        # In a tuple: a shared module belongs to the model, and is not listed again under every layer.
        self._rotary = (rotary,)

    @property
    def rotary(self) -> Any:
        """The position encoding."""
        return self._rotary[0]

    def project(
        self, x: Float[Tensor, "b t d"]
    ) -> tuple[Float[Tensor, "b h t k"], Float[Tensor, "b g t k"], Float[Tensor, "b g t k"]]:
        """Queries, keys and values of ``x``, before they are turned."""
        batch, time, _ = x.shape
        q, k, v = project_together(x, (self.q_proj, self.k_proj, self.v_proj))
        q = q.view(batch, time, self.num_heads, self.head_dim).transpose(1, 2)  # (b, h, t, k)
        k = k.view(batch, time, self.num_kv_heads, self.head_dim).transpose(1, 2)  # (b, g, t, k)
        v = v.view(batch, time, self.num_kv_heads, self.head_dim).transpose(1, 2)  # (b, g, t, k)
        return q, k, v

    def merge(self, y: Float[Tensor, "b t hk"], x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """What the heads made, ``y`` (b, t, h·k), back to the model's width; ``x`` is the block's input."""
        return self.o_proj(y)

    def forward(
        self, x: Float[Tensor, "b t d"], rotation: Any = None, mask: Mask | None = None, cache: Any = None
    ) -> Float[Tensor, "b t d"]:
        """``x`` (b, t, d) → (b, t, d).

        Args:
            x: hidden states of the newest t positions.
            rotation: what the rotary made of their positions; made here when None.
            mask: which keys each query sees (1 or b, 1 or h, t, s), or what is added to its scores; a BlockMask is
                for compiled code; the earlier ones, in the window, when None.
            cache: a transformers Cache that holds the keys and values of earlier positions.
        """
        batch, time, _ = x.shape
        if rotation is None or mask is None:
            past, total = extent(time, cache, self.layer_idx)
            if rotation is None:
                rotation = self.rotary.rotation((torch.arange(time, device=x.device) + past)[None])
            if mask is None:
                mask = visible(time, past, self.window, None, x.device, total=total)
        q, k, v = self.project(x)
        q, k = self.rotary.rotate(q, rotation), self.rotary.rotate(k, rotation)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)  # (b, g, s, k)
        shared = self.num_kv_heads != self.num_heads
        if isinstance(mask, BlockMask) and torch.compiler.is_compiling():
            y = flex_attention(q, k, v, block_mask=mask, enable_gqa=shared)  # eager, it would hold all scores
        elif self.eager:
            y, weights = written_out(q, k, v, by_element(mask))
            if self.record is not None:
                self.record.append(weights)
        else:
            mask = by_element(mask)
            if not takes_groups(q.device, q.dtype, mask is not None):
                k, v = (part.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1) for part in (k, v))
                shared = False
            # bool(): under torch.jit.trace a comparison of sizes is a tensor.
            causal = bool(mask is None and time > 1)
            y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=shared)
        # y: (b, h, t, k)
        return self.merge(y.transpose(1, 2).reshape(batch, time, -1), x)  # (b, t, h·k) → (b, t, d)


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


@ATTENTION.register("qk_norm")
class QKNormAttention(LlamaAttention):
    """Attention with normalised queries and keys: softmax(norm(q) norm(k)ᵀ / sqrt(k)) v.

    Differs from the control by two norms of the model's own kind over each head, before the rotation; all heads share
    their gains. Source: arXiv:2302.05442, in the form of Qwen3 (arXiv:2505.09388).
    """

    class Config(GroupedConfig):
        """The grouping; the norms are the model's."""

        semantics: ClassVar = 2  # the gains' gradients are summed in the order that the rotation leaves

        def cost(self, model: ModelConfig, seq_len: int) -> Cost:
            """Two norms over a head more than the control."""
            return super().cost(model, seq_len) + model.norm.cost_of_size(self.head_dim) * 2  # type: ignore[attr-defined]

    def __init__(self, config: Any, layer_idx: int = 0, *, rotary: Any = None) -> None:
        super().__init__(config, layer_idx, rotary=rotary)
        config = ModelConfig.of(config).layer(layer_idx)
        norm = NORM[config.norm.type]
        self.q_norm = norm.from_config(config.norm, self.head_dim)
        self.k_norm = norm.from_config(config.norm, self.head_dim)

    def project(
        self, x: Float[Tensor, "b t d"]
    ) -> tuple[Float[Tensor, "b h t k"], Float[Tensor, "b g t k"], Float[Tensor, "b g t k"]]:
        """Queries and keys normalised over k; values as they are."""
        q, k, v = super().project(x)
        return self.q_norm(q), self.k_norm(k), v


@ATTENTION.register("sliding_window")
class SlidingWindowAttention(LlamaAttention):
    """Attention to the last w positions only, the query's own included.

    Differs from the control by what it sees. A local:global pattern gives some layers the control back:
    ``layers: {every 6: {attention: {type: gqa}}}`` is 5:1. Source: Longformer (arXiv:2004.05150), as in Mistral 7B
    (arXiv:2310.06825) and Gemma 3 (arXiv:2503.19786).
    """

    class Config(GroupedConfig):
        """``window_size`` (w) in tokens, or ``window_fraction`` of ``max_position_embeddings``; and the grouping."""

        alternatives: ClassVar = (
            *GroupedConfig.alternatives,
            frozenset({"window_size", "window_fraction"}),
        )
        example: ClassVar = {"window_fraction": "1/4"}

        window_size: PositiveInt | None = None
        window_fraction: Ratio | None = None

        def window(self, model: ModelConfig) -> int:
            """w, from either form."""
            if self.window_size is not None:
                return self.window_size
            assert self.window_fraction is not None
            return round(to_fraction(self.window_fraction) * model.max_position_embeddings)

        def resolved(self, model: ModelConfig) -> dict[str, Any]:
            """The window in tokens."""
            return {**super().resolved(model), "window_size": self.window(model)}

        def problems(self, model: ModelConfig) -> Iterable[Problem]:
            """A window that holds the whole context slides nowhere."""
            found = list(super().problems(model))
            yield from found
            ways = ("window_size", "window_fraction")
            if any(problem.path[0] in ways for problem in found):
                return
            context, window = model.max_position_embeddings, self.window(model)
            if not 1 <= window < context:
                name = next(name for name in ways if getattr(self, name) is not None)
                received = f"{getattr(self, name)}, which is {window} tokens"
                yield Problem(
                    path=(name,),
                    received=received,
                    allowed=f"1 to {context - 1} tokens (max_position_embeddings is {context})",
                )


@ATTENTION.register("gated_output")
class GatedOutputAttention(LlamaAttention):
    """Attention whose output passes a gate: o_proj(y · sigmoid(x Wg)).

    Differs from the control by a projection d → h·k and a sigmoid for each element of what the heads made.
    Source: arXiv:2505.06708, the elementwise gate after the value product; at the start it is near one half.
    """

    class Config(GroupedConfig):
        """The grouping."""

        def cost(self, model: ModelConfig, seq_len: int) -> Cost:
            """One projection more than the control."""
            query = self.num_attention_heads * self.head_dim
            return super().cost(model, seq_len) + Cost.linear(model.hidden_size, query)

    def __init__(self, config: Any, layer_idx: int = 0, *, rotary: Any = None) -> None:
        super().__init__(config, layer_idx, rotary=rotary)
        self.g_proj = nn.Linear(self.q_proj.in_features, self.q_proj.out_features, bias=False)

    def merge(self, y: Float[Tensor, "b t hk"], x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """``y`` through the gate that ``x`` opens, then back to the model's width."""
        return super().merge(y * torch.sigmoid(self.g_proj(x)), x)
