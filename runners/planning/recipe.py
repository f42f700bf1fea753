"""What a run is: a model, data, a training recipe and a seed. Everything that bears on its result, and nothing else."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Strict

from llama_variants import ModelConfig
from llama_variants.errors import ConfigError, Problem, StrictModel
from runners.data import Corpus, DataConfig

SEMANTICS = 1
"""Version of the training loop: raised whenever the same recipe gives other losses, so that old runs stop counting."""

Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(StrictModel):
    """The training recipe: AdamW with linear warm-up, a constant stretch and linear decay to zero (WSD)."""

    seq_len: Annotated[int, Field(ge=2)]
    tokens_per_step: PositiveInt  # of the whole batch
    num_steps: PositiveInt
    lr: PositiveFloat  # the peak
    warmup_steps: NonNegativeInt
    decay_fraction: Fraction  # of num_steps, at the end
    betas: Annotated[tuple[Beta, Beta], Strict(False)]
    eps: PositiveFloat
    weight_decay: NonNegativeFloat  # on matrices; gains and biases are not decayed
    max_grad_norm: PositiveFloat  # global norm at which gradients are clipped
    precision: Literal["float32", "bfloat16"]  # bfloat16: autocast over float32 weights
    deterministic: bool  # equal bits from every run on one kind of device, at a price in speed

    @property
    def batch_size(self) -> int:
        """Windows in a step."""
        return self.tokens_per_step // self.seq_len

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole run."""
        return self.num_steps * self.tokens_per_step

    @property
    def decay_steps(self) -> int:
        """Steps of the final decay."""
        return round(self.num_steps * self.decay_fraction)

    def problems(self) -> Iterable[Problem]:
        """What is wrong between fields."""
        if self.tokens_per_step % self.seq_len:
            yield Problem(("tokens_per_step",), str(self.tokens_per_step), f"a multiple of seq_len ({self.seq_len})")
        if self.warmup_steps + self.decay_steps > self.num_steps:
            received = f"{self.warmup_steps} steps, with {self.decay_steps} of decay"
            yield Problem(("warmup_steps",), received, f"at most the {self.num_steps} steps of the run together")


class EvalConfig(StrictModel):
    """Evaluation on fixed windows, spread evenly over the validation split."""

    every_steps: PositiveInt
    num_windows: PositiveInt


@dataclass(frozen=True)
class Recipe:
    """All that bears on a run's result but its seed."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    eval: EvalConfig
    plugins: tuple[str, ...] = ()  # modules to import before the model's blocks are known

    def to_dict(self) -> dict[str, Any]:
        """Plain data that :meth:`from_dict` reads; this is what a run folder keeps as config.yaml."""
        plugins = {"plugins": list(self.plugins)} if self.plugins else {}
        return plugins | {
            "model": self.model.to_dict(),
            "data": self.data.model_dump(mode="json", exclude_none=True),
            "train": self.train.model_dump(mode="json"),
            "eval": self.eval.model_dump(mode="json"),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """The recipe that :meth:`to_dict` wrote. Imports its plugins."""
        plugins = tuple(data.get("plugins", ()))
        for plugin in plugins:
            importlib.import_module(plugin)
        return cls(
            model=ModelConfig.from_dict(data["model"]),
            data=DataConfig.model_validate(data["data"]),
            train=TrainConfig.model_validate(data["train"]),
            eval=EvalConfig.model_validate(data["eval"]),
            plugins=plugins,
        )

    def resolved(self) -> dict[str, Any]:
        """Plain data in absolute form: equal for any two ways of writing the same recipe.

        Without the plugins: what counts is which of their blocks a model uses, and these answer for themselves.
        """
        return replace(self, plugins=()).to_dict() | {"model": self.model.resolved()}

    def identity(self) -> dict[str, Any]:
        """All that bears on the result but the seed: the absolute form, the data's pins, and what the code computes.

        Not in it: paths, how often something is logged, the device. For a `files` source this reads the files.
        """
        semantics = {"loop": SEMANTICS, **self.model.semantics}
        return self.resolved() | {"data": self.data.identity(), "semantics": semantics}

    @property
    def num_params(self) -> int:
        """Trainable parameters of the model."""
        return self.model.num_params

    @property
    def flops_per_token(self) -> int:
        """Forward and backward FLOPs for a token at the training length."""
        return self.model.flops_per_token(self.train.seq_len)

    def problems(self) -> Iterable[Problem]:
        """What is wrong between sections."""
        if self.train.seq_len > self.model.max_position_embeddings:
            allowed = f"at most model.max_position_embeddings ({self.model.max_position_embeddings})"
            yield Problem(("train", "seq_len"), str(self.train.seq_len), allowed)
        vocab_size = getattr(self.data.tokenizer, "vocab_size", self.model.vocab_size)
        if vocab_size > self.model.vocab_size:
            allowed = f"at least the tokenizer's {vocab_size}"
            yield Problem(("model", "vocab_size"), str(self.model.vocab_size), allowed)

    def check_corpus(self, corpus: Corpus) -> None:
        """Raises ConfigError when the corpus holds token ids that the model has no embedding for."""
        size = corpus.manifest["vocab_size"]
        if size > self.model.vocab_size:
            allowed = f"at least the tokenizer's {size}"
            raise ConfigError([Problem(("model", "vocab_size"), str(self.model.vocab_size), allowed)])

    def with_model(self, model: ModelConfig) -> Recipe:
        """The same recipe for another model."""
        return replace(self, model=model)


def run_key(identity: Mapping[str, Any], seed: int) -> str:
    """Name of a run: 16 hex digits over its recipe's identity and its seed."""
    text = json.dumps({**identity, "seed": seed}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
