"""Name-seeded initialisation: what two variants share starts bit-identical."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from llama_variants import ConfigError, build_model
from llama_variants.blocks.init import _fill_normal, normal_by_name, perturb
from llama_variants.model import LlamaForCausalLM
from llama_variants.registry import HEAD
from llama_variants.variant import LlamaVariantConfig
from tests.llama_variants.models import EVERY_MODEL, TINY


@pytest.mark.parametrize("variant", EVERY_MODEL.values(), ids=EVERY_MODEL.keys())
def test_shared_tensors_start_bit_identical(variant):
    control, other = (build_model(config, seed=3).state_dict() for config in (TINY, variant))
    shared = [name for name in control if name in other and control[name].shape == other[name].shape]
    assert len(shared) >= len(control) - 3 * TINY.num_hidden_layers  # a block may reshape or rename its own
    for name in shared:
        if name == "lm_head.weight":  # tied to the embedding in one, its own in the other
            continue
        if variant.init == TINY.init:
            assert torch.equal(control[name], other[name]), name
        else:  # the same draw at another scale
            assert torch.allclose(control[name] / control[name].norm(), other[name] / other[name].norm()), name


def test_a_block_may_not_shift_another():
    """Every combination of what was already there and something new: no tensor moves."""
    before = build_model(TINY, seed=1).state_dict()
    delta = {
        "attention": {"type": "gated_output"},
        "residual": {"type": "sandwich"},
        "layers": {"1": {"mlp": {"type": "gelu"}}},
    }
    after = build_model(TINY.override(delta), seed=1).state_dict()
    assert len(after) > len(before) - 1
    assert all(torch.equal(after[name], before[name]) for name in after if name in before)


@pytest.mark.parametrize("delta", [{"mlp": {"type": name}} for name in ("swiglu", "relu2", "gelu")])
def test_scaled_init_shrinks_what_writes_to_the_stream(delta):
    control, scaled = (
        build_model(TINY.override(delta | {"init": {"type": name}})).state_dict() for name in ("normal", "scaled")
    )
    for name in control:
        writes = name.endswith(("o_proj.weight", "down_proj.weight"))
        factor = 1 / math.sqrt(2 * TINY.num_hidden_layers) if writes else 1.0
        assert torch.allclose(scaled[name], control[name] * factor), name


def test_smollm2_init_goes_with_the_width():
    weight = build_model(TINY.override({"hidden_size": 100, "init": {"type": "smollm2"}})).model.layers[0].mlp.up_proj
    assert weight.weight.std().item() == pytest.approx(0.1, rel=0.02)
    normal = TINY.override({"init": {"std": 1 / math.sqrt(48)}})
    assert normal.resolved() == TINY.override({"init": {"type": "smollm2"}}).resolved()


def test_seed_and_name_decide_and_nothing_else():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = build_model(TINY, seed=7).state_dict()
    assert torch.equal(torch.get_rng_state(), before)  # the global generator is left alone
    again, other = build_model(TINY, seed=7).state_dict(), build_model(TINY, seed=8).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    layers = [first[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(2)]
    assert not torch.equal(*layers)
    deeper = build_model(TINY.override({"num_hidden_layers": 4}), seed=7).state_dict()
    assert all(torch.equal(first[name], deeper[name]) for name in first)


def test_values_are_standard_normal_and_pinned():
    values = normal_by_name((400, 500), seed=0, name="x")
    assert values.mean().abs() < 0.01
    assert abs(values.std() - 1) < 0.01
    # Golden: the first values on any platform; they change only with the generator, which would void every run.
    golden = torch.tensor([-1.2149710655212402, 2.450166702270508, 0.37810400128364563])
    assert torch.equal(normal_by_name((3,), seed=0, name="model.norm"), golden)


def test_std_is_the_configured_one():
    weight = build_model(TINY.override({"vocab_size": 5000, "init": {"std": 0.3}})).model.embed_tokens.weight
    assert weight.std().item() == pytest.approx(0.3, rel=0.01)


def test_constructor_agrees_with_build():
    built = build_model(TINY, seed=5)
    constructed = LlamaForCausalLM(LlamaVariantConfig(variant=TINY.to_dict(), seed=5))
    assert all(torch.equal(a, b) for a, b in zip(built.parameters(), constructed.parameters(), strict=True))


def test_what_was_loaded_stays_and_what_is_missing_is_drawn(tmp_path):
    """A checkpoint with gains but no biases, and one without slopes: no memory is left as it was found."""
    build_model(TINY, seed=1).save_pretrained(tmp_path)
    layer_norm = LlamaVariantConfig(variant=TINY.override({"norm": {"type": "layer"}}).to_dict())
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, config=layer_norm)
    assert all((p == 0).all() for name, p in loaded.named_parameters() if name.endswith("norm.bias"))
    dyt = LlamaVariantConfig(variant=TINY.override({"norm": {"type": "dyt"}}).to_dict())
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, config=dyt)
    assert all((p == 0.5).all() for name, p in loaded.named_parameters() if name.endswith("alpha"))
    for name, value in build_model(TINY, seed=1).state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.parametrize("change", [{"tie_word_embeddings": False}, {"num_hidden_layers": 1}, {"hidden_size": 24}])
def test_a_field_that_contradicts_the_blocks_is_refused(change, tmp_path):
    model = build_model(TINY.override({"norm": {"type": "layer"}}))
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="change `variant` instead"):
        LlamaForCausalLM.from_pretrained(tmp_path, **change)


def test_buffers_and_odd_parameters_of_a_block_are_as_its_class_made_them(monkeypatch):
    """A head with a buffer and a gain of its own: neither is left as memory was found."""

    class Odd(HEAD["tied"]):
        def __init__(self, config):
            super().__init__(config)
            self.register_buffer("table", torch.full((3,), 0.5), persistent=False)
            self.gain = torch.nn.Parameter(torch.full((1,), 7.0))

        def init_parameters(self):
            torch.nn.init.constant_(self.gain, 2.0)

    monkeypatch.setitem(HEAD._entries, "tied", Odd)
    model = build_model(TINY)
    assert (model.lm_head.table == 0.5).all()
    assert model.lm_head.gain.item() == 2.0
    assert model.lm_head.weight is model.model.embed_tokens.weight
    monkeypatch.delattr(Odd, "init_parameters")
    with pytest.raises(TypeError, match="lm_head.*has parameters but no init_parameters"):
        build_model(TINY)
    monkeypatch.undo()
    assert torch.equal(model.model.embed_tokens.weight, build_model(TINY).lm_head.weight)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_no_bit(threads):
    """Of nothing: every value is its own draw times the spread, in whatever memory it lies."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = build_model(TINY.override({"head": {"type": "untied"}}), seed=3)
    finally:
        torch.set_num_threads(before)
    matrices = {name: p for name, p in model.named_parameters() if p.dim() == 2}
    assert len(matrices) == 2 + 7 * TINY.num_hidden_layers
    for name, p in matrices.items():
        expected = normal_by_name(tuple(p.shape), 3, name) * TINY.init.std
        assert torch.equal(p, expected), name
        turned = torch.empty(p.shape[::-1]).t()  # not contiguous
        _fill_normal(turned, TINY.init.std, 3, name)
        half = torch.empty(p.shape, dtype=torch.bfloat16)
        _fill_normal(half, TINY.init.std, 3, name)
        assert torch.equal(turned, expected)
        assert torch.equal(half, expected.bfloat16())


