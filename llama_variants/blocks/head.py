"""Output heads: from the last hidden state to logits. Axes: b batch, t time, d model width, v vocabulary."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import PositiveFloat
from torch import Tensor, nn

from llama_variants.config import ModelConfig
from llama_variants.registry import HEAD, BlockConfig, Cost


class HeadConfig(BlockConfig):
    """What the model asks of every head: whether it shares the embedding's weight."""

    tied: ClassVar[bool]
    untied: ClassVar[str | None] = None
    """Of a tied head: the block that is the same with a weight of its own, where there is one."""

    def cost(self, model: ModelConfig, seq_len: int) -> Cost:
        """One projection; its parameters count only where they are not the embedding's."""
        cost = Cost.linear(model.hidden_size, model.vocab_size)
        return Cost(matmul_flops=cost.matmul_flops) if self.tied else cost


class Head(nn.Linear):
    """A projection to the vocabulary, without bias."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden_size, config.vocab_size, bias=False)

    def _get_name(self) -> str:
        return "Linear"  # in print(model), as transformers shows it


@HEAD.register("tied")
class TiedHead(Head):
    """Projection with the embedding's own weight, the control. Source: arXiv:1608.05859."""

    class Config(HeadConfig):
        """No fields."""

        tied: ClassVar[bool] = True
        untied: ClassVar[str | None] = "untied"


@HEAD.register("untied")
class UntiedHead(Head):
    """Projection with a weight of its own.

    Differs from the control by vocabulary × width more parameters, at no more FLOPs. Source: arXiv:2302.13971 (Llama).
    """

    class Config(HeadConfig):
        """No fields."""

        tied: ClassVar[bool] = False


class SoftcapConfig(HeadConfig):
    """``cap``: the bound that no logit reaches."""

    cap: PositiveFloat = 30.0


class SoftcapHead(Head):
    """cap · tanh(logits / cap): logits stay inside ±cap."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        assert isinstance(config.head, SoftcapConfig)
        self.cap = config.head.cap

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t v"]:
        """``x`` (b, t, d) → capped logits (b, t, v)."""
        return self.cap * torch.tanh(super().forward(x) / self.cap)

    def _get_name(self) -> str:
        return type(self).__name__

    def extra_repr(self) -> str:
        """Sizes and the cap."""
        return f"{super().extra_repr()}, cap={self.cap:g}"


@HEAD.register("tied_softcap")
class TiedSoftcapHead(SoftcapHead):
    """The embedding's weight and a soft cap: cap · tanh(x Eᵀ / cap).

    Differs from the control by the cap. Source: Gemma 2 (arXiv:2408.00118), where it is 30.
    """

    class Config(SoftcapConfig):
        """The cap."""

        tied: ClassVar[bool] = True
        untied: ClassVar[str | None] = "untied_softcap"


@HEAD.register("untied_softcap")
class UntiedSoftcapHead(SoftcapHead):
    """A weight of its own and a soft cap: cap · tanh(x Wᵀ / cap).

    Differs from ``untied`` by the cap. Source: Gemma 2 (arXiv:2408.00118), there with a tied weight.
    """

    class Config(SoftcapConfig):
        """The cap."""

        tied: ClassVar[bool] = False
