"""Out to transformers' own classes, and in from them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
from transformers import LlamaForCausalLM as StockLlama

from llama_variants import ConfigError, LlamaForCausalLM, build_model, load_pretrained, save_pretrained
from llama_variants.variant import LlamaVariantConfig
from tests.llama_variants.models import EVERY_MODEL, TINY, any_blocks, ids, shapes

# What a stock Llama computes, by hand: to_llama() is not asked.
STOCK = {
    *("embedding=plain", "rotary=rope", "rotary=rope_linear", "rotary=rope_ntk", "rotary=rope_yarn"),
    *("rotary=rope_llama3", "attention=gqa", "attention=mha", "attention=mqa", "norm=rms", "residual=pre"),
    *("mlp=swiglu", "mlp=geglu", "mlp=geglu_tanh", "mlp=reglu", "biases", "head=tied", "head=untied"),
    *("init=normal", "init=scaled", "init=smollm2"),
}


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_saved_and_loaded_by_auto_classes_with_identical_logits(name, tmp_path):
    config = EVERY_MODEL[name]
    model = build_model(config, seed=2).eval()
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["model_type"] == "llama") == (name in STOCK)
    assert sorted(file.name for file in tmp_path.glob("*.*t*")) == ["model.safetensors"]  # and no pickle
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is (StockLlama if name in STOCK else LlamaForCausalLM)
    tokens = ids(config)
    with torch.no_grad():
        want = model(tokens).logits
        assert torch.equal(loaded(tokens).logits, want)
        assert torch.equal(load_pretrained(tmp_path)(tokens).logits, want)
        assert torch.equal(LlamaForCausalLM.from_pretrained(tmp_path)(tokens).logits, want)
    assert model.config.variant == config.to_dict()  # saving leaves the model's own configuration alone


@given(delta=any_blocks() | shapes())
def test_whatever_is_saved_as_a_stock_llama_is_one(delta):
    """Over combinations of blocks, layers and sizes: the same logits, or no stock configuration at all."""
    config = TINY.override(delta)
    llama = LlamaVariantConfig.of(config).to_llama()
    if llama is None:
        return
    ours, theirs = build_model(config).eval(), StockLlama(llama).eval()
    theirs.load_state_dict(ours.state_dict())
    tokens = ids(config, time=24)
    with torch.no_grad():
        assert torch.equal(theirs(tokens).logits, ours(tokens).logits)


@pytest.mark.parametrize(
    "delta",
    [
        {"rotary": {"type": "rope_partial", "fraction": 0.5}},  # a LlamaConfig takes the key, and ignores it
        {"layers": {"1": {"rotary": {"theta": 3.0}}}},
        {"attention": {"type": "sliding_window", "window_size": 63}},
        {"embedding": {"type": "scaled", "factor": 1.0}},
        {"head": {"type": "untied_softcap", "cap": 1e6}},
        {"hidden_size": 50},  # loads nowhere: transformers wants a multiple of the heads
    ],
)
def test_what_only_looks_like_a_llama_is_not_exported_as_one(delta, tmp_path):
    build_model(TINY.override(delta)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama_variant"


def test_layers_that_are_all_alike_are_a_llama_s(tmp_path):
    """Whatever the base has in their place: no layer has it."""
    model = build_model(TINY.override({"layers": {"0-1": {"rotary": {"theta": 3.0}}}})).eval()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"
    stock = StockLlama.from_pretrained(tmp_path).eval()
    tokens = torch.arange(24)[None]
    with torch.no_grad():
        torch.testing.assert_close(stock(tokens).logits, model(tokens).logits)


def without_this_project(code: str, folder) -> str:
    """What ``code`` prints where importing this project fails, as it does on other people's machines."""
    lead = "import sys; sys.modules['llama_variants'] = None; sys.modules['runners'] = None\n"
    done = subprocess.run([sys.executable, "-c", lead + code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_stock_export_needs_nothing_of_ours(tmp_path):
    config = TINY.override({"attention": {"type": "mqa"}, "rotary": {"type": "rope_yarn", "factor": 4.0,
                            "original_max_position_embeddings": 64}, "head": {"type": "untied"}})  # fmt: skip
    model = build_model(config).eval()
    save_pretrained(model, tmp_path)
    torch.save(ids(config), tmp_path / "ids.pt")
    code = (
        "import torch; from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained('.')\n"
        "torch.save(model(torch.load('ids.pt')).logits.detach(), 'logits.pt'); print(type(model).__module__)"
    )
    assert without_this_project(code, tmp_path).strip() == "transformers.models.llama.modeling_llama"
    assert torch.equal(torch.load(tmp_path / "logits.pt"), model(ids(config)).logits)


def test_token_ids_and_dtype_travel(tmp_path):
    config = LlamaVariantConfig(variant=TINY.to_dict(), bos_token_id=3, eos_token_id=5, pad_token_id=7)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    stock = AutoConfig.from_pretrained(tmp_path)
    assert (stock.bos_token_id, stock.eos_token_id, stock.pad_token_id) == (3, 5, 7)
    assert stock.dtype == torch.bfloat16
    ours = LlamaForCausalLM.from_pretrained(tmp_path).config
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (3, 5, 7)
    build_model(TINY).save_pretrained(tmp_path / "none")
    assert AutoConfig.from_pretrained(tmp_path / "none").eos_token_id is None  # LlamaConfig would make it 2
    assert load_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_loading_says_what_is_wrong(tmp_path):
    for path in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "./nowhere", tmp_path / "no.gguf"):
        with pytest.raises(FileNotFoundError, match="no such file or folder"):
            load_pretrained(path)
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=20)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ConfigError, match="received 'gpt2'; allowed: llama or llama_variant"):
        load_pretrained(tmp_path / "gpt2")
    build_model(TINY).save_pretrained(tmp_path / "deeper")
    file = tmp_path / "deeper/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 3}))
    with pytest.raises(ConfigError, match=r"missing_keys: received model.layers.2"):
        load_pretrained(tmp_path / "deeper")


