"""Weights in and out of transformers: any Llama in, and out what any transformers user can load."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers import LlamaForCausalLM as StockLlama
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
)

from llama_variants.errors import ConfigError, Problem
from llama_variants.model import LlamaForCausalLM, LlamaModel
from llama_variants.pretrained import PreTrainedLlama, warn_of_untied
from llama_variants.variant import LlamaVariantConfig


class LlamaForSequenceClassification(GenericForSequenceClassification, PreTrainedLlama):
    """Logits of ``config.num_labels`` classes at each row's last token that is no padding."""


class LlamaForTokenClassification(GenericForTokenClassification, PreTrainedLlama):
    """Logits of ``config.num_labels`` classes at each token."""


class LlamaForQuestionAnswering(GenericForQuestionAnswering, PreTrainedLlama):
    """Logits of where an answer begins and ends."""


AutoConfig.register(LlamaVariantConfig.model_type, LlamaVariantConfig, exist_ok=True)
for auto, model in {
    AutoModel: LlamaModel,
    AutoModelForCausalLM: LlamaForCausalLM,
    AutoModelForSequenceClassification: LlamaForSequenceClassification,
    AutoModelForTokenClassification: LlamaForTokenClassification,
    AutoModelForQuestionAnswering: LlamaForQuestionAnswering,
}.items():
    auto.register(LlamaVariantConfig, model, exist_ok=True)


def load_pretrained(path: str | Path, *, dtype: torch.dtype = torch.float32, **kwargs: Any) -> LlamaForCausalLM:
    """A model of this package with published weights.

    Args:
        path: a folder that transformers can load, a hub id, or a GGUF file (which needs the extra ``[gguf]``).
        dtype: of the weights.
        kwargs: for transformers' ``from_pretrained``, e.g. ``revision``, or ``gguf_file`` inside a folder.

    Raises:
        ConfigError: when it is no Llama, or one that the registered blocks cannot express; or when weights are
            missing from it, or left over.
        OSError: when there is nothing to load.
    """
    local = isinstance(path, Path) or path.startswith(("/", ".", "~")) or path.endswith(".gguf")
    if local and not Path(path).exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    if str(path).endswith(".gguf"):
        path, kwargs["gguf_file"] = Path(path).parent, Path(path).name
    load: Any = AutoModelForCausalLM.from_pretrained  # whose stubs know nothing of output_loading_info
    # Shapes that differ are reported with the rest, below: transformers itself raises a RuntimeError for them.
    try:
        loaded, info = load(path, dtype=dtype, output_loading_info=True, **{"ignore_mismatched_sizes": True, **kwargs})
    except NotImplementedError as error:  # transformers compares a head that it has not loaded with the embedding
        if "meta" not in str(error).lower():
            raise
        received = "another shape than that of model.embed_tokens.weight, to which the configuration ties it"
        problem = Problem(path=("lm_head.weight",), received=received, allowed="the model's shape, or no weight at all")
        raise ConfigError([problem], title=f"{path} cannot be loaded:") from None
    problems = [
        Problem(
            path=(kind,),
            received=", ".join(sorted(map(_weight, found))[:5]),
            allowed="a checkpoint with exactly the model's weights",
        )
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if (found := info[kind])
    ]
    if not isinstance(loaded, LlamaForCausalLM | StockLlama):
        problems = [
            Problem(path=("model_type",), received=repr(loaded.config.model_type), allowed="llama or llama_variant")
        ]
    if problems:
        raise ConfigError(problems, title=f"{path} cannot be loaded:")
    return loaded if isinstance(loaded, LlamaForCausalLM) else _of_stock(loaded)


def _weight(found: Any) -> str:
    """A weight as transformers reports it: its name, or that and the shapes in the file and in the model."""
    return found if isinstance(found, str) else "{} {} instead of {}".format(*map(_plain, found))


def _plain(part: Any) -> Any:
    return part if isinstance(part, str) else tuple(part)


def _of_stock(loaded: StockLlama) -> LlamaForCausalLM:
    """The same computation out of our blocks, with the very same tensors."""
    published = copy.copy(loaded.config)
    if hasattr(published, "quantization_config"):
        del published.quantization_config  # of the file; what was loaded is no longer quantized
    if published.tie_word_embeddings and loaded.lm_head.weight is not loaded.model.embed_tokens.weight:
        published.tie_word_embeddings = False
        warn_of_untied()
    config = LlamaVariantConfig.of(published)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    return nn.Module.eval(model)


def save_pretrained(model: LlamaForCausalLM, folder: str | Path, *, tokenizer: Any = None) -> None:
    """Write ``model``, and its tokenizer where one is given, as :meth:`LlamaForCausalLM.save_pretrained` does."""
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
