"""Normalisation layers. Axes: d the size that is normalised."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from llama_variants.registry import NORM, BlockConfig, Cost

if TYPE_CHECKING:
    from llama_variants.config import ModelConfig


@NORM.register("rms")
class LlamaRMSNorm(nn.Module):
    """Root-mean-square normalisation, the control: y = x / sqrt(mean(x²) + eps) · weight.

    Source: arXiv:1910.07467. Departs from transformers' class, which always computes in float32, by computing
    in the input's own precision where that is higher.

    Args:
        size: d, the size of the last axis.
        eps: added to the mean square.
    """

    class Config(BlockConfig):
        """``eps``: added to the mean square."""

        eps: PositiveFloat

        def cost(self, model: ModelConfig, seq_len: int) -> Cost:
            """One gain a channel."""
            return self.cost_of_size(model.hidden_size)

        def cost_of_size(self, size: int) -> Cost:
            """The same for a norm over ``size`` channels."""
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

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (…, d) normalised over its last axis; same shape and dtype."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        """Fields shown by print(model), as transformers shows them."""
        return f"{tuple(self.weight.shape)}, eps={self.eps:g}"
