"""What a model is made of and what it costs, as tables: one of a model by layer, one of every registered block."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

from llama_variants.config import ModelConfig
from llama_variants.registry import FAMILIES, LAYERED, Cost

PARTS = ("attention projections", "attention scores", "mlp", "head")
BYTES = {"bfloat16": 2, "float32": 4}


def summary(config: ModelConfig, seq_len: int | None = None) -> dict[str, Any]:
    """Costs of ``config`` by layer and in all, as plain data.

    Args:
        config: the model.
        seq_len: window in tokens for FLOPs; ``max_position_embeddings`` when None.

    Returns:
        ``rows``: by layer, equal ones together, each with ``name``, ``blocks``, ``count``, ``params`` of one,
        ``params_total`` and ``mflop_per_token`` (forward and backward, causal) of all of them; ``params``,
        ``mflop_per_token`` by part, ``bytes`` of the weights, ``kv_cache_bytes_per_token`` and ``seq_len``.
    """
    seq_len = seq_len or config.max_position_embeddings
    parts = config.costs(seq_len)
    head_is_tied = config.head.tied  # type: ignore[attr-defined]
    rows = [_row("embed_tokens", config.embedding.type, 1, parts["embedding"])]
    for name, layer, count in _groups(config):
        blocks = " · ".join(getattr(layer, family).type for family in LAYERED)
        rows.append(_row(name, blocks, count, sum(layer.layer_costs(seq_len).values(), Cost())))
    if parts["rotary"] != Cost():
        rows.append(_row("rotary_emb", config.rotary.type, 1, parts["rotary"]))
    rows.append(_row("norm", config.norm.type, 1, config.norm.cost(config, seq_len)))
    rows.append(_row("lm_head", config.head.type, 1, parts["head"]))
    total = config.num_params
    untied = total + config.vocab_size * config.hidden_size if head_is_tied else total
    return {
        "seq_len": seq_len,
        "rows": rows,
        "params": {
            "total": total,
            "trainable": total,
            "embedding": config.num_params_embedding,
            "non_embedding": total - config.num_params_embedding,
            "head_is_tied": head_is_tied,
            "untied_total": untied,
        },
        "mflop_per_token": {
            "attention projections": 3 * parts["attention"].matmul_flops / 1e6,
            "attention scores": 3 * parts["attention"].causal_attention_flops / 1e6,
            "mlp": 3 * parts["mlp"].matmul_flops / 1e6,
            "head": 3 * parts["head"].matmul_flops / 1e6,
            "causal": config.flops_per_token(seq_len) / 1e6,
            "palm": config.flops_per_token(seq_len, causal=False) / 1e6,
        },
        "bytes": {dtype: total * size for dtype, size in BYTES.items()},
        "kv_cache_bytes_per_token": {dtype: config.kv_cache_values_per_token * size for dtype, size in BYTES.items()},
    }


def _groups(config: ModelConfig) -> list[tuple[str, ModelConfig, int]]:
    """(name, configuration, number of layers) of every group of equal layers, in the order of their first."""
    groups: list[tuple[ModelConfig, list[int]]] = []
    for index in range(config.num_hidden_layers):
        layer = config.layer(index)
        same = next((layers for other, layers in groups if other == layer), None)
        if same is None:
            groups.append((layer, [index]))
        else:
            same.append(index)
    return [(f"layers.{ranges(layers)}", layer, len(layers)) for layer, layers in groups]


def ranges(numbers: list[int]) -> str:
    """Ascending numbers with their runs drawn together: 0-2,4,6-7."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ",".join(f"{a}-{b}" if a != b else str(a) for a, b in zip(starts, ends, strict=True))


def _row(name: str, blocks: str, count: int, cost: Cost) -> dict[str, Any]:
    flops = 3 * count * (cost.matmul_flops + cost.causal_attention_flops)
    params = {"params": cost.params, "params_total": cost.params * count}
    return {"name": name, "blocks": blocks, "count": count, **params, "mflop_per_token": flops / 1e6}


