"""Configurations: costs against the built model, overrides, and every problem in one message."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig
from transformers import LlamaForCausalLM as StockLlama

from llama_variants import ConfigError, ModelConfig, build_model
from llama_variants.config import select
from llama_variants.model import LlamaVariantConfig
from tests.llama_variants.models import EVERY_MODEL, TINY, any_blocks, shapes

SMOLLM2 = ModelConfig.preset("smollm2-135m")


def built_params(config: ModelConfig) -> int:
    return sum(p.numel() for p in build_model(config, device="meta").parameters())


@pytest.mark.parametrize("config", EVERY_MODEL.values(), ids=EVERY_MODEL.keys())
def test_params_and_flops_are_those_of_the_built_model(config):
    assert config.num_params == built_params(config)
    model = build_model(config, device="meta")
    tokens = torch.zeros(2, 32, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(tokens).logits.sum().backward()
    counted = counter.get_total_flops() / tokens.numel()
    assert config.flops_per_token(32, causal=False) == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize("config", EVERY_MODEL.values(), ids=EVERY_MODEL.keys())
def test_causal_flops_are_those_of_the_visible_pairs(config):
    """Against counting: the scores and values of every pair that some layer's mask leaves, at its head sizes."""
    time = 32
    pairs = 0
    for i in range(config.num_hidden_layers):
        layer = config.layer(i)
        window = min(layer.attention.window(layer) or time, time)
        # Less half a key a window's length: by the published convention T/2, where (T+1)/2 are seen.
        seen = sum(min(position + 1, window) for position in range(time)) - window / 2
        pairs += 3 * 4 * layer.attention.num_attention_heads * layer.attention.head_dim * seen
    causal = sum(cost.causal_attention_flops for cost in config.costs(time).values())
    assert 3 * causal * time == pairs
    other = sum(cost.matmul_flops for cost in config.costs(time).values())
    assert config.flops_per_token(time) == 3 * (other + causal)


@given(delta=shapes() | any_blocks())
def test_params_of_any_shape(delta):
    config = TINY.override(delta)
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


@given(delta=shapes() | any_blocks())
def test_a_configuration_survives_its_plain_form(delta):
    config = TINY.override(delta)
    again = ModelConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)
    assert again.resolved() == config.resolved()
    if layers := config.to_dict().get("layers"):
        layers.clear()  # a copy
        assert again == config


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


@pytest.mark.parametrize(
    ("selection", "layers"),
    [
        ("0", {0}),
        ("0-3", {0, 1, 2, 3}),
        ("every 4", {3, 7, 11}),
        ("every 4 from 0", {0, 4, 8}),
        ("0, 2-3,every 6", {0, 2, 3, 5, 11}),
        ("every 12", {11}),
    ],
)
def test_selections_of_layers(selection, layers):
    assert select(selection, 12) == layers


@pytest.mark.parametrize("selection", ["12", "-1", "3-1", "0-12", "every 0", "every 13", "", "all", "0;1", "every"])
def test_selections_that_name_no_layer(selection):
    with pytest.raises(ConfigError, match="layers"):
        select(selection, 12)


def test_layers_differ_in_what_is_written_and_nothing_else():
    config = SMOLLM2.override({"layers": {"every 4": {"rotary": {"type": "nope"}}, "0": {"mlp": {"expansion": 2}}}})
    assert [config.layer(i).rotary.type for i in range(8)] == ["rope"] * 3 + ["nope"] + ["rope"] * 3 + ["nope"]
    assert [config.layer(i).mlp.width(576) for i in range(3)] == [1152, 1536, 1536]
    assert config.layer(1).resolved() == SMOLLM2.resolved()
    assert config.num_params == built_params(config) == SMOLLM2.num_params - 3 * 576 * 384
    assert {"rotary.nope", "rotary.rope"} <= config.semantics.keys()


def test_later_selections_win_and_all_ways_of_writing_are_one():
    one = TINY.override(
        {"layers": {"0-1": {"rotary": {"type": "nope"}}, "1": {"rotary": {"type": "rope", "theta": 3.0}}}}
    )
    assert one.layer(1).rotary.to_dict() == {"type": "rope", "theta": 3.0}
    other = TINY.override({"layers": {"1": {"rotary": {"theta": 3.0}}, "0": {"rotary": {"type": "nope"}}}})
    assert one.resolved() == other.resolved()
    everywhere = TINY.override({"layers": {"0,1": {"norm": {"eps": 1e-5}}}})  # as the base has it
    assert everywhere.resolved() == TINY.resolved()


