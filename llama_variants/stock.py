"""What transformers' own Llama can express: its configuration to ours, and ours to its, as plain data.

Both directions work from a list of what is known to be the same computation; everything else is refused. A variant
that merely looks like a Llama must never be loaded, or saved, as one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt

from llama_variants.errors import ConfigError, Problem, StrictModel, check, one_of, show


class LlamaFields(StrictModel):
    """What is read of a ``LlamaConfig``, with its defaults, except that the five sizes have none.

    transformers' are those of a 7B model, which nobody means by leaving them out.
    """

    model_config = ConfigDict(extra="ignore")

    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    vocab_size: PositiveInt
    intermediate_size: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    max_position_embeddings: PositiveInt = 2048
    hidden_act: Literal["silu", "swish", "gelu", "gelu_pytorch_tanh", "relu"] = "silu"
    rms_norm_eps: PositiveFloat = 1e-6
    tie_word_embeddings: bool = False
    initializer_range: PositiveFloat = 0.02
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None  # what rope_parameters was called
    rope_theta: PositiveFloat | None = None  # where it stood before
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    partial_rotary_factor: Annotated[float, Field(gt=0, le=1)] | None = None
    # What no block has: only the values that stand for its absence pass.
    model_type: Literal["llama"] = "llama"
    attention_dropout: Annotated[float, Field(ge=0, le=0)] | None = None
    quantization_config: None = None


_MLP = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu", "gelu_pytorch_tanh": "geglu_tanh", "relu": "reglu"}
_SCALING = {
    "default": "rope",
    "linear": "rope_linear",
    "dynamic": "rope_dynamic",
    "yarn": "rope_yarn",
    "llama3": "rope_llama3",
}
_CONTEXT = "original_max_position_embeddings"
_FIELDS: dict[str, tuple[str, ...]] = {  # of each rope type besides theta, under transformers' names and ours
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor", _CONTEXT),
    "yarn": ("factor", _CONTEXT, "beta_fast", "beta_slow", "attention_factor", "truncate"),
    "llama3": ("factor", _CONTEXT, "low_freq_factor", "high_freq_factor"),
}
_REQUIRED = {"linear": {"factor"}, "dynamic": {"factor"}, "yarn": {"factor"}} | {
    "llama3": {*_FIELDS["llama3"]} - {_CONTEXT}
}


def from_llama(llama: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a ModelConfig from those of a transformers ``LlamaConfig``, with its defaults for absent ones.

    Raises:
        ConfigError: with everything that this package's blocks cannot express.
    """
    fields, problems = check(LlamaFields, llama)
    if "model_type" not in llama:  # typed by hand: in a config.json anything may stand
        from transformers import LlamaConfig  # which takes seconds, and nothing else here needs

        known = {*LlamaFields.model_fields, *LlamaConfig().to_dict()}
        problems += [
            Problem(path=(name,), received=f"unknown key {name!r}", allowed=one_of(name, LlamaFields.model_fields))
            for name in llama
            if name not in known
        ]
    rotary: dict[str, Any] = {}
    if fields is not None:
        rotary, found = _rotary(fields)
        problems += found
        if fields.head_dim is None and fields.hidden_size % fields.num_attention_heads:
            allowed = f"a divisor of hidden_size ({fields.hidden_size}), or a head_dim beside it"
            problems.append(
                Problem(path=("num_attention_heads",), received=str(fields.num_attention_heads), allowed=allowed)
            )
    if problems or fields is None:
        raise ConfigError(problems, title="this Llama configuration cannot be expressed by the registered blocks:")
    heads = fields.num_attention_heads
    return {
        "hidden_size": fields.hidden_size,
        "num_hidden_layers": fields.num_hidden_layers,
        "vocab_size": fields.vocab_size,
        "max_position_embeddings": fields.max_position_embeddings,
        "embedding": {"type": "plain"},
        "rotary": rotary,
        "attention": {
            "type": "gqa",
            "num_attention_heads": heads,
            "num_key_value_heads": fields.num_key_value_heads or heads,
            "head_dim": fields.head_dim or fields.hidden_size // heads,
            "bias": bool(fields.attention_bias),
        },
        "mlp": {
            "type": _MLP[fields.hidden_act],
            "intermediate_size": fields.intermediate_size,
            "bias": bool(fields.mlp_bias),
        },
        "norm": {"type": "rms", "eps": fields.rms_norm_eps},
        "residual": {"type": "pre"},
        "head": {"type": "tied" if fields.tie_word_embeddings else "untied"},
        "init": {"type": "normal", "std": fields.initializer_range},
    }


