"""The configuration of a model: validated, frozen, and able to state its own cost."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import PositiveInt, SerializeAsAny

from llama_variants import stock
from llama_variants.errors import ConfigError, Path, Problem, StrictModel, check, one_of, show
from llama_variants.registry import FAMILIES, LAYERED, BlockConfig, Cost, keep
from llama_variants.types import bearing

PRESETS: dict[str, dict[str, Any]] = {
    # As pre-trained (context 2048, theta 10,000); the released checkpoint says 8192 and 100,000.
    "smollm2-135m": {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "vocab_size": 49_152,
        "max_position_embeddings": 2048,
        "embedding": {"type": "plain"},
        "rotary": {"type": "rope", "theta": 10_000.0},
        "attention": {"type": "gqa", "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64},
        "mlp": {"type": "swiglu", "intermediate_size": 1536},
        "norm": {"type": "rms", "eps": 1e-5},
        "residual": {"type": "pre"},
        "head": {"type": "tied"},
        "init": {"type": "normal", "std": 1 / 24},
    },
}


class ModelConfig(StrictModel):
    """Every number of one model, grouped by block; field names are transformers' own.

    Build it by :meth:`preset`, :meth:`from_dict` or :meth:`of`, vary it by :meth:`override`. ``layers`` holds what
    single layers do otherwise: a selection of layers (``0-3``, ``every 4``, ``0,5``) and a delta for each.
    """

    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    vocab_size: PositiveInt
    max_position_embeddings: PositiveInt
    embedding: SerializeAsAny[BlockConfig]
    rotary: SerializeAsAny[BlockConfig]
    attention: SerializeAsAny[BlockConfig]
    mlp: SerializeAsAny[BlockConfig]
    norm: SerializeAsAny[BlockConfig]
    residual: SerializeAsAny[BlockConfig]
    head: SerializeAsAny[BlockConfig]
    init: SerializeAsAny[BlockConfig]
    layers: dict[str, dict[str, Any]] = {}

    @classmethod
    def preset(cls, name: str) -> ModelConfig:
        """A configuration known by name. Raises ConfigError for any other name."""
        if name not in PRESETS:
            raise ConfigError([Problem(path=("preset",), received=show(name), allowed=one_of(name, PRESETS))])
        return cls.from_dict(PRESETS[name])

    @classmethod
    def from_dict(cls, data: Any) -> ModelConfig:
        """The validated configuration of a mapping. Raises ConfigError with every problem of ``data``."""
        config, problems = read(data)
        if problems:
            raise ConfigError(problems)
        assert config is not None
        return config

    @classmethod
    def of(cls, config: Any) -> ModelConfig:
        """What the public classes take as their ``config``: a ModelConfig, plain data, or a transformers config.

        Args:
            config: a ModelConfig; a mapping of its fields, or of a ``LlamaConfig``'s; a ``LlamaConfig``; or the
                config of one of our own models.

        Raises:
            ConfigError: with every problem found.
        """
        if isinstance(config, ModelConfig):
            return config
        if isinstance(config, Mapping) and "variant" in config:  # a config.json of ours
            config = {**config["variant"], "vocab_size": config.get("vocab_size", config["variant"].get("vocab_size"))}
        if hasattr(config, "blocks"):  # of a LlamaVariantConfig
            return cls.of(config.blocks)
        if not isinstance(config, Mapping) and hasattr(config, "to_dict"):
            config = config.to_dict()
        try:
            if isinstance(config, Mapping) and not config.keys() & FAMILIES.keys():
                return cls.from_dict(stock.from_llama(config))
            return cls.from_dict(config)
        except ConfigError as error:
            forms = "a configuration is a ModelConfig, all of its fields (to_dict()), or a transformers LlamaConfig's"
            raise ConfigError(error.problems, title=error.title or forms) from None

    def block(self, family: str, cls: Any) -> Any:
        """The Config of ``family``, for the class ``cls`` that is being built from it.

        Raises ConfigError when it is another block's: built from it, ``cls`` would pass for what it is not.
        """
        config = getattr(self, family)
        if not isinstance(config, cls.Config) and config.type not in vars(cls).get("also", ()):
            allowed = f"{cls.Config.type}, which is what {cls.__name__} computes; or build {config.type}'s own class, "
            allowed += f"registry.{family.upper()}[{config.type!r}]"
            raise ConfigError([Problem(path=(family, "type"), received=repr(config.type), allowed=allowed)])
        return config

    def override(self, delta: Any) -> ModelConfig:
        """This configuration with the mapping ``delta`` merged in. Raises ConfigError with every problem of ``delta``.

        Switching a block's ``type`` keeps the fields that the new type declares too and drops the rest; setting one
        of several ways to write a field (``expansion``, ``intermediate_size``) drops the other.
        """
        config, problems = read(delta, base=self)
        if problems:
            raise ConfigError(problems)
        assert config is not None
        return config

    def layer(self, index: int) -> ModelConfig:
        """The configuration as layer ``index`` sees it: every selection that holds it merged in, in order."""
        if not 0 <= index < self.num_hidden_layers:
            problem = Problem(path=("layer_idx",), received=str(index), allowed=f"0 to {self.num_hidden_layers - 1}")
            raise ConfigError([problem])
        if not self.layers:
            return self
        config = self.model_copy(update={"layers": {}})
        for selection, delta in self.layers.items():
            if index in select(selection, self.num_hidden_layers):
                config = config.override(delta)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Plain data as written: :meth:`from_dict` gives the same configuration back."""
        plain = self._dump(lambda block: block.to_dict())
        return plain | ({"layers": copy.deepcopy(self.layers)} if self.layers else {})

    def __hash__(self) -> int:
        """Of the plain form: `layers` is a dictionary, which nobody is to change."""
        return hash(json.dumps(self.to_dict(), sort_keys=True))

    def resolved(self) -> dict[str, Any]:
        """Plain data in absolute form, for comparing: equal for any two ways of writing the same fields.

        Blocks of two names that happen to compute the same (``mha``, and ``gqa`` at one query a head) stay two.
        """
        return self._absolute(lambda block, model: block.resolved(model))

    def identity(self) -> dict[str, Any]:
        """What of :meth:`resolved` is part of a run's identity."""
        return bearing(self, self._absolute(lambda block, model: bearing(block, block.resolved(model))))

    def _absolute(self, dump: Callable[[BlockConfig, ModelConfig], dict[str, Any]]) -> dict[str, Any]:
        plain = self._dump(lambda block: dump(block, self))
        layers = [self.layer(index) for index in range(self.num_hidden_layers)] if self.layers else []
        each = [{family: dump(getattr(config, family), config) for family in LAYERED} for config in layers]
        for family in LAYERED if each else ():  # a block that no layer has is not the model's, but for the last norm
            if family != "norm" and all(blocks[family] != plain[family] for blocks in each):
                plain[family] = each[0][family]
        deltas: list[tuple[dict[str, Any], list[int]]] = []  # each with its layers, in the order of their first
        for index, blocks in enumerate(each):
            delta = {family: block for family, block in blocks.items() if block != plain[family]}
            same = next((at for other, at in deltas if other == delta), None)
            if delta and same is None:
                deltas.append((delta, [index]))
            elif same is not None:
                same.append(index)
        return plain | ({"layers": {",".join(map(str, at)): delta for delta, at in deltas}} if deltas else {})

    def _dump(self, dump: Any) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in type(self).model_fields if name != "layers"}
        return {name: dump(value) if name in FAMILIES else value for name, value in fields.items()}

    @property
    def used(self) -> list[tuple[str, str]]:
        """Family and type of each block in use, by name."""
        configs = [self, *(self.layer(i) for i in range(self.num_hidden_layers) if self.layers)]
        return sorted({(family, getattr(config, family).type) for config in configs for family in FAMILIES})

    @property
    def semantics(self) -> dict[str, str]:
        """Version of what each block in use computes; part of a run's identity."""
        return {f"{family}.{name}": FAMILIES[family].version(name) for family, name in self.used}

    @property
    def attention_head_dim(self) -> int:
        """Size of a head, which the position encoding rotates."""
        return self.attention.head_dim  # type: ignore[attr-defined]

    def costs(self, seq_len: int) -> dict[str, Cost]:
        """Cost by part, all layers together, forward, for one token of a window of ``seq_len``."""
        parts = {"embedding": self.embedding.cost(self, seq_len)}
        parts |= {part: Cost() for part in ("rotary", "attention", "mlp", "norm")}
        rotaries = {(self.rotary, self.attention_head_dim): self}  # one module for each, shared by its layers
        for index in range(self.num_hidden_layers):
            layer = self.layer(index)
            rotaries.setdefault((layer.rotary, layer.attention_head_dim), layer)
            for part, cost in layer.layer_costs(seq_len).items():
                parts[part] += cost
        for config in rotaries.values():
            parts["rotary"] += config.rotary.cost(config, seq_len)
        parts["norm"] += self.norm.cost(self, seq_len)
        return parts | {"head": self.head.cost(self, seq_len)}

    def layer_costs(self, seq_len: int) -> dict[str, Cost]:
        """Cost by part of one layer with this configuration; the rotary is the model's."""
        return {
            "attention": self.attention.cost(self, seq_len),
            "mlp": self.mlp.cost(self, seq_len),
            "norm": self.residual.cost(self, seq_len),  # the norms that it wires
        }

    def _cost(self, seq_len: int = 1) -> Cost:
        return sum(self.costs(seq_len).values(), Cost())

    @property
    def num_params(self) -> int:
        """Trainable parameters; a tied head is counted once."""
        return self._cost().params

    @property
    def num_params_embedding(self) -> int:
        """Parameters of the input embedding and of an untied head."""
        costs = self.costs(1)
        return costs["embedding"].params + costs["head"].params

    @property
    def kv_cache_values_per_token(self) -> int:
        """Numbers that generation keeps for each token: keys and values of all layers."""
        return self._cost().kv_cache_values

    def flops_per_token(self, seq_len: int, *, causal: bool = True) -> int:
        """FLOPs of forward and backward for one token in a window of ``seq_len`` tokens.

        Matrix products only (a multiply-add is two), the head included, backward counted as twice forward.
        ``causal`` counts the attention products of visible pairs only, half of all for plain causal attention;
        ``causal=False`` is the PaLM convention (arXiv:2204.02311, appendix B) of published MFU figures.
        """
        cost = self._cost(seq_len)
        return 3 * (cost.matmul_flops + (cost.causal_attention_flops if causal else cost.attention_flops))


