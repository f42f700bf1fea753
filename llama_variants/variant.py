"""The configuration of one of our models in transformers' form: a frozen ModelConfig inside a PreTrainedConfig."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import LlamaConfig, PreTrainedConfig

from llama_variants import stock
from llama_variants.config import ModelConfig
from llama_variants.errors import ConfigError, Problem

_KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "use_cache", "id2label", "label2id", "problem_type")
"""What a stock configuration and ours have in common besides the computation."""


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
        self.use_cache: bool = kwargs.pop("use_cache", True)
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

    def untie(self) -> None:
        """Give the head a weight of its own. Raises ConfigError where no block is the same with one."""
        head = self.blocks.head
        if (other := head.untied) is None:  # type: ignore[attr-defined]
            allowed = f"the embedding's weight: no block is {head.type} with a weight of its own"
            raise ConfigError([Problem(path=("lm_head.weight",), received="another weight", allowed=allowed)])
        self.variant = self.blocks.override({"head": {"type": other}}).to_dict()
        self.tie_word_embeddings = False
