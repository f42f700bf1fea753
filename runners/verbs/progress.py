"""A line now and then of a run that trains in this process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

EVERY_S = 10.0


def print_now(text: str) -> None:
    """To the terminal at once, also through a pipe."""
    print(text, flush=True)


def progress(
    title: str, num_steps: int, say: Callable[[str], None] = print_now
) -> Callable[[int, Mapping[str, float]], None]:
    """What says a line for a logged step, every few seconds and at evaluations; to be called with each."""
    began = time.monotonic()
    shown = -math.inf

    def on_row(step: int, metrics: Mapping[str, float]) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown > EVERY_S or "val/loss" in metrics:
            shown = now
            judged = f", val/loss {metrics['val/loss']:.4f}" if "val/loss" in metrics else ""
            speed = f"{metrics['throughput/tokens_per_s']:,.0f} tokens/s, {now - began:.0f} s gone"
            say(f"{title}: step {step}/{num_steps}, loss {metrics['train/loss']:.4f}{judged}, {speed}")

    return on_row
