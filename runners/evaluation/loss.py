"""The loss on validation text, which verdicts are about."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from analysis.store.schema import METRICS, Metric
from runners.evaluation.subject import Subject
from runners.planning.components import PROBE, ProbeConfig


@PROBE.register("loss")
class Loss:
    """Mean next-token cross-entropy over the fixed windows, in nats per token and in bits per byte of text.

    ``val/loss_se`` is the standard error over windows: of the choice of text, not of the seed.
    """

    class Config(ProbeConfig):
        """No fields."""

        judged: ClassVar[bool] = True

    metrics: ClassVar[Mapping[str, Metric]] = {
        key: METRICS[key] for key in ("val/loss", "val/bits_per_byte", "val/loss_se")
    }

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, subject: Subject) -> dict[str, float]:
        """The subject's losses."""
        found = subject.evaluation
        bits_per_byte = 1 / (math.log(2) * subject.corpus.validation.bytes_per_token)  # of one nat per token
        return {
            "val/loss": found.loss_nats,
            "val/bits_per_byte": found.loss_nats * bits_per_byte,
            "val/loss_se": found.se_nats,
        }
