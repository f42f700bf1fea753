"""Linear warm-up, then half a cosine."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from runners.planning.components import SCHEDULE, ScheduleConfig


@SCHEDULE.register("cosine")
class CosineDecay:
    """Linear warm-up, then half a cosine from the peak to ``final_fraction`` of it.

    Differs from the control by falling all the time, slowly at both ends. Source: arXiv:1608.03983, without restarts;
    a tenth as the end as in arXiv:2302.13971 (Llama).
    """

    class Config(ScheduleConfig):
        """``warmup_steps``; ``final_fraction``: of the peak, one step after the last."""

        final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1

    def __init__(self, config: Config, num_steps: int) -> None:
        self.config, self.num_steps = config, num_steps

    def __call__(self, step: int) -> float:
        """The fraction of the peak rate at ``step``, from 0."""
        warmup, final = self.config.warmup_steps, self.config.final_fraction
        if step < warmup:
            return (step + 1) / warmup
        gone = (step - warmup) / (self.num_steps - warmup)
        return final + (1 - final) * (1 + math.cos(math.pi * gone)) / 2
