"""What transformers documents of a causal language model's forward pass, tried on its own Llama and on ours.

transformers' own model tests are not part of its package, so its documented contract is written out here and in
test_contract_generate.py and test_contract_tools.py. Each test runs on transformers' Llama first: it asks nothing
that the original does not do. Out of scope, and why:

- tensor, pipeline and expert parallelism, FSDP2 sharding plans, DeepSpeed: several devices; a run has DDP of its own.
- flash_attention_*, flex_attention, attention functions that a user registers: refused by name;
  PyTorch's kernels and `eager` are there (``test_other_kinds_of_attention_are_refused_by_name``).
- `is_causal=False`: these models are causal, which every run checks.
- quantized loading (bitsandbytes, GPTQ and others) and offloaded caches: other packages and a GPU.
- head pruning, `output_router_logits`, cross-attention: a Llama has none. Dropout in attention: refused.
- `output_hidden_states` as a list of layers (new in transformers 5.24): gives all of them.
- ONNX and executorch: export to other runtimes; `torch.export` and `torch.jit.trace` are tried.
"""

from __future__ import annotations

import inspect

import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedModel, StaticCache

from llama_variants.pretrained import CACHE, UNUSED
from tests.llama_variants.models import TINY, ids
from tests.llama_variants.subjects import OURS, left_padded, make, written_out


@pytest.fixture(params=["stock", *OURS])
def model(request) -> PreTrainedModel:
    return make(request.param)


@pytest.fixture(params=OURS)
def ours(request) -> PreTrainedModel:
    return make(request.param)


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-5, rtol=1e-5)


def test_arguments_have_transformers_names_and_order(ours):
    theirs = ["cache" if name == CACHE else name for name in inspect.signature(LlamaForCausalLM.forward).parameters]
    assert list(inspect.signature(type(ours).forward).parameters)[:9] == theirs[:9]


def test_hidden_states_run_from_the_embeddings_to_what_the_head_sees(model):
    tokens = ids(TINY)
    out = model(tokens, output_hidden_states=True)
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1
    assert torch.equal(out.hidden_states[0], model.get_input_embeddings()(tokens))
    assert torch.equal(model.lm_head(out.hidden_states[-1]), out.logits)
    assert torch.equal(out.hidden_states[-1], model.get_decoder()(tokens).last_hidden_state)
    first = model.model.layers[0].register_forward_hook(lambda module, args, y: kept.append(y))
    kept: list = []
    model(tokens)
    first.remove()
    assert torch.equal(out.hidden_states[1], kept[0])
    assert model(tokens).hidden_states is None


def test_attention_weights_are_those_of_each_layer(model):
    model, tokens = written_out(model), ids(TINY)
    out = model(tokens, output_attentions=True)
    assert [tuple(weights.shape) for weights in out.attentions] == [(2, 6, 16, 16)] * 2
    for weights in out.attentions:
        assert near(weights.sum(dim=-1), torch.ones(2, 6, 16))
        assert not weights.triu(1).any()
    assert model(tokens).attentions is None
    assert all(getattr(layer.self_attn, "record", None) is None for layer in model.model.layers)


def test_weights_and_states_are_those_of_the_stock_model():
    tokens, mask, _ = left_padded()
    asked = {"attention_mask": mask, "output_attentions": True, "output_hidden_states": True}
    got, want = (written_out(make(name))(tokens, **asked) for name in ("control", "stock"))
    kept = mask.bool()
    for a, b in zip(got.hidden_states, want.hidden_states, strict=True):
        assert near(a[kept], b[kept])
    for a, b in zip(got.attentions, want.attentions, strict=True):
        assert near(a.transpose(1, 2)[kept], b.transpose(1, 2)[kept])


def test_weights_that_no_kernel_gives_are_refused(ours):
    with pytest.raises(ValueError, match=r'attn_implementation="eager"'):
        ours(ids(TINY), output_attentions=True)


