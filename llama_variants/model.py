"""The model: a 135M Llama put together from registered blocks. Reads from top to bottom.

Axes: b batch, t time, s time of the keys (t and what a cache holds), d model width, v vocabulary. Parameter names are
those of transformers' Llama, so that weights travel both ways by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own convention)
from transformers import DynamicCache, GenerationMixin, LlamaConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from llama_variants import stock
from llama_variants.blocks.attention import visible
from llama_variants.config import ModelConfig
from llama_variants.errors import ConfigError, Problem
from llama_variants.registry import EMBEDDING, HEAD, INIT, NORM, RESIDUAL, ROTARY

_CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
IGNORED = -100
"""Label of a position that is not predicted, as everywhere in transformers."""


class LlamaVariantConfig(PreTrainedConfig):
    """A transformers config around a frozen :class:`ModelConfig`, kept as plain data in ``variant``.

    Args:
        variant: fields of a ModelConfig; SmolLM2-135M without it.
        seed: of the initial values.
        kwargs: token ids, and whatever else any transformers config has.
    """

    model_type = "llama_variant"

    def __init__(self, variant: Mapping[str, Any] | None = None, seed: int = 0, **kwargs: Any) -> None:
        try:
            blocks = ModelConfig.from_dict(variant) if variant is not None else ModelConfig.preset("smollm2-135m")
        except ConfigError as error:
            title = "this model's configuration (a plugin's blocks are known once its module is imported):"
            raise ConfigError(error.problems, title=title) from None
        self.variant = blocks.to_dict()
        self.note = "import llama_variants, and transformers' Auto classes load this"
        self.seed = seed
        # What transformers' own code reads from any config.
        self.vocab_size = blocks.vocab_size
        self.hidden_size = blocks.hidden_size
        self.num_hidden_layers = blocks.num_hidden_layers
        self.max_position_embeddings = blocks.max_position_embeddings
        kwargs["tie_word_embeddings"] = blocks.head.tied  # type: ignore[attr-defined]
        super().__init__(**kwargs)

    @classmethod
    def of(cls, config: Any, seed: int = 0) -> LlamaVariantConfig:
        """``config`` itself, or one around whatever :meth:`ModelConfig.of` takes; token ids come along."""
        if isinstance(config, cls):
            return config
        kept = {name: value for name in _KEPT if (value := getattr(config, name, None)) is not None}
        return cls(variant=ModelConfig.of(config).to_dict(), seed=seed, **kept)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> LlamaVariantConfig:
        """From the content of a config.json, ours or a stock Llama's."""
        if config_dict.get("model_type") == LlamaConfig.model_type:
            config_dict = cls.of(LlamaConfig.from_dict(config_dict)).to_dict()
        return super().from_dict(config_dict, **kwargs)

    @property
    def blocks(self) -> ModelConfig:
        """The validated configuration; the vocabulary may have been resized since."""
        return ModelConfig.from_dict({**self.variant, "vocab_size": self.vocab_size})

    def check(self) -> None:
        """Raises ConfigError where a field that transformers reads says something else than ``variant``."""
        blocks = self.blocks
        said = {"tie_word_embeddings": blocks.head.tied}  # type: ignore[attr-defined]
        said |= {
            name: getattr(blocks, name) for name in ("hidden_size", "num_hidden_layers", "max_position_embeddings")
        }
        problems = [
            Problem(
                path=(name,),
                received=repr(getattr(self, name)),
                allowed=f"{value!r}, as the blocks have it: change `variant` instead",
            )
            for name, value in said.items()
            if getattr(self, name) != value
        ]
        if problems:
            raise ConfigError(problems)

    def to_llama(self) -> LlamaConfig | None:
        """The stock configuration that computes the same; None where there is none."""
        fields = stock.to_llama(self.blocks.resolved())
        kept: dict[str, Any] = {name: getattr(self, name, None) for name in _KEPT}
        return LlamaConfig(**fields, **kept) if fields else None


_KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "dtype")


