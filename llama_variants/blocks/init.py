"""Initial values, drawn by name: a parameter's start depends on the seed, its name and its shape, on nothing else.

Tensors that two variants share therefore start bit-identical, a new block shifts none of the others, and the values
are the same on every device and in every order of construction. numpy's Philox is used because torch's own normals
differ between CPU kernels and its seeds keep 32 bits.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from llama_variants.registry import INIT, BlockConfig, Cost

if TYPE_CHECKING:
    from llama_variants.config import ModelConfig


def normal_by_name(shape: tuple[int, ...], seed: int, name: str) -> Tensor:
    """Standard normals of ``shape`` in float32 on the CPU: a function of (shape, seed, name) alone."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "little")
    values = np.random.Generator(np.random.Philox(key=key)).standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(values)


@INIT.register("normal")
class NormalInit:
    """N(0, std²) for every matrix, the control; biases start at zero; other modules know their own start.

    SmolLM2 uses std = 1/24 = 1/sqrt(hidden size); transformers' LlamaConfig defaults to 0.02.
    """

    class Config(BlockConfig):
        """``std``: standard deviation of every matrix's entries."""

        std: PositiveFloat

        def cost(self, model: ModelConfig, seq_len: int) -> Cost:
            """Nothing."""
            return Cost()

    def __init__(self, config: Config) -> None:
        self.std = config.std

    @torch.no_grad()
    def fill(self, module: nn.Module, prefix: str, seed: int) -> None:
        """Set the parameters that ``module`` itself holds; ``prefix`` is its dotted name, with the dot.

        Raises TypeError for a module with parameters that neither is a matrix nor has ``init_parameters()``.
        """
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.copy_(normal_by_name(tuple(module.weight.shape), seed, prefix + "weight") * self.std)
            bias = getattr(module, "bias", None)
            if bias is not None:
                nn.init.zeros_(bias)
        elif (init_parameters := getattr(module, "init_parameters", None)) is not None:
            init_parameters()
        elif next(module.parameters(recurse=False), None) is not None:
            raise TypeError(f"{type(module).__name__} ({prefix[:-1]}) has parameters but no init_parameters()")
