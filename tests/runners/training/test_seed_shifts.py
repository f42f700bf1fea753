"""Runs that share initial values, or batches, with the run of another seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from runners.data import prepare
from runners.planning.recipe import Recipe
from runners.training.loop import train

CPU = torch.device("cpu")


class BegunError(Exception):
    """Carries what a run begins with."""


def first(recipe: Recipe, seed: int, **fields) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Initial values by name, and the batch of step 2."""
    changed = replace(recipe, train=recipe.train.model_copy(update=fields))

    def stop(training):
        raise BegunError({n: p.detach().clone() for n, p in training.model.named_parameters()}, training.batch(2))

    with pytest.raises(BegunError) as begun:
        train(changed, seed, prepare(recipe.data, Path("cache")), CPU, lambda training: None, begin=stop)
    return begun.value.args


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_shifted_seeds_share_one_thing_and_not_the_other(recipe):
    values, batch = first(recipe, 3)
    others, other_batch = first(recipe, 10)
    assert not equal(values, others)
    assert not torch.equal(batch, other_batch)
    init = first(recipe, 3, init_seed_shift=7)
    assert equal(init[0], others)
    assert torch.equal(init[1], batch)
    data = first(recipe, 3, data_seed_shift=7)
    assert equal(data[0], values)
    assert torch.equal(data[1], other_batch)
