"""The model against transformers' own models."""

from __future__ import annotations

import math
import re

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812
from transformers import LlamaConfig

from llama_variants import LlamaForCausalLM, LlamaModel, ModelConfig, build_model
from llama_variants.variant import LlamaVariantConfig
from tests.llama_variants.models import TINY, ids, shapes, stock


def rope(config: ModelConfig) -> dict:
    return {"rope_type": "default", "rope_theta": config.resolved()["rotary"]["theta"]}


@given(delta=shapes(), seed=st.integers(0, 2**40), time=st.integers(2, 40))
def test_logits_agree_with_transformers_in_float32(delta, seed, time):
    config = TINY.override(delta)
    ours = build_model(config, seed=seed).eval()
    theirs = stock(config, rope_parameters=rope(config))
    theirs.load_state_dict(ours.state_dict())  # strict: the names are the same
    tokens = ids(config, time=time)
    with torch.no_grad():
        got, want = ours(tokens, labels=tokens), theirs(tokens, labels=tokens)
    assert (got.logits - want.logits).abs().max() <= 1e-5
    assert got.loss.item() == pytest.approx(want.loss.item(), abs=1e-5)


@given(delta=shapes(), seed=st.integers(0, 2**40))
def test_logits_agree_with_transformers_in_float64(delta, seed):
    config = TINY.override(delta)
    ours = build_model(config, seed=seed, dtype=torch.float64).eval()
    theirs = stock(config, rope_parameters=rope(config)).double()
    theirs.load_state_dict(ours.state_dict())
    for module in theirs.modules():
        if type(module).__name__ == "LlamaRMSNorm":  # computes in float32 whatever it is given; ours does not
            module.forward = lambda x, m=module: (
                m.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + m.variance_epsilon)
            )
    tokens = ids(config)
    with torch.no_grad():
        assert (ours(tokens).logits - theirs(tokens).logits).abs().max() <= 1e-10


YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
PUBLISHED = {
    "linear scaling": (
        {"rotary": {"type": "rope_linear", "factor": 4.0}},
        "LlamaForCausalLM",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}},
    ),
    "YaRN": (
        {"rotary": {"type": "rope_yarn", **YARN}},
        "LlamaForCausalLM",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10_000.0, **YARN}},
    ),
    "NTK": (
        {"rotary": {"type": "rope_ntk", "factor": 4.0}},
        "LlamaForCausalLM",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0 * 4.0 ** (8 / 6)}},
    ),
    "GeGLU": ({"mlp": {"type": "geglu"}}, "LlamaForCausalLM", {"hidden_act": "gelu"}),
    "Qwen3's QK-norm": ({"attention": {"type": "qk_norm"}}, "Qwen3ForCausalLM", {}),
    "Mistral's sliding window": (
        {"attention": {"type": "sliding_window", "window_size": 5}},
        "MistralForCausalLM",
        {"sliding_window": 5},
    ),
    "SmolLM3's layers without positions": (
        {"num_hidden_layers": 4, "layers": {"every 2": {"rotary": {"type": "nope"}}}},
        "SmolLM3ForCausalLM",
        {"no_rope_layers": [1, 0, 1, 0]},
    ),
}


@pytest.mark.parametrize(("delta", "cls", "fields"), PUBLISHED.values(), ids=PUBLISHED.keys())
def test_blocks_are_those_of_published_models(delta, cls, fields):
    config = TINY.override(delta)
    ours = build_model(config).eval()
    theirs = stock(config, getattr(transformers, cls), **fields)
    theirs.load_state_dict(ours.state_dict())
    tokens = ids(config, time=40)
    with torch.no_grad():
        got, want = ours(tokens).logits, theirs(tokens).logits
    assert (got - want).abs().max() <= 1e-5
    with torch.no_grad():  # and the test can tell: the control with the same tensors is another model
        control = build_model(TINY.override({"num_hidden_layers": config.num_hidden_layers}))
        control.load_state_dict(ours.state_dict(), strict=False)
        assert (control(tokens).logits - want).abs().max() > 1e-3


