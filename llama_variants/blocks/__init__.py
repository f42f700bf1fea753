"""The registered blocks, one family a file. Importing this package registers them."""

from llama_variants.blocks import attention, embedding, head, init, mlp, norm, residual, rotary

__all__ = ["attention", "embedding", "head", "init", "mlp", "norm", "residual", "rotary"]
