"""Training, compiling, saving and the tools around transformers, on its own Llama and on ours; see test_contract.py."""

from __future__ import annotations

import copy
import io
import json

import pytest
import torch
import transformers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    DataCollatorWithFlattening,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    pipeline,
)

from llama_variants import LlamaForCausalLM, build_model
from llama_variants.pretrained import CACHE
from tests.llama_variants.models import TINY, ids
from tests.llama_variants.subjects import OURS, left_padded, make
from tests.llama_variants.test_contract import near
from tests.llama_variants.test_hf import tokenizer


@pytest.fixture(params=["stock", *OURS])
def model(request) -> PreTrainedModel:
    return make(request.param)


@pytest.fixture(params=OURS)
def ours(request) -> PreTrainedModel:
    return make(request.param)


def gradients(model: PreTrainedModel, **given) -> dict[str, torch.Tensor]:
    model.zero_grad()
    tokens = ids(TINY)
    model(tokens, labels=tokens, **given).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_gradients_are_the_same(model, reentrant):
    """Each layer is computed twice, no cache is filled twice, and it can be turned off again."""
    model.train()
    want = gradients(model)
    calls = []
    model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert model.is_gradient_checkpointing
    got = gradients(model, use_cache=True)
    assert len(calls) == 2
    assert all(torch.allclose(got[name], want[name], atol=1e-6) for name in want)
    model.eval()
    out = model(ids(TINY), use_cache=True)
    assert out[CACHE].get_seq_length() == 16
    model.train().gradient_checkpointing_disable()
    calls.clear()
    gradients(model)
    assert len(calls) == 1


def test_checkpointing_reaches_frozen_layers_from_their_inputs(model):
    """As adapters need it: the embedding's output asks for gradients though nothing else does."""
    model.train().requires_grad_(False)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    assert list(gradients(model)) == ["model.layers.0.mlp.up_proj.weight"]


@pytest.mark.parametrize("name", ["control", "variant"])
def test_trainer_with_checkpointing_packed_and_accumulated(name, tmp_path):
    """Documents of unequal length in one row, as its collator packs them: the losses fall, and a checkpoint resumes."""
    model = build_model(OURS[name])
    lengths = (5, 9, 12, 7)
    rows = [{"input_ids": ids(TINY, batch=1, time=n, seed=n)[0].tolist()} for n in lengths] * 8
    arguments = TrainingArguments(
        tmp_path, max_steps=4, per_device_train_batch_size=4, gradient_accumulation_steps=2, learning_rate=1e-2,
        lr_scheduler_type="constant", use_cpu=True, report_to="none", save_steps=2, logging_steps=1,
        gradient_checkpointing=True, disable_tqdm=True,
    )  # fmt: skip
    collator = DataCollatorWithFlattening(return_flash_attn_kwargs=False)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.3
    again = Trainer(model=build_model(OURS[name]), args=arguments, train_dataset=rows, data_collator=collator)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert near(again.model(ids(TINY)).logits, model(ids(TINY)).logits)


def test_copied_pickled_and_cast(model):
    tokens = ids(TINY)
    want = model(tokens).logits
    assert torch.equal(copy.deepcopy(model)(tokens).logits, want)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(tokens).logits, want)
    assert model.to(torch.bfloat16)(tokens).logits.dtype == torch.bfloat16


def test_saved_in_pieces_and_loaded(model, tmp_path):
    tokens = ids(TINY)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_without_a_head(model, tmp_path):
    """AutoModel has the language model's own weights, and saves them so that it is loaded again."""
    tokens = ids(TINY)
    want = model.get_decoder()(tokens).last_hidden_state
    model.save_pretrained(tmp_path)
    for folder in (tmp_path, tmp_path / "again"):
        inner = AutoModel.from_pretrained(folder)
        assert torch.equal(inner(tokens).last_hidden_state, want)
        inner.save_pretrained(tmp_path / "again")


