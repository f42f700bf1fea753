"""What compiling, exporting and tracing are tried on, in a process of its own: checked annotations cannot be traced.

``python -m tests.llama_variants.compiled CASE-SUBJECT…`` prints one JSON object: for each "same", or what went wrong.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, StaticCache

from llama_variants.blocks.masks import document_blocks, visible, window_blocks
from llama_variants.pretrained import CACHE
from tests.llama_variants.models import TINY, ids
from tests.llama_variants.subjects import left_padded, make

Pair = tuple[Tensor, Tensor]


def compiled(model: nn.Module) -> Callable[..., object]:
    """With fullgraph a branch on a value is an error."""
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, backend="aot_eager")


def batches(model: PreTrainedModel, **given: Tensor) -> Iterator[Pair]:
    """Logits of the tokens that are no padding, compiled and as written."""
    tokens, mask, _ = left_padded()
    kept = mask.bool() if given else torch.ones_like(mask, dtype=torch.bool)
    yield compiled(model)(tokens, **given).logits[kept], model(tokens, **given).logits[kept]


def plain(model: PreTrainedModel) -> Iterator[Pair]:
    return batches(model)


def padded(model: PreTrainedModel) -> Iterator[Pair]:
    return batches(model, attention_mask=left_padded()[1])


def padded_with_positions(model: PreTrainedModel) -> Iterator[Pair]:
    _, mask, positions = left_padded()
    return batches(model, attention_mask=mask, position_ids=positions)


def trained(model: PreTrainedModel) -> Iterator[Pair]:
    """The gradient of a weight, with a padded batch."""
    tokens, mask, _ = left_padded()
    for call in (compiled(model), model):
        model.zero_grad()
        call(tokens, attention_mask=mask, labels=tokens).loss.backward()
        kept = [*locals().get("kept", []), model.model.layers[0].mlp.up_proj.weight.grad.clone()]
    yield kept[0], kept[1]


def packed(model: PreTrainedModel) -> Iterator[Pair]:
    """Documents in a row, without a mask and with one that masks nothing."""
    tokens, positions = ids(TINY), torch.tensor([[*range(7), *range(9)]]).expand(2, -1)
    call, want = compiled(model), model(tokens, position_ids=positions, use_cache=False).logits
    yield call(tokens, position_ids=positions).logits, want
    yield call(tokens, position_ids=positions, attention_mask=torch.ones_like(tokens)).logits, want


def static_cache(model: PreTrainedModel) -> Iterator[Pair]:
    """A token at a time, behind a prompt."""
    tokens = ids(TINY, time=10)
    cache = StaticCache(config=model.config, max_cache_len=16)
    model(tokens[:, :6], use_cache=True, **{CACHE: cache})
    call, want = compiled(model), model(tokens).logits
    for i in range(6, 10):
        yield call(tokens[:, i : i + 1], use_cache=True, **{CACHE: cache}).logits[:, 0], want[:, i]


def exported(model: PreTrainedModel) -> Iterator[Pair]:
    tokens, mask, _ = left_padded()
    program = torch.export.export(model, (tokens,), {"attention_mask": mask}, strict=False).module()
    for given in (mask, mask.flip(0)):
        yield program(tokens, attention_mask=given).logits, model(tokens, attention_mask=given).logits


class Logits(nn.Module):
    """A model as a function of tensors, which is what can be traced."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.model(tokens, attention_mask=mask, return_dict=False)[0]


def traced(model: PreTrainedModel) -> Iterator[Pair]:
    """With another mask than the one that it was traced with: no branch was frozen in."""
    tokens, mask, _ = left_padded()
    trace = torch.jit.trace(Logits(model), (tokens, torch.ones_like(mask)), check_trace=False)
    for given in (mask, mask.flip(0)):
        yield trace(tokens, given), model(tokens, attention_mask=given).logits


class Doubled(nn.Linear):
    """As an adapter or a quantized layer it computes something else than its weight says."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def replaced_projection(model: PreTrainedModel) -> Iterator[Pair]:
    """Compiled code joins the weights of plain projections only."""
    attention = model.model.layers[1].self_attn
    doubled = Doubled(48, 48, bias=attention.q_proj.bias is not None)
    doubled.load_state_dict(attention.q_proj.state_dict())
    before = model(ids(TINY)).logits
    attention.q_proj = doubled
    want = model(ids(TINY)).logits
    assert not torch.allclose(before, want, atol=1e-4)
    yield compiled(model)(ids(TINY)).logits, want


def window_by_block(model: PreTrainedModel) -> Iterator[Pair]:
    """A layer that is given a window by blocks, as on a card; without gradients, which a processor cannot give."""
    layer, time, window = model.model.layers[0].double(), 300, 100
    x = torch.randn(2, time, TINY.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotation = layer.self_attn.rotary.rotation(torch.arange(time)[None])
    with torch.no_grad():
        want = layer(x, rotation, visible(time, 0, window, None, x.device))
        blocks = window_blocks(window, time, x.device)
        yield compiled(layer)(x, rotation, blocks), want
        yield layer(x, rotation, blocks), want


def documents_by_block(model: PreTrainedModel) -> Iterator[Pair]:
    """As above, for rows of several documents, which end elsewhere in each batch: compiled once for all of them."""
    layer, time, window = model.model.layers[0].double(), 300, 100
    rotation = layer.self_attn.rotary.rotation(torch.arange(time)[None])
    call, generator = compiled(layer), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for first in range(3):
            x = torch.randn(2, time, TINY.hidden_size, dtype=torch.float64, generator=generator)
            documents = (torch.rand(2, time, generator=generator) < 0.02).cumsum(dim=1)
            want = layer(x, rotation, visible(time, 0, window, None, x.device, documents=documents))
            with torch._dynamo.config.patch(error_on_recompile=first > 0):
                yield call(x, rotation, document_blocks(documents, window)), want


CASES = {
    case.__name__: case
    for case in (
        *(plain, padded, padded_with_positions, trained, packed, static_cache, exported, traced, replaced_projection),
        window_by_block,
        documents_by_block,
    )
}


def main() -> None:
    """What was asked for."""
    found = {}
    for asked in sys.argv[1:]:
        name, subject = asked.split("-")
        try:
            pairs = list(CASES[name](make(subject)))
            gap = max(float((got - want).detach().abs().max()) for got, want in pairs)
            found[asked] = "same" if gap < 1e-4 else f"apart by {gap:.2g}"
        except Exception as error:
            found[asked] = f"{type(error).__name__}: {error}"[:600]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
