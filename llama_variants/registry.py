"""A registry per family of components, and what a component's Config has to say of itself.

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
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from llama_variants.errors import ConfigError, Problem, StrictModel, check, closest, one_of, show
from llama_variants.meaning import OURS, class_meaning
from llama_variants.types import bearing, unsaid

if TYPE_CHECKING:
    from torch import nn

    from llama_variants.config import ModelConfig

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
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
        return Cost(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    def __mul__(self, count: int) -> Cost:
        return Cost(**{name: value * count for name, value in asdict(self).items()})

    @classmethod
    def linear(cls, size_in: int, size_out: int, bias: bool = False) -> Cost:
        """A projection."""
        return cls(params=(size_in + bias) * size_out, matmul_flops=2 * size_in * size_out)


class ComponentConfig(StrictModel):
    """The fields of one registered component: a block, or a part of a recipe."""

    type: ClassVar[str]
    """The registered name, set by the registry."""

    semantics: ClassVar[int] = 1
    """Raised whenever the component computes something else from the same fields: old runs then no longer count."""

    alternatives: ClassVar[tuple[frozenset[str], ...]] = ()
    """Groups of fields that say the same thing in different ways; exactly one of each is set."""

    def __repr_name__(self) -> str:
        """The component's name, where a configuration is printed."""
        return getattr(self, "type", type(self).__name__)

    def to_dict(self) -> dict[str, Any]:
        """The fields as written, with ``type`` first; without those added later that say nothing."""
        plain = self.model_dump(mode="json", exclude_none=True)
        return {"type": self.type, **{name: value for name, value in plain.items() if not unsaid(self, name)}}

    def identity(self) -> dict[str, Any]:
        """The fields that bear on a result."""
        return bearing(self, self.to_dict())


