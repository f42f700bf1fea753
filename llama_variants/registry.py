"""A registry per family of blocks, and what a block's Config has to say of itself.

A block is one class with its own frozen ``Config`` beside it, entered under a name by a visible decorator::

    @MLP.register("swiglu")
    class LlamaMLP(nn.Module):
        class Config(BlockConfig): ...

The name is what a YAML's ``type`` says. Nothing is found by scanning folders.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from torch import nn

from llama_variants.errors import ConfigError, Problem, StrictModel, one_of, show

if TYPE_CHECKING:
    from llama_variants.config import ModelConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What one block costs: parameters, and forward FLOPs per token (a multiply-add is two).

    ``attention_flops`` are those of the score and value products with every position visible, which is what an
    unfused kernel computes; ``causal_attention_flops`` those of the pairs that the mask leaves. Norms, activations
    and rotations are not counted, as in every published MFU figure. ``kv_cache_values``: numbers kept for each token
    during generation.
    """

    params: int = 0
    matmul_flops: int = 0
    attention_flops: int = 0
    causal_attention_flops: int = 0
    kv_cache_values: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, count: int) -> Cost:
        return Cost(*(value * count for value in astuple(self)))

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
    """Groups of fields that say the same thing in different ways; exactly one of each is set."""

    example: ClassVar[Mapping[str, Any]] = {}
    """Fields to try the block with in the control's place, where it demands some that the control lacks: the tests
    build it so, and the table of blocks shows it so."""

    def __repr_name__(self) -> str:
        """The block's name, where a configuration is printed."""
        return getattr(self, "type", type(self).__name__)

    def to_dict(self) -> dict[str, Any]:
        """The fields as written, with ``type`` first."""
        return {"type": self.type, **self.model_dump(exclude_none=True)}

    def resolved(self, model: ModelConfig) -> dict[str, Any]:
        """The fields in absolute form, for comparing: equal for any two ways of writing the same fields.

        Here without those that have ``alternatives``; a block that has them adds the one form that stands for all.
        """
        several = {name for group in self.alternatives for name in group}
        return {name: value for name, value in self.to_dict().items() if name not in several}

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


class FreeConfig(BlockConfig):
    """The fields of a block without parameters or matrix products."""

    def cost(self, model: ModelConfig, seq_len: int) -> Cost:
        """Nothing."""
        return Cost()


def residual_output(projection: nn.Linear) -> nn.Linear:
    """Mark a block's last projection, which writes to the residual stream: some init schemes make it smaller."""
    projection.residual_output = True  # type: ignore[assignment]
    return projection


class Registry(Generic[T]):
    """Names of one family of blocks. ``base`` is what a member must derive from."""

    def __init__(self, family: str, base: type[T]) -> None:
        self.family = family
        self.base = base
        self._entries: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator that enters a block under ``name``.

        Raises TypeError for a class of the wrong base or without a Config of its own, and ValueError for a name
        that is taken (both places are named) or that is not lower-case letters, digits and underscores.
        """

        def enter(cls: type[T]) -> type[T]:
            what = f"{self.family} block {name!r}"
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(f"{_place(cls)}: {what}: a name has lower-case letters, digits and underscores")
            if not (isinstance(cls, type) and issubclass(cls, self.base)):
                raise TypeError(f"{_place(cls)}: {what} must derive from {self.base.__name__}")
            config = vars(cls).get("Config")
            if not (isinstance(config, type) and issubclass(config, BlockConfig)):
                raise TypeError(f"{_place(cls)}: {what} needs a Config(BlockConfig) of its own")
            if "type" in vars(config):
                raise TypeError(f"{_place(cls)}: {what} needs a Config of its own; this is the one of {config.type!r}")
            if config.cost is BlockConfig.cost:
                raise TypeError(f"{_place(cls)}: {what} needs a cost() in its Config, or FreeConfig for one without")
            if name in self._entries:
                raise ValueError(f"{what} is registered twice: {_place(self._entries[name])} and {_place(cls)}")
            config.type = name
            self._entries[name] = cls
            return cls

        return enter

    @property
    def names(self) -> list[str]:
        """Registered names in the order of registration."""
        return list(self._entries)

    def config_class(self, name: str) -> type[BlockConfig]:
        """The Config of the block called ``name``. Raises ConfigError with the nearest valid name."""
        return self[name].Config  # type: ignore[attr-defined]

    def version(self, name: str) -> str:
        """What a run's identity says of a block: its ``semantics``, and for a plugin's block a digest of its source.

        A block of ours that comes to compute something else raises ``semantics``; of a plugin nobody can demand that.
        """
        return "-".join(filter(None, (str(self.config_class(name).semantics), _digest(self._entries[name]))))

    def forget(self, module: str) -> None:
        """Take out what ``module`` has registered, because importing it failed halfway."""
        self._entries = {name: cls for name, cls in self._entries.items() if cls.__module__ != module}

    def __getitem__(self, name: str) -> type[T]:
        if not isinstance(name, str) or name not in self._entries:
            raise ConfigError([Problem(("type",), show(name), one_of(str(name), self.names))])
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries


def _place(cls: Any) -> str:
    """Where a class stands, as file:line."""
    try:
        return f"{inspect.getsourcefile(cls)}:{inspect.getsourcelines(cls)[1]}"
    except (OSError, TypeError):  # made on the fly, or typed at a prompt
        return f"{getattr(cls, '__module__', '?')}.{getattr(cls, '__qualname__', cls)}"


def _digest(cls: Any) -> str:
    """Of a plugin's source: its package, or its file and the modules that were imported from beside it.

    Empty for this package's own blocks, which carry ``semantics``.
    """
    package = cls.__module__.partition(".")[0]
    if package == __name__.partition(".")[0]:
        return ""
    files = {name: Path(file) for name, module in [*sys.modules.items()] if (file := getattr(module, "__file__", None))}
    home = files[cls.__module__].parent if cls.__module__ in files else None
    beside = home is not None and "site-packages" not in home.parts
    chosen = {
        name: file
        for name, file in files.items()
        if name == package or name.startswith(f"{package}.") or (beside and file.parent == home)
    }
    digest = hashlib.sha256()
    for name, file in sorted(chosen.items()):
        if file.is_file():
            digest.update(name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


# Any: each family asks more of its members than their base class says, which the tests see to.
EMBEDDING: Registry[Any] = Registry("embedding", nn.Embedding)
ROTARY: Registry[Any] = Registry("rotary", nn.Module)
ATTENTION: Registry[Any] = Registry("attention", nn.Module)
MLP: Registry[Any] = Registry("mlp", nn.Module)
NORM: Registry[Any] = Registry("norm", nn.Module)
RESIDUAL: Registry[Any] = Registry("residual", nn.Module)
HEAD: Registry[Any] = Registry("head", nn.Linear)
INIT: Registry[Any] = Registry("init", object)

FAMILIES: Mapping[str, Registry[Any]] = {
    registry.family: registry for registry in (EMBEDDING, ROTARY, ATTENTION, MLP, NORM, RESIDUAL, HEAD, INIT)
}
LAYERED = ("rotary", "attention", "mlp", "norm", "residual")
"""Families whose block may differ between layers."""