def test_layers_of_a_variant_are_merged_into_the_base_s():
    base = TINY.override({"layers": {"0": {"rotary": {"theta": 3.0}, "norm": {"eps": 0.1}}}})
    variant = base.override({"layers": {"0": {"rotary": {"type": "nope"}}, "1": {"norm": {"eps": 0.2}}}})
    assert variant.layer(0).rotary.to_dict() == {"type": "nope"}
    assert variant.override({"layers": {"0": None}}).layer(0).resolved()["norm"] == TINY.resolved()["norm"]
    width = TINY.override({"layers": {"0": {"mlp": {"expansion": 2}}}})
    narrow = width.override({"layers": {"0": {"mlp": {"intermediate_size": 40}}}})  # the other way to say it
    assert narrow.layer(0).mlp.width(48) == 40
    relu = narrow.override({"layers": {"0": {"mlp": {"type": "relu2"}}}})  # keeps what the new type has too
    assert relu.layer(0).mlp.to_dict() == {"type": "relu2", "intermediate_size": 40}
    assert (variant.layer(0).norm.eps, variant.layer(1).norm.eps) == (0.1, 0.2)


def test_every_problem_of_layers_at_once():
    with pytest.raises(ConfigError) as caught:
        SMOLLM2.override(
            {
                "layers": {
                    "0-40": {"norm": {"eps": 1e-6}},
                    "every 4": {"rotary": {"type": "nop"}, "head": {"type": "untied"}},
                    "1": {"attention": {"queries_per_kv": 2}},
                    "2": 3,
                }
            }
        )
    found = {".".join(map(str, problem.path)): problem for problem in caught.value.problems}
    assert found.keys() == {
        "layers.0-40",
        "layers.every 4.rotary.type",
        "layers.every 4.head",
        "layers.1.attention.queries_per_kv",
        "layers.2",
    }
    assert "0 to 29" in found["layers.0-40"].allowed
    assert "did you mean 'nope'?" in found["layers.every 4.rotary.type"].allowed


@pytest.mark.parametrize(
    ("delta", "width"),
    [
        ({"expansion": "8/3"}, 1536),
        ({"expansion": "8/3", "multiple_of": 256}, 1536),
        ({"expansion": 2.7, "multiple_of": 64}, 1600),
        ({"expansion": "1/3"}, 192),
        ({"type": "relu2", "expansion": 4}, 2304),
        ({"type": "gelu"}, 1536),
    ],
)
def test_mlp_widths(delta, width):
    config = SMOLLM2.override({"mlp": delta})
    assert config.resolved()["mlp"]["intermediate_size"] == width
    assert config.num_params == built_params(config)


@pytest.mark.parametrize(
    ("delta", "path"),
    [
        ({"mlp": {"intermediate_size": 1500, "multiple_of": 64}}, ("mlp", "intermediate_size")),
        ({"rotary": {"type": "rope_partial", "fraction": 0.3}}, ("rotary", "fraction")),
        ({"rotary": {"type": "rope_partial", "fraction": 2}}, ("rotary", "fraction")),
        ({"rotary": {"type": "rope_partial"}}, ("rotary", "fraction")),
        ({"rotary": {"type": "rope_yarn", "factor": 0.5, "original_max_position_embeddings": 9}}, ("rotary", "factor")),
        ({"attention": {"type": "sliding_window"}}, ("attention", "window_fraction")),
        ({"attention": {"type": "sliding_window", "window_size": 2048}}, ("attention", "window_size")),
        ({"attention": {"type": "sliding_window", "window_fraction": "1/5000"}}, ("attention", "window_fraction")),
        ({"head": {"type": "tied_softcap", "cap": 0.0}}, ("head", "cap")),
        ({"rotary": {"type": "rope_ntk", "factor": 1e300}}, ("rotary", "factor")),
        ({"mlp": {"expansion": 10**400}}, ("mlp", "expansion")),
        ({"embedding": {"type": "scaled", "factor": -1.0}}, ("embedding", "factor")),
        ({"norm": {"type": "dyt", "alpha": 0.0}}, ("norm", "alpha")),
    ],
)
def test_single_problems_of_blocks(delta, path):
    with pytest.raises(ConfigError) as caught:
        SMOLLM2.override(delta)
    assert [problem.path for problem in caught.value.problems] == [path]


def test_a_layer_that_is_not_there():
    with pytest.raises(ConfigError, match="layer_idx: received 30; allowed: 0 to 29"):
        SMOLLM2.layer(30)


def test_partial_fractions_are_exact():
    config = SMOLLM2.override({"attention": {"head_dim": 20}, "rotary": {"type": "rope_partial", "fraction": 0.1}})
    assert config.resolved()["rotary"]["fraction"] == 0.1  # 0.1 · 20 is 2, though not in binary