def _rotary(llama: LlamaFields) -> tuple[dict[str, Any], list[Problem]]:
    """The rotary block of a Llama configuration, in the present and in the older way of writing it."""
    written = dict(llama.rope_parameters or llama.rope_scaling or {})
    kind = written.pop("rope_type", written.pop("type", "default"))
    theta = written.pop("rope_theta", llama.rope_theta or 10_000.0)
    if not isinstance(kind, str) or kind not in _SCALING:
        return {}, [
            Problem(path=("rope_parameters", "rope_type"), received=show(kind), allowed="one of " + ", ".join(_SCALING))
        ]
    partial = written.pop("partial_rotary_factor", None) or llama.partial_rotary_factor or 1.0
    problems = []
    if kind == "default" and partial != 1:
        warnings.warn(
            f"partial_rotary_factor: {partial} is ignored, as transformers' Llama ignores it: all of each head turns; "
            "the block that turns a part is rope_partial",
            stacklevel=2,
        )
    elif partial != 1:  # which transformers' Llama cannot compute either
        problems.append(
            Problem(path=("partial_rotary_factor",), received=show(partial), allowed=f"1 with rope_type {kind!r}")
        )
    values = {name: value for name, value in written.items() if value is not None}
    allowed = _FIELDS[kind]
    if kind == "yarn":
        scales = values.pop("mscale", None), values.pop("mscale_all_dim", None)
        values = {"attention_factor": _attention_factor(values.get("factor"), *scales)} | values
        values = {name: value for name, value in values.items() if value is not None}
    if _CONTEXT in allowed:
        values.setdefault(_CONTEXT, llama.max_position_embeddings)
    if kind == "dynamic" and values[_CONTEXT] != llama.max_position_embeddings:
        only = f"max_position_embeddings ({llama.max_position_embeddings}), which transformers reads in its place"
        problems.append(Problem(path=("rope_parameters", _CONTEXT), received=show(values[_CONTEXT]), allowed=only))
    known = ["rope_theta", *allowed, *(("mscale", "mscale_all_dim") if kind == "yarn" else ())]
    problems += [
        Problem(path=("rope_parameters", name), received=show(value), allowed=", ".join(known))
        for name, value in values.items()
        if name not in allowed
    ]
    for name in sorted(_REQUIRED.get(kind, set()) - values.keys()):
        problems.append(Problem(path=("rope_parameters", name), received="nothing", allowed="a number"))
    # The values' own types are checked where the block reads them.
    return {"type": _SCALING[kind], "theta": theta, **{n: v for n, v in values.items() if n in allowed}}, problems


def _attention_factor(factor: Any, mscale: Any, mscale_all_dim: Any) -> float | None:
    """YaRN's, where a file gives it by two scales as DeepSeek's do; transformers ignores one without the other."""
    numbers = all(isinstance(value, int | float) and value > 0 for value in (factor, mscale, mscale_all_dim))
    if not numbers:
        return None
    above, below = (0.1 * scale * math.log(max(factor, 1.0)) + 1.0 for scale in (mscale, mscale_all_dim))
    return above / below


def to_llama(model: Mapping[str, Any]) -> dict[str, Any] | None:
    """Arguments of the ``LlamaConfig`` that computes the same as ``model`` (resolved plain data); None if none does."""
    if any(_departures(model)):
        return None
    attention, rotary = model["attention"], model["rotary"]
    act = next(act for act, mlp in _MLP.items() if mlp == model["mlp"]["type"])
    rope_type = next(kind for kind, block in _SCALING.items() if block == rotary["type"])
    unsaid = {"type", "theta"} | ({_CONTEXT} if rope_type == "dynamic" else set())
    scaling = {name: value for name, value in rotary.items() if name not in unsaid}
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
        "attention_bias": attention.get("bias", False),
        "mlp_bias": model["mlp"].get("bias", False),
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
    yield model["rotary"]["type"] == "rope_dynamic" and model["rotary"][_CONTEXT] != model["max_position_embeddings"]
    # transformers insists on this, though the head size is given and nothing else would need it.
    yield model["hidden_size"] % model["attention"]["num_attention_heads"] != 0
