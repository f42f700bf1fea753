"""What a run is: a model, data, a training recipe and a seed. Everything that bears on its result, and nothing else."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, SerializeAsAny

from llama_variants.config import ModelConfig
from llama_variants.errors import ConfigError, M, Problem, StrictModel, check, show
from llama_variants.registry import ComponentConfig
from llama_variants.types import OBSERVES, Neutral, bearing
from runners.data.config import DataConfig, Sizes, too_large
from runners.data.synthetic import SyntheticSource
from runners.planning.components import (
    OPTIMIZER,
    PROBE,
    SCHEDULE,
    ComponentRegistry,
    OptimizerConfig,
    ProbeConfig,
    ScheduleConfig,
)

SEMANTICS = 1
"""Version of the training loop: raised whenever the same recipe gives other losses, so that old runs stop counting."""

MAX_EPOCHS = 16.0
"""Repeating data is nearly as good as new data for 4 epochs and worth nothing beyond some 16 (arXiv:2305.16264)."""


class TrainConfig(StrictModel):
    """The training recipe.

    Every field bears on the losses. One that is added later is an ``Annotated[…, Neutral(value)]``, one that does not
    bear on them an ``Annotated[…, OBSERVES]`` (:mod:`llama_variants.types`).
    """

    seq_len: Annotated[int, Field(ge=2)]
    tokens_per_step: PositiveInt  # of the whole batch
    num_steps: PositiveInt
    lr: PositiveFloat  # the peak
    optimizer: SerializeAsAny[OptimizerConfig]
    schedule: SerializeAsAny[ScheduleConfig]
    max_grad_norm: PositiveFloat  # global norm at which gradients are clipped
    precision: Literal["float32", "bfloat16"]  # bfloat16: autocast over float32 weights
    deterministic: bool  # equal bits from every run on one kind of device, at a price in speed
    # Type of the residual stream: what the embedding gives, and what layers add to. Norms compute in float32 anyway.
    residual_stream: Annotated[Literal["float32", "bfloat16"], Neutral("float32")] = "float32"
    # A token sees its own document alone, and positions start again with each; else all that a window holds is seen.
    mask_documents: Annotated[bool, Neutral(False)] = False
    # Each initial value times 1 + u of this, u uniform in [-1, 1]: a twin of the run, which only rounding sets apart.
    init_perturbation: Annotated[float, Field(ge=0, le=1e-3), Neutral(0.0)] = 0.0
    # Initial values, or batches, of the run's seed plus this: what shares one of the two with another run, not both.
    init_seed_shift: Annotated[int, Field(ge=0, le=2**31), Neutral(0)] = 0
    data_seed_shift: Annotated[int, Field(ge=0, le=2**31), Neutral(0)] = 0

    @property
    def batch_size(self) -> int:
        """Windows in a step."""
        return self.tokens_per_step // self.seq_len

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole run."""
        return self.num_steps * self.tokens_per_step

    def problems(self) -> Iterable[Problem]:
        """What is wrong between fields."""
        if self.tokens_per_step % self.seq_len:
            yield Problem(
                path=("tokens_per_step",),
                received=str(self.tokens_per_step),
                allowed=f"a multiple of seq_len ({self.seq_len})",
            )
        if self.residual_stream != "float32" and self.precision == "float32":
            yield Problem(
                path=("residual_stream",),
                received=f"{self.residual_stream}, with precision float32",
                allowed="float32; bfloat16 goes with precision bfloat16",
            )
        yield from (problem.under(("schedule",)) for problem in self.schedule.problems(self.num_steps))


class EvalConfig(StrictModel):
    """Evaluation on fixed windows, spread evenly over the validation split."""

    every_steps: Annotated[PositiveInt, OBSERVES]
    num_windows: PositiveInt
    probes: Annotated[dict[str, SerializeAsAny[ProbeConfig]], OBSERVES]  # type -> its settings


