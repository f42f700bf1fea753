"""Projections of one input, as one matrix product where the model is compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own convention)


def project_together(x: Tensor, linears: Sequence[Any]) -> Sequence[Tensor]:
    """``linear(x)`` of each of ``linears``, all with a bias or none; ``x`` (…, d) → (…, width of each).

    At width 576 a key or value projection alone is bound by memory. Joining the weights costs a copy that eager code
    would pay in full and compiled code makes with the cast to bfloat16; the parameters stay apart either way. What was
    put in a projection's place (an adapter, quantized weights) computes something else than its ``weight`` says.
    """
    if not torch.compiler.is_compiling() or any(type(linear) is not nn.Linear for linear in linears):
        return [linear(x) for linear in linears]
    weight = torch.cat([linear.weight for linear in linears])  # (sum of widths, d)
    bias = None if linears[0].bias is None else torch.cat([linear.bias for linear in linears])
    return F.linear(x, weight, bias).split([linear.out_features for linear in linears], dim=-1)
