"""Small models that the tests of this package share."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from transformers import LlamaForCausalLM as StockLlama
from transformers import PreTrainedModel

from llama_variants import ModelConfig
from llama_variants.registry import FAMILIES, LAYERED

for plugin in filter(None, os.environ.get("PLUGINS", "").split(",")):
    importlib.import_module(plugin)  # its blocks go through every test that goes over the registry

TINY = ModelConfig.preset("smollm2-135m").override(
    {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "vocab_size": 101,
        "max_position_embeddings": 64,
        "attention": {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8},
        "mlp": {"intermediate_size": 128},
        "init": {"std": 1 / 24},
    }
)
# One model for each registered block, each differing from TINY in that block alone; and patterns over layers.
BLOCKS = {
    family: [{"type": name, **registry.config_class(name).example} for name in registry.names]
    for family, registry in FAMILIES.items()
}
EVERY_BLOCK = {
    f"{family}={block['type']}": TINY.override({family: block}) for family in BLOCKS for block in BLOCKS[family]
}
PATTERNS = {
    "biases": TINY.override({"attention": {"bias": True}, "mlp": {"bias": True}}),
    "nope every 2nd": TINY.override({"layers": {"every 2": {"rotary": {"type": "nope"}}}}),
    "local:global 1:1": TINY.override(
        {
            "attention": {"type": "sliding_window", "window_size": 5},
            "layers": {"every 2": {"attention": {"type": "gqa"}}},
        }
    ),
    "layer 0 otherwise": TINY.override(
        {
            "layers": {
                "0": {
                    "rotary": {"theta": 100.0},
                    "attention": {"type": "mqa"},
                    "mlp": {"type": "relu2", "intermediate_size": 40},
                    "norm": {"type": "layer"},
                    "residual": {"type": "sandwich"},
                }
            }
        }
    ),
}
EVERY_MODEL = EVERY_BLOCK | PATTERNS


@st.composite
def shapes(draw) -> dict[str, Any]:
    """A delta over TINY that every stock Llama can express."""
    groups = draw(st.integers(1, 3))
    kv_heads = draw(st.integers(1, 3))
    tied = draw(st.booleans())
    return {
        "hidden_size": draw(st.integers(1, 6)) * groups * kv_heads,  # transformers insists on a multiple
        "num_hidden_layers": draw(st.integers(1, 3)),
        "vocab_size": draw(st.integers(5, 150)),
        "rotary": {"theta": draw(st.sampled_from([100.0, 10_000.0, 1e6]))},
        "attention": {
            "num_attention_heads": groups * kv_heads,
            "num_key_value_heads": kv_heads,
            "head_dim": draw(st.integers(1, 8)) * 2,
        },
        "mlp": {"intermediate_size": draw(st.integers(1, 90))},
        "norm": {"eps": draw(st.sampled_from([1e-6, 1e-5, 1e-2]))},
        "head": {"type": "tied" if tied else "untied"},
        "init": {"std": draw(st.sampled_from([0.02, 1 / 24]))},
    }


@st.composite
def any_blocks(draw) -> dict[str, Any]:
    """A delta over TINY with any registered block in some of the families, in all layers or in one."""

    def blocks(families: Sequence[str]) -> dict[str, Any]:
        chosen = draw(st.sets(st.sampled_from(families), max_size=3))
        return {family: draw(st.sampled_from(BLOCKS[family])) for family in sorted(chosen)}

    delta = blocks(list(FAMILIES))
    if draw(st.booleans()):
        delta["layers"] = {"1": blocks(LAYERED)}
    if draw(st.booleans()):
        delta["hidden_size"] = draw(st.sampled_from([48, 50]))  # 50 is no multiple of six heads
    return delta


def ids(config: ModelConfig, batch: int = 2, time: int = 16, seed: int = 0) -> torch.Tensor:
    """Token ids (batch, time)."""
    return torch.randint(config.vocab_size, (batch, time), generator=torch.Generator().manual_seed(seed))


def stock(config: ModelConfig, cls: type = StockLlama, **fields) -> PreTrainedModel:
    """A transformers model of the same shape, its tied or untied head included; ``fields`` are its own."""
    blocks = config.resolved()
    return cls(
        cls.config_class(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=blocks["mlp"]["intermediate_size"],
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=blocks["attention"]["num_attention_heads"],
            num_key_value_heads=blocks["attention"]["num_key_value_heads"],
            head_dim=blocks["attention"]["head_dim"],
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=blocks["norm"]["eps"],
            tie_word_embeddings=blocks["head"]["type"] == "tied",
            pad_token_id=None,
            **{"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}, **fields},
        )
    ).eval()
