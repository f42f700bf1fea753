"""What each optimizer decays, skips and keeps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from runners.planning.components import COMPONENTS, OPTIMIZER
from tests.runners.helpers import TRAIN, changed, optimizer_of

NAMES = list(COMPONENTS["optimizer"])


def with_optimizer(name: str, **fields: object):
    """The recipe with an optimizer of that name."""
    config, problems = OPTIMIZER.read({"type": name, **fields}, TRAIN.optimizer)
    assert not problems
    return changed(TRAIN, optimizer=config)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 3))


@pytest.mark.parametrize("name", NAMES)
def test_only_matrices_are_decayed(name):
    model, config = small(), with_optimizer(name)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    optimizer = optimizer_of(model, config)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    for key, p in model.named_parameters():
        kept = 1 - config.lr * 0.1 if p.dim() == 2 else 1
        assert torch.allclose(p, before[key] * kept), key


@pytest.mark.parametrize("name", NAMES)
def test_a_marked_step_changes_nothing(name):
    """The loop marks a step that is not finite on the device; parameters and state must then stay what they are."""
    model, config = small(), with_optimizer(name)
    optimizer = optimizer_of(model, config)

    def step(value: float, marked: float) -> None:
        for p in model.parameters():
            p.grad = torch.full_like(p, value)
        optimizer.found_inf = torch.tensor(marked)
        optimizer.step()

    step(1.0, 0.0)
    before = [p.detach().clone() for p in model.parameters()]
    state = {id(p): {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
    step(float("nan"), 1.0)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    for p, kept in optimizer.state.items():
        assert all(torch.equal(value, state[id(p)][key]) for key, value in kept.items())
    step(1.0, 0.0)
    assert not any(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_state_is_as_large_as_it_says(name):
    model, config = small(), with_optimizer(name)
    optimizer = optimizer_of(model, config)
    said = optimizer.state_numel()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    kept = sum(v.numel() for state in optimizer.state.values() for v in state.values() if v.dim())  # but for counters
    assert kept == said


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_in_one_group_with_a_rate(name):
    model = small()
    optimizer = optimizer_of(model, with_optimizer(name))
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    optimizer.set_lr(0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25 * g["rate"] for g in optimizer.param_groups]
