"""A registry per family of blocks, and what a block's Config has to say of itself.

A block is one class with its own frozen ``Config`` beside it, entered under a name by a visible decorator::

    @MLP.register("swiglu")
    class LlamaMLP(nn.Module):
        class Config(BlockConfig): ...

The name is what a YAML's ``type`` says. Nothing is found by scanning folders.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from torch import nn

from llama_variants.errors import ConfigError, Problem, StrictModel, one_of, show

if TYPE_CHECKING:
    from llama_variants.config import ModelConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What one block costs: parameters, and forward FLOPs per token (a multiply-add is two).

    ``attention_flops`` are those of the score and value products with every position visible; a causal model
    needs half of them. Norms, activations and rotations are not counted, as in every published MFU figure.
    """

    params: int = 0
    matmul_flops: int = 0
    attention_flops: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.params + other.params,
            self.matmul_flops + other.matmul_flops,
            self.attention_flops + other.attention_flops,
        )

    def __mul__(self, count: int) -> Cost:
        return Cost(self.params * count, self.matmul_flops * count, self.attention_flops * count)

    @classmethod
    def linear(cls, size_in: int, size_out: int) -> Cost:
        """A projection without bias."""
        return cls(params=size_in * size_out, matmul_flops=2 * size_in * size_out)


class BlockConfig(StrictModel):
    """The fields of one block. Subclasses declare them and answer for their cost."""

    type: ClassVar[str]
    """The registered name, set by the registry."""

    semantics: ClassVar[int] = 1
    """Raised whenever the block computes something else from the same fields: old runs then no longer count."""

    alternatives: ClassVar[tuple[frozenset[str], ...]] = ()
    """Groups of fields that say the same thing in different ways; at most one of each is set."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as written, with ``type`` first."""
        return {"type": self.type, **self.model_dump(exclude_none=True)}

    def resolved(self, model: ModelConfig) -> dict[str, Any]:
        """The fields in absolute form: equal for any two ways of writing the same block."""
        return self.to_dict()

    def problems(self, model: ModelConfig) -> Iterable[Problem]:
        """What is wrong with this block inside ``model``, with paths relative to the block."""
        for group in self.alternatives:
            given = sorted(name for name in group if getattr(self, name) is not None)
            if len(given) != 1:
                received = " and ".join(given) or "nothing"
                yield Problem(
                    (given[-1] if given else min(group),),
                    received,
                    "exactly one of " + ", ".join(sorted(group)),
                )

    def cost(self, model: ModelConfig, seq_len: int) -> Cost:
        """Cost of one instance of the block in ``model`` at windows of ``seq_len`` tokens."""
        raise NotImplementedError


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A registered class and the place in the source where it was registered."""

    cls: type[T]
    place: str


class Registry(Generic[T]):
    """Names of one family of blocks. ``base`` is what a member must derive from."""

    def __init__(self, family: str, base: type[T]) -> None:
        self.family = family
        self.base = base
        self._entries: dict[str, Entry[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator that enters a block under ``name``.

        Raises TypeError for a class of the wrong base or without a Config of its own, and ValueError for a name
        that is taken; both name the places.
        """

        caller = sys._getframe(1)
        place = f"{caller.f_code.co_filename}:{caller.f_lineno}"

        def enter(cls: type[T]) -> type[T]:
            if not (isinstance(cls, type) and issubclass(cls, self.base)):
                raise TypeError(f"{place}: {self.family} block {name!r} must derive from {self.base.__name__}")
            config = vars(cls).get("Config")
            if not (isinstance(config, type) and issubclass(config, BlockConfig)):
                raise TypeError(f"{place}: {self.family} block {name!r} needs a Config(BlockConfig) of its own")
            if name in self._entries:
                raise ValueError(
                    f"{self.family} block {name!r} is registered twice: {self._entries[name].place} and {place}"
                )
            config.type = name
            self._entries[name] = Entry(cls, place)
            return cls

        return enter

    @property
    def names(self) -> list[str]:
        """Registered names in the order of registration."""
        return list(self._entries)

    def config_class(self, name: str) -> type[BlockConfig]:
        """The Config of the block called ``name``. Raises ConfigError with the nearest valid name."""
        return self[name].Config  # type: ignore[attr-defined]

    def __getitem__(self, name: str) -> type[T]:
        if not isinstance(name, str) or name not in self._entries:
            raise ConfigError([Problem(("type",), show(name), one_of(str(name), self.names))])
        return self._entries[name].cls

    def __contains__(self, name: object) -> bool:
        return name in self._entries


# Any: each family asks more of its members than their base class says, which the tests see to.
ROTARY: Registry[Any] = Registry("rotary", nn.Module)
ATTENTION: Registry[Any] = Registry("attention", nn.Module)
MLP: Registry[Any] = Registry("mlp", nn.Module)
NORM: Registry[Any] = Registry("norm", nn.Module)
RESIDUAL: Registry[Any] = Registry("residual", nn.Module)
HEAD: Registry[Any] = Registry("head", nn.Module)
INIT: Registry[Any] = Registry("init", object)

FAMILIES: Mapping[str, Registry[Any]] = {
    registry.family: registry for registry in (ROTARY, ATTENTION, MLP, NORM, RESIDUAL, HEAD, INIT)
}
