"""Tests of what only a card can show. Without one they are not run, and are counted as such, never as passed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.runners.conftest import project, recipe

__all__ = ["project", "recipe"]
HERE = Path(__file__).parent
NOT_RUN = pytest.StashKey[list[str]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what lies here; where there is no card, leave it out."""
    here = [item for item in items if HERE in item.path.parents]
    for item in here:
        item.add_marker(pytest.mark.cuda)
    if not torch.cuda.is_available():
        config.hook.pytest_deselected(items=here)
        items[:] = [item for item in items if item not in here]
        config.stash[NOT_RUN] = [item.nodeid for item in here]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name what was left out."""
    for name in config.stash.get(NOT_RUN, []):
        terminalreporter.write_line(f"not run here, it needs a card: {name}")


@pytest.fixture
def card() -> torch.device:
    """The first card."""
    return torch.device("cuda", 0)