def test_a_model_without_a_head_starts_with_the_same_values(ours):
    inner = AutoModel.from_config(ours.config)
    for name, value in inner.state_dict().items():
        assert torch.equal(value, ours.state_dict()[f"model.{name}"]), name


HEADS = {"SequenceClassification": (2, 3), "TokenClassification": (2, 10, 3)}


@pytest.mark.parametrize("head", HEADS)
def test_other_heads_train_and_travel(model, head, tmp_path):
    auto = getattr(transformers, f"AutoModelFor{head}")
    model.config.pad_token_id = 0
    model.save_pretrained(tmp_path)
    loaded = auto.from_pretrained(tmp_path, num_labels=3)
    assert torch.equal(loaded.model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight)
    tokens, mask, _ = left_padded()
    labels = torch.zeros(HEADS[head][:-1], dtype=torch.long)
    out = loaded(tokens, attention_mask=mask, labels=labels)
    assert out.logits.shape == HEADS[head]
    out.loss.backward()
    assert loaded.score.weight.grad.any()
    loaded.eval().save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text())["architectures"] == [f"LlamaFor{head}"]
    again = auto.from_pretrained(tmp_path / "again")
    assert torch.equal(again(tokens, attention_mask=mask).logits, loaded(tokens, attention_mask=mask).logits)


def test_question_answering(ours, tmp_path):
    ours.save_pretrained(tmp_path)
    config = ours.config  # of the variant: a stock folder gives the stock class
    out = transformers.AutoModelForQuestionAnswering.from_config(config)(ids(TINY))
    assert out.start_logits.shape == out.end_logits.shape == (2, 16)


def test_the_pipeline_writes_a_batch(model, tmp_path):
    words = tokenizer(tmp_path)
    words.padding_side = "left"
    generator = pipeline("text-generation", model=model, tokenizer=words, device="cpu")
    prompts = ["w1 w2 w3", "w9"]
    options = {"max_new_tokens": 4, "do_sample": False, "return_tensors": True}
    found = generator(prompts, batch_size=2, **options)
    for (row,), prompt in zip(found, prompts, strict=True):
        (alone,) = generator(prompt, **options)
        assert row["generated_token_ids"][-4:] == alone["generated_token_ids"][-4:]


def test_adapters_train_merge_and_travel(model, tmp_path):
    """PEFT's LoRA: only its matrices learn, and merging them into the weights gives the same logits."""
    from peft import LoraConfig, get_peft_model

    tokens = ids(TINY)
    before = model(tokens).logits
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj", "down_proj"])
    adapted = get_peft_model(copy.deepcopy(model), config)
    adapted.gradient_checkpointing_enable()
    assert torch.equal(adapted.eval()(tokens).logits, before)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        adapted.train()(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    after = adapted.eval()(tokens).logits
    assert not near(after, before)
    assert adapted.generate(input_ids=tokens, max_new_tokens=2, do_sample=False).shape == (2, 18)
    adapted.save_pretrained(tmp_path)
    fresh = copy.deepcopy(model)
    fresh.load_adapter(str(tmp_path))
    assert near(fresh(tokens).logits, after)
    assert near(adapted.merge_and_unload()(tokens).logits, after)


@pytest.mark.parametrize("name", ["control", "windows"])  # PEFT's prefix has the same heads in each layer
def test_a_learned_prefix_is_a_cache(name):
    from peft import PrefixTuningConfig, get_peft_model

    ours, tokens = make(name), ids(TINY)
    prefixed = get_peft_model(ours, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, **_shape(ours)))
    out = prefixed(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=tokens)
    out.loss.backward()
    assert out.logits.shape == (2, 16, 101)
    assert next(p for p in prefixed.parameters() if p.requires_grad).grad.any()


def _shape(model: LlamaForCausalLM) -> dict[str, int]:
    attention = model.model.layers[0].self_attn
    heads = attention.num_kv_heads
    return {"num_layers": 2, "token_dim": heads * attention.head_dim, "num_attention_heads": heads}