class LlamaModel(nn.Module):
    """Embedding, decoder layers and final norm: token ids (b, t) → hidden states (b, t, d).

    Args:
        config: a ModelConfig, plain data or a transformers LlamaConfig.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        config = ModelConfig.of(config)
        self.embed_tokens = EMBEDDING[config.embedding.type](config)
        self.layers = nn.ModuleList()
        own = (config.rotary, config.attention_head_dim)
        rotaries = {own: _rotary(config)}  # one for each encoding, shared by the layers that have it
        for index in range(config.num_hidden_layers):
            layer = config.layer(index)
            key = (layer.rotary, layer.attention_head_dim)
            if key not in rotaries:
                rotaries[key] = _rotary(layer)
            self.layers.append(RESIDUAL[layer.residual.type](layer, index, rotary=rotaries[key]))
        self.norm = NORM[config.norm.type].from_config(config.norm, config.hidden_size)
        self.rotary_emb = rotaries.pop(own)
        if rotaries:  # of single layers
            self.layer_rotary_embs = nn.ModuleList(rotaries.values())

    def forward(
        self,
        input_ids: Int[Tensor, "b t"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "#b t"] | None = None,
        cache: Any = None,
        inputs_embeds: Float[Tensor, "b t d"] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """Hidden states (b, t, d) after the final norm; arguments as for :meth:`LlamaForCausalLM.forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if getattr(cache, "is_compileable", False):
            raise ValueError("only a cache that grows can be used (DynamicCache), not one of a fixed size")
        if position_ids is not None and attention_mask is None and cache is None and _restarts(position_ids):
            raise ValueError("position_ids that start again (several documents packed in a row) are not supported")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # (b, t, d)
        time, past = x.shape[1], cache.get_seq_length() if cache is not None else 0
        if position_ids is None:
            position_ids = torch.arange(past, past + time, device=x.device)[None]  # (1, t)
        padding = _padding(attention_mask, past + time)
        rotations: dict[nn.Module, Any] = {}
        masks: dict[int | None, Tensor | None] = {}
        for layer in self.layers:
            attention: Any = layer.self_attn
            rotary, window = attention.rotary, attention.window
            if rotary not in rotations:
                rotations[rotary] = rotary.rotation(position_ids)
            if window not in masks:
                masks[window] = visible(time, past, window, padding, x.device)
            x = layer(x, rotations[rotary], masks[window], cache)
        return self.norm(x)


def _rotary(config: ModelConfig) -> nn.Module:
    return ROTARY[config.rotary.type].from_config(config.rotary, config.attention_head_dim)


def _restarts(position_ids: Tensor) -> bool:
    return bool((position_ids[:, 1:] <= position_ids[:, :-1]).any())


def _padding(attention_mask: Tensor | None, total: int) -> Bool[Tensor, "b s"] | None:
    """The mask as booleans (b, s); None where nothing is padding, which saves the attention a mask."""
    if attention_mask is None:
        return None
    if attention_mask.dim() != 2 or attention_mask.shape[1] != total:
        shape = tuple(attention_mask.shape)
        raise ValueError(f"attention_mask must be (batch, {total}): 1 for tokens, 0 for padding; received {shape}")
    kept = attention_mask.bool()
    return None if bool(kept.all()) else kept


class LlamaForCausalLM(PreTrainedModel, GenerationMixin):
    """A language model with next-token loss; a transformers PreTrainedModel that generates.

    Args:
        config: a ModelConfig, plain data, a transformers LlamaConfig or a :class:`LlamaVariantConfig`.
    """

    config_class = LlamaVariantConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _no_split_modules = [RESIDUAL[name].__name__ for name in RESIDUAL.names]
    _supports_sdpa = True
    accepts_loss_kwargs = True  # tells transformers' Trainer of num_items_in_batch

    def __init__(self, config: Any) -> None:
        super().__init__(LlamaVariantConfig.of(config))
        blocks = self.config.blocks
        self.config.check()
        self.model = LlamaModel(blocks)
        self.lm_head = HEAD[blocks.head.type](blocks)
        self.loss_function = next_token_loss
        for prefix, module in self.named_modules():
            INIT[blocks.init.type].check(module, f"{prefix}.")
        self.post_init()

    def initialize_weights(self) -> None:
        """Draw every parameter by its name (see `blocks/init.py`), in place of transformers' per-module hook."""
        blocks = self.config.blocks
        scheme = INIT[blocks.init.type](blocks)
        for prefix, module in self.named_modules():
            own = list(module.parameters(recurse=False))
            shared = self.model.embed_tokens.weight if module is self.lm_head and blocks.head.tied else None
            kept = [p for p in own if p is shared or getattr(p, "_is_hf_initialized", False)]  # read from a checkpoint
            if len(kept) == len(own) or any(p.is_meta for p in own):
                continue
            values = [p.detach().clone() for p in kept]
            scheme.fill(module, f"{prefix}." if prefix else "", self.config.seed)
            with torch.no_grad():
                for p, value in zip(kept, values, strict=True):
                    p.copy_(value)

    def get_decoder(self) -> nn.Module:
        """The model without its head."""
        return self.model

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Take over a (resized) weight; the head itself stays, with whatever else it does to logits."""
        assert isinstance(self.lm_head, nn.Linear)
        assert isinstance(new_embeddings, nn.Linear)
        self.lm_head.weight = new_embeddings.weight
        self.lm_head.out_features = new_embeddings.weight.shape[0]

    def forward(
        self,
        input_ids: Int[Tensor, "b t"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "#b t"] | None = None,
        cache: Any = None,
        inputs_embeds: Float[Tensor, "b t d"] | None = None,
        labels: Int[Tensor, "b t"] | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        past_key_values: Any = None,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits, and the mean next-token loss where labels are given.

        Args:
            input_ids: token ids (b, t).
            attention_mask: (b, s), 0 where a key is padding. Without it nothing is.
            position_ids: (1 or b, t); counted from the cache's end when None.
            cache: a transformers Cache with the keys and values of earlier positions.
            inputs_embeds: (b, t, d) instead of ``input_ids``.
            labels: token ids (b, t), not shifted; position i is predicted from positions before it; -100 is ignored.
            use_cache: give back a cache; a new one where none is given.
            logits_to_keep: compute logits for the last so many positions only; all of them at 0.
            return_dict: False gives a tuple.
            num_items_in_batch: predicted tokens of the whole batch that these rows are part of; the loss is then their
                sum over it, so that accumulated gradients are those of the whole. The mean over these rows without it.
            past_key_values: what ``cache`` was called before transformers 5.24.

        Returns:
            ``logits`` (b, t, v); ``loss`` in nats per predicted token (b · (t-1) of them), or None; and the cache,
            where one is used, under the name that this version of transformers has for it.

        Raises:
            ValueError: for both or neither of ``input_ids`` and ``inputs_embeds``, and for a mask of another shape.
        """
        cache = past_key_values if cache is None else cache
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        x = self.model(input_ids, attention_mask, position_ids, cache, inputs_embeds)
        logits = self.lm_head(x[:, -logits_to_keep:])
        loss = None if labels is None else self.loss_function(logits, labels, num_items_in_batch)
        kept: dict[str, Any] = {_CACHE: cache if use_cache else None}
        out = CausalLMOutputWithPast(loss=loss, logits=logits, **kept)
        return out.to_tuple() if return_dict is False else out

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Write safetensors and config.json; as a stock Llama where one computes the same, so that anyone can load it.

        Other variants load through transformers' Auto classes once ``llama_variants`` is imported.
        """
        own = self.config
        try:
            self.config = own.to_llama() or own
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.config = own


def next_token_loss(
    logits: Float[Tensor, "b t v"], labels: Int[Tensor, "b t"], num_items: Tensor | int | None = None
) -> Float[Tensor, ""]:
    """Cross-entropy of each position's logits with the next position's label, in float32.

    Args:
        logits: (b, t, v).
        labels: (b, t), not shifted; -100 is ignored.
        num_items: what the sum is divided by; the number of predicted labels when None.
    """
    # The labels are shifted, not the logits: cutting the last position off would copy all of them.
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    reduction = "mean" if num_items is None else "sum"
    loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction=reduction)
    return loss if num_items is None else loss / num_items


def build_model(
    config: Any,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LlamaForCausalLM:
    """A new model with values drawn by (seed, parameter name), the same on every device.

    ``device="meta"`` gives shapes without storage. ``config`` is whatever :meth:`ModelConfig.of` takes. No global
    generator advances: what the constructors of torch's layers draw is replaced.
    """
    config = LlamaVariantConfig(variant=ModelConfig.of(config).to_dict(), seed=seed)
    with torch.random.fork_rng(devices=[]), torch.device("meta" if torch.device(device).type == "meta" else "cpu"):
        model = LlamaForCausalLM(config)
    return nn.Module.to(model, device=device, dtype=dtype)
