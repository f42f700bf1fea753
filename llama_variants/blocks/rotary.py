"""Position encodings applied to queries and keys.

Axes: b batch, h heads, t time, k size of a head.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from llama_variants.errors import Problem
from llama_variants.registry import ROTARY, BlockConfig, Cost

if TYPE_CHECKING:
    from llama_variants.config import ModelConfig

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of every position, each (1 or b, t, k) in float32."""


@ROTARY.register("rope")
class LlamaRotaryEmbedding(nn.Module):
    """Rotary position embedding, the control.

    Pairs (i, i + k/2) of each head turn by position · theta^(-2i/k), so that scores depend on distance only.
    Source: RoFormer (arXiv:2104.09864), in the half-split layout of Llama and transformers.

    Args:
        dim: size k of a head, even.
        theta: base of the geometric series of wavelengths (10,000 in pre-training, 100,000 as released).
    """

    class Config(BlockConfig):
        """``theta``: base of the wavelengths."""

        theta: PositiveFloat

        def cost(self, model: ModelConfig, seq_len: int) -> Cost:
            """No parameters, no matrix products."""
            return Cost()

        def problems(self, model: ModelConfig) -> Iterable[Problem]:
            """Rotation needs pairs."""
            if model.attention_head_dim % 2:
                yield Problem(("type",), f"rope with head_dim {model.attention_head_dim}", "an even head_dim")

    def __init__(self, dim: int, theta: float = 10_000.0) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"rotary dim must be even, received {dim}")
        self.dim = dim
        self.theta = theta

    @classmethod
    def from_config(cls, config: Config, dim: int) -> LlamaRotaryEmbedding:
        """Built from its YAML fields for heads of size ``dim``."""
        return cls(dim, config.theta)

    def rotation(self, positions: Tensor) -> Rotation:
        """Cosines and sines for integer ``positions`` (1 or b, t); computed once a forward pass for all layers.

        Nothing is kept in a buffer: a table that is rebuilt cannot be left stale by meta-device construction.
        """
        exponents = torch.arange(0, self.dim, 2, device=positions.device, dtype=torch.float32) / self.dim
        angles = positions[..., None].float() * (1.0 / self.theta**exponents)  # (b, t, k/2)
        angles = torch.cat((angles, angles), dim=-1)  # (b, t, k)
        return angles.cos(), angles.sin()

    @staticmethod
    def rotate(x: Tensor, rotation: Rotation) -> Tensor:
        """``x`` (b, h, t, k) turned by ``rotation``; computed in at least float32, returned in x's dtype."""
        cos, sin = (part.unsqueeze(-3) for part in rotation)  # (b, 1, t, k)
        left, right = x.chunk(2, dim=-1)
        return (x * cos + torch.cat((-right, left), dim=-1) * sin).to(x.dtype)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """``x`` (b, t, k) or (b, h, t, k) turned by its positions (0 … t-1 unless given); same shape."""
        if positions is None:
            positions = torch.arange(x.shape[-2], device=x.device)[None]  # (1, t)
        rotation = self.rotation(positions)
        return self.rotate(x, rotation) if x.dim() == 4 else self.rotate(x[:, None], rotation)[:, 0]

    def extra_repr(self) -> str:
        """Fields shown by print(model)."""
        return f"dim={self.dim}, theta={self.theta:g}"


@ROTARY.register("nope")
class NoPositionEmbedding(nn.Module):
    """No position encoding at all: order reaches the model only through the causal mask.

    Differs from the control by leaving queries and keys as they are. The known-bad control of every base.
    Source: NoPE (arXiv:2305.19466).
    """

    class Config(BlockConfig):
        """No fields."""

        def cost(self, model: ModelConfig, seq_len: int) -> Cost:
            """Nothing."""
            return Cost()

    @classmethod
    def from_config(cls, config: Config, dim: int) -> NoPositionEmbedding:
        """Built from its (absent) YAML fields."""
        return cls()

    def rotation(self, positions: Tensor) -> None:
        """There is none."""

    @staticmethod
    def rotate(x: Tensor, rotation: None) -> Tensor:
        """``x`` itself."""
        return x

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """``x`` itself."""
        return x