@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention", "kernels-community/flash-attn"])
def test_other_kinds_of_attention_are_refused_by_name(ours, name):
    with pytest.raises(ValueError, match=rf"attn_implementation='{name}'.*'sdpa'.*flash kernel.*'eager'"):
        ours.set_attn_implementation(name)
    assert ours.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("padded", [False, True])
def test_attention_that_is_written_out_is_the_kernels(model, padded):
    tokens, mask, _ = left_padded()
    kept = mask.bool() if padded else torch.ones_like(mask, dtype=torch.bool)
    got, want = (one(tokens, attention_mask=mask if padded else None).logits for one in (written_out(model), model))
    assert near(got[kept], want[kept])


def test_padding_on_either_side_changes_nothing(model):
    tokens, mask, positions = left_padded()
    alone = model(tokens[1:, 3:]).logits[0]
    left = model(tokens, attention_mask=mask, position_ids=positions).logits[1, 3:]
    right = model(tokens.roll(-3, dims=1), attention_mask=mask.roll(-3, dims=1)).logits[1, :7]
    assert near(left, alone)
    assert near(right, alone)


def test_embeddings_in_place_of_ids(model):
    tokens = ids(TINY)
    embedded = model.get_input_embeddings()(tokens)
    assert torch.equal(model(inputs_embeds=embedded).logits, model(tokens).logits)


KEPT = {"last 3": 3, "all": 0, "these": torch.tensor([1, 4, 15]), "from the end": torch.tensor([-1, 0])}


@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT.keys())
def test_logits_of_some_positions(model, kept):
    tokens = ids(TINY)
    full = model(tokens).logits
    want = full[:, kept] if isinstance(kept, torch.Tensor) else full[:, -kept:]
    assert near(model(tokens, logits_to_keep=kept).logits, want)


@pytest.mark.parametrize("kept", [*KEPT.values(), torch.tensor([[0, 3], [14, 2]])], ids=[*KEPT, "by row"])
def test_the_loss_is_that_of_the_logits_that_are_kept(ours, kept):
    tokens = ids(TINY)
    out = ours(tokens, labels=tokens, logits_to_keep=kept)
    targets = F.pad(tokens[:, 1:], (0, 1), value=-100)
    rows = torch.arange(2)[:, None]
    places = kept if isinstance(kept, torch.Tensor) else torch.arange(16)[-kept:]
    want = ours(tokens).logits[rows, places]
    assert near(out.logits, want)
    assert out.loss.item() == pytest.approx(F.cross_entropy(want.flatten(0, 1), targets[rows, places].flatten()).item())


def test_positions_to_keep_that_are_none_are_named(ours):
    with pytest.raises(ValueError, match="logits_to_keep must be a number, or positions"):
        ours(ids(TINY), logits_to_keep=torch.ones(2, 16, dtype=torch.bool))


def test_labels_that_are_shifted_already(model):
    tokens = ids(TINY)
    shifted = F.pad(tokens[:, 1:], (0, 1), value=-100)
    want = model(tokens, labels=tokens).loss
    assert model(tokens, labels=tokens, shift_labels=shifted).loss.item() == pytest.approx(want.item())
    summed = model(tokens, labels=tokens, num_items_in_batch=60).loss
    assert summed.item() == pytest.approx(want.item() / 2)


def test_what_is_asked_for_in_the_configuration(model):
    tokens = ids(TINY)
    model.config.output_hidden_states = True
    model.model.config.output_hidden_states = True
    assert len(model(tokens).hidden_states) == 3
    assert model(tokens, output_hidden_states=False).hidden_states is None
    assert isinstance(model(tokens, return_dict=False), tuple)


def test_a_misspelt_argument_is_an_error(ours):
    with pytest.raises(TypeError, match="output_atentions"):
        ours(ids(TINY), output_atentions=True)


