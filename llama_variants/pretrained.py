"""What transformers asks of any of our models: initial values, tied weights, resizing, saving, kinds of attention."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from llama_variants.registry import INIT, RESIDUAL
from llama_variants.variant import LlamaVariantConfig

CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
"""What this version of transformers calls the keys and values of earlier positions."""
ATTENTION = ("sdpa", "eager")
UNUSED = {"token_type_ids", "cache_position", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
"""Arguments of transformers' Llama that say nothing that it, or this model, would not know without them."""


class PreTrainedLlama(PreTrainedModel):
    """Base of the model and of whatever has a head on it.

    Args:
        config: a ModelConfig, plain data, a transformers LlamaConfig or a :class:`LlamaVariantConfig`.
    """

    config_class = LlamaVariantConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # whether transformers' Trainer gives num_items_in_batch
    _no_split_modules = [RESIDUAL[name].__name__ for name in RESIDUAL.names]
    _supports_sdpa = True
    _can_compile_fullgraph = True

    def __init__(self, config: Any) -> None:
        super().__init__(LlamaVariantConfig.of(config))
        self.config.check()

    def asked(self, name: str, value: bool | None) -> bool:
        """What a call's argument says, or the configuration where it says nothing."""
        return bool(getattr(self.config, name, False) if value is None else value)

    def post_init(self) -> None:
        """Check that every parameter has initial values, draw them, tie weights."""
        for prefix, module in self.named_modules():
            INIT[self.config.blocks.init.type].check(module, f"{prefix}.")
        super().post_init()

    def initialize_weights(self) -> None:
        """Draw every parameter by its name (see `blocks/init.py`), in place of transformers' per-module hook.

        Names are those in the language model, so that the model without a head starts with the same values. Matrices
        are drawn on threads, as many as torch has: each has a key of its own, so that no order matters.
        """
        blocks = self.config.blocks
        scheme = INIT[blocks.init.type](blocks)
        lead = "" if hasattr(self, self.base_model_prefix) else f"{self.base_model_prefix}."
        head = self.get_output_embeddings() if blocks.head.tied else None
        matrices: dict[int, tuple[nn.Module, str]] = {}  # one that two modules share is drawn once, for the last
        for name, module in self.named_modules():
            if getattr(module, "_is_hf_initialized", False):  # by the model inside this one, or read from a checkpoint
                continue
            own = list(module.parameters(recurse=False))
            shared = self.get_input_embeddings().weight if module is head and head is not None else None
            kept = [p for p in own if p is shared or getattr(p, "_is_hf_initialized", False)]  # read from a checkpoint
            if len(kept) == len(own) or any(p.is_meta for p in own):
                continue
            module._is_hf_initialized = True
            if not kept and not hasattr(module, "init_parameters"):
                matrices[id(own[0])] = module, f"{lead}{name}."
                continue
            values = [p.detach().clone() for p in kept]
            scheme.fill(module, f"{lead}{name}.", self.config.seed)
            with torch.no_grad():
                for p, value in zip(kept, values, strict=True):
                    p.copy_(value)
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            for filled in [threads.submit(scheme.fill, *matrix, self.config.seed) for matrix in matrices.values()]:
                filled.result()

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Tie the head to the embedding where the configuration says so, and no file has two weights that differ.

        Such a file is followed, as transformers follows it: its configuration is wrong, and becomes an untied one.
        """
        super().tie_weights(*args, **kwargs)
        head = self.get_output_embeddings()
        if head is None or not self.config.tie_word_embeddings:
            return
        weight, embedding = head.weight, self.get_input_embeddings().weight
        if weight is not embedding and not (weight.is_meta or embedding.is_meta):
            self.config.untie()
            warn_of_untied()

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """As in transformers. Raises ValueError for a size at which a special token has no row."""
        size = self.config.vocab_size if new_num_tokens is None else new_num_tokens
        size = -(-size // pad_to_multiple_of) * pad_to_multiple_of if pad_to_multiple_of else size
        most = max(self._special_ids(), default=("", 0), key=lambda pair: pair[1])
        if size <= most[1]:
            used = f"{most[0]} is {most[1]}" if most[0] else "a vocabulary has at least one token"
            raise ValueError(f"a vocabulary of {size} tokens is too small: {used}; give at least {most[1] + 1}")
        return super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)

    def _special_ids(self) -> Iterator[tuple[str, int]]:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            for config in (self.config, getattr(self, "generation_config", None)):
                value = getattr(config, name, None)
                values = value if isinstance(value, list | tuple) else [value]
                yield from ((name, one) for one in values if one is not None)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Write safetensors and config.json; as a stock Llama where one computes the same, so that anyone can load it.

        Other variants load through transformers' Auto classes once ``llama_variants`` is imported. Weights of an
        earlier save that a loader could take for the new ones are removed once these are written.

        Raises:
            NotADirectoryError: when the path is a file.
        """
        folder = Path(save_directory)
        if folder.is_file():
            raise NotADirectoryError(f"{folder} is a file; a model is saved into a folder")
        own = self.config
        try:
            self.config = own.to_llama() or own
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.config = own
        if kwargs.get("is_main_process", True):
            _remove_stale(folder, kwargs.get("variant"))

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args: Any, **kwargs: Any) -> str:
        if attn_implementation not in (None, *ATTENTION):
            raise ValueError(
                f"attn_implementation={attn_implementation!r}: this model has 'sdpa', which takes PyTorch's own flash "
                "kernel wherever it can, and 'eager', which gives attention weights too"
            )
        return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)


def check_known(others: Mapping[str, Any]) -> None:
    """Raises TypeError for an argument that no causal language model of transformers takes."""
    if unknown := others.keys() - UNUSED:
        raise TypeError(f"forward() got an unexpected keyword argument {min(unknown)!r}")


def warn_of_untied() -> None:
    """Say that a checkpoint's configuration ties a head that has a weight of its own."""
    warnings.warn(
        "lm_head.weight is in the checkpoint and differs from model.embed_tokens.weight, though the configuration ties "
        "them: the checkpoint is followed, and the head is untied",
        stacklevel=3,
    )


def _remove_stale(folder: Path, variant: str | None) -> None:
    """Of one file of weights and an index of several, remove the one that an earlier save left behind.

    transformers has deleted the shards of an earlier save that the new one has not: the index of these names files
    that are not there. One whose files are all there is the new one, and the single file is left over.
    """
    mark = f".{variant}" if variant else ""
    single, index = folder / f"model{mark}.safetensors", folder / f"model.safetensors.index{mark}.json"
    if single.exists() and index.exists():
        try:
            shards = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, LookupError, TypeError, AttributeError):  # damaged: no save has just written it
            shards = {""}
        (single if all((folder / shard).is_file() for shard in shards) else index).unlink()
