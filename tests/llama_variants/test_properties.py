"""What must hold for every registered block, and for patterns over layers."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from llama_variants import LlamaForCausalLM, LlamaMLP, ModelConfig, build_model
from llama_variants.blocks import attention
from llama_variants.pretrained import CACHE
from tests.llama_variants.models import EVERY_MODEL, TINY, ids


@pytest.fixture(params=EVERY_MODEL.values(), ids=EVERY_MODEL.keys())
def config(request) -> ModelConfig:
    return request.param


def test_no_token_sees_a_later_one(config):
    model = build_model(config, dtype=torch.float64).eval()
    tokens = ids(config)
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % config.vocab_size
    with torch.no_grad():
        moved = (model(tokens).logits - model(changed).logits).abs().amax(dim=(0, 2))
    assert (moved[:9] == 0).all()
    assert (moved[9:] > 0).all()


@pytest.mark.parametrize(
    ("device", "dtype", "takes"),
    [
        ("cuda", torch.bfloat16, True),
        ("cuda", torch.float16, True),
        ("cuda", torch.float32, False),  # flash and cuDNN take no float32, and the efficient kernel no groups
        ("cuda", torch.float64, False),
        ("cpu", torch.float32, True),
    ],
)
def test_grouped_heads_are_repeated_where_no_fast_kernel_takes_them(device, dtype, takes):
    for masked in (False, True):
        assert attention.takes_groups(torch.device(device), dtype, masked) == takes


def test_masked_groups_are_repeated_where_kernels_are_deterministic():
    """cuDNN's kernel is none, flash's takes no mask, and torch 2.11's efficient one no groups."""
    card = torch.device("cuda")
    torch.use_deterministic_algorithms(True)
    try:
        assert not attention.takes_groups(card, torch.bfloat16, masked=True)
        assert attention.takes_groups(card, torch.bfloat16, masked=False)
    finally:
        torch.use_deterministic_algorithms(False)


def test_repeated_heads_compute_the_same(config, monkeypatch):
    model, tokens = build_model(config, dtype=torch.float64).eval(), ids(config)
    with torch.no_grad():
        shared = model(tokens).logits
        monkeypatch.setattr(attention, "takes_groups", lambda device, dtype, masked: False)
        assert torch.allclose(model(tokens).logits, shared, atol=1e-12, rtol=0)


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


def test_float32_is_near_float64(config):
    """Rounding of a few layers: logits within 2^-17 of their own size, a hundred units in float32's last place."""
    tokens = ids(config, time=32)
    with torch.no_grad():
        single, double = (
            build_model(config, dtype=dtype).eval()(tokens).logits.double() for dtype in (torch.float32, torch.float64)
        )
    assert (single - double).abs().max() < 2**-17 * double.abs().max()


