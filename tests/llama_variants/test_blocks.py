"""Each block against its formula, written out again."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from llama_variants import (
    ConfigError,
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    build_model,
)
from llama_variants.blocks.norm import DynamicTanh, LayerNorm
from llama_variants.blocks.rotary import DynamicScaledRotaryEmbedding, Llama3RotaryEmbedding, PartialRotaryEmbedding
from llama_variants.registry import ATTENTION, EMBEDDING, HEAD, MLP, RESIDUAL
from tests.llama_variants.models import TINY, ids

X = torch.randn(2, 12, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def block(family, name: str, eps: float = 1e-5, **fields):
    config = TINY.override({family.family: {"type": name, **fields}, "norm": {"eps": eps}})
    return family[name](config).double()


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


def test_rotary_by_complex_numbers():
    """A pair is a complex number; turning it is a product with e^(i · position · frequency)."""
    x = torch.randn(1, 9, 16, dtype=torch.float64)
    frequencies = 100.0 ** (-torch.arange(8, dtype=torch.float64) / 8)
    turn = torch.polar(torch.ones(9, 8, dtype=torch.float64), torch.arange(9.0)[:, None].double() * frequencies)
    want = torch.complex(x[..., :8], x[..., 8:]) * turn
    got = LlamaRotaryEmbedding(dim=16, theta=100.0)(x)
    assert torch.allclose(got, torch.cat((want.real, want.imag), dim=-1), atol=1e-6)


def test_partial_rotation_leaves_the_rest_alone():
    x = torch.randn(2, 3, 5, 16)
    partial = PartialRotaryEmbedding(16, theta=100.0, fraction=0.25)
    assert torch.equal(partial(x)[..., 4:], x[..., 4:])
    assert torch.equal(partial(x)[..., :4], LlamaRotaryEmbedding(4, theta=100.0)(x[..., :4]))


def test_grouped_attention_contains_both_extremes():
    """gqa with a kv head for each query is mha; gqa with one kv head is mqa: same numbers, not only same shapes."""
    tokens = ids(TINY)
    for name, queries_per_kv in (("mha", 1), ("mqa", 6)):
        grouped = build_model(TINY.override({"attention": {"queries_per_kv": queries_per_kv}}))
        named = build_model(TINY.override({"attention": {"type": name}}))
        assert torch.equal(grouped(tokens).logits, named(tokens).logits)


def test_attention_by_the_formula():
    """Head by head, with the mask and the softmax written out."""
    attention = block(ATTENTION, "gqa")
    q, k, v = (projection(X) for projection in (attention.q_proj, attention.k_proj, attention.v_proj))
    later = torch.ones(12, 12).triu(1).bool()
    heads = []
    for h in range(6):
        turned = [attention.rotary(part[..., i * 8 : i * 8 + 8]) for part, i in ((q, h), (k, h // 3))]
        scores = (turned[0] @ turned[1].transpose(1, 2) / math.sqrt(8)).masked_fill(later, -math.inf)
        heads.append(scores.softmax(dim=-1) @ v[..., h // 3 * 8 : h // 3 * 8 + 8])
    want = torch.cat(heads, dim=-1) @ attention.o_proj.weight.T
    assert torch.allclose(attention(X), want, atol=1e-12)


def test_attention_stands_alone():
    alone = LlamaAttention(TINY)
    x = torch.randn(2, 7, 48)
    shared = LlamaAttention(TINY, rotary=LlamaRotaryEmbedding(8, theta=10_000.0))
    shared.load_state_dict(alone.state_dict())
    assert torch.equal(alone(x), shared(x))
    assert alone(x).shape == x.shape


@pytest.mark.parametrize("window", [1, 2, 5])
def test_a_sliding_window_sees_so_many_and_no_more(window):
    attention = block(ATTENTION, "sliding_window", window_size=window)
    changed = X.clone()
    changed[:, 4] += 1
    moved = (attention(changed) - attention(X)).abs().amax(dim=(0, 2)) > 0
    assert moved.nonzero().flatten().tolist() == list(range(4, min(4 + window, 12)))


def test_a_window_as_wide_as_the_text_is_the_control():
    control, sliding = block(ATTENTION, "gqa"), block(ATTENTION, "sliding_window", window_size=12)
    sliding.load_state_dict(control.state_dict())
    assert torch.equal(control(X), sliding(X))


def test_qk_norm_makes_scores_blind_to_scale():
    attention, control = block(ATTENTION, "qk_norm", eps=1e-12), block(ATTENTION, "gqa")
    control.load_state_dict(attention.state_dict(), strict=False)
    before, plain = attention(X), control(X)
    with torch.no_grad():
        for projection in (attention.q_proj, control.q_proj):
            projection.weight *= 7
    assert torch.allclose(attention(X), before, atol=1e-9)
    assert not torch.allclose(control(X), plain, atol=1e-2)


def test_gated_output_by_the_formula():
    gated, control = block(ATTENTION, "gated_output"), block(ATTENTION, "gqa")
    control.load_state_dict(gated.state_dict(), strict=False)
    control.o_proj = torch.nn.Identity()
    want = (control(X) * torch.sigmoid(X @ gated.g_proj.weight.T)) @ gated.o_proj.weight.T
    assert torch.allclose(gated(X), want, atol=1e-12)


ACTIVATIONS = {"gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))), "relu2": lambda x: x.clamp(min=0) ** 2}
GATES = {
    "swiglu": lambda x: x / (1 + torch.exp(-x)),
    "geglu": ACTIVATIONS["gelu"],
    "geglu_tanh": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "reglu": lambda x: x.clamp(min=0),
}


@pytest.mark.parametrize("name", [*ACTIVATIONS, *GATES])
def test_mlps_by_the_formula(name):
    mlp = block(MLP, name)
    hidden = X @ mlp.up_proj.weight.T
    hidden = GATES[name](X @ mlp.gate_proj.weight.T) * hidden if name in GATES else ACTIVATIONS[name](hidden)
    assert torch.allclose(mlp(X), hidden @ mlp.down_proj.weight.T, atol=1e-12)


def test_biases_are_added_to_every_projection():
    attention, mlp = block(ATTENTION, "gqa", bias=True), block(MLP, "swiglu", bias=True)
    control = block(ATTENTION, "gqa"), block(MLP, "swiglu")
    for biased, plain in zip((attention, mlp), control, strict=True):
        for name, linear in biased.named_children():
            if isinstance(linear, torch.nn.Linear):
                torch.nn.init.normal_(linear.bias)
                other = getattr(plain, name)
                other.weight = linear.weight
                other.register_forward_hook(lambda module, args, y, bias=linear.bias: y + bias)
        assert torch.allclose(biased(X), plain(X), atol=1e-12)


def test_llama3_keeps_fast_pairs_and_stretches_slow_ones():
    plain = LlamaRotaryEmbedding(64).inverse_frequencies()
    scaled = Llama3RotaryEmbedding(64, factor=8.0, original_max_position_embeddings=512).inverse_frequencies()
    turns = plain * 512 / (2 * math.pi)  # over the original context
    assert torch.equal(scaled[turns > 4], plain[turns > 4])
    assert torch.equal(scaled[turns < 1], plain[turns < 1] / 8)
    share = ((turns - 1) / 3)[(turns >= 1) & (turns <= 4)]
    assert len(share) > 2
    between = (turns >= 1) & (turns <= 4)
    assert torch.allclose(scaled[between], plain[between] * (share + (1 - share) / 8), rtol=1e-5)


def test_dynamic_angles_are_the_control_s_until_the_context_is_full():
    rotary = DynamicScaledRotaryEmbedding(16, factor=2.0, original_max_position_embeddings=32)
    x = torch.randn(1, 40, 16)
    assert torch.equal(rotary(x[:, :32]), LlamaRotaryEmbedding(16)(x[:, :32]))
    grown = LlamaRotaryEmbedding(16, theta=10_000.0 * (2 * 40 / 32 - 1) ** (16 / 14))
    assert torch.allclose(rotary(x), grown(x), atol=1e-5)


def test_norms_by_the_formula():
    x = X * 3 + 1
    rms, layer, tanh = (
        LlamaRMSNorm(48, eps=0.1).double(),
        LayerNorm(48, eps=0.1).double(),
        DynamicTanh(48, 0.7).double(),
    )
    for norm in (rms, layer, tanh):
        torch.nn.init.uniform_(norm.weight)
    for norm in (layer, tanh):
        torch.nn.init.uniform_(norm.bias)
    assert torch.allclose(rms(x), x / (x.pow(2).mean(-1, keepdim=True) + 0.1).sqrt() * rms.weight, atol=1e-12)
    centred = x - x.mean(-1, keepdim=True)
    want = centred / (centred.pow(2).mean(-1, keepdim=True) + 0.1).sqrt() * layer.weight + layer.bias
    assert torch.allclose(layer(x), want, atol=1e-12)
    assert torch.allclose(tanh(x), torch.tanh(0.7 * x) * tanh.weight + tanh.bias, atol=1e-7)  # 0.7 began as float32


def wired(name: str, layer) -> torch.Tensor:
    """The layer's output, from its parts."""
    a, m, n1, n2 = layer.self_attn, layer.mlp, layer.input_layernorm, getattr(layer, "post_attention_layernorm", None)
    if name == "parallel":
        return X + a(n1(X)) + m(n1(X))
    if name == "post":
        y = n1(X + a(X))
        return n2(y + m(y))
    if name == "sandwich":
        y = X + layer.attention_output_layernorm(a(n1(X)))
        return y + layer.mlp_output_layernorm(m(n2(y)))
    y = X + a(n1(X))
    return y + m(n2(y))