class BlockConfig(ComponentConfig):
    """The fields of one block of the model. Subclasses declare them and answer for their cost."""

    example: ClassVar[Mapping[str, Any]] = {}
    """Fields to try the block with in the control's place, where it demands some that the control lacks: the tests
    build it so, and the table of blocks shows it so."""

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
                    path=(given[-1] if given else min(group),),
                    received=received,
                    allowed="exactly one of " + ", ".join(sorted(group)),
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
    """Names of one family of components. Those of this project are imported when a name is first asked for.

    Args:
        family: its name, as a YAML has it.
        base: what a member must derive from, as ``module.Class``: reading it would take importing torch.
        config: what a member's Config must derive from.
        home: the package that registers this project's members.
    """

    def __init__(self, family: str, base: str, config: type[ComponentConfig], home: str = "") -> None:
        self.family = family
        self.base = base
        self.config = config
        self.home = home
        self._own: dict[str, type[T]] = {}

    @property
    def _entries(self) -> dict[str, type[T]]:
        if self.home and self.home not in sys.modules:
            import_module(self.home)
        return self._own

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator that enters a component under ``name``.

        Raises TypeError for a class of the wrong base or without a Config of its own, and ValueError for a name
        that is taken (both places are named) or that is not lower-case letters, digits and underscores.
        """

        def enter(cls: type[T]) -> type[T]:
            what = f"{self.family}{' block' if issubclass(self.config, BlockConfig) else ''} {name!r}"
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(f"{_place(cls)}: {what}: a name has lower-case letters, digits and underscores")
            module, _, base = self.base.rpartition(".")
            if not (isinstance(cls, type) and issubclass(cls, getattr(import_module(module), base))):
                raise TypeError(f"{_place(cls)}: {what} must derive from {base}")
            config = vars(cls).get("Config")
            if not (isinstance(config, type) and issubclass(config, self.config)):
                raise TypeError(f"{_place(cls)}: {what} needs a Config({self.config.__name__}) of its own")
            if "type" in vars(config):
                raise TypeError(f"{_place(cls)}: {what} needs a Config of its own; this is the one of {config.type!r}")
            if issubclass(config, BlockConfig) and config.cost is BlockConfig.cost:
                raise TypeError(f"{_place(cls)}: {what} needs a cost() in its Config, or FreeConfig for one without")
            if name in self._entries:  # of this project too, imported now if it was not yet
                raise ValueError(f"{what} is registered twice: {_place(self._own[name])} and {_place(cls)}")
            config.type = name
            self._own[name] = cls
            return cls

        return enter

    @property
    def names(self) -> list[str]:
        """Registered names in the order of registration."""
        return list(self._entries)

    def config_class(self, name: str) -> type[Any]:
        """The Config of the component called ``name``. Raises ConfigError with the nearest valid name."""
        return self[name].Config  # type: ignore[attr-defined]

    def version(self, name: str) -> str:
        """What a run's identity says of a component: its ``semantics``, and for a plugin's a digest of its source.

        One of ours that comes to compute something else raises ``semantics``; of a plugin nobody can demand that.
        """
        cls = self[name]
        ours = cls.__module__.partition(".")[0] in OURS
        meaning = "" if ours else hashlib.sha256(repr(sorted(class_meaning(cls).items())).encode()).hexdigest()[:16]
        return "-".join(filter(None, (str(self.config_class(name).semantics), meaning)))

    def read(self, value: Any, base: ComponentConfig | None = None) -> tuple[Any, list[Problem]]:
        """A component's Config from its mapping, over that of ``base``, where one can be had, and every problem found.

        Switching ``type`` keeps the fields that the new type declares too and drops the rest; setting one of several
        ways to write a field drops the other.
        """
        if isinstance(value, ComponentConfig):
            return value, []
        if not isinstance(value, Mapping):
            return None, [
                Problem(
                    path=(), received=show(value), allowed=f"a mapping with `type` and the fields of the {self.family}"
                )
            ]
        fields = dict(value)
        name = fields.pop("type", base.type if base else None)
        problems: list[Problem] = []
        if name is None:
            return None, [Problem(path=("type",), received="nothing", allowed=one_of("", self.names))]
        if name not in self.names:
            problems.append(Problem(path=("type",), received=show(name), allowed=one_of(str(name), self.names)))
            name = closest(str(name), self.names)
            if name is None:  # whose fields these are cannot be guessed
                return None, problems
        cls = self.config_class(name)
        written = base.model_dump(exclude_none=True) if base else {}
        shared = {key: value for key, value in written.items() if key in cls.model_fields}
        kept = keep(shared, fields, cls)
        config, found = check(cls, kept | fields, fallback=shared)
        if kept != shared and any(problem.path[0] in fields for problem in found):
            config = base  # its other way of writing the field was dropped for one that is wrong
        return config, problems + found

    def forget(self, module: str) -> None:
        """Take out what ``module`` has registered, because importing it failed halfway."""
        self._own = {name: cls for name, cls in self._own.items() if cls.__module__ != module}

    def __getitem__(self, name: str) -> type[T]:
        if not isinstance(name, str) or name not in self._entries:
            raise ConfigError([Problem(path=("type",), received=show(name), allowed=one_of(str(name), self.names))])
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries


def _place(cls: Any) -> str:
    """Where a class stands, as file:line."""
    try:
        return f"{inspect.getsourcefile(cls)}:{inspect.getsourcelines(cls)[1]}"
    except (OSError, TypeError):  # made on the fly, or typed at a prompt
        return f"{getattr(cls, '__module__', '?')}.{getattr(cls, '__qualname__', cls)}"


def keep(written: Mapping[str, Any], fields: Mapping[str, Any], cls: type[ComponentConfig]) -> dict[str, Any]:
    """What stays of a component's ``written`` fields where ``fields`` are set: those ``cls`` has, and one way each."""
    superseded = {other for group in cls.alternatives for other in group if group & fields.keys()}
    known = {*cls.model_fields, "type"}
    return {key: value for key, value in written.items() if key in known and key not in superseded}


# Any: each family asks more of its members than their base class says, which the tests see to.
def _family(name: str, base: str = "torch.nn.Module") -> Registry[Any]:
    return Registry(name, base, BlockConfig, home="llama_variants.blocks")


EMBEDDING = _family("embedding", "torch.nn.Embedding")
ROTARY = _family("rotary")
ATTENTION = _family("attention")
MLP = _family("mlp")
NORM = _family("norm")
RESIDUAL = _family("residual")
HEAD = _family("head", "torch.nn.Linear")
INIT = _family("init", "builtins.object")

FAMILIES: Mapping[str, Registry[Any]] = {
    registry.family: registry for registry in (EMBEDDING, ROTARY, ATTENTION, MLP, NORM, RESIDUAL, HEAD, INIT)
}
LAYERED = ("rotary", "attention", "mlp", "norm", "residual")
"""Families whose block may differ between layers."""
