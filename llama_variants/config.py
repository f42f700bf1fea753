"""The configuration of a model: validated, frozen, and able to state its own cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import PositiveInt, SerializeAsAny

import llama_variants.blocks  # noqa: F401 (registers the blocks)
from llama_variants.errors import ConfigError, Path, Problem, StrictModel, check, closest, one_of, show
from llama_variants.registry import FAMILIES, BlockConfig, Cost

PRESETS: dict[str, dict[str, Any]] = {
    # As pre-trained (context 2048, theta 10,000); the released checkpoint says 8192 and 100,000.
    "smollm2-135m": {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "vocab_size": 49_152,
        "max_position_embeddings": 2048,
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

    Build it by :meth:`preset` or :meth:`from_dict`, vary it by :meth:`override`.
    """

    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    vocab_size: PositiveInt
    max_position_embeddings: PositiveInt
    rotary: SerializeAsAny[BlockConfig]
    attention: SerializeAsAny[BlockConfig]
    mlp: SerializeAsAny[BlockConfig]
    norm: SerializeAsAny[BlockConfig]
    residual: SerializeAsAny[BlockConfig]
    head: SerializeAsAny[BlockConfig]
    init: SerializeAsAny[BlockConfig]

    @classmethod
    def preset(cls, name: str) -> ModelConfig:
        """A configuration known by name. Raises ConfigError for any other name."""
        if name not in PRESETS:
            raise ConfigError([Problem(("preset",), show(name), one_of(name, PRESETS))])
        return cls.from_dict(PRESETS[name])

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """The validated configuration. Raises ConfigError with every problem of ``data``."""
        config, problems = read(data)
        if problems:
            raise ConfigError(problems)
        assert config is not None
        return config

    def override(self, delta: Mapping[str, Any]) -> ModelConfig:
        """This configuration with ``delta`` merged in. Raises ConfigError with every problem of ``delta``.

        Switching a block's ``type`` keeps the fields that the new type declares too and drops the rest; setting one
        of several ways to write a field (``expansion``, ``intermediate_size``) drops the other.
        """
        config, problems = read(delta, base=self)
        if problems:
            raise ConfigError(problems)
        assert config is not None
        return config

    def to_dict(self) -> dict[str, Any]:
        """Plain data as written: :meth:`from_dict` gives the same configuration back."""
        return self._dump(lambda block: block.to_dict())

    def resolved(self) -> dict[str, Any]:
        """Plain data in absolute form: equal for any two ways of writing the same model."""
        return self._dump(lambda block: block.resolved(self))

    def _dump(self, dump: Any) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: dump(value) if name in FAMILIES else value for name, value in fields.items()}

    @property
    def semantics(self) -> dict[str, int]:
        """Version of what each block computes; part of a run's identity."""
        return {family: getattr(self, family).semantics for family in FAMILIES}

    @property
    def attention_head_dim(self) -> int:
        """Size of a head, which the position encoding rotates."""
        return self.attention.head_dim  # type: ignore[attr-defined]

    def costs(self, seq_len: int) -> dict[str, Cost]:
        """Cost by part, all layers together, forward, for one token of a window of ``seq_len``."""
        layers = self.num_hidden_layers
        return {
            "embedding": Cost(params=self.vocab_size * self.hidden_size),
            "rotary": self.rotary.cost(self, seq_len) * layers,
            "attention": self.attention.cost(self, seq_len) * layers,
            "mlp": self.mlp.cost(self, seq_len) * layers,
            "norm": self.residual.cost(self, seq_len) * layers + self.norm.cost(self, seq_len),
            "head": self.head.cost(self, seq_len),
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

    def flops_per_token(self, seq_len: int, *, causal: bool = True) -> int:
        """FLOPs of forward and backward for one token in a window of ``seq_len`` tokens.

        Matrix products only (a multiply-add is two), the head included, backward counted as twice forward.
        ``causal`` halves the attention products, of which a causal model needs the lower triangle;
        ``causal=False`` is the PaLM convention (arXiv:2204.02311, appendix B) of published MFU figures.
        """
        cost = self._cost(seq_len)
        return 3 * (cost.matmul_flops + cost.attention_flops // (2 if causal else 1))


def read(data: object, base: ModelConfig | None = None) -> tuple[ModelConfig | None, list[Problem]]:
    """The configuration that ``data`` gives (over ``base``, if any), and every problem found.

    Parts that are wrong are replaced by the base's, so that a misspelt block hides no problem of another.
    """
    if not isinstance(data, Mapping):
        return None, [Problem((), show(data), "a mapping of model fields")]
    problems: list[Problem] = []
    parts: dict[str, Any] = {name: getattr(base, name) for name in ModelConfig.model_fields} if base else {}
    for name, value in data.items():
        if name in FAMILIES:
            block, found = _read_block(name, value, parts.get(name))
            problems += [problem.under((name,)) for problem in found]
            if block is not None:
                parts[name] = block
            elif base is None:
                parts[name] = None
        else:
            parts[name] = value
    unread = {name for name in FAMILIES if name in parts and parts[name] is None}
    known = {name: value for name, value in parts.items() if name not in unread}
    fallback = {name: getattr(base, name) for name in ModelConfig.model_fields} if base else {}
    config, found = check(ModelConfig, known, fallback)
    problems += [problem for problem in found if problem.path[:1] not in {(name,) for name in unread}]
    if config is not None:
        for family in FAMILIES:
            problems += [problem.under((family,)) for problem in getattr(config, family).problems(config)]
    return config, problems


def _read_block(family: str, value: Any, base: BlockConfig | None) -> tuple[BlockConfig | None, list[Problem]]:
    """One block's Config from its mapping, over the base's block."""
    if isinstance(value, BlockConfig):
        return value, []
    if not isinstance(value, Mapping):
        return None, [Problem((), show(value), "a mapping with `type` and the block's fields")]
    registry, fields = FAMILIES[family], dict(value)
    name = fields.pop("type", base.type if base else None)
    problems: list[Problem] = []
    if name is None:
        return None, [Problem(("type",), "nothing", one_of("", registry.names))]
    if name not in registry.names:
        problems.append(Problem(("type",), show(name), one_of(str(name), registry.names)))
        name = closest(str(name), registry.names)
        if name is None:  # whose fields these are cannot be guessed
            return None, problems
    cls = registry.config_class(name)
    written = base.model_dump(exclude_none=True) if base else {}
    shared = {key: value for key, value in written.items() if key in cls.model_fields}
    superseded = {other for group in cls.alternatives for other in group if group & fields.keys()}
    kept = {key: value for key, value in shared.items() if key not in superseded}
    block, found = check(cls, kept | fields, fallback=shared)
    if superseded & shared.keys() and any(problem.path[0] in fields for problem in found):
        block = base  # its other way of writing the field was dropped for one that is wrong
    return block, problems + found


def flatten(tree: Mapping[str, Any], prefix: Path = ()) -> dict[str, Any]:
    """A nested mapping as {dotted path: leaf}; two configurations are compared by these."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = (*prefix, key)
        flat |= flatten(value, path) if isinstance(value, Mapping) else {".".join(map(str, path)): value}
    return flat
