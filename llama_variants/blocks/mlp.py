"""Feed-forward blocks. Axes: b batch, t time, d model width, f MLP width."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import PlainValidator, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from llama_variants.errors import Problem
from llama_variants.registry import MLP, BlockConfig, Cost

if TYPE_CHECKING:
    from llama_variants.config import ModelConfig


def _ratio(value: object) -> float | str:
    if isinstance(value, str) and re.fullmatch(r"[1-9]\d{0,8}/[1-9]\d{0,8}", value):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise ValueError("a positive number, or a fraction such as 8/3")


Ratio = Annotated[float | str, PlainValidator(_ratio)]
"""A positive number, or a fraction written as text: 8/3."""


@MLP.register("swiglu")
class LlamaMLP(nn.Module):
    """Gated feed-forward block, the control: down(silu(gate(x)) · up(x)), without biases.

    Source: arXiv:2002.05202 (SwiGLU), with the width of SmolLM2 (8/3 of the model's).

    Args:
        config: a ModelConfig; reads ``hidden_size`` and ``mlp``.
    """

    class Config(BlockConfig):
        """The width, as ``intermediate_size`` or as ``expansion`` times the model's."""

        alternatives: ClassVar = (frozenset({"intermediate_size", "expansion"}),)

        intermediate_size: PositiveInt | None = None
        expansion: Ratio | None = None

        def width(self, hidden_size: int) -> int:
            """f, rounded to the nearest whole number."""
            if self.intermediate_size is not None:
                return self.intermediate_size
            return round(Fraction(str(self.expansion)) * hidden_size)

        def resolved(self, model: ModelConfig) -> dict[str, Any]:
            """The width in channels."""
            return {"type": self.type, "intermediate_size": self.width(model.hidden_size)}

        def problems(self, model: ModelConfig) -> Iterable[Problem]:
            """A width of zero is no MLP."""
            yield from super().problems(model)
            if self.expansion is not None and self.width(model.hidden_size) < 1:
                yield Problem(("expansion",), str(self.expansion), f"at least 1/{model.hidden_size}")

        def cost(self, model: ModelConfig, seq_len: int) -> Cost:
            """Three projections."""
            return Cost.linear(model.hidden_size, self.width(model.hidden_size)) * 3

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert isinstance(config.mlp, LlamaMLP.Config)
        size, width = config.hidden_size, config.mlp.width(config.hidden_size)
        self.gate_proj = nn.Linear(size, width, bias=False)
        self.up_proj = nn.Linear(size, width, bias=False)
        self.down_proj = nn.Linear(width, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (b, t, d) → (b, t, d)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
