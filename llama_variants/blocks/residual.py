"""How a layer wires its norms, its attention and its MLP around the residual stream.

Axes: b batch, t time, d model width.
"""

from __future__ import annotations

from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from llama_variants.blocks.masks import Mask
from llama_variants.config import ModelConfig
from llama_variants.registry import ATTENTION, MLP, NORM, RESIDUAL, BlockConfig, Cost


class ResidualConfig(BlockConfig):
    """What every wiring costs: its norms; what they wrap answers for itself."""

    norms: ClassVar[tuple[str, ...]]
    """Names of the layer's norms; the control's two have transformers' names."""

    def cost(self, model: ModelConfig, seq_len: int) -> Cost:
        """The layer's norms."""
        return model.norm.cost(model, seq_len) * len(self.norms)


@RESIDUAL.register("pre")
class LlamaDecoderLayer(nn.Module):
    """Pre-norm layer, the control: x + attention(norm(x)), then x + mlp(norm(x)).

    Source: arXiv:2002.04745, as in Llama.

    Args:
        config: a ModelConfig, plain data or a transformers LlamaConfig.
        layer_idx: the layer's number.
        rotary: the model's position encoding; the attention builds its own when None.
    """

    class Config(ResidualConfig):
        """No fields."""

        norms: ClassVar = ("input_layernorm", "post_attention_layernorm")

    input_layernorm: nn.Module
    post_attention_layernorm: nn.Module

    def __init__(self, config: Any, layer_idx: int = 0, *, rotary: Any = None) -> None:
        super().__init__()
        config = ModelConfig.of(config).layer(layer_idx)
        norms = config.block("residual", type(self)).norms
        self.self_attn = ATTENTION[config.attention.type](config, layer_idx, rotary=rotary)
        self.mlp = MLP[config.mlp.type](config)
        for name in norms:
            self.add_module(name, NORM[config.norm.type].from_config(config.norm, config.hidden_size))

    def forward(
        self, x: Float[Tensor, "b t d"], rotation: Any = None, mask: Mask | None = None, cache: Any = None
    ) -> Float[Tensor, "b t d"]:
        """``x`` (b, t, d) → (b, t, d); the rest goes to the attention."""
        x = x + self.self_attn(self.input_layernorm(x), rotation, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


@RESIDUAL.register("post")
class PostNormLayer(LlamaDecoderLayer):
    """Post-norm layer: norm(x + attention(x)), then norm(x + mlp(x)).

    Differs from the control by normalising the stream itself after each addition. Source: arXiv:1706.03762. The
    model's final norm stays, so that parameters are the control's.
    """

    class Config(ResidualConfig):
        """No fields."""

        norms: ClassVar = ("input_layernorm", "post_attention_layernorm")

    def forward(
        self, x: Float[Tensor, "b t d"], rotation: Any = None, mask: Mask | None = None, cache: Any = None
    ) -> Float[Tensor, "b t d"]:
        """``x`` (b, t, d) → (b, t, d); the rest goes to the attention."""
        x = self.input_layernorm(x + self.self_attn(x, rotation, mask, cache))
        return self.post_attention_layernorm(x + self.mlp(x))


@RESIDUAL.register("sandwich")
class SandwichLayer(LlamaDecoderLayer):
    """Peri-norm layer: x + norm(attention(norm(x))), then x + norm(mlp(norm(x))).

    Differs from the control by a norm on what each block gives back. Source: Peri-LN (arXiv:2502.02732), without its
    norm of the embedding; the wiring of Gemma 2.
    """

    class Config(ResidualConfig):
        """No fields."""

        norms: ClassVar = (
            "input_layernorm",
            "attention_output_layernorm",
            "post_attention_layernorm",
            "mlp_output_layernorm",
        )

    attention_output_layernorm: nn.Module
    mlp_output_layernorm: nn.Module

    def forward(
        self, x: Float[Tensor, "b t d"], rotation: Any = None, mask: Mask | None = None, cache: Any = None
    ) -> Float[Tensor, "b t d"]:
        """``x`` (b, t, d) → (b, t, d); the rest goes to the attention."""
        x = x + self.attention_output_layernorm(self.self_attn(self.input_layernorm(x), rotation, mask, cache))
        return x + self.mlp_output_layernorm(self.mlp(self.post_attention_layernorm(x)))


@RESIDUAL.register("parallel")
class ParallelLayer(LlamaDecoderLayer):
    """Parallel layer: x + attention(norm(x)) + mlp(norm(x)), with one norm.

    Differs from the control by an MLP that does not see what the attention of its layer found. Source: GPT-J, as in
    PaLM (arXiv:2204.02311).
    """

    class Config(ResidualConfig):
        """No fields."""

        norms: ClassVar = ("input_layernorm",)

    def forward(
        self, x: Float[Tensor, "b t d"], rotation: Any = None, mask: Mask | None = None, cache: Any = None
    ) -> Float[Tensor, "b t d"]:
        """``x`` (b, t, d) → (b, t, d); the rest goes to the attention."""
        y = self.input_layernorm(x)
        return x + self.self_attn(y, rotation, mask, cache) + self.mlp(y)