def test_loss_is_the_shifted_cross_entropy_by_hand():
    model = build_model(TINY).eval()
    tokens = ids(TINY, batch=1, time=5)
    with torch.no_grad():
        out = model(tokens, labels=tokens)
    by_hand = [-F.log_softmax(out.logits[0, i], dim=0)[tokens[0, i + 1]].item() for i in range(4)]
    assert out.loss.item() == pytest.approx(sum(by_hand) / 4, rel=1e-6)
    assert model(tokens).loss is None


def test_print_shows_transformers_own_tree():
    """Of the real SmolLM2-135M: the same lines, but for the activation's class and what the rotary says of itself."""
    config = ModelConfig.preset("smollm2-135m")
    with torch.device("meta"):
        theirs = str(stock(config))
    ours = str(build_model(config, device="meta"))
    ours = ours.replace("SiLU()", "SiLUActivation()").replace("(dim=64, theta=10000)", "()")
    assert ours == theirs
    assert re.search(r"\(q_proj\): Linear\(in_features=576, out_features=576, bias=False\)", ours)


@pytest.mark.parametrize("form", ["ModelConfig", "dict", "LlamaConfig", "LlamaVariantConfig"])
def test_models_take_every_form_of_a_configuration(form):
    llama = LlamaVariantConfig.of(TINY).to_llama()
    config = {
        "ModelConfig": TINY,
        "dict": TINY.to_dict(),
        "LlamaConfig": llama,
        "LlamaVariantConfig": LlamaVariantConfig.of(TINY),
    }[form]
    assert isinstance(llama, LlamaConfig)
    model, inner = LlamaForCausalLM(config), LlamaModel(config)
    reference = build_model(TINY)
    inner.load_state_dict(reference.model.state_dict())
    tokens = ids(TINY)
    assert torch.equal(model(tokens).logits, reference(tokens).logits)  # the constructor draws the same values
    assert torch.equal(reference.lm_head(inner(tokens).last_hidden_state), reference(tokens).logits)


def test_wrong_arguments_are_named():
    model = build_model(TINY)
    tokens = ids(TINY)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(tokens, inputs_embeds=torch.zeros(2, 16, 48))
    with pytest.raises(ValueError, match=r"attention_mask must be \(batch, 16\).*received \(2, 15\)"):
        model(tokens, attention_mask=torch.ones(2, 15))


def test_the_loss_is_computed_in_float32():
    model = build_model(TINY, dtype=torch.bfloat16).eval()
    tokens = ids(TINY, batch=8)
    out = model(tokens, labels=tokens)
    assert out.loss.dtype == torch.float32
    want = F.cross_entropy(out.logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten())
    assert out.loss.item() == pytest.approx(want.item(), abs=1e-6)


def test_embeddings_may_be_given_and_few_logits_asked_for():
    model = build_model(TINY.override({"embedding": {"type": "scaled"}})).eval()
    tokens = ids(TINY)
    full = model(tokens).logits
    assert torch.equal(model(inputs_embeds=model.model.embed_tokens(tokens)).logits, full)
    assert torch.allclose(model(tokens, logits_to_keep=3).logits, full[:, -3:], atol=1e-6)
    assert torch.equal(model(tokens, return_dict=False)[0], full)


def test_first_loss_of_the_full_vocabulary():
    """ln 49152 = 10.80; std 1/24 with a tied head starts higher."""
    config = ModelConfig.preset("smollm2-135m").override({"num_hidden_layers": 2})
    tokens = ids(config, batch=2, time=64)
    with torch.no_grad():
        loss = build_model(config)(tokens, labels=tokens).loss.item()
    assert math.log(49_152) - 0.1 < loss < math.log(49_152) + 1.0
