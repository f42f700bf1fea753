"""The loss of each window, as it is trained and judged by."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from llama_variants import LlamaForCausalLM
from runners.training.compile import compiled, is_compiled
from runners.training.determinism import autocast


def window_losses(model: LlamaForCausalLM, ids: Tensor, precision: str) -> Tensor:
    """Mean next-token loss (b,) of each window of ``ids`` (b, t), by the model as it is set."""
    with autocast(model.device, precision):
        logits = model(ids, use_cache=False).logits  # (b, t, v)
    return (compiled(_per_window) if is_compiled(model) else _per_window)(logits, ids)


def _per_window(logits: Tensor, ids: Tensor) -> Tensor:
    token_losses = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none")  # (b, t-1)
    return token_losses.mean(dim=1)


@dataclass(frozen=True)
class Evaluation:
    """``loss_nats``: mean loss per predicted token. ``se_nats``: its standard error over windows. ``windows``: the loss
    of each, (n,) in float64 on the CPU.
    """

    loss_nats: float
    se_nats: float
    windows: Tensor = field(repr=False, compare=False)


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, windows: np.ndarray, *, batch_size: int, precision: str) -> Evaluation:
    """Mean next-token loss on ``windows`` (n, t), ``batch_size`` windows at a time.

    Draws nothing and reads no training data: a run evaluated more often gives the same losses.
    """
    was_training = model.training
    model.eval()
    losses: list[Tensor] = []  # of each window, (n,)
    for start in range(0, len(windows), batch_size):
        rows = windows[start : start + batch_size]
        kept = len(rows)
        if is_compiled(model):  # for one shape: the last rows are made up to a whole batch
            rows = np.resize(rows, (batch_size, rows.shape[1]))
        ids = torch.from_numpy(rows).to(model.device)  # (b, t)
        losses.append(window_losses(model, ids, precision)[:kept])
    model.train(was_training)
    per_window = torch.cat(losses).double().cpu()
    se = per_window.std().item() / len(per_window) ** 0.5 if len(per_window) > 1 else float("nan")
    return Evaluation(per_window.mean().item(), se, per_window)
