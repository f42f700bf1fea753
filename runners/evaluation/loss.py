"""The loss on validation text, which verdicts are about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from analysis.store.schema import METRICS, Metric
from runners.data.token_bytes import token_bytes
from runners.evaluation.subject import Subject
from runners.planning.components import PROBE, ProbeConfig


@PROBE.register("loss")
class Loss:
    """Mean next-token cross-entropy over the fixed windows, in nats per token and in bits per byte of text.

    ``val/bits_per_byte`` is the sum over all predicted tokens of these windows for each byte of text behind them. A
    window's first token is not predicted and counts in neither; the token that ends a document stands for no byte.
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
        seq_len = subject.recipe.train.seq_len
        places = subject.corpus.validation.fixed_places(subject.num_windows, seq_len)
        bits_per_byte = token_bytes(subject.corpus).bits_per_byte(found.loss_nats, places, seq_len)
        return {
            "val/loss": found.loss_nats,
            "val/bits_per_byte": bits_per_byte,
            "val/loss_se": found.se_nats,
        }
