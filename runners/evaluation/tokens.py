"""What the model says of every predicted token, for probes that look inside a window."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from runners.evaluation.subject import Subject


def token_losses(subject: Subject, windows: np.ndarray) -> Tensor:
    """Cross-entropy of each predicted token of ``windows`` (n, t), in nats: float32 (n, t-1) on the CPU."""
    parts = [
        F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none").cpu()
        for logits, targets in _predictions(subject, windows)
    ]
    return torch.cat(parts)


def token_hits(subject: Subject, windows: np.ndarray) -> Tensor:
    """Whether each predicted token of ``windows`` (n, t) is the likeliest one: bool (n, t-1) on the CPU."""
    return torch.cat([(logits.argmax(-1) == targets).cpu() for logits, targets in _predictions(subject, windows)])


@torch.no_grad()
def _predictions(subject: Subject, windows: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (b, t-1, v) and the tokens (b, t-1) that they are to predict, batch by batch.

    Windows of any length: as many go through the model at a time as hold the tokens of the subject's micro-batch.
    """
    from runners.training.determinism import autocast

    model, config = subject.model, subject.recipe.train
    rows = max(1, subject.micro_batch * config.seq_len // windows.shape[1])
    was_training = model.training
    model.eval()
    for start in range(0, len(windows), rows):
        ids = torch.from_numpy(windows[start : start + rows]).to(model.device)  # (b, t)
        with autocast(model.device, config.precision):
            logits = model(ids, use_cache=False).logits  # (b, t, v)
        yield logits[:, :-1], ids[:, 1:]
    model.train(was_training)
