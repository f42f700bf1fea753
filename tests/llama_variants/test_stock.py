"""Llama checkpoints in use, in and out: what transformers' Llama computes from them, or a refusal that says why."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers import LlamaForCausalLM as StockLlama

from llama_variants import ConfigError, LlamaForCausalLM, ModelConfig, build_model, load_pretrained
from llama_variants.variant import LlamaVariantConfig
from tests.llama_variants.models import TINY, ids

SIZES = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
VARIANT = TINY.override({"mlp": {"type": "relu2"}})
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def rope(**fields) -> dict:
    return {"rope_parameters": {"rope_theta": 10_000.0, **fields}}


LOADED = {
    "llama3": rope(rope_type="llama3", **LLAMA3),
    "llama3, theta 500,000": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500_000.0, **LLAMA3}},
    "dynamic": rope(rope_type="dynamic", factor=2.0),
    "YaRN, attention_factor": rope(**YARN, attention_factor=1.3),
    "YaRN, both scales": rope(**YARN, mscale=1.0, mscale_all_dim=0.5),
    "YaRN, one scale": rope(**YARN, mscale=0.7),
    "YaRN, ramp not rounded": rope(**YARN, truncate=False),
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "both, tied": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "tanh GELU": {"hidden_act": "gelu_pytorch_tanh"},
    "ReLU": {"hidden_act": "relu"},
    "all of it": {**rope(rope_type="llama3", **LLAMA3), "attention_bias": True, "mlp_bias": True, "hidden_act": "relu"},
}


def theirs(**fields) -> StockLlama:
    """A stock model whose every parameter is noise, biases and gains too."""
    model = StockLlama(LlamaConfig(**SIZES, pad_token_id=None, **fields)).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model


@torch.no_grad()
@pytest.mark.parametrize("fields", LOADED.values(), ids=LOADED.keys())
def test_loaded_as_transformers_computes_it_and_written_as_it_was(fields, tmp_path):
    """To positions beyond the original context, where scalings differ; and out again as a stock model."""
    want = theirs(**fields)
    want.save_pretrained(tmp_path)
    tokens = ids(TINY, time=90)
    logits = want(tokens).logits
    ours = load_pretrained(tmp_path)
    assert (ours(tokens).logits - logits).abs().max() <= 2e-5 * logits.abs().max()
    assert torch.equal(ours(tokens[:, :30]).logits, type(want).from_pretrained(tmp_path)(tokens[:, :30]).logits)
    ours.save_pretrained(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(again) is StockLlama
    assert torch.equal(again(tokens[:, :30]).logits, ours(tokens[:, :30]).logits)
    plain = build_model(ours.config.blocks.override({"rotary": {"type": "rope"}, "mlp": {"type": "swiglu"}}))
    plain.load_state_dict(ours.state_dict(), strict=False)
    if not fields.keys() <= {"attention_bias", "mlp_bias", "tie_word_embeddings"}:
        assert (plain(tokens).logits - logits).abs().max() > 1e-3  # the test can tell
    assert ours.config.blocks.num_params == sum(p.numel() for p in ours.parameters())


def test_a_cache_of_dynamic_angles_is_that_of_the_stock_model():
    """Generation past the original context: each token is turned by the angles of its time."""
    stock = theirs(**rope(rope_type="dynamic", factor=2.0))
    ours = LlamaForCausalLM(stock.config).eval()
    ours.load_state_dict(stock.state_dict())
    tokens = ids(TINY, time=60)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(ours.generate(tokens, **options), stock.generate(tokens, **options))


def test_the_older_spelling_of_a_scaling():
    written = {**SIZES, "rope_theta": 10_000.0, "rope_scaling": {"type": "llama3", **LLAMA3}}
    now = {**SIZES, **rope(rope_type="llama3", **LLAMA3)}
    assert ModelConfig.of(written) == ModelConfig.of(now)
    assert ModelConfig.of(now).rotary.type == "rope_llama3"


@pytest.mark.parametrize("place", ["top", "rope_parameters"])
def test_a_partial_factor_is_ignored_as_transformers_ignores_it_and_said(place):
    part = {"partial_rotary_factor": 0.5}
    fields = part if place == "top" else rope(rope_type="default", **part)
    want = theirs(**fields)
    with pytest.warns(UserWarning, match="partial_rotary_factor: 0.5 is ignored.*rope_partial"):
        ours = LlamaForCausalLM(want.config).eval()
    ours.load_state_dict(want.state_dict())
    assert torch.equal(ours(ids(TINY)).logits, want(ids(TINY)).logits)


REFUSED = {
    "longrope": (
        rope(rope_type="longrope", factor=4.0, short_factor=[1.0] * 4, long_factor=[2.0] * 4),
        r"rope_type: received 'longrope'.*one of default, linear, dynamic, yarn, llama3",
    ),
    "another activation": (
        {"hidden_act": "gelu_new"},
        "hidden_act: received 'gelu_new'.*'gelu_pytorch_tanh' or 'relu'",
    ),
    "dropout": ({"attention_dropout": 0.1}, "attention_dropout: received 0.1"),
    "a part of a scaled head": (
        {"partial_rotary_factor": 0.5, **rope(rope_type="linear", factor=2.0)},
        "partial_rotary_factor: received 0.5; allowed: 1 with rope_type 'linear'",
    ),
    "llama3 without its ends": (
        rope(rope_type="llama3", factor=8.0),
        r"(?s)high_freq_factor: received nothing.*low_freq_factor: received nothing",
    ),
    "dynamic with a context of its own": (
        rope(rope_type="dynamic", factor=2.0, original_max_position_embeddings=32),
        r"original_max_position_embeddings: received 32; allowed: max_position_embeddings \(64\)",
    ),
}


@pytest.mark.parametrize(("fields", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_no_block_computes_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig.of({**SIZES, "model_type": "llama", **fields})


def edited(folder, config: ModelConfig, edit) -> dict:
    """A saved model whose file of weights was changed by ``edit``; what it holds then."""
    build_model(config).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return weights


def other_head(weights: dict) -> None:
    weights["lm_head.weight"] = torch.randn(101, 48)


TIED = {"stock": TINY, "variant": VARIANT, "capped": TINY.override({"head": {"type": "tied_softcap"}})}


@pytest.mark.parametrize("load", [load_pretrained, LlamaForCausalLM.from_pretrained], ids=["package", "class"])
@pytest.mark.parametrize("config", TIED.values(), ids=TIED.keys())
def test_a_head_that_is_not_the_one_that_the_configuration_ties_is_followed(config, load, tmp_path):
    """By transformers' rule, and said; saved and loaded again it stays."""
    weights = edited(tmp_path, config, other_head)
    with pytest.warns(UserWarning, match="lm_head.weight is in the checkpoint and differs"):
        model = load(tmp_path).eval()
    assert torch.equal(model.lm_head.weight, weights["lm_head.weight"])
    assert torch.equal(model.model.embed_tokens.weight, weights["model.embed_tokens.weight"])
    logits = model(ids(TINY)).logits
    if config is TINY:
        assert torch.equal(StockLlama.from_pretrained(tmp_path)(ids(TINY)).logits, logits)
    assert model.config.blocks.head.type == config.head.type.replace("tied", "untied")
    assert model.config.blocks.num_params == model.num_parameters()
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(load_pretrained(tmp_path / "again")(ids(TINY)).logits, logits)