def test_a_cache_grows_or_has_room(model):
    """In pieces with either kind of cache as in one go, and a cache is given back wherever one is used."""
    tokens = ids(TINY, time=12)
    want = model(tokens).logits
    for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=20)):
        got = []
        for piece in tokens.split([5, 1, 1, 4, 1], dim=1):
            out = model(piece, use_cache=True, **{CACHE: cache})
            assert out[CACHE] is cache
            got.append(out.logits)
        assert near(torch.cat(got, dim=1), want)
    assert model(tokens, use_cache=True)[CACHE].get_seq_length() == 12
    assert model(tokens).get(CACHE).get_seq_length() == 12


def test_a_loop_written_by_hand_generates_as_generate_does(model):
    """It feeds back whatever cache it is given, and asks for none."""
    tokens = ids(TINY, time=6)
    want = model.generate(tokens, max_new_tokens=8, do_sample=False, eos_token_id=None)[:, 6:]
    out, got = model(tokens), []
    for _ in range(8):
        newest = out.logits[:, -1:].argmax(-1)
        got.append(newest)
        out = model(newest, **{CACHE: out[CACHE]})
    assert torch.equal(torch.cat(got, dim=1), want)


@pytest.mark.parametrize("name", sorted(UNUSED))
def test_arguments_that_say_nothing_new_are_taken(model, name):
    tokens = ids(TINY, time=6)
    value = 6 if name.startswith("max_length") else torch.zeros_like(tokens)
    assert near(model(tokens, **{name: value}).logits, model(tokens).logits)


@pytest.mark.parametrize("name", OURS)
def test_no_cache_is_made_that_nobody_asked_for(name):
    """In training and with labels it would only take memory; and several documents in a row it would mix."""
    model, tokens = make(name), ids(TINY, time=6)
    assert model(tokens, labels=tokens).get(CACHE) is None
    packed = torch.tensor([[0, 1, 2, 0, 1, 2]])
    assert model(tokens, position_ids=packed).get(CACHE) is None
    assert model(tokens, position_ids=torch.arange(6)[None]).get(CACHE) is not None
    assert model.train()(tokens).get(CACHE) is None
    with pytest.raises(TypeError, match="attenton_mask"):
        model(tokens, attenton_mask=torch.ones_like(tokens))


def test_a_static_cache_with_padding(model):
    tokens, mask, positions = left_padded()
    want = model(tokens, attention_mask=mask, position_ids=positions).logits[mask.bool()]
    cache = StaticCache(config=model.config, max_cache_len=16)
    got = [
        model(
            tokens[:, i:j],
            attention_mask=mask[:, :j],
            position_ids=positions[:, i:j],
            use_cache=True,
            **{CACHE: cache},
        ).logits
        for i, j in ((0, 7), (7, 8), (8, 10))
    ]
    assert near(torch.cat(got, dim=1)[mask.bool()], want)


def test_a_cache_that_forgets_is_refused(ours):
    from transformers import MistralConfig

    config = MistralConfig(sliding_window=4, num_hidden_layers=2)
    cache, tokens = DynamicCache(config=config), ids(TINY)
    with pytest.raises(ValueError, match="drops old keys"):
        for token in tokens.split(1, dim=1):
            ours(token, use_cache=True, **{CACHE: cache})


@pytest.mark.parametrize("model", ["stock", "control", "variant"], indirect=True)  # in a window places count
def test_masks_of_four_dimensions(model):
    """Two continuations of one prompt share a row; each sees the prompt and itself. As truth values, and as scores."""
    tokens = ids(TINY, batch=1, time=9)
    shared = torch.tensor([[*range(5), 5, 6, 5, 6]])
    mask = torch.ones(9, 9, dtype=torch.bool).tril()[None, None]
    mask[..., 7:, 5:7] = False
    scores = torch.zeros(1, 1, 9, 9).masked_fill(~mask, torch.finfo(torch.float32).min)
    alone = [model(tokens[:, part]).logits for part in ([*range(7)], [*range(5), 7, 8])]
    for form in (mask, scores):
        got = model(tokens, attention_mask=form, position_ids=shared).logits
        assert near(got[:, :7], alone[0])
        assert near(got[:, 7:], alone[1][:, 5:])


