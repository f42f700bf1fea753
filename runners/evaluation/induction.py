"""What the model makes of a string that it has just seen: the loss on its repetition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field, PositiveInt

from analysis.store.schema import METRICS, Metric
from runners.evaluation.subject import Subject
from runners.evaluation.tokens import token_losses
from runners.planning.components import PROBE, ProbeConfig


@PROBE.register("induction")
class Induction:
    """Mean next-token cross-entropy on the second occurrence of a random string, and on the first.

    A window is one string of uniformly drawn tokens, twice. Nothing but copying tells the second occurrence; a model
    that cannot copy has the same loss on both, at least the logarithm of the vocabulary. Source: arXiv:2209.11895.
    """

    class Config(ProbeConfig):
        """``num_strings``: how many. ``seed``: of the draw."""

        num_strings: PositiveInt = 128
        seed: Annotated[int, Field(ge=0)] = 0

    metrics: ClassVar[Mapping[str, Metric]] = {
        key: METRICS[key] for key in ("val/induction_loss", "val/induction_first_loss")
    }

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, subject: Subject) -> dict[str, float]:
        """The losses of both occurrences; of the second without its first token, which nothing tells."""
        half = subject.recipe.train.seq_len // 2
        generator = np.random.Generator(np.random.Philox(key=self.config.seed))
        vocab_size = subject.corpus.manifest["vocab_size"]
        strings = generator.integers(vocab_size, size=(self.config.num_strings, half))
        if subject.recipe.train.mask_documents:  # the end of a document would hide what is to be copied
            end_id = subject.corpus.manifest["end_id"]
            drawn = generator.integers(vocab_size - 1, size=strings.shape)
            strings = np.where(strings == end_id, (end_id + 1 + drawn) % vocab_size, strings)
        losses = token_losses(subject, np.concatenate([strings, strings], axis=1)).double()  # (n, 2 half - 1)
        return {
            "val/induction_loss": float(losses[:, half:].mean()),
            "val/induction_first_loss": float(losses[:, : half - 1].mean()),
        }
