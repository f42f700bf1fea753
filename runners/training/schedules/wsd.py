"""Warm-up, stable, decay: the control."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from llama_variants.errors import Problem
from runners.planning.components import SCHEDULE, ScheduleConfig


@SCHEDULE.register("wsd")
class WarmupStableDecay:
    """Linear warm-up, a constant stretch, linear decay towards zero.

    The first step already moves and so does the last: neither end is zero. Source: arXiv:2404.06395 (MiniCPM), with the
    linear decay of SmolLM2 (arXiv:2502.02737).
    """

    class Config(ScheduleConfig):
        """``warmup_steps``; ``decay_fraction``: of the run's steps, at the end."""

        decay_fraction: Annotated[float, Field(ge=0, le=1)]

        def decay_steps(self, num_steps: int) -> int:
            """Steps of the final decay."""
            return round(num_steps * self.decay_fraction)

        def problems(self, num_steps: int) -> Iterable[Problem]:
            """Warm-up and decay may not overlap."""
            decay = self.decay_steps(num_steps)
            if self.warmup_steps + decay > num_steps:
                received = f"{self.warmup_steps} steps, with {decay} of decay"
                yield Problem(
                    path=("warmup_steps",),
                    received=received,
                    allowed=f"at most the {num_steps} steps of the run together",
                )

    def __init__(self, config: Config, num_steps: int) -> None:
        self.warmup_steps, self.decay_steps = config.warmup_steps, config.decay_steps(num_steps)
        self.num_steps = num_steps

    def __call__(self, step: int) -> float:
        """The fraction of the peak rate at ``step``, from 0."""
        up = (step + 1) / self.warmup_steps if self.warmup_steps else 1.0
        down = (self.num_steps - step) / self.decay_steps if self.decay_steps else 1.0
        return min(1.0, up, down)
