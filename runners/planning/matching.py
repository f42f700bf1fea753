"""What two recipes differ in, and the width that gives a variant the control's parameters."""

from __future__ import annotations

from llama_variants import ModelConfig
from llama_variants.errors import ConfigError


def match_params(model: ModelConfig, num_params: int) -> ModelConfig | None:
    """``model`` with the MLP width that brings it nearest to ``num_params``; None if no positive width does.

    Widths are multiples of the MLP's own ``multiple_of``, or of 8, which matrix units want. Parameters are linear in
    the width, so two points give the line.
    """
    step = getattr(model.mlp, "multiple_of", None) or 8

    def at(width: int) -> ModelConfig:
        return model.override({"mlp": {"intermediate_size": width}})

    try:
        first, second = at(step).num_params, at(2 * step).num_params
    except ConfigError:  # a block without a width
        return None
    if first == second:  # no layer has the model's own MLP
        return None
    width = (round((num_params - first) / (second - first)) + 1) * step
    return at(width) if width > 0 else None