@pytest.mark.parametrize("name", RESIDUAL.names)
def test_residual_wiring_by_the_formula(name):
    layer = block(RESIDUAL, name)
    for i, module in enumerate(layer.modules()):
        if isinstance(module, LlamaRMSNorm):
            torch.nn.init.constant_(module.weight, 1 + i)  # or two norms could change places
    assert torch.allclose(layer(X), wired(name, layer), atol=1e-12)
    assert len([module for module in layer.modules() if isinstance(module, LlamaRMSNorm)]) == len(
        layer_config(name).norms
    )


def layer_config(name: str):
    return RESIDUAL.config_class(name)


def test_the_layer_takes_its_own_blocks():
    config = TINY.override({"layers": {"1": {"mlp": {"type": "gelu"}, "attention": {"type": "mha"}}}})
    assert LlamaDecoderLayer(config, 0).self_attn.k_proj.out_features == 16
    assert LlamaDecoderLayer(config, 1).self_attn.k_proj.out_features == 48


def test_soft_caps_and_scaled_embeddings_by_the_formula():
    head = block(HEAD, "untied_softcap", cap=0.5)
    assert torch.allclose(head(X), 0.5 * torch.tanh(F.linear(X, head.weight) / 0.5), atol=1e-12)
    assert head(X * 1000).abs().max() <= 0.5
    tokens = ids(TINY)
    embedding = block(EMBEDDING, "scaled")
    assert torch.allclose(embedding(tokens), embedding.weight[tokens] * math.sqrt(48), atol=1e-12)
    assert torch.allclose(block(EMBEDDING, "scaled", factor=3.0).eval()(tokens[:, :0]), torch.empty(2, 0, 48).double())


def test_a_class_does_not_pass_for_another_block():
    relu2, sandwich = TINY.override({"mlp": {"type": "relu2"}}), TINY.override({"residual": {"type": "sandwich"}})
    with pytest.raises(
        ConfigError, match=r"mlp.type: received 'relu2'; allowed: swiglu, which is what LlamaMLP computes"
    ):
        LlamaMLP(relu2)
    with pytest.raises(ConfigError, match=r"registry.RESIDUAL\['sandwich'\]"):
        LlamaDecoderLayer(sandwich)
    with pytest.raises(ConfigError, match="qk_norm"):
        LlamaAttention(TINY.override({"attention": {"type": "qk_norm"}}))
    assert LlamaAttention(TINY.override({"attention": {"type": "mqa"}})).k_proj.out_features == 8  # the same class


def test_public_mlp_takes_a_flat_dictionary():
    llama = {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "vocab_size": 101,
        "intermediate_size": 20,
        "num_attention_heads": 6,
    }
    assert LlamaMLP(llama).up_proj.out_features == 20