def test_of_takes_every_form_of_a_configuration():
    llama = LlamaConfig(
        hidden_size=48, num_hidden_layers=2, vocab_size=101, intermediate_size=128, num_attention_heads=6,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, rms_norm_eps=1e-5, initializer_range=1 / 24,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}, tie_word_embeddings=True,
    )  # fmt: skip
    forms = [TINY, TINY.to_dict(), TINY.resolved(), llama, llama.to_dict(), LlamaVariantConfig(variant=TINY.to_dict())]
    assert all(ModelConfig.of(form).resolved() == TINY.resolved() for form in forms)
    assert LlamaVariantConfig.of(llama).to_llama().to_dict() == {**llama.to_dict(), "architectures": None}


def test_a_llama_dictionary_must_say_its_sizes():
    with pytest.raises(ConfigError) as caught:
        ModelConfig.of({"hidden_size": 48, "num_attention_heads": 6})
    missing = {problem.path for problem in caught.value.problems}
    assert missing == {("num_hidden_layers",), ("vocab_size",), ("intermediate_size",)}


def test_a_dictionary_typed_by_hand_has_no_unknown_keys():
    llama = {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "vocab_size": 9,
        "intermediate_size": 8,
        "num_attention_heads": 6,
    }
    with pytest.raises(ConfigError, match="did you mean 'num_key_value_heads'"):
        ModelConfig.of(llama | {"num_key_value_head": 3})
    assert ModelConfig.of(llama | {"model_type": "llama", "rope_interleaved": False})  # as a config.json may have it
    for nothing in (None, 5, {}, [], "smollm2-135m"):
        with pytest.raises(ConfigError, match="a transformers LlamaConfig's|cannot be expressed"):
            ModelConfig.of(nothing)


@pytest.mark.parametrize(
    "given_fields",
    [
        {},
        {"num_key_value_heads": 2},
        {"head_dim": 10, "rms_norm_eps": 1e-3, "tie_word_embeddings": True},
        {"rope_theta": 500.0},
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 300.0}},
        {"rope_scaling": {"type": "linear", "factor": 2}, "rope_theta": 300.0},
        {"hidden_act": "gelu", "initializer_range": 0.3, "max_position_embeddings": 32},
    ],
)
def test_fields_that_are_left_out_are_transformers_own(given_fields):
    """A dictionary, and the LlamaConfig that transformers makes of it, are one model; and its logits."""
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "vocab_size": 9, "intermediate_size": 8}
    llama = {**sizes, "num_attention_heads": 6, **given_fields}
    config, stock = ModelConfig.of({**llama, "model_type": "llama"}), LlamaConfig(**llama)
    assert config == ModelConfig.of(stock)
    ours, theirs = build_model(config).eval(), StockLlama(stock).eval()
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.arange(8)[None]
    assert torch.equal(ours(tokens).logits, theirs(tokens).logits)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"attention_bias": "yes"}, ("attention_bias",)),
        ({"mlp_bias": 1}, ("mlp_bias",)),
        ({"attention_dropout": 0.1}, ("attention_dropout",)),
        ({"hidden_act": "relu2"}, ("hidden_act",)),
        ({"hidden_act": "gelu_new"}, ("hidden_act",)),
        ({"model_type": "mistral"}, ("model_type",)),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, ("rope_parameters", "rope_type")),
        ({"rope_parameters": {"rope_type": "linear"}}, ("rope_parameters", "factor")),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
            ("partial_rotary_factor",),
        ),
        ({"partial_rotary_factor": 1.5}, ("partial_rotary_factor",)),
        ({"quantization_config": {"quant_method": "fp8"}}, ("quantization_config",)),
        ({"tie_word_embeddings": "false"}, ("tie_word_embeddings",)),
        ({"num_attention_heads": 0}, ("num_attention_heads",)),
        ({"hidden_size": "64"}, ("hidden_size",)),
        ({"hidden_size": 63, "head_dim": None}, ("num_attention_heads",)),
        ({"hidden_act": []}, ("hidden_act",)),
        ({"rope_parameters": "x"}, ("rope_parameters",)),
        ({"rope_parameters": {"rope_type": []}}, ("rope_parameters", "rope_type")),
        ({"rope_parameters": {"rope_theta": "abc"}}, ("rotary", "theta")),
        ({"rope_scaling": {"type": "linear", "factor": "two"}}, ("rotary", "factor")),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "mscales": 2.0}}, ("rope_parameters", "mscales")),
        (
            {"rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}},
            ("rotary", "high_freq_factor"),
        ),
    ],
)
def test_a_llama_that_no_block_computes_is_refused(change, path):
    llama = LlamaConfig(num_attention_heads=8, hidden_size=64).to_dict() | {"rope_parameters": None} | change
    with pytest.raises(ConfigError) as caught:
        ModelConfig.of(llama)
    assert [problem.path for problem in caught.value.problems] == [path]
