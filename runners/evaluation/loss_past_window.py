"""The loss past the length of the windows that the model was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field, Strict

from analysis.store.schema import METRICS, Metric
from llama_variants.errors import ConfigError, Problem
from runners.evaluation.subject import Subject
from runners.evaluation.tokens import token_losses
from runners.planning.components import PROBE, ProbeConfig

Factor = Annotated[int, Field(ge=2, le=64)]


@PROBE.register("loss_past_window")
class LossPastWindow:
    """Mean next-token cross-entropy in windows of several training lengths, length by length.

    ``1x``: tokens with up to one training length before them; ``2x``: with one to two; ``4x``: with two to four. All
    come from the same windows, as many in all as hold the tokens of the recipe's. What a rotary theta, a sliding window
    and no position encoding do where the model was not trained. Source: arXiv:2108.12409, figure 1.
    """

    class Config(ProbeConfig):
        """``factors``: where the stretches end, in training lengths, ascending."""

        factors: Annotated[tuple[Factor, ...], Strict(False), Field(min_length=1)] = (2, 4)

    metrics: ClassVar[Mapping[str, Metric]] = {"val/loss_past_window/*": METRICS["val/loss_past_window/*"]}

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, subject: Subject) -> dict[str, float]:
        """A loss for each stretch."""
        seq_len, factors = subject.recipe.train.seq_len, sorted({1, *self.config.factors})
        length, there = seq_len * factors[-1], len(subject.corpus.validation.tokens)
        if there < length:
            most = f"factors up to {there // seq_len}" if there // seq_len > 1 else f"a text of {length:,} tokens"
            received = f"windows of {length:,} tokens on a text of {there:,}"
            raise ConfigError([Problem(path=("loss_past_window",), received=received, allowed=most)])
        count = max(1, min(subject.num_windows // factors[-1], subject.corpus.validation.num_windows(length)))
        losses = token_losses(subject, subject.corpus.validation.windows(count, length)).double()  # (n, length - 1)
        ends = [factor * seq_len for factor in factors]
        return {
            f"val/loss_past_window/{factor}x": float(losses[:, max(start - 1, 0) : end - 1].mean())
            for factor, start, end in zip(factors, (0, *ends), ends, strict=False)
        }
