"""Printed tables: true totals, and a row for each block."""

from __future__ import annotations

import pytest

from llama_variants import ModelConfig, build_model
from llama_variants.pretrained import CACHE
from llama_variants.registry import FAMILIES
from llama_variants.summary import blocks_markdown, blocks_table, summary, summary_text
from tests.conftest import ROOT
from tests.llama_variants.models import EVERY_MODEL

SMOLLM2 = ModelConfig.preset("smollm2-135m")


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_rows_add_up_to_the_built_model(name):
    config = EVERY_MODEL[name]
    data, model = summary(config), build_model(config, device="meta")
    built = sum(p.numel() for p in model.parameters())
    assert sum(row["params_total"] for row in data["rows"]) == data["params"]["total"] == built
    assert sum(row["count"] for row in data["rows"] if row["name"].startswith("layers")) == config.num_hidden_layers
    parts = data["mflop_per_token"]
    assert sum(row["mflop_per_token"] for row in data["rows"]) == pytest.approx(parts["causal"])
    assert sum(value for part, value in parts.items() if part not in ("causal", "palm")) == pytest.approx(
        parts["causal"]
    )
    first = next(row for row in data["rows"] if row["name"].startswith("layers"))
    assert first["params"] == sum(p.numel() for p in model.model.layers[0].parameters())


def test_the_true_totals():
    text = summary_text(SMOLLM2)
    assert "134,515,008, all trainable" in text
    assert "28,311,552 embedding + 106,203,456 other" in text
    assert "counted once; with its own: 162,826,560" in text
    assert "1,019.2" in text
    assert "269.0 MB in bfloat16, 538.1 MB in float32" in text
    assert "23,040 bytes/token in bfloat16" in text
    untied = summary(SMOLLM2.override({"head": {"type": "untied"}}))["params"]
    assert (untied["total"], untied["embedding"], untied["head_is_tied"]) == (162_826_560, 56_623_104, False)


def test_equal_layers_are_one_row():
    config = SMOLLM2.override({"layers": {"every 4": {"rotary": {"type": "nope"}}}})
    names = {row["name"]: row["count"] for row in summary(config)["rows"]}
    assert names["layers.3,7,11,15,19,23,27"] == 7
    assert names["layers.0-2,4-6,8-10,12-14,16-18,20-22,24-26,28-29"] == 23


def test_kv_cache_is_what_generation_keeps():
    """Against the cache that a forward pass fills."""
    import torch

    for config in EVERY_MODEL.values():
        cache = build_model(config)(torch.zeros(1, 5, dtype=torch.long), use_cache=True)[CACHE]
        kept = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
        assert kept == 5 * config.kv_cache_values_per_token


def test_the_page_beside_the_blocks_is_up_to_date():
    assert (ROOT / "llama_variants/blocks/README.md").read_text() == blocks_markdown()
    rows = blocks_table()
    assert [(row["family"], row["type"]) for row in rows] == [(f, name) for f in FAMILIES for name in FAMILIES[f].names]
    assert all(row["what"] and row["source"] for row in rows)