def test_a_causal_mask_of_four_dimensions_is_none(model):
    tokens = ids(TINY)
    mask = torch.ones(16, 16, dtype=torch.bool).tril()[None, None]
    scores = torch.zeros(1, 1, 16, 16).masked_fill(~mask, torch.finfo(torch.float32).min)
    for form in (mask, scores):
        assert near(model(tokens, attention_mask=form).logits, model(tokens).logits)


def test_masks_of_other_shapes_are_named(ours):
    tokens = ids(TINY)
    for shape in ((2, 15), (2, 16, 16), (2, 1, 16, 15)):
        with pytest.raises(ValueError, match=r"attention_mask must be \(batch, 16\).*\(batch, 1, 16, 16\)"):
            ours(tokens, attention_mask=torch.ones(shape))


PACKED = torch.tensor([[*range(7), *range(6), *range(3)], [*range(4), *range(5), *range(7)]])


def alone(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """The logits of each document by itself."""
    rows = []
    for row, lengths in zip(tokens, ((7, 6, 3), (4, 5, 7)), strict=True):
        rows.append(torch.cat([model(part[None]).logits[0] for part in row.split(lengths)]))
    return torch.stack(rows)


def test_documents_in_a_row_do_not_see_each_other(model):
    tokens = ids(TINY)
    assert near(model(tokens, position_ids=PACKED, use_cache=False).logits, alone(model, tokens))


def test_documents_are_found_by_the_token_that_ends_them(ours):
    """As by their positions, but for a cache, which keeps no documents apart."""
    tokens = ids(TINY).clamp(min=1)
    tokens[0, [6, 12]] = tokens[1, [3, 8]] = 0
    tokens[:, -1] = 0  # the last token may end a document, too
    cached = ours(tokens, use_cache=True).logits
    ours.model.document_end = 0
    got = ours(tokens, use_cache=False).logits
    assert torch.equal(got, ours(tokens, position_ids=PACKED, use_cache=False).logits)
    assert torch.equal(got, ours(tokens).logits)
    assert torch.equal(got, ours(tokens, labels=tokens).logits)
    assert torch.equal(cached, ours(tokens, use_cache=True).logits)


@pytest.mark.parametrize("padding", [0, 2])
def test_documents_are_told_apart_with_a_mask_too(ours, padding):
    """Stock lets them see each other as soon as there is a mask; here the same positions mean the same."""
    tokens = ids(TINY)
    mask = torch.ones_like(tokens)
    mask[:, 16 - padding :] = 0
    got = ours(tokens, attention_mask=mask, position_ids=PACKED).logits
    assert near(got[mask.bool()], alone(ours, tokens)[mask.bool()])


def test_documents_in_a_row_with_a_cache_are_refused(ours):
    for given in ({"use_cache": True}, {CACHE: DynamicCache(config=ours.config)}):
        with pytest.raises(ValueError, match="which no cache can keep apart: give use_cache=False"):
            ours(ids(TINY), position_ids=PACKED, **given)


@pytest.mark.parametrize("count", ["tokens", "places"])
def test_a_masked_token_begins_no_document(ours, count):
    """Positions that count the tokens, or the places, go on behind one that is masked."""
    tokens, mask = ids(TINY, time=8), torch.ones(2, 8, dtype=torch.long)
    mask[:, 3:5] = 0
    positions = torch.arange(8)[None] if count == "places" else mask.cumsum(dim=1) - 1
    got = ours(tokens, attention_mask=mask, position_ids=positions).logits[:, 5:]
    seen = [0, 1, 2, 5, 6, 7]
    want = ours(tokens[:, seen], position_ids=positions[:, seen].expand(2, -1), use_cache=True).logits[:, 3:]
    if ours.model.layers[0].self_attn.window is None:  # a window counts places
        assert near(got, want)
    assert not near(got, ours(tokens[:, 5:], position_ids=positions[:, 5:]).logits)
