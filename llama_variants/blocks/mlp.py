"""Feed-forward blocks. Axes: b batch, t time, d model width, f MLP width."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from llama_variants.blocks.fused import project_together
from llama_variants.config import ModelConfig
from llama_variants.errors import Problem
from llama_variants.registry import MLP, BlockConfig, Cost, residual_output
from llama_variants.types import Neutral, Ratio, to_fraction


class MLPConfig(BlockConfig):
    """The width f: ``intermediate_size``, or ``expansion`` times d, up to a ``multiple_of`` where one is set.

    ``bias`` is that of all projections.
    """

    alternatives: ClassVar = (frozenset({"intermediate_size", "expansion"}),)
    projections: ClassVar[int]
    """How many d × f matrices the block has."""

    intermediate_size: PositiveInt | None = None
    expansion: Ratio | None = None
    multiple_of: PositiveInt | None = None
    bias: Annotated[bool, Neutral(False)] = False

    def width(self, hidden_size: int) -> int:
        """f: the nearest whole number, or the next multiple of ``multiple_of`` where one is set."""
        if self.intermediate_size is not None:
            return self.intermediate_size
        assert self.expansion is not None
        exact = to_fraction(self.expansion) * hidden_size
        return math.ceil(exact / self.multiple_of) * self.multiple_of if self.multiple_of else round(exact)

    def resolved(self, model: ModelConfig) -> dict[str, Any]:
        """The width in channels."""
        fields = super().resolved(model) | {"intermediate_size": self.width(model.hidden_size)}
        return {name: value for name, value in fields.items() if name != "multiple_of"}

    def problems(self, model: ModelConfig) -> Iterable[Problem]:
        """A width of zero is no MLP, and a width must be the multiple that it is said to be."""
        yield from super().problems(model)
        if self.expansion is not None and self.width(model.hidden_size) < 1:
            yield Problem(path=("expansion",), received=str(self.expansion), allowed=f"at least 1/{model.hidden_size}")
        if self.multiple_of and self.intermediate_size and self.intermediate_size % self.multiple_of:
            allowed = f"a multiple of multiple_of ({self.multiple_of})"
            yield Problem(path=("intermediate_size",), received=str(self.intermediate_size), allowed=allowed)

    def cost(self, model: ModelConfig, seq_len: int) -> Cost:
        """Its projections."""
        size, width = model.hidden_size, self.width(model.hidden_size)
        return Cost.linear(size, width, self.bias) * (self.projections - 1) + Cost.linear(width, size, self.bias)


@MLP.register("swiglu")
class LlamaMLP(nn.Module):
    """Gated feed-forward block, the control: down(silu(gate(x)) · up(x)), without biases unless ``bias`` says so.

    Source: arXiv:2002.05202 (SwiGLU), with the width of SmolLM2 (8/3 of the model's).

    Args:
        config: a ModelConfig, plain data or a transformers LlamaConfig; ``hidden_size`` and ``mlp`` are read.
    """

    class Config(MLPConfig):
        """The width."""

        projections: ClassVar = 3

    def __init__(self, config: Any) -> None:
        super().__init__()
        config = ModelConfig.of(config)
        mlp, size = config.block("mlp", type(self)), config.hidden_size
        width = mlp.width(size)
        self.gate_proj = nn.Linear(size, width, bias=mlp.bias)
        self.up_proj = nn.Linear(size, width, bias=mlp.bias)
        self.down_proj = residual_output(nn.Linear(width, size, bias=mlp.bias))
        self.act_fn = self.activation()

    @staticmethod
    def activation() -> nn.Module:
        """What the gate goes through."""
        return nn.SiLU()

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """``x`` (b, t, d) → (b, t, d)."""
        gate, up = project_together(x, (self.gate_proj, self.up_proj))
        return self.down_proj(self.act_fn(gate) * up)


@MLP.register("geglu")
class GeGLU(LlamaMLP):
    """Gated block with a GELU: down(gelu(gate(x)) · up(x)), the exact GELU, not its tanh form.

    Differs from the control by the gate's activation. Source: arXiv:2002.05202.
    """

    class Config(MLPConfig):
        """The width."""

        projections: ClassVar = 3

    @staticmethod
    def activation() -> nn.Module:
        """What the gate goes through."""
        return nn.GELU()


@MLP.register("geglu_tanh")
class TanhGeGLU(LlamaMLP):
    """Gated block with the tanh form of the GELU: down(gelu_tanh(gate(x)) · up(x)).

    Differs from ``geglu`` by 0.5 · x · (1 + tanh(sqrt(2/π) · (x + 0.044715 x³))) in place of the exact GELU.
    Source: arXiv:1606.08415, as in Gemma (arXiv:2403.08295).
    """

    class Config(MLPConfig):
        """The width."""

        projections: ClassVar = 3

    @staticmethod
    def activation() -> nn.Module:
        """What the gate goes through."""
        return nn.GELU(approximate="tanh")


@MLP.register("reglu")
class ReGLU(LlamaMLP):
    """Gated block with a ReLU: down(relu(gate(x)) · up(x)).

    Differs from the control by the gate's activation. Source: arXiv:2002.05202.
    """

    class Config(MLPConfig):
        """The width."""

        projections: ClassVar = 3

    @staticmethod
    def activation() -> nn.Module:
        """What the gate goes through."""
        return nn.ReLU()


class UngatedMLP(nn.Module):
    """down(activation(up(x))), without biases unless ``bias`` says so; subclasses say which activation."""

    class Config(MLPConfig):
        """The width."""

        projections: ClassVar = 2

    def __init__(self, config: Any) -> None:
        super().__init__()
        config = ModelConfig.of(config)
        mlp, size = config.block("mlp", type(self)), config.hidden_size
        width = mlp.width(size)
        self.up_proj = nn.Linear(size, width, bias=mlp.bias)
        self.down_proj = residual_output(nn.Linear(width, size, bias=mlp.bias))

    def activation(self, x: Tensor) -> Tensor:
        """Element by element."""
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """``x`` (b, t, d) → (b, t, d)."""
        return self.down_proj(self.activation(self.up_proj(x)))


@MLP.register("gelu")
class GELUMLP(UngatedMLP):
    """Ungated block with a GELU: down(gelu(up(x))), the exact GELU.

    Differs from the control by having no gate: two projections of three. At equal width it has two thirds of the
    parameters; ``match: [params]`` makes it wider. Source: arXiv:1606.08415, as in GPT-2 without its biases.
    """

    class Config(UngatedMLP.Config):
        """The width."""

    def activation(self, x: Tensor) -> Tensor:
        """gelu(x)."""
        return F.gelu(x)


@MLP.register("relu2")
class SquaredReLU(UngatedMLP):
    """Ungated block with a squared ReLU: down(relu(up(x))²).

    Differs from the control by having no gate: two projections of three, as ``gelu``. Source: Primer
    (arXiv:2109.08668).
    """

    class Config(UngatedMLP.Config):
        """The width."""

    def activation(self, x: Tensor) -> Tensor:
        """relu(x)²."""
        return F.relu(x).square()
