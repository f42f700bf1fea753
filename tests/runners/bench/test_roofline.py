"""The least time of a step: beside hand arithmetic, torch's counter of FLOPs, and what must hold of any roofline."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from llama_variants import build_model
from runners.bench.roofline import layer_bytes, roofline
from runners.planning.bases import load_base
from tests.conftest import ROOT
from tests.llama_variants.models import TINY, ids, shapes

_, RECIPE = load_base(ROOT / "experiments/base/smollm2-135m.yaml")
H200 = {"flops": 989e12, "bandwidth": 4.8e12}


def test_the_bytes_of_a_layer_are_those_counted_by_hand():
    """Width 576, 9 and 3 heads of 64, MLP 1536; float32 has 4 bytes, bfloat16 2."""
    forward = {
        "first norm": 576 * (4 + 2),
        "rotation": 2 * (576 + 192) * 2,
        "second norm": 576 * (4 + 2 + 2),
        "activation": 3 * 1536 * 2,
        "sums": 576 * (4 + 2 + 2 + 4),
    }
    backward = {
        "gradient in bfloat16": 576 * (4 + 2),
        "activation": 5 * 1536 * 2,
        "second norm": 576 * (4 + 2 + 2 + 4 + 4 + 2),
        "rotation": 2 * (576 + 2 * 192) * 2,
        "first norm": 576 * (4 + 2 + 4 + 4),
    }
    counted = sum(forward.values()) + sum(backward.values())
    assert layer_bytes(RECIPE.model, "bfloat16", "float32") == counted == 68_352
    # In bfloat16: ten times the stream with two bytes less, and no gradient in two types.
    assert layer_bytes(RECIPE.model, "bfloat16", "bfloat16") == counted - 576 * (10 * 2 + 6 + 2) == 52_224


def test_a_step_of_smollm2_on_an_h200():
    """21.1 ms: 6 FLOPs for each of 106.2 M weights and 32,768 tokens. 9.7 GB: three times logits of two bytes."""
    found = roofline(RECIPE.model, RECIPE.train, **H200)
    assert found.layers == pytest.approx(6 * 106_168_320 * 32_768 / 989e12 * 1e3)
    assert found.head == pytest.approx(6 * 49_152 * 576 * 32_768 / 989e12 * 1e3)
    assert found.cross_entropy == pytest.approx(3 * 32_768 * 49_152 * 2 / 4.8e12 * 1e3)
    assert found.optimizer == pytest.approx(10 * 4 * 134_515_008 / 4.8e12 * 1e3)
    assert found.passes == pytest.approx(30 * 68_352 * 32_768 / 4.8e12 * 1e3)
    assert found.casts == pytest.approx(12 * (106_168_320 + 49_152 * 576) / 4.8e12 * 1e3)
    assert found.total == pytest.approx(sum(value for name, value in found.to_dict().items() if name != "total"))


@given(shapes())
def test_with_memory_that_costs_nothing_it_is_what_torch_counts(delta):
    """Half of the attention's products: torch counts every pair, and half of them are visible."""
    model = TINY.override(delta)
    config = RECIPE.train.model_copy(update={"seq_len": 16, "tokens_per_step": 32})
    with FlopCounterMode(display=False) as counter:
        build_model(model, device="meta")(ids(model).to("meta")).logits.sum().backward()
    counts = {str(op).partition(".")[2]: value for op, value in counter.get_flop_counts()["Global"].items()}
    found = roofline(model, config, flops=1e12, bandwidth=float("inf"))
    assert found.layers + found.head == pytest.approx(counts["mm"] / 1e12 * 1e3)
    assert found.attention == pytest.approx(counts["bmm"] / 2 / 1e12 * 1e3)
    assert found.total == pytest.approx(model.flops_per_token(16) * 32 / 1e12 * 1e3)


@given(flops=st.floats(1e12, 1e16), bandwidth=st.floats(1e11, 1e14), stream=st.sampled_from(["float32", "bfloat16"]))
def test_a_better_card_and_a_narrower_stream_take_no_longer(flops, bandwidth, stream):
    config = RECIPE.train.model_copy(update={"residual_stream": stream})

    def total(flops: float, bandwidth: float, config=config) -> float:
        return roofline(RECIPE.model, config, flops=flops, bandwidth=bandwidth).total

    assert total(flops, bandwidth) >= total(2 * flops, bandwidth)
    assert total(flops, bandwidth) > total(flops, 2 * bandwidth)
    assert total(flops, bandwidth) >= RECIPE.flops_per_token * 32_768 / flops * 1e3  # the first ceiling
    assert total(flops, bandwidth, RECIPE.train) >= total(flops, bandwidth)
