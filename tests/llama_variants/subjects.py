"""The models that transformers' contract is tried on: its own Llama, which shows that a test is fair, and ours."""

from __future__ import annotations

import copy

import torch
from transformers import PreTrainedModel

from llama_variants import build_model
from tests.llama_variants.models import PATTERNS, TINY, ids, stock

VARIANT = PATTERNS["layer 0 otherwise"].override(
    {"head": {"type": "untied_softcap"}, "embedding": {"type": "scaled"}, "attention": {"bias": True}}
)
WINDOWS = PATTERNS["local:global 1:1"]
OURS = {"control": TINY, "windows": WINDOWS, "variant": VARIANT}


def make(name: str) -> PreTrainedModel:
    """One of ``stock`` and ``OURS``, ready to be called; stock has the control's weights."""
    if name != "stock":
        return build_model(OURS[name], seed=3).eval()
    theirs = stock(TINY)
    theirs.generation_config.eos_token_id = None
    theirs.load_state_dict(build_model(TINY, seed=3).state_dict())
    return theirs


def written_out(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with attention that gives its weights."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    return model


def left_padded(pad: int = 3, time: int = 10) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two rows, the second shorter and padded on its left; their mask; and their positions."""
    tokens, mask = ids(TINY, time=time), torch.ones(2, time, dtype=torch.long)
    tokens[1, :pad], mask[1, :pad] = 0, 0
    return tokens, mask, (mask.cumsum(dim=1) - 1).clamp(min=0)
