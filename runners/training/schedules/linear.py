"""Linear warm-up, then a linear fall."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from runners.planning.components import SCHEDULE, ScheduleConfig


@SCHEDULE.register("linear")
class LinearDecay:
    """Linear warm-up, then a line from the peak to ``final_fraction`` of it.

    Differs from the control by having no constant stretch. Source: arXiv:2310.07831, which finds it hard to beat.
    """

    class Config(ScheduleConfig):
        """``warmup_steps``; ``final_fraction``: of the peak, one step after the last."""

        final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0

    def __init__(self, config: Config, num_steps: int) -> None:
        self.config, self.num_steps = config, num_steps

    def __call__(self, step: int) -> float:
        """The fraction of the peak rate at ``step``, from 0."""
        warmup, final = self.config.warmup_steps, self.config.final_fraction
        if step < warmup:
            return (step + 1) / warmup
        left = (self.num_steps - step) / (self.num_steps - warmup)
        return final + (1 - final) * left
