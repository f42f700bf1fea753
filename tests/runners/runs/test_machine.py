"""The device that a name stands for, on machines that have what this one lacks."""

from __future__ import annotations

import pytest
import torch

from runners.execution.slots import Slots
from runners.runs.machine import resolve_device


@pytest.fixture
def two_cards(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize(
    ("name", "device"), [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:0", "cuda:0"), ("cuda:1", "cuda:1")]
)
def test_a_card_has_a_number(two_cards, name, device):
    """torch.cuda.set_device and init_process_group refuse one without."""
    assert str(resolve_device(name)) == device
    assert resolve_device(name).index is not None
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:2", "cuda:01", "tpu", "", "AUTO"])
def test_what_is_not_there_is_refused_with_what_is(two_cards, name):
    with pytest.raises(ValueError, match=r"^auto, cuda, cpu, cuda:0, cuda:1$"):
        resolve_device(name)


@pytest.mark.parametrize(
    ("name", "jobs", "devices"),
    [
        ("auto", None, ("cuda:0", "cuda:1")),
        ("cuda", None, ("cuda:0", "cuda:1")),
        ("cuda", 3, ("cuda:0", "cuda:1", "cuda:0")),
        ("cuda:1", None, ("cuda:1",)),
        ("cuda:1", 2, ("cuda:1", "cuda:1")),
    ],
)
def test_runs_go_to_every_card_unless_one_is_named(two_cards, name, jobs, devices):
    assert Slots.choose(name, jobs, 135_000_000).devices == devices
