"""What a training step of a stock Llama takes at least on a card: its matrix products, and its passes over memory.

Nothing is measured here. Times follow from the sizes and from two numbers of the card's data sheet. A matrix product
takes as long as its arithmetic or its operands, whichever is longer. What lies between the products (norms, residual
adds, rotation, activation, cross-entropy, optimizer) is bound by memory: each such kernel reads every tensor that it
needs once and writes every one that it makes once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from llama_variants.config import ModelConfig
from runners.planning.recipe import TrainConfig

BYTES = {"float32": 4, "bfloat16": 2}
OPTIMIZER_PASSES = 10
"""Over the float32 parameters, or what is as large. AdamW reads four (values, gradients, two moments) and writes three;
clipping reads the gradients for their norm, then reads and writes them."""


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """Milliseconds of one step, by what they are spent on."""

    layers: float  # matrix products of the layers
    head: float  # and of the head
    attention: float
    passes: float  # over activations, between the layers' products
    casts: float  # of weights to bfloat16, and of their gradients back
    cross_entropy: float
    optimizer: float  # with clipping

    @property
    def total(self) -> float:
        """Milliseconds of a step."""
        return sum(getattr(self, field.name) for field in fields(self))

    def to_dict(self) -> dict[str, float]:
        """Plain data, with the total."""
        return asdict(self) | {"total": self.total}


def layer_bytes(model: ModelConfig, precision: str, stream: str) -> int:
    """Bytes a token that the kernels between a layer's products move, forward and backward.

    Args:
        model: of Llama's blocks.
        precision: of the matrix products.
        stream: of the residual stream.
    """
    sizes = _sizes(model)
    d, q, kv, f = sizes["d"], sizes["q"], sizes["kv"], sizes["f"]
    c, s = BYTES[precision], BYTES[stream]
    own = 0 if c == s else c  # where the gradient of the stream is needed in the products' precision too
    forward = (
        d * (s + c)  # first norm: the stream to what is projected
        + 2 * c * (q + kv)  # rotation of queries and keys
        + d * (s + c + c)  # second norm, of the stream with what attention gave
        + c * (2 * f + f)  # activation: gate and up to what is projected down
        + d * (s + c + c + s)  # both sums
    )
    backward = (
        d * (s + own if own else 0)  # the stream's gradient to that of the last product
        + c * (f + 2 * f + 2 * f)  # activation
        + d * (s + c + c + s + s + own)  # second norm: stream, attention, two gradients; its gradient
        + 2 * c * (q + 2 * kv)  # rotation, and the three gradients side by side
        + d * (s + c + s + s)  # first norm
    )
    return forward + backward


def roofline(model: ModelConfig, train: TrainConfig, *, flops: float, bandwidth: float) -> Roofline:
    """The least time of a step on a card.

    Args:
        model: of Llama's blocks, a tied head included.
        train: sizes and precision.
        flops: the card's FLOP/s in the products' precision, dense.
        bandwidth: bytes/s of its memory.
    """
    sizes, tokens = _sizes(model), train.tokens_per_step
    d, q, kv, f = sizes["d"], sizes["q"], sizes["kv"], sizes["f"]
    c = BYTES[train.precision]

    def product(size_in: int, size_out: int) -> float:  # forward, and the gradients of both operands
        arithmetic = 2 * tokens * size_in * size_out / flops
        return 3 * max(arithmetic, c * (tokens * (size_in + size_out) + size_in * size_out) / bandwidth)

    weights = [(d, q + 2 * kv), (q, d), (d, 2 * f), (f, d)]  # queries, keys and values as one; gate and up as one
    layers, vocab = model.num_hidden_layers, model.vocab_size
    attention: Any = model.attention
    cost = attention.cost(model, train.seq_len)
    seconds = {
        "layers": layers * sum(product(*sizes) for sizes in weights),
        "head": product(d, vocab),
        "attention": layers * 3 * tokens * cost.causal_attention_flops / flops,
        "passes": layers * tokens * layer_bytes(model, train.precision, train.residual_stream) / bandwidth,
        "casts": 0 if c == 4 else 2 * (4 + c) * (layers * sum(a * b for a, b in weights) + d * vocab) / bandwidth,
        "cross_entropy": 3 * tokens * vocab * c / bandwidth,  # read, read again, and their gradient
        "optimizer": OPTIMIZER_PASSES * 4 * model.num_params / bandwidth,
    }
    return Roofline(**{name: 1000 * value for name, value in seconds.items()})


def _sizes(model: ModelConfig) -> dict[str, int]:
    attention: Any = model.attention
    mlp: Any = model.mlp
    return {
        "d": model.hidden_size,
        "q": attention.num_attention_heads * attention.head_dim,
        "kv": attention.kv_heads * attention.head_dim,
        "f": mlp.width(model.hidden_size),
    }