def same_head(weights: dict) -> None:
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()


def head_alone(weights: dict) -> None:
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")


@pytest.mark.filterwarnings("error:lm_head.weight")
@pytest.mark.parametrize("edit", [same_head, head_alone])
def test_a_head_that_is_the_embedding_stays_tied(edit, tmp_path):
    weights = edited(tmp_path, VARIANT, edit)
    model = load_pretrained(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, weights["lm_head.weight"])


@pytest.mark.parametrize("config", [TINY, VARIANT], ids=["stock", "variant"])
@pytest.mark.parametrize(
    ("name", "shape"), [("model.layers.0.mlp.up_proj.weight", (7, 48)), ("model.norm.weight", (1,))]
)
def test_weights_of_other_shapes_are_named(config, name, shape, tmp_path):
    edited(tmp_path, config, lambda weights: weights.update({name: torch.zeros(shape)}))
    with pytest.raises(ConfigError, match=rf"mismatched_keys: received {name} \({shape[0]},.* instead of \("):
        load_pretrained(tmp_path)


def test_a_single_file_over_a_sharded_model_leaves_no_index(tmp_path):
    build_model(VARIANT, seed=1).save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    model = build_model(VARIANT, seed=2).eval()
    model.save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]
    assert torch.equal(load_pretrained(tmp_path)(ids(TINY)).logits, model(ids(TINY)).logits)


def test_a_sharded_model_over_a_single_file_is_the_one_that_is_loaded(tmp_path):
    build_model(TINY, seed=1).save_pretrained(tmp_path)
    model = build_model(VARIANT, seed=2).eval()
    for size in ("20KB", "40KB"):  # and fewer shards over more
        model.save_pretrained(tmp_path, max_shard_size=size)
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert {file.name for file in tmp_path.glob("*.safetensors")} == set(index["weight_map"].values())
        assert torch.equal(load_pretrained(tmp_path)(ids(TINY)).logits, model(ids(TINY)).logits)


def test_a_path_that_is_a_file_is_an_error(tmp_path):
    file = tmp_path / "model"
    file.write_text("mine")
    with pytest.raises(NotADirectoryError, match="model is a file; a model is saved into a folder"):
        build_model(TINY).save_pretrained(file)
    assert file.read_text() == "mine"


@pytest.mark.parametrize("ids_in_use", [{"eos_token_id": 90}, {"eos_token_id": [3, 90], "bos_token_id": 1}])
def test_a_vocabulary_keeps_its_special_tokens(ids_in_use):
    config = LlamaVariantConfig(variant=TINY.to_dict(), **ids_in_use)
    model = LlamaForCausalLM(config)
    for size in ({"new_num_tokens": 50}, {"new_num_tokens": 80, "pad_to_multiple_of": 8}):
        with pytest.raises(ValueError, match="too small: eos_token_id is 90; give at least 91"):
            model.resize_token_embeddings(**size)
    assert model.config.vocab_size == model.lm_head.out_features == 101
    assert model.resize_token_embeddings(91, mean_resizing=False).num_embeddings == 91
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with pytest.raises(ValueError, match="a vocabulary of 0 tokens is too small"):
        build_model(TINY).resize_token_embeddings(0)


def test_a_damaged_index_of_an_earlier_save_goes(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text("{")
    model = build_model(TINY)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors.index.json").exists()
    assert load_pretrained(tmp_path).config.variant == model.config.variant


@pytest.mark.parametrize("stock", [True, False])
def test_a_tied_head_of_another_shape_is_named(tmp_path, stock):
    config = TINY if stock else TINY.override({"mlp": {"type": "relu2"}})

    def shorten(weights: dict) -> None:
        weights["lm_head.weight"] = torch.zeros(7, config.hidden_size)

    edited(tmp_path, config, shorten)
    with pytest.raises(ConfigError, match=r"lm_head\.weight"):
        load_pretrained(tmp_path)
