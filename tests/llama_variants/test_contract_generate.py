"""What transformers documents of generation, tried on its own Llama and on ours; test_contract.py says what is not."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel, StaticCache

from llama_variants.pretrained import CACHE
from tests.llama_variants.models import TINY, ids
from tests.llama_variants.subjects import OURS, left_padded, make, written_out

NEW = 5


@pytest.fixture(params=["stock", *OURS])
def model(request) -> PreTrainedModel:
    model = make(request.param).double()  # no tie decides
    model.generation_config.pad_token_id = 0
    return model


def by_hand(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Greedy decoding, the whole prompt at every step."""
    for _ in range(NEW):
        tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(dim=-1)], dim=1)
    return tokens


def test_greedy(model):
    tokens = ids(TINY, time=7)
    assert torch.equal(model.generate(tokens, max_new_tokens=NEW, do_sample=False), by_hand(model, tokens))


@pytest.mark.parametrize("kind", ["dynamic", "static", "offloaded"])
def test_every_kind_of_cache(model, kind):
    tokens, mask, _ = left_padded()
    options = {"attention_mask": mask, "max_new_tokens": NEW, "do_sample": False}
    want = model.generate(tokens, use_cache=False, **options)
    if kind == "offloaded" and not torch.cuda.is_available():
        with pytest.raises(Exception, match=r"(?i)cuda|accelerator|NoneType"):  # transformers' own, with any model
            model.generate(tokens, cache_implementation=kind, **options)
    else:
        assert torch.equal(model.generate(tokens, cache_implementation=kind, **options), want)


@pytest.mark.parametrize("options", [{}, {"num_return_sequences": 2}, {"num_beams": 2}], ids=["plain", "two", "beams"])
def test_sampling_repeats_with_its_seed(model, options):
    tokens = ids(TINY, time=7)
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        runs.append(model.generate(tokens, max_new_tokens=NEW, do_sample=True, top_k=20, temperature=1.5, **options))
    assert torch.equal(*runs)
    assert runs[0].shape == (2 * options.get("num_return_sequences", 1), 7 + NEW)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True, "top_p": 0.9},
        {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
        {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"do_sample": False, "prompt_lookup_num_tokens": 3},
    ],
    ids=["greedy", "sampled", "beams", "penalised", "prompt lookup"],
)
def test_the_same_tokens_as_the_stock_model(options):
    found = []
    for name in ("control", "stock"):
        tokens, mask, _ = left_padded()
        if "prompt_lookup_num_tokens" in options:
            tokens, mask = tokens[:1], mask[:1]
        model = make(name)
        torch.manual_seed(7)
        found.append(model.generate(tokens, attention_mask=mask, max_new_tokens=8, pad_token_id=0, **options))
    assert torch.equal(*found)


def test_beams_find_what_is_at_least_as_likely(model):
    tokens = ids(TINY, time=7)

    def score(rows: torch.Tensor) -> torch.Tensor:
        steps = model(rows).logits.log_softmax(dim=-1)[:, 6:-1]
        return steps.gather(2, rows[:, 7:, None]).sum(dim=(1, 2))

    greedy, beams = (model.generate(tokens, max_new_tokens=NEW, do_sample=False, num_beams=n) for n in (1, 101))
    assert (score(beams) >= score(greedy) - 1e-9).all()


@pytest.mark.parametrize("helper", ["stock", "variant"])
def test_an_assistant_changes_no_token(model, helper):
    tokens = ids(TINY, batch=1, time=7)
    want = model.generate(tokens, max_new_tokens=NEW, do_sample=False)
    assistant = make(helper).double()
    assistant.generation_config.num_assistant_tokens = 3
    got = model.generate(tokens, max_new_tokens=NEW, do_sample=False, assistant_model=assistant)
    assert torch.equal(got, want)


def test_states_weights_scores_and_logits_of_each_step(model):
    model, tokens = written_out(model), ids(TINY, time=7)
    out = model.generate(
        tokens, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_scores=True,
        output_logits=True, output_hidden_states=True, output_attentions=True,
    )  # fmt: skip
    assert [len(step) for step in out.hidden_states] == [3, 3, 3]
    assert [tuple(step[-1].shape) for step in out.hidden_states] == [(2, 7, 48), (2, 1, 48), (2, 1, 48)]
    assert [tuple(step[0].shape) for step in out.attentions] == [(2, 6, 7, 7), (2, 6, 1, 8), (2, 6, 1, 9)]
    assert torch.allclose(
        torch.stack(out.logits, dim=1).double(), model(out.sequences[:, :-1]).logits[:, 6:], atol=1e-6
    )
    assert len(out.scores) == 3


def test_from_embeddings(model):
    tokens = ids(TINY, time=7)
    got = model.generate(inputs_embeds=model.get_input_embeddings()(tokens), max_new_tokens=NEW, do_sample=False)
    assert torch.equal(got, by_hand(model, tokens)[:, 7:])


@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
def test_going_on_from_a_cache(model, kind):
    """A prompt's cache is filled once, and generation goes on from it."""
    tokens = ids(TINY, time=9)
    cache = kind(config=model.config, **({"max_cache_len": 20} if kind is StaticCache else {}))
    model(tokens[:, :6], use_cache=True, **{CACHE: cache})
    got = model.generate(tokens, max_new_tokens=NEW, do_sample=False, **{CACHE: cache})
    assert torch.equal(got, by_hand(model, tokens))


def test_it_stops_at_an_end_and_pads(model):
    tokens = ids(TINY, time=7)
    free = model.generate(tokens, max_new_tokens=NEW, do_sample=False)
    end = int(free[0, 8])  # what the first row says second
    out = model.generate(tokens, max_new_tokens=NEW, do_sample=False, eos_token_id=end, pad_token_id=99)
    first = out[0, 7:].tolist()
    assert first[: first.index(end) + 1] == free[0, 7 : 8 + first.index(end)].tolist()
    assert set(first[first.index(end) + 1 :]) <= {99}