def test_a_variant_with_a_wrong_block_says_so(tmp_path):
    build_model(TINY.override({"residual": {"type": "sandwich"}})).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace("sandwich", "sandwitch"))
    with pytest.raises(ConfigError, match=r"(?s)once its module is imported.*did you mean 'sandwich'"):
        load_pretrained(tmp_path)
    assert "import llama_variants" in json.loads(file.read_text())["note"]


def tokenizer(folder):
    """A tokenizer of 64 words, saved and loaded as any other."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<unk>", "<eos>", *(f"w{i}" for i in range(62))])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>")


def test_the_tokenizer_goes_along(tmp_path):
    save_pretrained(build_model(TINY.override({"norm": {"type": "dyt"}})), tmp_path, tokenizer=tokenizer(tmp_path))
    assert AutoTokenizer.from_pretrained(tmp_path)("w3 w5")["input_ids"] == [5, 7]


@pytest.mark.parametrize("name", ["attention=gqa", "attention=sliding_window", "residual=sandwich"])
def test_transformers_trainer_fine_tunes(name, tmp_path):
    """Five steps on one batch, padded; then what it saved loads and computes the same."""
    config = EVERY_MODEL[name]
    model = build_model(config)
    row = {"input_ids": ids(config, batch=1)[0], "labels": ids(config, batch=1)[0], "attention_mask": torch.ones(16)}
    row["attention_mask"][14:] = 0
    arguments = TrainingArguments(
        tmp_path, max_steps=5, per_device_train_batch_size=4, learning_rate=1e-2, lr_scheduler_type="constant",
        use_cpu=True, report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=[row] * 20)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 5
    assert losses[-1] < losses[0] - 0.3
    trainer.save_model(tmp_path / "saved")
    tokens = ids(config)
    with torch.no_grad():
        assert torch.equal(load_pretrained(tmp_path / "saved")(tokens).logits, model.eval()(tokens).logits)


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    """Rows with unequal numbers of predicted tokens, in one piece and in four: the same step, and the stock model's."""
    build_model(TINY).save_pretrained(tmp_path / "model")
    rows = [{"input_ids": row, "labels": row.clone()} for row in ids(TINY, batch=4)]
    for row, length in zip(rows, (2, 14, 8, 4), strict=True):
        row["labels"][length:] = -100

    def step(load, pieces: int) -> tuple[float, torch.Tensor]:
        model = load(tmp_path / "model")
        arguments = TrainingArguments(
            tmp_path, max_steps=1, per_device_train_batch_size=4 // pieces, gradient_accumulation_steps=pieces,
            learning_rate=1.0, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0, use_cpu=True,
            report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model=model, args=arguments, train_dataset=rows)
        trainer.train()
        return trainer.state.log_history[0]["loss"], model.model.layers[0].mlp.up_proj.weight.detach()

    results = [step(load, pieces) for load in (load_pretrained, StockLlama.from_pretrained) for pieces in (1, 4)]
    for loss, weight in results[1:]:
        assert loss == pytest.approx(results[0][0], abs=1e-4)
        assert torch.allclose(weight, results[0][1], atol=1e-6)


def test_lm_eval_accepts_a_variant(tmp_path):
    """Its HF wrapper scores and generates; the score is the sum of log-probabilities."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = build_model(TINY.override({"attention": {"type": "gated_output"}, "norm": {"type": "layer"}})).eval()
    harness = HFLM(pretrained=model, tokenizer=tokenizer(tmp_path), batch_size=2)
    pairs = [("w1 w2 w3", " w4 w5"), ("w9", " w1")]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    for (context, continuation), (score, _) in zip(pairs, harness.loglikelihood(requests), strict=True):
        tokens = torch.tensor([harness.tok_encode(context + continuation)])
        new = len(harness.tok_encode(continuation))
        logits = model(tokens).logits[0].log_softmax(dim=-1)
        want = sum(logits[i - 1, tokens[0, i]].item() for i in range(tokens.shape[1] - new, tokens.shape[1]))
        assert score == pytest.approx(want, abs=1e-4)
    asked = Instance("generate_until", {}, ("w1 w2", {"until": ["w0"], "max_gen_toks": 4, "do_sample": False}), 0)
    (text,) = harness.generate_until([asked])
    assert isinstance(text, str)
