"""A residual stream in bfloat16: where it holds, and the error that it makes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from llama_variants import build_model
from runners.training.determinism import autocast, set_as_trained
from tests.llama_variants.models import EVERY_MODEL, TINY, ids

CPU = torch.device("cpu")
MODELS = {"control": TINY} | EVERY_MODEL


def train_config(recipe, stream: str):
    return recipe.train.model_copy(update={"precision": "bfloat16", "residual_stream": stream})


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("stream", ["float32", "bfloat16"])
def test_every_layer_gives_on_the_stream_as_declared(recipe, name, stream):
    model = build_model(MODELS[name], seed=1)
    set_as_trained(model, train_config(recipe, stream), end_id=0)
    seen: list[torch.dtype] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    with autocast(CPU, "bfloat16"):
        model(ids(MODELS[name]), labels=ids(MODELS[name])).loss.backward()
    assert seen == [getattr(torch, stream)] * len(model.model.layers)
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("name", ["norm=rms", "norm=layer", "norm=dyt"])
def test_norms_compute_in_float32(name):
    """To the last bit what a norm in float32 gives for the same numbers, rounded once."""
    norm: nn.Module = build_model(MODELS[name], seed=1).model.norm
    x = torch.randn(64, TINY.hidden_size, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad(), autocast(CPU, "bfloat16"):
        assert torch.equal(norm(x), norm(x.float()).bfloat16())


def test_the_error_of_the_stream_is_that_of_its_roundings(recipe):
    """Beside float64: as many roundings as sums, each of half a unit in the last of eight places, add up at random."""
    config = TINY.override({"num_hidden_layers": 12})
    tokens = ids(config, batch=4, time=64)
    with torch.no_grad():
        exact = build_model(config, seed=2, dtype=torch.float64).model(tokens).last_hidden_state

    def error(stream: str) -> float:
        model = build_model(config, seed=2)
        set_as_trained(model, train_config(recipe, stream), end_id=0)
        with torch.no_grad(), autocast(CPU, "bfloat16"):
            out: Tensor = model.model(tokens).last_hidden_state
        return float((out.double() - exact).norm() / exact.norm())

    sums = 1 + 2 * config.num_hidden_layers
    most = sums**0.5 * 2**-9
    assert error("float32") < error("bfloat16") < error("float32") + most
