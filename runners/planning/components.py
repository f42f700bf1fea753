"""The parts of a recipe that have a ``type``, as blocks have: optimizers, schedules, probes.

A component is one class with its frozen ``Config``, in a file of its own, entered by a decorator of its registry. The
table below says where each of ours is; only what a recipe names is imported. A plugin's enter themselves.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import NonNegativeInt

from llama_variants.errors import Problem
from llama_variants.registry import ComponentConfig, Registry

T = TypeVar("T")

COMPONENTS: Mapping[str, Mapping[str, str]] = {
    "optimizer": {
        "adamw": "runners.training.optimizers.adamw",
        "muon": "runners.training.optimizers.muon",
    },
    "schedule": {
        "wsd": "runners.training.schedules.wsd",
        "linear": "runners.training.schedules.linear",
        "cosine": "runners.training.schedules.cosine",
    },
    "probe": {
        "loss": "runners.evaluation.loss",
        "loss_by_domain": "runners.evaluation.loss_by_domain",
        "loss_by_position": "runners.evaluation.loss_by_position",
        "loss_past_window": "runners.evaluation.loss_past_window",
        "induction": "runners.evaluation.induction",
        "task": "runners.evaluation.task",
    },
}
"""Family -> type -> the module that registers it."""


class OptimizerConfig(ComponentConfig):
    """The fields of an optimizer; the peak learning rate is ``train.lr``."""


class ScheduleConfig(ComponentConfig):
    """The fields of a schedule of the learning rate."""

    warmup_steps: NonNegativeInt  # of a linear rise at the start

    def problems(self, num_steps: int) -> Iterable[Problem]:
        """What is wrong with these fields in a run of ``num_steps``."""
        if self.warmup_steps > num_steps:
            yield Problem(
                path=("warmup_steps",),
                received=str(self.warmup_steps),
                allowed=f"at most the {num_steps} steps of the run",
            )


class ProbeConfig(ComponentConfig):
    """The fields of a probe. What a probe measures bears on no loss."""

    judged: ClassVar[bool] = False
    """Whether verdicts may rest on what it measures; its code is then part of a run's stratum."""


class ComponentRegistry(Registry[T]):
    """Names of one family of a recipe's components; one of :data:`COMPONENTS` is imported when it is asked for."""

    @property
    def names(self) -> list[str]:
        """Names of ours, and of those that plugins have registered."""
        return [*dict.fromkeys((*COMPONENTS[self.family], *self._entries))]

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """As :meth:`Registry.register`; a name of this project is taken, imported or not."""
        enter = super().register(name)

        def after_ours(cls: type[T]) -> type[T]:
            if (module := COMPONENTS[self.family].get(name)) and module != cls.__module__:
                importlib.import_module(module)
            return enter(cls)

        return after_ours

    def __getitem__(self, name: str) -> type[T]:
        if name not in self._entries and (module := COMPONENTS[self.family].get(str(name))):
            importlib.import_module(module)
        return super().__getitem__(name)


# Any: each family asks more of its members than their base class says.
OPTIMIZER: ComponentRegistry[Any] = ComponentRegistry(
    "optimizer", "runners.training.optimizers.base.RecipeOptimizer", OptimizerConfig
)
SCHEDULE: ComponentRegistry[Any] = ComponentRegistry("schedule", "builtins.object", ScheduleConfig)
PROBE: ComponentRegistry[Any] = ComponentRegistry("probe", "builtins.object", ProbeConfig)
