"""How a layer wires its norms, its attention and its MLP around the residual stream.

Axes: b batch, t time, d model width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from llama_variants.registry import ATTENTION, MLP, NORM, RESIDUAL, BlockConfig, Cost

if TYPE_CHECKING:
    from llama_variants.config import ModelConfig


@RESIDUAL.register("pre")
class LlamaDecoderLayer(nn.Module):
    """Pre-norm layer, the control: x + attention(norm(x)), then x + mlp(norm(x)).

    Source: arXiv:2002.04745, as in Llama.

    Args:
        config: a ModelConfig.
        layer_idx: the layer's number.
        rotary: the model's position encoding; the attention builds its own when None.
    """

    class Config(BlockConfig):
        """No fields."""

        def cost(self, model: ModelConfig, seq_len: int) -> Cost:
            """Two norms; what they wrap answers for itself."""
            return model.norm.cost(model, seq_len) * 2

    def __init__(self, config: ModelConfig, layer_idx: int = 0, *, rotary: Any = None) -> None:
        super().__init__()
        norm = NORM[config.norm.type]
        self.self_attn = ATTENTION[config.attention.type](config, layer_idx, rotary=rotary)
        self.mlp = MLP[config.mlp.type](config)
        self.input_layernorm = norm.from_config(config.norm, config.hidden_size)
        self.post_attention_layernorm = norm.from_config(config.norm, config.hidden_size)

    def forward(self, x: Tensor, rotation: Any = None) -> Tensor:
        """``x`` (b, t, d) → (b, t, d); ``rotation`` goes to the attention."""
        x = x + self.self_attn(self.input_layernorm(x), rotation)
        return x + self.mlp(self.post_attention_layernorm(x))
