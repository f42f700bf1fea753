"""Projections of one input, as one matrix product where the model is compiled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own convention)


def project_together(x: Tensor, linears: Sequence[nn.Linear]) -> Sequence[Tensor]:
    """``linear(x)`` of each of ``linears``, which have no biases; ``x`` (…, d) → (…, width of each).

    At width 576 a key or value projection alone is bound by memory. Joining the weights costs a copy that eager code
    would pay in full and compiled code makes with the cast to bfloat16; the parameters stay apart either way.
    """
    if not torch.compiler.is_compiling():
        return [linear(x) for linear in linears]
    weight = torch.cat([linear.weight for linear in linears])  # (sum of widths, d)
    return F.linear(x, weight).split([linear.out_features for linear in linears], dim=-1)