_PART = re.compile(r"(?:(?P<one>\d+)|(?P<low>\d+)-(?P<high>\d+)|every (?P<step>\d+)(?: from (?P<start>\d+))?)")
_ALLOWED = "layers as 5, 0-3, every 4 (the 4th, 8th, …), every 4 from 0, or several of these with commas"


def select(selection: str, num_layers: int) -> set[int]:
    """Layers that ``selection`` names: ``5``, ``0-3`` (both ends), ``every 4`` (3, 7, 11, …), ``every 4 from 0``.

    Raises ConfigError for any other text, and for layers that are not there.
    """
    chosen: set[int] = set()
    for part in selection.split(","):
        match = _PART.fullmatch(part.strip())
        found = match.groupdict() if match else {}
        if found.get("one"):
            layers = range(int(found["one"]), int(found["one"]) + 1)
        elif found.get("low"):
            layers = range(int(found["low"]), int(found["high"]) + 1)
        elif found.get("step") and int(found["step"]):
            step = int(found["step"])
            layers = range(int(found["start"] or step - 1), num_layers, step)
        else:
            raise ConfigError([Problem(path=(), received=show(selection), allowed=_ALLOWED)])
        if not layers or layers[-1] >= num_layers:
            problem = Problem(path=(), received=show(selection), allowed=f"some of the layers 0 to {num_layers - 1}")
            raise ConfigError([problem])
        chosen |= set(layers)
    return chosen


