"""The schedule's shape, and what is decayed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from runners.planning.recipe import TrainConfig
from runners.training.optim import build_optimizer, lr_at

RECIPE = TrainConfig(
    seq_len=4,
    tokens_per_step=8,
    num_steps=100,
    lr=0.5,
    warmup_steps=10,
    decay_fraction=0.2,
    betas=(0.9, 0.95),
    eps=1e-8,
    weight_decay=0.1,
    max_grad_norm=1.0,
    precision="float32",
    deterministic=False,
)


@given(num_steps=st.integers(1, 500), warmup_steps=st.integers(0, 500), decay=st.floats(0, 1))
def test_warm_up_rises_plateau_holds_decay_falls_and_no_step_is_zero(num_steps, warmup_steps, decay):
    train = RECIPE.model_copy(update={"num_steps": num_steps, "warmup_steps": warmup_steps, "decay_fraction": decay})
    assume(not list(train.problems()))
    rates = [lr_at(step, train) for step in range(num_steps)]
    assert all(0 < rate <= train.lr for rate in rates)
    up, down = rates[:warmup_steps], rates[num_steps - train.decay_steps :]
    assert up == sorted(up)
    assert down == sorted(down, reverse=True)
    assert all(rate == train.lr for rate in rates[warmup_steps : num_steps - train.decay_steps])


def test_schedule_at_known_steps():
    assert lr_at(0, RECIPE) == pytest.approx(0.05)
    assert lr_at(9, RECIPE) == lr_at(80, RECIPE) == 0.5
    assert lr_at(99, RECIPE) == pytest.approx(0.5 / 20)


def test_only_matrices_are_decayed():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, RECIPE)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    after = dict(model.named_parameters())
    assert torch.allclose(after["0.weight"], before["0.weight"] * (1 - 0.5 * 0.1))
    for name in ("0.bias", "1.weight", "1.bias"):
        assert torch.equal(after[name], before[name])


def test_a_marked_step_changes_nothing():
    """The loop marks a non-finite step on the device; the fused optimizer must then leave every value alone."""
    model = nn.Linear(3, 3)
    optimizer = build_optimizer(model, RECIPE)
    before = model.weight.detach().clone()
    for p in model.parameters():
        p.grad = torch.full_like(p, float("nan"))
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert torch.equal(model.weight, before)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    assert not torch.equal(model.weight, before)
    assert torch.isfinite(model.weight).all()
