"""The model: a 135M Llama put together from registered blocks. Reads from top to bottom.

Axes: b batch, t time, d model width, v vocabulary. Parameter names are those of transformers' Llama, so that weights
travel both ways by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own convention)
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from llama_variants.config import ModelConfig
from llama_variants.registry import HEAD, INIT, NORM, RESIDUAL, ROTARY

IGNORED = -100
"""Label of a position that is not predicted, as everywhere in transformers."""


class LlamaVariantConfig(PreTrainedConfig):
    """A transformers config around a frozen :class:`ModelConfig`, kept as plain data in ``variant``."""

    model_type = "llama_variant"

    def __init__(self, variant: Mapping[str, Any] | None = None, seed: int = 0, **kwargs: Any) -> None:
        blocks = ModelConfig.from_dict(variant) if variant is not None else ModelConfig.preset("smollm2-135m")
        self.variant = blocks.to_dict()
        self.seed = seed  # of the initial values
        # What transformers' own code reads from any config.
        self.vocab_size = blocks.vocab_size
        self.hidden_size = blocks.hidden_size
        self.num_hidden_layers = blocks.num_hidden_layers
        self.max_position_embeddings = blocks.max_position_embeddings
        kwargs["tie_word_embeddings"] = blocks.head.tied  # type: ignore[attr-defined]
        super().__init__(**kwargs)

    @property
    def blocks(self) -> ModelConfig:
        """The validated configuration."""
        return ModelConfig.from_dict(self.variant)


class LlamaModel(nn.Module):
    """Embedding, decoder layers and final norm: token ids (b, t) → hidden states (b, t, d)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.rotary_emb = ROTARY[config.rotary.type].from_config(config.rotary, config.attention_head_dim)
        layer = RESIDUAL[config.residual.type]
        self.layers = nn.ModuleList(layer(config, i, rotary=self.rotary_emb) for i in range(config.num_hidden_layers))
        self.norm = NORM[config.norm.type].from_config(config.norm, config.hidden_size)

    def forward(self, input_ids: Tensor) -> Tensor:
        """``input_ids`` (b, t) → hidden states (b, t, d) after the final norm."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]  # (1, t)
        rotation = self.rotary_emb.rotation(positions)
        x = self.embed_tokens(input_ids)  # (b, t, d)
        for layer in self.layers:
            x = layer(x, rotation)
        return self.norm(x)


class LlamaForCausalLM(PreTrainedModel):
    """A language model with next-token loss; a transformers PreTrainedModel.

    Args:
        config: a :class:`LlamaVariantConfig`; :func:`build_model` makes one from a ModelConfig.
    """

    config_class = LlamaVariantConfig
    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: LlamaVariantConfig) -> None:
        super().__init__(config)
        blocks = config.blocks
        self.model = LlamaModel(blocks)
        self.lm_head = HEAD[blocks.head.type](blocks)
        self.post_init()

    def initialize_weights(self) -> None:
        """Draw every parameter by its name (see `blocks/init.py`), in place of transformers' per-module hook."""
        blocks = self.config.blocks
        scheme = INIT[blocks.init.type](blocks.init)
        for prefix, module in self.named_modules():
            own = list(module.parameters(recurse=False))
            tied = module is self.lm_head and blocks.head.tied
            if tied or any(p.is_meta or getattr(p, "_is_hf_initialized", False) for p in own):
                continue  # shares the embedding's values, has no storage yet, or was read from a checkpoint
            scheme.fill(module, f"{prefix}." if prefix else "", self.config.seed)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> CausalLMOutput:
        """Logits, and the mean next-token loss where labels are given.

        Args:
            input_ids: token ids (b, t).
            labels: token ids (b, t), not shifted; position i is predicted from positions before it; -100 is ignored.

        Returns:
            ``logits`` (b, t, v); ``loss`` in nats per predicted token (b · (t-1) of them), or None.
        """
        logits = self.lm_head(self.model(input_ids))
        loss = None
        if labels is not None:
            # The labels are shifted, not the logits: cutting the last position off would copy all of them.
            targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)
        return CausalLMOutput(loss=loss, logits=logits)


def build_model(
    config: ModelConfig,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LlamaForCausalLM:
    """A new model with values drawn by (seed, parameter name), the same on every device.

    Built on the meta device and filled once, so that nothing is drawn twice and no global generator advances.
    ``device="meta"`` gives shapes without storage.
    """
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaVariantConfig(variant=config.to_dict(), seed=seed))
    if torch.device(device).type != "meta":
        model.to_empty(device="cpu")
        model.tie_weights()  # to_empty gave the head storage of its own
        model.initialize_weights()
    return nn.Module.to(model, device=device, dtype=dtype)
