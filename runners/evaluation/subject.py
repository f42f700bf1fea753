"""A model and the text that probes measure it on."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

from analysis.store.schema import METRICS, Metric
from runners.planning.components import PROBE

if TYPE_CHECKING:  # with transformers, which checking a probe's settings does without
    from llama_variants import LlamaForCausalLM
    from runners.data.batches import Corpus
    from runners.planning.recipe import Recipe
    from runners.training.loss import Evaluation


class Subject:
    """A model and its recipe's validation text. What several probes need is computed once.

    Args:
        model: the model as it stands now.
        recipe: its recipe.
        corpus: the recipe's.
        micro_batch: windows that go through the model at a time.
        num_windows: how many, other than as the recipe says.
    """

    def __init__(
        self, model: LlamaForCausalLM, recipe: Recipe, corpus: Corpus, micro_batch: int, num_windows: int | None = None
    ) -> None:
        self.model, self.recipe, self.corpus, self.micro_batch = model, recipe, corpus, micro_batch
        self.num_windows = num_windows or recipe.eval.num_windows

    @cached_property
    def evaluation(self) -> Evaluation:
        """The loss on each of the recipe's fixed validation windows."""
        from runners.training.loss import evaluate

        config = self.recipe.train
        windows = self.corpus.validation.windows(self.num_windows, config.seq_len)
        return evaluate(self.model, windows, batch_size=self.micro_batch, precision=config.precision)

    def measure(self) -> dict[str, float]:
        """What the recipe's probes measure, under the keys that they declare."""
        measured: dict[str, float] = {}
        for name, config in self.recipe.eval.probes.items():
            measured |= PROBE[name](config)(self)
        return measured


def declared(recipe: Recipe) -> dict[str, Metric]:
    """The metrics of this project and those that the recipe's probes bring, each also as final."""
    found: dict[str, Metric] = dict(METRICS)
    for name in recipe.eval.probes:
        own: Iterable[tuple[str, Metric]] = PROBE[name].metrics.items()
        found |= {key: metric for measured, metric in own for key in (measured, final_key(measured))}
    return found


def final_key(key: str) -> str:
    """What a measurement's value after the last step is logged under: ``val/loss`` → ``final/val_loss``."""
    return "final/" + key.replace("/", "_", 1)
