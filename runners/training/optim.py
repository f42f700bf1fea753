"""The optimizer and the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from runners.planning.recipe import TrainConfig


def build_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only, in one fused kernel a step.

    Source: arXiv:1711.05101. Gains and biases are vectors and are not decayed, as is usual.
    """
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": train.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=train.lr, betas=train.betas, eps=train.eps, fused=True)


def update(
    parameters: Sequence[Tensor], optimizer: torch.optim.AdamW, loss: Tensor, max_grad_norm: float, not_finite: Tensor
) -> tuple[Tensor, Tensor]:
    """Clip the gradients of a model's ``parameters``, step, and clear them; nothing waits for the device.

    A ``loss`` or gradient that is not finite skips this update and all later ones: ``not_finite`` becomes 1, and stays.

    Returns:
        The gradients' norm before clipping, and the new ``not_finite``.
    """
    grad_norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    not_finite = torch.maximum(not_finite, (~torch.isfinite(loss + grad_norm)).float())
    optimizer.found_inf = not_finite  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return grad_norm, not_finite


def lr_at(step: int, train: TrainConfig) -> float:
    """Learning rate of ``step`` (0 … num_steps-1): linear warm-up, constant, linear decay towards zero.

    The first step already moves and so does the last: neither end of the schedule is zero.
    """
    up = (step + 1) / train.warmup_steps if train.warmup_steps else 1.0
    down = (train.num_steps - step) / train.decay_steps if train.decay_steps else 1.0
    return train.lr * min(1.0, up, down)