def read(data: object, base: ModelConfig | None = None) -> tuple[ModelConfig | None, list[Problem]]:
    """The configuration that ``data`` gives (over ``base``, if any), and every problem found.

    Parts that are wrong are replaced by the base's, so that a misspelt block hides no problem of another.
    """
    if not isinstance(data, Mapping):
        return None, [Problem(path=(), received=show(data), allowed="a mapping of model fields")]
    problems: list[Problem] = []
    later: Any = {}
    parts: dict[str, Any] = {name: getattr(base, name) for name in ModelConfig.model_fields} if base else {}
    for name, value in data.items():
        if name in FAMILIES:
            block, found = FAMILIES[name].read(value, parts.get(name))
            problems += [problem.under((name,)) for problem in found]
            if block is not None:
                parts[name] = block
            elif base is None:
                parts[name] = None
        elif name == "layers":
            later = value  # what a delta leaves out of a block is the block's that the whole model has
        else:
            parts[name] = value
    if later != {}:
        parts["layers"], found = _merge_layers(parts.get("layers", {}), later, parts)
        problems += [problem.under(("layers",)) for problem in found]
    unread = {name for name in FAMILIES if name in parts and parts[name] is None}
    known = {name: value for name, value in parts.items() if name not in unread}
    fallback = {name: getattr(base, name) for name in ModelConfig.model_fields} if base else {}
    config, found = check(ModelConfig, known, fallback)
    problems += [problem for problem in found if problem.path[:1] not in {(name,) for name in unread}]
    if config is not None:
        for family in FAMILIES:
            problems += [problem.under((family,)) for problem in getattr(config, family).problems(config)]
        problems += [problem.under(("layers",)) for problem in _layer_problems(config)]
    return config, problems