def read_train(data: Any, base: TrainConfig | None = None) -> tuple[TrainConfig | None, list[Problem]]:
    """The recipe of a mapping, over the ``base``'s where there is one, and every problem found."""
    families = {"optimizer": OPTIMIZER, "schedule": SCHEDULE}
    config, problems = _read(TrainConfig, data, base, families)
    for i, problem in enumerate(problems):  # a field of a component, one level too high
        for family, registry in families.items() if len(problem.path) == 1 else ():
            key, used = str(problem.path[0]), getattr(base or config, family, None)
            fields = type(used).model_fields if used else registry.config_class(registry.names[0]).model_fields
            if problem.received == f"unknown key {key!r}" and key in fields:
                problems[i] = replace(problem, allowed=f"a field of the {family}: `{family}: {{{key}: …}}`")
    return config, problems


def read_eval(data: Any) -> tuple[EvalConfig | None, list[Problem]]:
    """The evaluation of a mapping, and every problem found. A probe's key is its type."""
    if not isinstance(data, Mapping) or not isinstance(probes := data.get("probes"), Mapping):
        return check(EvalConfig, data)
    read: dict[str, ProbeConfig | None] = {}
    problems: list[Problem] = []
    for name, settings in probes.items():
        if isinstance(settings, Mapping) and settings.get("type", name) != name:
            problem = Problem(path=("type",), received=show(settings["type"]), allowed=f"{name!r}, which is its key")
            read[str(name)], found = None, [problem]
        else:
            given = {**settings, "type": name} if isinstance(settings, Mapping) else settings
            read[str(name)], found = PROBE.read(given)
            # What names a probe is its key.
            found = [replace(one, path=()) if one.path == ("type",) and name not in PROBE else one for one in found]
        problems += [problem.under(("probes", str(name))) for problem in found]
    if "loss" not in read:
        problems.append(
            Problem(
                path=("probes",),
                received=", ".join(map(str, probes)) or "none",
                allowed="`loss` among them: it is judged",
            )
        )
    config, found = check(EvalConfig, {**data, "probes": {name: probe for name, probe in read.items() if probe}})
    return config, problems + found


def _read(
    cls: type[M], data: Any, base: M | None, families: Mapping[str, ComponentRegistry[Any]]
) -> tuple[M | None, list[Problem]]:
    """An object of ``cls``, some of whose fields are components."""
    if not isinstance(data, Mapping):
        return check(cls, data)
    fallback = {name: getattr(base, name) for name in cls.model_fields} if base else {}
    parts, problems = {**fallback, **data}, []
    for name, registry in families.items():
        if name in data:
            parts[name], found = registry.read(data[name], fallback.get(name))
            problems += [problem.under((name,)) for problem in found]
    unread = {name for name in families if name in parts and parts[name] is None}
    config, found = check(cls, {name: value for name, value in parts.items() if name not in unread}, fallback)
    return config, problems + [problem for problem in found if problem.path[:1] not in {(name,) for name in unread}]


