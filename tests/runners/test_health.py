"""The gates: honest models pass, planted faults are named."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from llama_variants import LlamaAttention, build_model
from runners.health import GradientWatch, RunInvalid, check_finite, check_first_loss, preflight
from tests.llama_variants.models import EVERY_BLOCK, TINY


@pytest.fixture
def batch() -> torch.Tensor:
    return torch.randint(TINY.vocab_size, (4, 24), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("config", EVERY_BLOCK.values(), ids=EVERY_BLOCK.keys())
def test_every_registered_block_passes(config, batch):
    model = build_model(config)
    preflight(model, batch)
    assert model.training
    watch = GradientWatch(model)
    for step in range(4):
        loss = model(batch, labels=batch).loss
        loss.backward()
        watch.after_backward(step)
        if step == 0:
            check_first_loss(loss.item(), config.vocab_size)


def test_missing_causal_mask_is_named(batch, monkeypatch):
    attend = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, is_causal, **k: attend(*a, **k))
    with pytest.raises(RunInvalid, match="causality"):
        preflight(build_model(TINY), batch)


def test_model_without_content_is_named(batch, monkeypatch):
    monkeypatch.setattr(LlamaAttention, "forward", lambda self, x, *_: torch.zeros_like(x))
    with pytest.raises(RunInvalid, match="content"):
        preflight(build_model(TINY), batch)


def test_unshifted_labels_are_named(batch):
    model = build_model(TINY)
    forward = type(model).forward

    def unshifted(self, input_ids, labels=None):
        out = forward(self, input_ids)
        if labels is not None:
            out.loss = F.cross_entropy(out.logits.flatten(0, 1), labels.flatten())
        return out

    model.forward = unshifted.__get__(model)
    with pytest.raises(RunInvalid, match="label shift"):
        preflight(model, batch)


def test_torn_tie_is_named(batch):
    model = build_model(TINY)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    with pytest.raises(RunInvalid, match="tied head"):
        preflight(model, batch)


def test_parameter_without_gradient_is_named(batch):
    model = build_model(TINY)
    model.model.layers[1].mlp.down_proj.weight.requires_grad_(False)
    watch = GradientWatch(model)
    with pytest.raises(
        RunInvalid, match=r"no gradient in 1 parameters after 3 steps: model.layers.1.mlp.down_proj.weight"
    ):
        for step in range(3):
            model(batch, labels=batch).loss.backward()
            watch.after_backward(step)


@pytest.mark.parametrize(
    ("excess", "passes"), [(-0.2, False), (-0.05, True), (0.5, True), (1.1, False), (math.nan, False)]
)
def test_first_loss(excess, passes):
    if passes:
        check_first_loss(math.log(1024) + excess, 1024)
    else:
        with pytest.raises(RunInvalid, match="first loss"):
            check_first_loss(math.log(1024) + excess, 1024)


def test_first_bad_step_is_named():
    check_finite(11, [1.0, 2.0], [0.1, 0.2])
    with pytest.raises(RunInvalid, match="step 12: loss 2.0, gradient norm inf"):
        check_finite(11, [1.0, 2.0, math.nan], [0.1, math.inf, math.nan])
