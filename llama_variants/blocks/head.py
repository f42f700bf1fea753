"""Output heads: from the last hidden state to logits. Axes: b batch, t time, d model width, v vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import nn

from llama_variants.registry import HEAD, BlockConfig, Cost

if TYPE_CHECKING:
    from llama_variants.config import ModelConfig


class HeadConfig(BlockConfig):
    """What the model asks of every head: whether it shares the embedding's weight."""

    tied: ClassVar[bool]

    def cost(self, model: ModelConfig, seq_len: int) -> Cost:
        """One projection; its parameters count only where they are not the embedding's."""
        cost = Cost.linear(model.hidden_size, model.vocab_size)
        return Cost(matmul_flops=cost.matmul_flops) if self.tied else cost


@HEAD.register("tied")
class TiedHead(nn.Linear):
    """Projection with the embedding's own weight, the control. Source: arXiv:1608.05859."""

    class Config(HeadConfig):
        """No fields."""

        tied: ClassVar[bool] = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden_size, config.vocab_size, bias=False)


@HEAD.register("untied")
class UntiedHead(nn.Linear):
    """Projection with a weight of its own.

    Differs from the control by vocabulary × width more parameters, at no more FLOPs.
    """

    class Config(HeadConfig):
        """No fields."""

        tied: ClassVar[bool] = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden_size, config.vocab_size, bias=False)