@dataclass(frozen=True, kw_only=True)
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
            "train": _plain(self.train),
            "eval": _plain(self.eval),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """The recipe that :meth:`to_dict` wrote. Imports its plugins."""
        plugins = tuple(data.get("plugins", ()))
        for plugin in plugins:
            importlib.import_module(plugin)
        read = {"train": read_train(data["train"]), "eval": read_eval(data["eval"])}
        if problems := [problem.under((name,)) for name, (_, found) in read.items() for problem in found]:
            raise ConfigError(problems)
        model, text = ModelConfig.from_dict(data["model"]), DataConfig.model_validate(data["data"])
        return cls(model=model, data=text, train=read["train"][0], eval=read["eval"][0], plugins=plugins)  # type: ignore[arg-type]

    def resolved(self) -> dict[str, Any]:
        """Plain data in absolute form: equal for any two ways of writing the same recipe.

        Without the plugins: what counts is which of their blocks a model uses, and these answer for themselves.
        """
        return replace(self, plugins=()).to_dict() | {"model": self.model.resolved()}

    def identity(self) -> dict[str, Any]:
        """All that bears on the result but the seed: the absolute form, the data's pins, and what the code computes.

        Not in it: what only observes, and fields at their neutral value. For a `files` source this reads the files.
        """
        return {
            "model": self.model.identity(),
            "data": self.data.identity(),
            "train": bearing(self.train, _plain(self.train))
            | {name: getattr(self.train, name).identity() for name in ("optimizer", "schedule")}
            | {"batch_size": self.train.batch_size},  # what the fields come to
            "eval": bearing(self.eval, _plain(self.eval)),
            "semantics": {"loop": SEMANTICS, **self.model.semantics, **self._semantics()},
        }

    def _semantics(self) -> dict[str, str]:
        used = (OPTIMIZER, self.train.optimizer.type), (SCHEDULE, self.train.schedule.type)
        return {f"{registry.family}.{name}": registry.version(name) for registry, name in used}

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
            yield Problem(path=("train", "seq_len"), received=str(self.train.seq_len), allowed=allowed)
        if isinstance(self.data.source, SyntheticSource) and self.train.seq_len != (
            fits := self.data.source.task.length + 1
        ):
            allowed = f"{fits}: a document of the task and the token that ends it"
            yield Problem(path=("train", "seq_len"), received=str(self.train.seq_len), allowed=allowed)
        yield from self._vocab_problems(getattr(self.data.tokenizer, "vocab_size", None))

    def _vocab_problems(self, num_ids: int | None) -> Iterator[Problem]:
        if num_ids is not None and num_ids > self.model.vocab_size:
            yield too_large(num_ids, self.model.vocab_size)

    def size_problems(self, sizes: Sizes) -> Iterator[Problem]:
        """For what of this recipe a corpus is too small, and whether its tokenizer is too large."""
        yield from self._vocab_problems(sizes.vocab)
        config, seq_len = self.train, self.train.seq_len
        if sizes.train is not None:
            windows = sizes.train // seq_len
            if not windows:
                received = f"a training text of {sizes.train:,} tokens"
                yield Problem(path=("data",), received=received, allowed=f"at least a window of {seq_len:,}")
            elif config.num_tokens > MAX_EPOCHS * windows * seq_len:
                passes = f"{config.num_tokens / (windows * seq_len):,.1f}"
                yield Problem(
                    path=("train", "num_steps"),
                    received=f"{config.num_steps:,}, whose {config.num_tokens:,} tokens are {passes} passes over the "
                    "text",
                    allowed=f"at most {MAX_EPOCHS:g} passes, which are "
                    f"{int(MAX_EPOCHS * windows * seq_len) // config.tokens_per_step:,} steps; more memorise it",
                )
        if sizes.validation is not None and self.eval.num_windows > (windows := sizes.validation // seq_len):
            yield Problem(
                path=("eval", "num_windows"),
                received=f"{self.eval.num_windows:,}",
                allowed=f"at most {windows:,}: the validation text has no more windows of {seq_len:,} tokens",
            )

    def with_model(self, model: ModelConfig) -> Recipe:
        """The same recipe for another model."""
        return replace(self, model=model)


def run_key(identity: Mapping[str, Any], seed: int) -> str:
    """Name of a run: 16 hex digits over its recipe's identity and its seed."""
    text = json.dumps({**identity, "seed": seed}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(config: StrictModel) -> dict[str, Any]:
    """Plain data, with the ``type`` of each component."""

    def plain(value: Any) -> Any:
        return (
            {name: plain(one) for name, one in value.items()}
            if isinstance(value, dict)
            else (value.to_dict() if isinstance(value, ComponentConfig) else value)
        )

    return {name: plain(getattr(config, name)) for name in type(config).model_fields}
