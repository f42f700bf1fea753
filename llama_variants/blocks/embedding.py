"""Token embeddings. Axes: b batch, t time, d model width."""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import Float, Int
from pydantic import PositiveFloat
from torch import Tensor, nn

from llama_variants.config import ModelConfig
from llama_variants.registry import EMBEDDING, BlockConfig, Cost


class EmbeddingConfig(BlockConfig):
    """What every embedding costs."""

    def cost(self, model: ModelConfig, seq_len: int) -> Cost:
        """A row for each token of the vocabulary; looking it up is no matrix product."""
        return Cost(params=model.vocab_size * model.hidden_size)


@EMBEDDING.register("plain")
class TokenEmbedding(nn.Embedding):
    """A row for each token, as it is: the control. Source: arXiv:2302.13971 (Llama)."""

    class Config(EmbeddingConfig):
        """No fields."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.vocab_size, config.hidden_size)

    def _get_name(self) -> str:
        return "Embedding"  # in print(model), as transformers shows it


@EMBEDDING.register("scaled")
class ScaledEmbedding(nn.Embedding):
    """A row for each token times a constant: x = E[token] · factor.

    Differs from the control by the factor, sqrt(d) unless given; a tied head sees the rows unscaled.
    Source: arXiv:1706.03762, section 3.4, as in Gemma (arXiv:2403.08295).
    """

    class Config(EmbeddingConfig):
        """``factor``: what rows are multiplied by; sqrt(hidden_size) when absent."""

        factor: PositiveFloat | None = None

        def resolved(self, model: ModelConfig) -> dict[str, Any]:
            """The factor as a number."""
            return {"type": self.type, "factor": self.factor or math.sqrt(model.hidden_size)}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.vocab_size, config.hidden_size)
        self.factor = config.embedding.resolved(config)["factor"]

    def forward(self, input_ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """``input_ids`` (b, t) → (b, t, d)."""
        return super().forward(input_ids) * self.factor

    def extra_repr(self) -> str:
        """Sizes and the factor."""
        return f"{super().extra_repr()}, factor={self.factor:g}"
