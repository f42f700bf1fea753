"""The shapes of the schedules."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from runners.planning.components import COMPONENTS, SCHEDULE
from runners.training.schedules.cosine import CosineDecay
from runners.training.schedules.linear import LinearDecay
from runners.training.schedules.wsd import WarmupStableDecay


@pytest.mark.parametrize("name", COMPONENTS["schedule"])
@given(num_steps=st.integers(1, 500), warmup_steps=st.integers(0, 500), fraction=st.floats(0, 1))
def test_warm_up_rises_then_nothing_does_and_no_step_is_zero(name, num_steps, warmup_steps, fraction):
    cls = SCHEDULE[name]
    (other,) = cls.Config.model_fields.keys() - {"warmup_steps"}
    config = cls.Config(warmup_steps=warmup_steps, **{other: fraction})
    assume(not list(config.problems(num_steps)))
    schedule = cls(config, num_steps)
    rates = [schedule(step) for step in range(num_steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:warmup_steps] == pytest.approx([(step + 1) / warmup_steps for step in range(warmup_steps)])
    after = rates[max(0, warmup_steps - 1) :]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(after))


def test_wsd_at_known_steps():
    schedule = WarmupStableDecay(WarmupStableDecay.Config(warmup_steps=10, decay_fraction=0.2), 100)
    assert schedule(0) == pytest.approx(0.1)
    assert schedule(9) == schedule(80) == 1
    assert schedule(99) == pytest.approx(1 / 20)


def test_linear_at_known_steps():
    schedule = LinearDecay(LinearDecay.Config(warmup_steps=10, final_fraction=0.1), 110)
    assert schedule(9) == schedule(10) == 1
    assert schedule(60) == pytest.approx(0.55)
    assert schedule(109) == pytest.approx(0.1 + 0.9 / 100)


def test_cosine_at_known_steps():
    schedule = CosineDecay(CosineDecay.Config(warmup_steps=10), 110)
    assert schedule(10) == 1
    assert schedule(60) == pytest.approx(0.55)
    assert schedule(35) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)


def test_warm_up_and_decay_may_not_overlap():
    config = WarmupStableDecay.Config(warmup_steps=28, decay_fraction=0.2)
    (problem,) = config.problems(30)
    assert problem.path == ("warmup_steps",)
    assert "at most the 30 steps of the run together" in problem.allowed
