"""AdamW, the control."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, Strict
from torch import nn

from runners.planning.components import OPTIMIZER, OptimizerConfig
from runners.training.optimizers.base import RecipeOptimizer, matrices_and_vectors, numel

Beta = Annotated[float, Field(ge=0, lt=1)]


@OPTIMIZER.register("adamw")
class AdamW(torch.optim.AdamW, RecipeOptimizer):
    """Adam with decoupled weight decay, on matrices only, in one fused kernel a step.

    Source: arXiv:1711.05101. Gains and biases are vectors and are not decayed, as is usual.
    """

    class Config(OptimizerConfig):
        """``betas``, ``eps``: Adam's. ``weight_decay``: of matrices, a step, in units of the learning rate."""

        betas: Annotated[tuple[Beta, Beta], Strict(False)]
        eps: PositiveFloat
        weight_decay: NonNegativeFloat

    def __init__(self, config: Config, model: nn.Module) -> None:
        matrices, vectors = matrices_and_vectors(model)
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay, "rate": 1.0},
            {"params": vectors, "weight_decay": 0.0, "rate": 1.0},
        ]
        super().__init__(groups, betas=config.betas, eps=config.eps, fused=True)

    def state_numel(self) -> int:
        """Two moments for each parameter."""
        return 2 * sum(numel(group["params"]) for group in self.param_groups)
