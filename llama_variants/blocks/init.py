"""Initial values, drawn by name: a parameter's start depends on the seed, its name and its shape, on nothing else.

Tensors that two variants share therefore start bit-identical, a new block shifts none of the others, and the values
are the same on every device and in every order of construction. numpy's Philox is used because torch's own normals
differ between CPU kernels and its seeds keep 32 bits. A scheme only says how large a matrix's values are.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from llama_variants.config import ModelConfig
from llama_variants.registry import INIT, FreeConfig


def normal_by_name(shape: tuple[int, ...], seed: int, name: str) -> Tensor:
    """Standard normals of ``shape`` in float32 on the CPU: a function of (shape, seed, name) alone."""
    return torch.from_numpy(_generator(seed, name).standard_normal(shape, dtype=np.float32))


def _generator(seed: int, name: str) -> np.random.Generator:
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))


def _fill_normal(weight: Tensor, std: float, seed: int, name: str) -> None:
    """Set ``weight`` to :func:`normal_by_name` times ``std``.

    Where it can, in place and by numpy alone, which lets other threads fill other weights meanwhile.
    """
    if weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.is_contiguous():
        values = weight.detach().numpy()
        _generator(seed, name).standard_normal(dtype=np.float32, out=values)
        values *= std
    else:
        weight.copy_(normal_by_name(tuple(weight.shape), seed, name) * std)


@torch.no_grad()
def perturb(model: nn.Module, relative: float, seed: int) -> None:
    """Multiply every parameter by 1 + ``relative`` · u, u uniform in [-1, 1], drawn by (seed, parameter name).

    At 2^-20 this moves the last bits of a float32 alone: whatever sets the two models apart later is rounding that
    training amplified. The draws are float32 on the CPU, the same for every device; zeros stay zeros.
    """
    for name, parameter in model.named_parameters() if relative else ():
        u = torch.from_numpy(_generator(seed, f"{name}/twin").random(tuple(parameter.shape), dtype=np.float32)) * 2 - 1
        parameter.mul_(1 + relative * u.to(parameter.device, parameter.dtype))


@INIT.register("normal")
class NormalInit:
    """N(0, std²) for every matrix, the control; biases start at zero; other modules know their own start.

    SmolLM2 uses std = 1/24 = 1/sqrt(hidden size); transformers' LlamaConfig defaults to 0.02.
    Source: the pre-training configuration of arXiv:2502.02737 (SmolLM2).
    """

    class Config(FreeConfig):
        """``std``: standard deviation of every matrix's entries."""

        std: PositiveFloat

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    def std(self, module: nn.Module) -> float:
        """Standard deviation of the entries of ``module``'s matrix."""
        assert isinstance(self.config.init, NormalInit.Config | ScaledInit.Config)
        return self.config.init.std

    @staticmethod
    def check(module: nn.Module, prefix: str) -> None:
        """Raises TypeError for parameters that nothing initialises: neither a matrix's nor ``init_parameters()``'s."""
        matrix = {"weight", "bias"} if isinstance(module, nn.Linear | nn.Embedding) else set()
        unknown = {name for name, _ in module.named_parameters(recurse=False)} - matrix
        if unknown and not hasattr(module, "init_parameters"):
            raise TypeError(f"{type(module).__name__} ({prefix[:-1]}) has parameters but no init_parameters()")

    @torch.no_grad()
    def fill(self, module: nn.Module, prefix: str, seed: int) -> None:
        """Set the parameters that ``module`` itself holds; ``prefix`` is its dotted name, with the dot."""
        if isinstance(module, nn.Linear | nn.Embedding):
            _fill_normal(module.weight, self.std(module), seed, prefix + "weight")
            bias = getattr(module, "bias", None)
            if bias is not None:
                nn.init.zeros_(bias)
        if (init_parameters := getattr(module, "init_parameters", None)) is not None:
            init_parameters()


@INIT.register("scaled")
class ScaledInit(NormalInit):
    """N(0, std²), and std / sqrt(2 · layers) for the matrices that write to the residual stream.

    Differs from the control by these: o_proj and down_proj. Source: GPT-2 (Radford et al. 2019), section 2.3.
    """

    class Config(FreeConfig):
        """``std``: standard deviation of the other matrices' entries."""

        std: PositiveFloat

    def std(self, module: nn.Module) -> float:
        """Smaller for a block's last projection, as the block marks it."""
        smaller = getattr(module, "residual_output", False)
        return super().std(module) / (math.sqrt(2 * self.config.num_hidden_layers) if smaller else 1)


@INIT.register("smollm2")
class SmolLM2Init(NormalInit):
    """N(0, 1/d) for every matrix: std = 1/sqrt(hidden size), at any width.

    Equal to the control at its width. Source: the pre-training configuration of arXiv:2502.02737 (SmolLM2).
    """

    class Config(FreeConfig):
        """No fields."""

        def resolved(self, model: ModelConfig) -> dict[str, object]:
            """As ``normal`` with the std that it comes to."""
            return {"type": "normal", "std": 1 / math.sqrt(model.hidden_size)}

    def std(self, module: nn.Module) -> float:
        """One over the square root of the model's width."""
        return 1 / math.sqrt(self.config.hidden_size)
