"""Configurations: costs against the built model, overrides, and every problem in one message."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch.utils.flop_counter import FlopCounterMode

from llama_variants import ConfigError, ModelConfig, build_model
from tests.llama_variants.models import EVERY_BLOCK, TINY, shapes

SMOLLM2 = ModelConfig.preset("smollm2-135m")


def built_params(config: ModelConfig) -> int:
    return sum(p.numel() for p in build_model(config, device="meta").parameters())


@pytest.mark.parametrize("config", EVERY_BLOCK.values(), ids=EVERY_BLOCK.keys())
def test_params_and_flops_are_those_of_the_built_model(config):
    assert config.num_params == built_params(config)
    model = build_model(config, device="meta")
    tokens = torch.zeros(2, 32, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(tokens).logits.sum().backward()
    counted = counter.get_total_flops() / tokens.numel()
    assert config.flops_per_token(32, causal=False) == pytest.approx(counted, rel=0.01)


@given(config=shapes())
def test_params_of_any_shape(config):
    assert config.num_params == built_params(config)


@pytest.mark.parametrize(
    ("delta", "params", "flops_ratio"),
    [
        ({}, 134_515_008, 1.0),
        ({"head": {"type": "untied"}}, 162_826_560, 1.0),
        ({"attention": {"type": "mha"}}, 147_786_048, 1.0781),
        ({"attention": {"type": "mqa"}}, 130_091_328, 0.9740),
        ({"mlp": {"intermediate_size": 768}}, 94_701_888, None),
        ({"mlp": {"expansion": "16/3"}}, 214_141_248, None),
        ({"rotary": {"type": "nope"}}, 134_515_008, 1.0),
    ],
)
def test_published_figures(delta, params, flops_ratio):
    config = SMOLLM2.override(delta)
    assert config.num_params == params == built_params(config)
    if flops_ratio:
        assert config.flops_per_token(2048) / SMOLLM2.flops_per_token(2048) == pytest.approx(flops_ratio, abs=1e-4)


def test_flops_of_the_control_by_part():
    assert SMOLLM2.flops_per_token(2048, causal=False) / 1e6 == pytest.approx(1231.55, abs=0.01)
    assert SMOLLM2.flops_per_token(2048) / 1e6 == pytest.approx(1019.2, abs=0.05)
    costs = SMOLLM2.costs(2048)
    assert 3 * costs["mlp"].matmul_flops / 1e6 == pytest.approx(477.8, abs=0.05)
    assert 3 * costs["head"].matmul_flops / 1e6 == pytest.approx(169.9, abs=0.05)
    assert SMOLLM2.num_params_embedding == 28_311_552


@given(config=shapes())
def test_a_configuration_survives_its_plain_form(config):
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert ModelConfig.from_dict(config.resolved()).resolved() == config.resolved()


def test_switching_a_type_keeps_what_the_new_one_declares():
    switched = SMOLLM2.override({"attention": {"type": "mqa"}})
    assert switched.to_dict()["attention"] == {"type": "mqa", "num_attention_heads": 9, "head_dim": 64}
    back = SMOLLM2.override({"attention": {"queries_per_kv": 9}})
    assert back.to_dict()["attention"]["queries_per_kv"] == 9
    assert "num_key_value_heads" not in back.to_dict()["attention"]
    assert SMOLLM2.override({"mlp": {"expansion": "8/3"}}).resolved() == SMOLLM2.resolved()


def test_every_problem_at_once():
    with pytest.raises(ConfigError) as caught:
        SMOLLM2.override(
            {
                "attention": {"type": "gqqa", "queries_per_kv": 2},
                "mlp": {"intermediate_size": "1536", "wdith": 3},
                "norm": {"eps": -1.0},
                "rotary": "rope",
                "hiden_size": 5,
                "vocab_size": True,
            }
        )
    found = {".".join(map(str, problem.path)): problem for problem in caught.value.problems}
    assert found.keys() == {
        "attention.type",
        "attention.queries_per_kv",
        "mlp.intermediate_size",
        "mlp.wdith",
        "norm.eps",
        "rotary",
        "hiden_size",
        "vocab_size",
    }
    assert "did you mean 'gqa'?" in found["attention.type"].allowed
    assert "1, 3, 9" in found["attention.queries_per_kv"].allowed
    assert found["mlp.intermediate_size"].received == "'1536' (text)"
    assert "did you mean 'hidden_size'?" in found["hiden_size"].allowed


@pytest.mark.parametrize(
    ("delta", "path"),
    [
        ({"attention": {"num_key_value_heads": 3, "queries_per_kv": 3}}, ("attention", "queries_per_kv")),
        ({"attention": {"num_key_value_heads": 2}}, ("attention", "num_key_value_heads")),
        ({"attention": {"head_dim": 63}}, ("rotary", "type")),
        ({"mlp": {"expansion": "1/2000"}}, ("mlp", "expansion")),
        ({"mlp": {"expansion": "8/0"}}, ("mlp", "expansion")),
        ({"norm": {"eps": float("inf")}}, ("norm", "eps")),
        ({"norm": {"type": 3}}, ("norm", "type")),
    ],
)
def test_single_problems(delta, path):
    with pytest.raises(ConfigError) as caught:
        SMOLLM2.override(delta)
    assert [problem.path for problem in caught.value.problems] == [path]


def test_incomplete_and_unknown():
    with pytest.raises(ConfigError, match="attention") as caught:
        ModelConfig.from_dict({"hidden_size": 8, "rotary": {}})
    assert ("rotary", "type") in {problem.path for problem in caught.value.problems}
    with pytest.raises(ConfigError, match="did you mean 'smollm2-135m'"):
        ModelConfig.preset("smollm-135m")
    with pytest.raises(ConfigError, match="mapping"):
        ModelConfig.from_dict([])  # type: ignore[arg-type]


def test_frozen():
    with pytest.raises(ValueError, match="frozen"):
        TINY.hidden_size = 3
