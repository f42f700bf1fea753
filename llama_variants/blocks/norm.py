"""Normalisation layers. Axes: d the size that is normalised."""

from __future__ import annotations

import torch
from jaxtyping import Float
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from llama_variants.config import ModelConfig
from llama_variants.registry import NORM, BlockConfig, Cost


class NormConfig(BlockConfig):
    """What the model asks of every norm: its cost over any number of channels."""

    def cost_of_size(self, size: int) -> Cost:
        """Cost of a norm over ``size`` channels."""
        raise NotImplementedError

    def cost(self, model: ModelConfig, seq_len: int) -> Cost:
        """Over the model's width."""
        return self.cost_of_size(model.hidden_size)


@NORM.register("rms")
class LlamaRMSNorm(nn.Module):
    """Root-mean-square normalisation, the control: y = x / sqrt(mean(x²) + eps) · weight.

    Source: arXiv:1910.07467. Departs from transformers' class, which always computes in float32, by computing
    in float64 for inputs and weights in float64.

    Args:
        size: d, the size of the last axis.
        eps: added to the mean square.
    """

    class Config(NormConfig):
        """``eps``: added to the mean square."""

        eps: PositiveFloat

        def cost_of_size(self, size: int) -> Cost:
            """One gain a channel."""
            return Cost(params=size)

    def __init__(self, size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    @classmethod
    def from_config(cls, config: Config, size: int) -> LlamaRMSNorm:
        """Built from its YAML fields for ``size`` channels."""
        return cls(size, config.eps)

    def init_parameters(self) -> None:
        """Gains start at one."""
        nn.init.ones_(self.weight)

    def forward(self, x: Float[Tensor, "*axes d"]) -> Float[Tensor, "*axes d"]:
        """``x`` (…, d) normalised over its last axis; same shape and dtype."""
        # In the gains' precision: under autocast a head's q and k come in bfloat16 (qk_norm).
        return F.rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.eps).to(x.dtype)

    def extra_repr(self) -> str:
        """Fields shown by print(model), as transformers shows them."""
        return f"{tuple(self.weight.shape)}, eps={self.eps}"


@NORM.register("layer")
class LayerNorm(nn.LayerNorm):
    """Layer normalisation: y = (x - mean(x)) / sqrt(var(x) + eps) · weight + bias.

    Differs from the control by taking the mean out and by a bias a channel. Source: arXiv:1607.06450.
    """

    class Config(NormConfig):
        """``eps``: added to the variance."""

        eps: PositiveFloat

        def cost_of_size(self, size: int) -> Cost:
            """A gain and a bias a channel."""
            return Cost(params=2 * size)

    @classmethod
    def from_config(cls, config: Config, size: int) -> LayerNorm:
        """Built from its YAML fields for ``size`` channels."""
        return cls(size, config.eps)

    def init_parameters(self) -> None:
        """Gains start at one, biases at zero."""
        self.reset_parameters()

    def forward(self, x: Float[Tensor, "*axes d"]) -> Float[Tensor, "*axes d"]:
        """``x`` (…, d) normalised over its last axis, in the gains' precision; same shape and dtype."""
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


@NORM.register("dyt")
class DynamicTanh(nn.Module):
    """Dynamic tanh instead of a normalisation: y = tanh(alpha · x) · weight + bias.

    Differs from the control by computing no statistics; alpha is one learned number a layer.
    Source: arXiv:2503.10622 (alpha starts at 0.5; the paper tunes it by width, and for attention apart).

    Args:
        size: d, the size of the last axis.
        alpha: where alpha starts.
    """

    class Config(NormConfig):
        """``alpha``: where the learned slope starts."""

        alpha: PositiveFloat = 0.5

        def cost_of_size(self, size: int) -> Cost:
            """A gain and a bias a channel, and the slope."""
            return Cost(params=2 * size + 1)

    def __init__(self, size: int, alpha: float = 0.5) -> None:
        super().__init__()
        self.start = alpha
        self.alpha = nn.Parameter(torch.full((1,), alpha))
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    @classmethod
    def from_config(cls, config: Config, size: int) -> DynamicTanh:
        """Built from its YAML fields for ``size`` channels."""
        return cls(size, config.alpha)

    def init_parameters(self) -> None:
        """Gains start at one, biases at zero, the slope where it was told."""
        nn.init.constant_(self.alpha, self.start)
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "*axes d"]) -> Float[Tensor, "*axes d"]:
        """``x`` (…, d) → same shape and dtype."""
        return (torch.tanh(self.alpha * x) * self.weight + self.bias).to(x.dtype)

    def extra_repr(self) -> str:
        """Fields shown by print(model)."""
        return f"{tuple(self.weight.shape)}, alpha={self.start:g}"
