"""Muon for the matrices inside the layers, AdamW for everything else."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, Strict
from torch import Tensor, nn
from torch.optim.adamw import adamw

from runners.planning.components import OPTIMIZER, OptimizerConfig
from runners.training.optimizers.base import RecipeOptimizer, numel

Fraction = Annotated[float, Field(ge=0, lt=1)]
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of the quintic that turns singular values towards 1
EPS = 1e-7


@OPTIMIZER.register("muon")
class Muon(RecipeOptimizer):
    """Momentum with equal singular values: b ← μ·b + g, W ← (1 - lr·λ)·W - lr·0.2·sqrt(max(m, n))·NS(g + μ·b).

    Differs from the control on every matrix inside the layers; the embedding, the head, gains and biases keep AdamW.
    Source: https://kellerjordan.github.io/posts/muon/ (momentum, five Newton-Schulz steps), arXiv:2502.16982 (weight
    decay, and the factor with which an update has the size of AdamW's, so that AdamW's learning rate fits). Departs
    from both by computing in float32 on a CPU; on a GPU it is bfloat16, as there.
    """

    class Config(OptimizerConfig):
        """``betas``, ``eps``, ``weight_decay``: AdamW's, the last for all matrices. ``matrix_rate``: learning rate of
        the matrices over that of the rest. ``momentum``, ``nesterov``, ``ns_steps``: Muon's."""

        betas: Annotated[tuple[Fraction, Fraction], Strict(False)]
        eps: PositiveFloat
        weight_decay: NonNegativeFloat
        matrix_rate: PositiveFloat = 1.0
        momentum: Fraction = 0.95
        nesterov: bool = True
        ns_steps: PositiveInt = 5

    def __init__(self, config: Config, model: nn.Module) -> None:
        self.config = config
        rows = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
        rows |= {id(p) for name, p in model.named_parameters() if name.startswith("lm_head.")}
        inside = [p for p in model.parameters() if p.dim() == 2 and id(p) not in rows]
        muon = {id(p) for p in inside}
        rest = [p for p in model.parameters() if id(p) not in muon]
        groups: list[dict[str, Any]] = [
            {"params": inside, "weight_decay": config.weight_decay, "rate": config.matrix_rate, "muon": True},
            {"params": [p for p in rest if p.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
        ]
        super().__init__([group for group in groups if group["params"]], {"lr": 0.0, "rate": 1.0, "muon": False})

    def state_numel(self) -> int:
        """One momentum for each matrix, two moments for everything else."""
        return sum((1 if group["muon"] else 2) * numel(group["params"]) for group in self.param_groups)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient, unless ``found_inf`` is 1."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["muon"]:
                for alike in _by_shape(parameters):
                    self._muon(alike, group["lr"], group["weight_decay"])
            else:
                self._adamw(parameters, group["lr"], group["weight_decay"])

    def _muon(self, alike: list[Tensor], lr: float, weight_decay: float) -> None:
        """Matrices of one shape (m, n), orthogonalised together."""
        config, keep = self.config, self.found_inf == 0
        for p in alike:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        buffers = torch.stack([self.state[p]["momentum"] for p in alike])  # (k, m, n)
        gradients = torch.stack([p.grad for p in alike if p.grad is not None])
        moved = config.momentum * buffers + gradients
        direction = gradients + config.momentum * moved if config.nesterov else moved
        scale = 0.2 * math.sqrt(max(direction.shape[-2:]))
        updates = orthogonalised(direction, config.ns_steps).to(direction.dtype)
        for p, before, after, update in zip(alike, buffers, moved, updates, strict=True):
            self.state[p]["momentum"].copy_(torch.where(keep, after, before))
            p.copy_(torch.where(keep, p * (1 - lr * weight_decay) - lr * scale * update, p))

    def _adamw(self, parameters: list[Tensor], lr: float, weight_decay: float) -> None:
        if not parameters:
            return
        for p in parameters:
            if not self.state[p]:
                step = torch.zeros((), dtype=torch.float32, device=p.device)
                self.state[p] |= {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p), "step": step}
        states = [self.state[p] for p in parameters]
        (beta1, beta2), eps = self.config.betas, self.config.eps
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            found_inf=self.found_inf,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=lr,
            weight_decay=weight_decay,
            eps=eps,
            maximize=False,
        )


def orthogonalised(matrices: Tensor, steps: int) -> Tensor:
    """The nearest semi-orthogonal matrix to each of ``matrices`` (k, m, n), roughly: singular values of 0.7 to 1.2.

    In bfloat16 on a GPU and in float32 on a CPU, which multiplies bfloat16 many times slower.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16() if matrices.device.type == "cuda" else matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)  # no singular value above 1
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def _by_shape(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    shapes: dict[torch.Size, list[Tensor]] = {}
    for p in parameters:
        shapes.setdefault(p.shape, []).append(p)
    return list(shapes.values())