def test_bfloat16_autocast_runs_and_is_near(config):
    tokens = ids(config)
    model = build_model(config).eval()
    with torch.no_grad():
        exact = model(tokens).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(tokens).logits
    assert (rounded.float() - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize(("layers", "seen"), [({}, False), ({"1": {"attention": {"type": "gqa"}}}, True)])
@pytest.mark.parametrize("padded", [False, True])
def test_each_layer_has_the_mask_of_its_own_window(layers, seen, padded):
    """Two layers with windows of 5 carry a token 8 positions; one layer that sees all carries it to the end."""
    config = TINY.override({"attention": {"type": "sliding_window", "window_size": 5}, "layers": layers})
    model = build_model(config, dtype=torch.float64).eval()
    tokens, mask = ids(config, time=40), torch.ones(2, 40, dtype=torch.long)
    mask[:, :2] = 0 if padded else 1
    changed = tokens.clone()
    changed[:, 3] = (changed[:, 3] + 1) % config.vocab_size
    with torch.no_grad():
        moved = model(tokens, attention_mask=mask).logits != model(changed, attention_mask=mask).logits
    reached = moved.any(dim=-1).all(dim=0).nonzero().flatten().tolist()
    assert reached == list(range(3, 40 if seen else 12))


def left_padded(config: ModelConfig, pad: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Two prompts, the second shorter by ``pad`` and padded on its left; and their mask."""
    tokens, mask = ids(config, time=10), torch.ones(2, 10, dtype=torch.long)
    tokens[1, :pad], mask[1, :pad] = 0, 0
    return tokens, mask


def test_generation_with_a_cache_is_generation_without(config):
    """Greedy, 24 tokens, a batch of two with left padding; in float64, where no tie decides."""
    model = build_model(config, dtype=torch.float64).eval()
    tokens, mask = left_padded(config)
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    cached, plain = (
        model.generate(tokens, attention_mask=mask, use_cache=use_cache, **options) for use_cache in (True, False)
    )
    assert cached.shape == (2, 34)
    assert torch.equal(cached, plain)
    alone = model.generate(tokens[1:, 3:], **options)  # padding says nothing
    assert torch.equal(cached[1:, 3:], alone)


def test_logits_with_a_cache_are_those_without(config):
    """Piece by piece (a prompt, a token, several tokens) as in one go: not only the same greedy choice."""
    model = build_model(config, dtype=torch.float64).eval()
    tokens = ids(config, time=20)
    with torch.no_grad():
        want, cache, got = model(tokens).logits, None, []
        for piece in tokens.split([7, 1, 9, 3], dim=1):
            out = model(piece, cache=cache, use_cache=True)
            cache = out[CACHE]
            got.append(out.logits)
    assert torch.allclose(torch.cat(got, dim=1), want, atol=1e-10, rtol=0)
    assert cache.get_seq_length() == 20


def test_left_padding_changes_nothing(config):
    model = build_model(config, dtype=torch.float64).eval()
    tokens, mask = left_padded(config)
    with torch.no_grad():
        padded, alone = model(tokens, attention_mask=mask).logits[1, 3:], model(tokens[1:, 3:]).logits[0]
    # Angles are float32: a shift by three positions turns them by as much as their last bit.
    assert (padded - alone).abs().max() < 1e-5 * alone.abs().max()
    assert padded.isfinite().all()


def reloaded(model: LlamaForCausalLM, tmp_path) -> torch.nn.Module:
    model.save_pretrained(tmp_path)
    return AutoModelForCausalLM.from_pretrained(tmp_path)


WAYS = {
    "built": lambda model, _: model,
    "copied": lambda model, _: copy.deepcopy(model),
    "moved": lambda model, _: model.to("cpu", torch.float64),
    "reloaded": reloaded,
    "constructed": lambda model, _: LlamaForCausalLM(model.config),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("head", ["tied", "untied", "tied_softcap", "untied_softcap"])
def test_tied_heads_stay_tied_and_untied_ones_apart(way, head, tmp_path):
    """By writing one weight and reading the other."""
    model = WAYS[way](build_model(TINY.override({"head": {"type": head}})), tmp_path)
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(0.25)
    assert bool((model.lm_head.weight == 0.25).all()) == head.startswith("tied")
    assert model.lm_head.weight.is_meta is False


def test_meta_device_keeps_the_tie():
    model = build_model(TINY, device="meta")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.to_empty(device="cpu")
    model.tie_weights()
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    "delta", [{}, {"head": {"type": "untied_softcap", "cap": 0.5}}, {"embedding": {"type": "scaled"}}]
)
def test_resizing_the_vocabulary_keeps_the_blocks(delta, tmp_path):
    model = build_model(TINY.override(delta)).eval()
    before = model(ids(TINY)).logits
    model.resize_token_embeddings(110, mean_resizing=False)
    after = model(ids(TINY)).logits
    assert after.shape[-1] == 110
    assert torch.allclose(after[..., :101], before, atol=1e-6)  # a cap or a factor would show, were it lost
    assert torch.equal(reloaded(model, tmp_path)(ids(TINY)).logits, after)


def test_shapes_are_checked_in_tests():
    """The annotations are enforced here (and nowhere else): a matrix where a batch belongs is caught."""
    with pytest.raises(Exception, match="b t d"):
        LlamaMLP(TINY)(torch.zeros(3, 48))
