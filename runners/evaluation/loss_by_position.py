"""The loss at each place in the window."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from analysis.store.schema import METRICS, Metric
from runners.evaluation.subject import Subject
from runners.evaluation.tokens import token_losses
from runners.planning.components import PROBE, ProbeConfig


@PROBE.register("loss_by_position")
class LossByPosition:
    """Mean next-token cross-entropy by how many tokens stand before the predicted one, in ranges that double.

    What more context is worth to the model: 1, 2-3, 4-7, … tokens, up to the training length.
    """

    class Config(ProbeConfig):
        """No fields."""

    metrics: ClassVar[Mapping[str, Metric]] = {"val/loss_by_position/*": METRICS["val/loss_by_position/*"]}

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, subject: Subject) -> dict[str, float]:
        """A loss for each range of positions."""
        seq_len = subject.recipe.train.seq_len
        losses = token_losses(subject, subject.corpus.validation.windows(subject.num_windows, seq_len)).double()
        return {
            f"val/loss_by_position/{low:05}-{high:05}": float(losses[:, low - 1 : high].mean())
            for low, high in doubling(seq_len)
        }


def doubling(seq_len: int) -> Iterator[tuple[int, int]]:
    """Ranges 1-1, 2-3, 4-7, … of tokens before the predicted one, both ends in; the last ends at ``seq_len`` - 1."""
    low = 1
    while low < seq_len:
        yield low, min(2 * low, seq_len) - 1
        low *= 2
