"""Small models that the tests of this package share."""

from __future__ import annotations

from hypothesis import strategies as st

from llama_variants import ModelConfig
from llama_variants.registry import FAMILIES

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
# One model for each registered block, each differing from TINY in that block alone.
EVERY_BLOCK = {
    f"{family}={name}": TINY.override({family: {"type": name}})
    for family, registry in FAMILIES.items()
    for name in registry.names
}


@st.composite
def shapes(draw) -> ModelConfig:
    groups = draw(st.integers(1, 3))
    kv_heads = draw(st.integers(1, 3))
    tied = draw(st.booleans())
    return TINY.override(
        {
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
    )
