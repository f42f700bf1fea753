"""What transformers' own Llama can express: its configuration to ours, and ours to its, as plain data.

Both directions work from a list of what is known to be the same computation; everything else is refused. A variant
that merely looks like a Llama must never be loaded, or saved, as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import LlamaConfig

from llama_variants.errors import ConfigError, Problem, one_of, show

_REQUIRED = ("hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size", "num_attention_heads")
_READ = (
    *(
        "max_position_embeddings",
        "num_key_value_heads",
        "head_dim",
        "rms_norm_eps",
        "tie_word_embeddings",
        "hidden_act",
    ),
    *("initializer_range", "rope_parameters", "rope_scaling", "rope_theta"),
    *("attention_bias", "mlp_bias", "attention_dropout"),
)
_MUST_BE = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "attention_dropout": (0, None),
}
_MLP = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu"}
_SCALING = {"default": "rope", "linear": "rope_linear", "yarn": "rope_yarn"}
_FIELDS: dict[str, dict[str, type]] = {  # of each rope type besides theta, under transformers' names and ours
    "default": {},
    "linear": {"factor": float},
    "yarn": {"factor": float, "original_max_position_embeddings": int, "beta_fast": float, "beta_slow": float},
}


def from_llama(llama: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a ModelConfig from those of a transformers ``LlamaConfig``, with its defaults for absent ones.

    The five sizes have no default here: transformers' are those of a 7B model, which nobody means by leaving them out.

    Raises:
        ConfigError: with everything that this package's blocks cannot express.
    """
    problems = [Problem((name,), "nothing", "a whole number") for name in _REQUIRED if llama.get(name) is None]
    if "model_type" not in llama:  # typed by hand: in a config.json anything may stand
        known = {*_REQUIRED, *_READ, *LlamaConfig().to_dict()}
        problems += [
            Problem((name,), f"unknown key {name!r}", one_of(name, sorted({*_REQUIRED, *_READ})))
            for name in llama
            if name not in known
        ]
    if llama.get("model_type", "llama") != "llama":
        problems.append(Problem(("model_type",), show(llama["model_type"]), "llama"))
    for name, values in _MUST_BE.items():
        if llama.get(name) not in values:
            problems.append(Problem((name,), show(llama[name]), f"{values[0]}: no block has it"))
    act = llama.get("hidden_act", "silu")
    if act not in _MLP:
        problems.append(Problem(("hidden_act",), show(act), "one of " + ", ".join(_MLP)))
    rotary, found = _rotary(llama)
    problems += found
    if problems:
        raise ConfigError(problems, title="this Llama configuration cannot be expressed by the registered blocks:")
    heads = llama["num_attention_heads"]
    return {
        "hidden_size": llama["hidden_size"],
        "num_hidden_layers": llama["num_hidden_layers"],
        "vocab_size": llama["vocab_size"],
        "max_position_embeddings": llama.get("max_position_embeddings") or 2048,
        "embedding": {"type": "plain"},
        "rotary": rotary,
        "attention": {
            "type": "gqa",
            "num_attention_heads": heads,
            "num_key_value_heads": llama.get("num_key_value_heads") or heads,
            "head_dim": llama.get("head_dim") or llama["hidden_size"] // heads,
        },
        "mlp": {"type": _MLP[act], "intermediate_size": llama["intermediate_size"]},
        "norm": {"type": "rms", "eps": llama.get("rms_norm_eps", 1e-6)},
        "residual": {"type": "pre"},
        "head": {"type": "tied" if llama.get("tie_word_embeddings", False) else "untied"},
        "init": {"type": "normal", "std": llama.get("initializer_range", 0.02)},
    }


def _rotary(llama: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The rotary block of a Llama configuration, in the present and in the older way of writing it."""
    written = dict(llama.get("rope_parameters") or llama.get("rope_scaling") or {})
    kind = written.pop("rope_type", written.pop("type", "default"))
    theta = written.pop("rope_theta", llama.get("rope_theta") or 10_000.0)
    if kind not in _SCALING:
        return {}, [Problem(("rope_parameters", "rope_type"), show(kind), "one of " + ", ".join(_SCALING))]
    neutral = {"partial_rotary_factor": 1.0, "truncate": True}
    values = {name: value for name, value in written.items() if value is not None and value != neutral.get(name)}
    allowed = _FIELDS[kind]
    if "original_max_position_embeddings" in allowed:
        values.setdefault("original_max_position_embeddings", llama.get("max_position_embeddings"))
    problems = [
        Problem(("rope_parameters", name), show(value), "rope_theta, " + ", ".join(allowed))
        for name, value in values.items()
        if name not in allowed
    ]
    if "factor" in allowed and "factor" not in values:
        problems.append(Problem(("rope_parameters", "factor"), "nothing", "a number"))
    fields = {name: allowed[name](value) for name, value in values.items() if name in allowed}
    return {"type": _SCALING[kind], "theta": float(theta), **fields}, problems


def to_llama(model: Mapping[str, Any]) -> dict[str, Any] | None:
    """Arguments of the ``LlamaConfig`` that computes the same as ``model`` (resolved plain data); None if none does."""
    if any(_departures(model)):
        return None
    attention, rotary = model["attention"], model["rotary"]
    act = next(act for act, mlp in _MLP.items() if mlp == model["mlp"]["type"])
    rope_type = next(kind for kind, block in _SCALING.items() if block == rotary["type"])
    scaling = {name: value for name, value in rotary.items() if name not in ("type", "theta")}
    return {
        "hidden_size": model["hidden_size"],
        "num_hidden_layers": model["num_hidden_layers"],
        "vocab_size": model["vocab_size"],
        "max_position_embeddings": model["max_position_embeddings"],
        "num_attention_heads": attention["num_attention_heads"],
        "num_key_value_heads": attention["num_key_value_heads"],
        "head_dim": attention["head_dim"],
        "intermediate_size": model["mlp"]["intermediate_size"],
        "hidden_act": act,
        "rms_norm_eps": model["norm"]["eps"],
        "rope_parameters": {"rope_type": rope_type, "rope_theta": rotary["theta"], **scaling},
        "tie_word_embeddings": model["head"]["type"] == "tied",
        "initializer_range": model["init"].get("std", 0.02),
        "attention_bias": False,
        "mlp_bias": False,
    }


def _departures(model: Mapping[str, Any]) -> Iterable[bool]:
    """Everything in which ``model`` is no stock Llama."""
    known = {
        "embedding": {"plain"},
        "rotary": set(_SCALING.values()),
        "attention": {"gqa", "mha", "mqa"},
        "mlp": set(_MLP.values()),
        "norm": {"rms"},
        "residual": {"pre"},
        "head": {"tied", "untied"},
    }
    yield bool(model.get("layers"))
    for family, types in known.items():
        yield model[family]["type"] not in types
    # transformers insists on this, though the head size is given and nothing else would need it.
    yield model["hidden_size"] % model["attention"]["num_attention_heads"] != 0
