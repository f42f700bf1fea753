"""A 135M Llama made of configurable blocks: torch, transformers and pydantic, nothing else of this project.

Each name is imported at its first use (PEP 562): torch takes a second, transformers another two. Whoever reads
configurations needs the first alone, and whoever only reports a wrong one needs neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from llama_variants import auto

if TYPE_CHECKING:
    from llama_variants.blocks.attention import LlamaAttention
    from llama_variants.blocks.mlp import LlamaMLP
    from llama_variants.blocks.norm import LlamaRMSNorm
    from llama_variants.blocks.residual import LlamaDecoderLayer
    from llama_variants.blocks.rotary import LlamaRotaryEmbedding
    from llama_variants.config import ModelConfig
    from llama_variants.errors import ConfigError
    from llama_variants.hf import load_pretrained, save_pretrained
    from llama_variants.model import LlamaForCausalLM, LlamaModel, build_model

__all__ = [
    "ConfigError",
    "LlamaAttention",
    "LlamaDecoderLayer",
    "LlamaForCausalLM",
    "LlamaMLP",
    "LlamaModel",
    "LlamaRMSNorm",
    "LlamaRotaryEmbedding",
    "ModelConfig",
    "build_model",
    "load_pretrained",
    "save_pretrained",
]

# The modules to import for each name, the last of which has it. A configuration names blocks, which have to be
# registered; a model is one that transformers' Auto classes know.
_BLOCKS, _HF = "llama_variants.blocks", "llama_variants.hf"
_MODULES = {
    "ConfigError": ("llama_variants.errors",),
    "LlamaAttention": (_BLOCKS, "llama_variants.blocks.attention"),
    "LlamaDecoderLayer": (_BLOCKS, "llama_variants.blocks.residual"),
    "LlamaForCausalLM": (_BLOCKS, _HF, "llama_variants.model"),
    "LlamaMLP": (_BLOCKS, "llama_variants.blocks.mlp"),
    "LlamaModel": (_BLOCKS, _HF, "llama_variants.model"),
    "LlamaRMSNorm": (_BLOCKS, "llama_variants.blocks.norm"),
    "LlamaRotaryEmbedding": (_BLOCKS, "llama_variants.blocks.rotary"),
    "ModelConfig": (_BLOCKS, "llama_variants.config"),
    "build_model": (_BLOCKS, _HF, "llama_variants.model"),
    "load_pretrained": (_BLOCKS, _HF),
    "save_pretrained": (_BLOCKS, _HF),
}

auto.enter()


def __getattr__(name: str) -> object:
    """A public name, imported now."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    *_, home = map(import_module, _MODULES[name])
    value: object = getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Every public name, imported or not."""
    return sorted({*globals(), *__all__})