TWIN = 2**-20
"""How far a twin's initial values are moved, relatively: in the last bits of a float32."""


def twin(model: LlamaForCausalLM, seed: int, relative: float = TWIN) -> dict[str, torch.Tensor]:
    perturb(model, relative, seed)
    return model.state_dict()


@pytest.mark.parametrize("variant", EVERY_MODEL.values(), ids=EVERY_MODEL.keys())
def test_a_twin_starts_in_the_last_bits_of_the_run(variant):
    """Whatever the blocks: every parameter, scalars and biases too, by at most 2^-20 and the product's rounding."""
    before = build_model(variant, seed=3).state_dict()
    after = twin(build_model(variant, seed=3), seed=3)
    for name, value in before.items():
        moved, size = (after[name].double() - value.double()).abs(), value.double().abs()
        assert (moved <= size * (TWIN + 2**-23)).all(), name
        if size.any():
            assert moved.any(), name


@given(
    shape=st.sampled_from([(), (1,), (7,), (3, 5)]),
    seed=st.integers(0, 2**31),
    relative=st.sampled_from([2.0**-23, TWIN, 1e-3]),
)
def test_a_twin_is_a_function_of_seed_and_name_and_leaves_zeros(shape, seed, relative):
    def made(*names: str, seed: int = seed) -> dict[str, torch.Tensor]:
        ones = nn.ParameterDict({name: nn.Parameter(torch.ones(1024, *shape)) for name in names})
        zero = nn.ParameterDict({"zero": nn.Parameter(torch.zeros(shape))})
        model = nn.ModuleDict({"ones": ones, "zero": zero})
        perturb(model, relative, seed)
        assert not model["zero"]["zero"].any()
        return {name: ones[name].detach() for name in names}

    first, alone = made("a", "b"), made("b")
    assert torch.equal(first["b"], alone["b"])  # nothing else of the model bears on it
    assert not torch.equal(first["a"], first["b"])
    assert not torch.equal(first["b"], made("b", seed=seed + 1)["b"])
    assert (first["a"] - 1).abs().max() <= relative
    if relative > 2**-21:  # below, some of what is drawn rounds to no move at all
        share = (first["a"] > 1).double().mean().item()
        assert share == pytest.approx(0.5, abs=0.1)  # to either side


def test_no_perturbation_moves_no_bit():
    model = build_model(TINY, seed=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = twin(model, seed=3, relative=0.0)
    assert all(torch.equal(after[name], value) for name, value in before.items())