def summary_text(config: ModelConfig, seq_len: int | None = None) -> str:
    """:func:`summary` as text."""
    data = summary(config, seq_len)
    table = [("layer", "blocks", "n", "parameters each", "parameters", "MFLOP/token")]
    table += [
        (
            row["name"],
            row["blocks"],
            str(row["count"]),
            f"{row['params']:,}",
            f"{row['params_total']:,}",
            _number(row["mflop_per_token"]),
        )
        for row in data["rows"]
    ]
    params, size, cache, flops = (
        data[key] for key in ("params", "bytes", "kv_cache_bytes_per_token", "mflop_per_token")
    )
    head = "the head has a weight of its own"
    if params["head_is_tied"]:
        head = f"the head is the embedding's weight, counted once; with its own: {params['untied_total']:,}"
    parts = [f"{_number(flops[part])} {part}" for part in PARTS]
    facts = [
        ("parameters", f"{params['total']:,}, all trainable"),
        ("", f"{params['embedding']:,} embedding + {params['non_embedding']:,} other; {head}"),
        ("MFLOP/token", f"{' + '.join(parts)} = {_number(flops['causal'])}"),
        ("", f"{_number(flops['palm'])} with the scores of all pairs, the PaLM convention of published MFU figures"),
        ("", f"forward and backward, in windows of {data['seq_len']:,} tokens"),
        ("weights", f"{size['bfloat16'] / 1e6:,.1f} MB in bfloat16, {size['float32'] / 1e6:,.1f} MB in float32"),
        ("KV cache", f"{cache['bfloat16']:,} bytes/token in bfloat16, {cache['float32']:,} in float32"),
    ]
    return "\n".join([*_columns(table, left=2), "", *_columns(facts, left=2)])


def _number(value: float) -> str:
    return f"{value:,.1f}" if value >= 100 else f"{value:.3g}"


def _columns(table: Sequence[Sequence[str]], left: int) -> list[str]:
    """Rows of text with aligned columns, the first ``left`` of them to the left."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def blocks_table() -> list[dict[str, str]]:
    """Every registered block: ``family``, ``type``, ``fields``, ``what`` it is and its ``source``.

    The last two are the first sentences of its docstring and of the ``Source:`` in it.
    """
    return [
        {
            "family": family,
            "type": name,
            "fields": ", ".join(registry.config_class(name).model_fields),
            **_docstring(registry[name].__doc__ or ""),
        }
        for family, registry in FAMILIES.items()
        for name in registry.names
    ]


def _docstring(text: str) -> dict[str, str]:
    text = " ".join(text.partition("Args:")[0].split()).replace("``", "`")
    what, _, source = text.partition(" Source: ")
    return {"what": _sentence(what), "source": _sentence(source)}


def _sentence(text: str) -> str:
    """The first one, without its full stop."""
    return re.split(r"\. (?=[A-Z])|\.$", text, maxsplit=1)[0]


def blocks_markdown() -> str:
    """:func:`blocks_table` as the page that stands beside the blocks."""
    lines = [
        "# The registered blocks",
        "",
        "Written by `python -m runners blocks --markdown`. Each row is a class in the file of its family, whose",
        "docstring has the formula and how it differs from the control. Fields are those of a YAML beside `type`.",
    ]
    for family in FAMILIES:
        lines += ["", f"## {family}", "", "| type | fields | what | source |", "|---|---|---|---|"]
        lines += [
            f"| `{row['type']}` | {row['fields'] or '–'} | {row['what']} | {row['source'] or '–'} |"
            for row in blocks_table()
            if row["family"] == family
        ]
    return "\n".join(lines) + "\n"


def block_text(name: str) -> str:
    """Every block called ``name``: its docstring, and its fields with types and defaults."""
    texts = []
    for family, registry in FAMILIES.items():
        if name in registry:
            config = registry.config_class(name)
            fields = [
                f"  {field}: {_type(info.annotation)}{'' if info.is_required() else f' = {info.default}'}"
                for field, info in config.model_fields.items()
            ]
            ways = [f"  exactly one of {', '.join(sorted(group))}" for group in config.alternatives]
            about = [inspect.cleandoc(registry[name].__doc__ or ""), "", inspect.cleandoc(config.__doc__ or "")]
            texts.append("\n".join([f"{family}: {name}", "", *about, *fields, *ways]))
    return "\n\n".join(texts)


def _type(annotation: Any) -> str:
    """Plain names of what an annotation allows: int, float | str."""
    if get_origin(annotation) is Annotated:
        return _type(get_args(annotation)[0])
    names = [_type(each) for each in get_args(annotation) if each is not NoneType]
    return " | ".join(names) or getattr(annotation, "__name__", str(annotation))


def blocks_text() -> str:
    """:func:`blocks_table` as text."""
    table = [("family", "type", "fields", "what")]
    table += [(row["family"], row["type"], row["fields"], row["what"]) for row in blocks_table()]
    return "\n".join(_columns(table, left=4))
