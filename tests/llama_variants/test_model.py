"""The model against transformers' own Llama, and what must hold for every registered block."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812
from transformers import LlamaConfig
from transformers import LlamaForCausalLM as StockLlama

from llama_variants import LlamaAttention, LlamaRotaryEmbedding, ModelConfig, build_model
from tests.llama_variants.models import EVERY_BLOCK, TINY, shapes


@pytest.fixture(params=EVERY_BLOCK.values(), ids=EVERY_BLOCK.keys())
def config(request) -> ModelConfig:
    return request.param


def ids(config: ModelConfig, batch: int = 2, time: int = 16) -> torch.Tensor:
    return torch.randint(config.vocab_size, (batch, time), generator=torch.Generator().manual_seed(0))


def stock(config: ModelConfig) -> StockLlama:
    """transformers' Llama of the same shape."""
    blocks = config.resolved()
    return StockLlama(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=blocks["mlp"]["intermediate_size"],
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=blocks["attention"]["num_attention_heads"],
            num_key_value_heads=blocks["attention"]["num_key_value_heads"],
            head_dim=blocks["attention"]["head_dim"],
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=blocks["norm"]["eps"],
            rope_parameters={"rope_type": "default", "rope_theta": blocks["rotary"]["theta"]},
            tie_word_embeddings=blocks["head"]["type"] == "tied",
        )
    ).eval()


@given(config=shapes(), seed=st.integers(0, 2**40), time=st.integers(2, 40))
def test_logits_agree_with_transformers_in_float32(config, seed, time):
    ours = build_model(config, seed=seed).eval()
    theirs = stock(config)
    theirs.load_state_dict(ours.state_dict())  # strict: the names are the same
    tokens = ids(config, time=time)
    with torch.no_grad():
        got, want = ours(tokens, labels=tokens), theirs(tokens, labels=tokens)
    assert (got.logits - want.logits).abs().max() <= 1e-5
    assert got.loss.item() == pytest.approx(want.loss.item(), abs=1e-5)


@given(config=shapes(), seed=st.integers(0, 2**40))
def test_logits_agree_with_transformers_in_float64(config, seed):
    ours = build_model(config, seed=seed, dtype=torch.float64).eval()
    theirs = stock(config).double()
    theirs.load_state_dict(ours.state_dict())
    for module in theirs.modules():
        if type(module).__name__ == "LlamaRMSNorm":  # computes in float32 whatever it is given; ours does not
            module.forward = lambda x, m=module: (
                m.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + m.variance_epsilon)
            )
    tokens = ids(config)
    with torch.no_grad():
        assert (ours(tokens).logits - theirs(tokens).logits).abs().max() <= 1e-10


def test_no_token_sees_a_later_one(config):
    model = build_model(config, dtype=torch.float64).eval()
    tokens = ids(config)
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % config.vocab_size
    with torch.no_grad():
        moved = (model(tokens).logits - model(changed).logits).abs().amax(dim=(0, 2))
    assert (moved[:9] == 0).all()
    assert (moved[9:] > 0).all()


def test_every_parameter_gets_a_gradient(config):
    model = build_model(config)
    tokens = ids(config)
    model(tokens, labels=tokens).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_row_does_not_depend_on_its_batch(config):
    model = build_model(config, dtype=torch.float64).eval()
    tokens = ids(config, batch=3)
    with torch.no_grad():
        together, alone = model(tokens).logits[1], model(tokens[1:2]).logits[0]
    assert torch.allclose(together, alone, atol=1e-12, rtol=0)


def test_first_loss_is_near_chance(config):
    tokens = ids(config, batch=8, time=32)
    loss = build_model(config)(tokens, labels=tokens).loss.item()
    assert math.log(config.vocab_size) - 0.1 < loss < math.log(config.vocab_size) + 1.0


def test_loss_is_the_shifted_cross_entropy_by_hand():
    model = build_model(TINY).eval()
    tokens = ids(TINY, batch=1, time=5)
    with torch.no_grad():
        out = model(tokens, labels=tokens)
    by_hand = [-F.log_softmax(out.logits[0, i], dim=0)[tokens[0, i + 1]].item() for i in range(4)]
    assert out.loss.item() == pytest.approx(sum(by_hand) / 4, rel=1e-6)
    assert model(tokens).loss is None


def test_grouped_attention_contains_both_extremes():
    """gqa with a kv head for each query is mha; gqa with one kv head is mqa: same numbers, not only same shapes."""
    tokens = ids(TINY)
    for name, queries_per_kv in (("mha", 1), ("mqa", 6)):
        grouped = build_model(TINY.override({"attention": {"queries_per_kv": queries_per_kv}}))
        named = build_model(TINY.override({"attention": {"type": name}}))
        assert torch.equal(grouped(tokens).logits, named(tokens).logits)


@given(shift=st.integers(0, 500), near=st.integers(0, 30), theta=st.sampled_from([100.0, 1e4, 1e6]))
def test_rotary_scores_depend_on_distance_only(shift, near, theta):
    rotary = LlamaRotaryEmbedding(dim=16, theta=theta)
    q, k = torch.randn(2, 1, 1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def score(i: int, j: int) -> float:
        turned = rotary(q, torch.tensor([[i]])), rotary(k, torch.tensor([[j]]))
        return (turned[0] * turned[1]).sum().item()

    assert score(near, 0) == pytest.approx(score(near + shift, shift), abs=1e-4)  # angles are float32


def test_rotary_keeps_lengths_and_takes_both_layouts():
    rotary = LlamaRotaryEmbedding(dim=8)
    x = torch.randn(2, 3, 5, 8)
    assert torch.allclose(rotary(x).norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    assert torch.equal(rotary(x)[:, 1], rotary(x[:, 1]))
    assert torch.equal(rotary(x)[:, :, 0], x[:, :, 0])  # position 0 is not turned
    with pytest.raises(ValueError, match="even"):
        LlamaRotaryEmbedding(dim=7)


def test_attention_stands_alone():
    config = TINY
    alone = LlamaAttention(config)
    x = torch.randn(2, 7, config.hidden_size)
    shared = LlamaAttention(config, rotary=LlamaRotaryEmbedding(8, theta=10_000.0))
    shared.load_state_dict(alone.state_dict())
    assert torch.equal(alone(x), shared(x))
    assert alone(x).shape == x.shape
