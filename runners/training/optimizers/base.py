"""What the loop asks of an optimizer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class RecipeOptimizer(torch.optim.Optimizer):
    """An optimizer that a recipe can name: its class says how it groups a model's parameters.

    A group of ``param_groups`` may have a ``rate``: its learning rate is so many times the recipe's at every step. The
    loop sets ``found_inf`` before each step: where it is 1, :meth:`step` changes no parameter and no state, and whether
    it is stays on the device, so that nothing waits for it.
    """

    found_inf: Tensor

    def state_numel(self) -> int:
        """Numbers in float32 that its state will hold once it has stepped: room that a micro-batch has to leave."""
        raise NotImplementedError(f"{type(self).__name__} lacks state_numel(): how many numbers its state holds")

    def set_lr(self, lr: float) -> None:
        """Give each group its share of the step's learning rate."""
        for group in self.param_groups:
            group["lr"] = lr * group.get("rate", 1.0)


def matrices_and_vectors(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """A model's parameters: matrices, which are decayed, and gains and biases, which are not, as is usual."""
    parameters = list(model.parameters())
    return [p for p in parameters if p.dim() >= 2], [p for p in parameters if p.dim() < 2]


def numel(parameters: Iterable[Tensor]) -> int:
    """Numbers in all of them."""
    return sum(p.numel() for p in parameters)