def _merge_layers(
    base: Mapping[str, Any], value: object, whole: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Problem]]:
    """The base's deltas by layer with ``value``'s merged in, and what is wrong with the writing of these.

    A selection that both name is merged block by block, as :meth:`ModelConfig.override` does it for the ``whole``
    model's blocks; nothing (null) takes a selection out.
    """
    if not isinstance(value, Mapping):
        return dict(base), [
            Problem(path=(), received=show(value), allowed="a mapping of layers to what they do otherwise")
        ]
    merged, problems = copy.deepcopy(dict(base)), []
    for key, delta in value.items():
        selection = str(key)
        if delta is None and selection in merged:
            del merged[selection]
            continue
        if not isinstance(delta, Mapping):
            problems.append(
                Problem(path=(selection,), received=show(delta), allowed="a mapping of blocks: " + ", ".join(LAYERED))
            )
            continue
        for family in delta.keys() - set(LAYERED):
            problems.append(
                Problem(path=(selection, family), received=f"the key {family!r}", allowed=one_of(str(family), LAYERED))
            )
        before = merged.get(selection, {})
        for family in LAYERED:
            if isinstance(block := delta.get(family), Mapping) and family in before:
                name = block.get("type", before[family].get("type", getattr(whole.get(family), "type", None)))
                cls = FAMILIES[family].config_class(name) if name in FAMILIES[family] else None
                before[family] = {**(keep(before[family], block, cls) if cls else {}), **block}
            elif family in delta:
                before[family] = copy.deepcopy(block)
        merged[selection] = before
    return merged, problems


def _layer_problems(config: ModelConfig) -> Iterator[Problem]:
    """What is wrong with single layers, each problem once, under the selection that brings it."""
    selected: dict[str, set[int]] = {}
    for selection in config.layers:
        try:
            selected[selection] = select(selection, config.num_hidden_layers)
        except ConfigError as error:
            yield from (problem.under((selection,)) for problem in error.problems)
    plain = config.model_copy(update={"layers": {}})
    seen: set[tuple[str, ...]] = set()
    for index in range(config.num_hidden_layers):
        chain = tuple(selection for selection, layers in selected.items() if index in layers)
        layer = plain
        for end, selection in enumerate(chain, start=1):
            merged, problems = read(config.layers[selection], base=layer)
            if chain[:end] not in seen:
                seen.add(chain[:end])
                yield from (problem.under((selection,)) for problem in problems)
            layer = merged or layer


def flatten(tree: Mapping[str, Any], prefix: Path = ()) -> dict[str, Any]:
    """A nested mapping as {dotted path: leaf}; two configurations are compared by these."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = (*prefix, key)
        flat |= flatten(value, path) if isinstance(value, Mapping) else {".".join(map(str, path)): value}
    return flat
