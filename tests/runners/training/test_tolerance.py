"""Compiled code is believed within a tolerance: rounding stays well inside of it, and a wrong kernel well outside.

A model that has not learned guesses, whatever it sees: its mean loss says little of a wrong kernel, and the less the
more tokens it is taken over. So gradients and logits are compared too. Here "compiled" code is the same code with other
kernels, or other rounding; the figures at 135M are in runners/training/autotune.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from llama_variants import build_model
from runners.training import autotune, loss
from runners.training.autotune import settle
from runners.training.determinism import autocast
from runners.training.parallel import World
from tests.llama_variants.models import TINY, ids
from tests.runners.helpers import TRAIN, optimizer_of

MODEL = TINY.override({"init": {"type": "smollm2"}, "attention": {"head_dim": 16}})
"""Queries and keys of the size that they have at 135M: where all scores are near zero, no kernel can be told."""
BATCH, TIME = 4, 64
MARGIN = 2  # by which the tolerance could be smaller for what is right, and larger for what is wrong
attend = F.scaled_dot_product_attention
Kernel = Callable[..., Tensor]


def everything(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **others: bool) -> Tensor:
    """Not causal."""
    return attend(q, k, v, **others | {"is_causal": False})


def one_ahead(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **others: bool) -> Tensor:
    """Causal, but for the next position, which it sees."""
    seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(1)
    return attend(q, k, v, seen, **others | {"is_causal": False})


def other_scale(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **others: bool) -> Tensor:
    """Scores over the size of a head instead of its square root."""
    return attend(q, k, v, mask, **others, scale=1 / q.shape[-1])


def other_groups(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **others: bool) -> Tensor:
    """Key/value heads in turn instead of one after another."""
    k, v = (part.repeat(1, q.shape[1] // part.shape[1], 1, 1) for part in (k, v))
    return attend(q, k, v, mask, **others | {"enable_gqa": False})


def shifted(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **others: bool) -> Tensor:
    """Keys turned by one position too many."""
    angles = 10_000.0 ** -(torch.arange(0, k.shape[-1], 2) / k.shape[-1])
    sin, cos = (torch.cat([part, part]).to(k.dtype) for part in (angles.sin(), angles.cos()))
    first, second = k.chunk(2, dim=-1)
    return attend(q, k * cos + torch.cat([-second, first], dim=-1) * sin, v, mask, **others)


WRONG: list[Kernel] = [everything, one_ahead, other_scale, other_groups, shifted]


@pytest.fixture
def settled(monkeypatch) -> Callable[..., list[str]]:
    """What `settle` says of code that computes attention by ``kernel`` in ``precision`` where it is "compiled"."""

    def run(kernel: Kernel, precision: str, quick: str, tolerance: float, windows: int = BATCH) -> list[str]:
        inside = [False]

        @contextmanager
        def eager() -> Iterator[None]:
            inside[0] = True
            yield
            inside[0] = False

        def forward(self: torch.nn.Module, *arguments: object, **options: object) -> object:
            with autocast(torch.device("cpu"), precision if inside[0] else quick):
                return honest(self, *arguments, **options)

        def lie(model: torch.nn.Module) -> None:
            written = model.loss_function
            model.loss_function = lambda *given: written(*given)

        model = build_model(MODEL, seed=1)
        honest = type(model).forward
        config = TRAIN.model_copy(update={"seq_len": TIME, "tokens_per_step": TIME * windows, "precision": precision})
        monkeypatch.setattr(type(model), "forward", forward)
        monkeypatch.setattr(autotune, "eager", eager)
        monkeypatch.setattr(autotune, "compile_model", lie)
        monkeypatch.setattr(loss, "is_compiled", lambda model: False)
        monkeypatch.setattr(
            F, "scaled_dot_product_attention", lambda *a, **k: (attend if inside[0] else kernel)(*a, **k)
        )
        monkeypatch.setitem(autotune.DISTANCE, precision, tolerance)
        said: list[str] = []
        batch = ids(MODEL, batch=windows, time=TIME)
        _, compiled = settle(
            model, optimizer_of(model, config), batch, config, World(), said.append, compiled=True, micro_batch=windows
        )
        assert compiled == (not said)
        return said

    return run


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernel", WRONG, ids=lambda kernel: kernel.__name__)
def test_a_wrong_kernel_is_not_believed(settled, kernel, precision):
    (said,) = settled(kernel, precision, precision, autotune.DISTANCE[precision] * MARGIN)
    assert "gradients differ by" in said


@pytest.mark.parametrize(
    ("precision", "quick"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")]
)
def test_rounding_is_no_reason_not_to_compile(settled, precision, quick):
    """Compiled code that rounds to bfloat16 nowhere differs from what is written by all of its rounding."""
    assert settled(attend, precision, quick, autotune.DISTANCE[precision] / MARGIN) == []


def test_a_loss_alone_would_let_wrong_kernels_pass(settled):
    """Why gradients are compared: over 4,096 tokens a wrong kernel's mean loss may well be within its bound."""
    passed = [k.__name__ for k in WRONG if settled(k, "bfloat16", "bfloat16", 1e9, windows=64) == []]
    assert passed
