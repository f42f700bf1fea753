"""A 135M Llama made of configurable blocks: torch, transformers and pydantic, nothing else of this project."""

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
