"""SmolLM2-135M-Instruct's published weights in this package's model, against transformers' own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers import LlamaForCausalLM as StockLlama

from llama_variants import LlamaForCausalLM, ModelConfig, load_pretrained, save_pretrained
from runners.data.weights import fetch_weights
from runners.execution import benchmarks
from runners.execution.measure import of_file
from runners.planning.bases import load_base
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

SENTENCES = [
    "The capital of France is",
    "Gravity is one of the four fundamental forces, and the weakest of them.",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n",
    "Once upon a time, in a village by the sea, there lived a girl who could talk to the wind.",
]


WORDS = """
task: words
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {items}}}}}
output_type: multiple_choice
validation_split: validation
doc_to_text: "{{{{query}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: brier_score, aggregation: brier_score, higher_is_better: false}}
metadata: {{version: 1.0}}
"""


def write_sentences(folder: Path) -> Path:
    """A task out of the licence: how does each of twelve passages go on?"""
    words = (ROOT / "LICENSE").read_text().split()
    starts = range(30, len(words), len(words) // 13)
    items = [
        {
            "query": " ".join(words[at - 12 : at]),
            "choices": [words[(at + step) % len(words)] for step in (0, 17, 31, 53)],
        }
        for at in [*starts][:12]
    ]
    (folder / "words.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (folder / "words.yaml").write_text(WORDS.format(items=folder / "words.jsonl"))
    return folder


@pytest.fixture(scope="module")
def file() -> Path:
    """The GGUF file; fetched where `make weights` has not been run."""
    base, _ = load_base(ROOT / "experiments/base/smollm2-135m.yaml")
    return fetch_weights(base.data, ROOT / "cache")


@pytest.fixture(scope="module")
def ours(file) -> LlamaForCausalLM:
    return load_pretrained(file)


@pytest.fixture(scope="module")
def theirs(file) -> StockLlama:
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(file):
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.padding_side = "left"
    return tokenizer


def test_it_is_the_released_model(ours):
    assert ours.num_parameters() == 134_515_008
    config = ours.config.blocks
    assert (
        config.rotary.theta == 100_000
    )  # the checkpoint's; the pre-training configuration, our control's, says 10,000
    assert config.max_position_embeddings == 8192
    shape = {"attention", "mlp", "embedding", "residual", "head"}
    preset = ModelConfig.preset("smollm2-135m").resolved()
    assert {key: preset[key] for key in shape} == {key: config.resolved()[key] for key in shape}
    assert config.norm.eps == pytest.approx(1e-5)


@torch.no_grad()
@pytest.mark.parametrize("sentence", SENTENCES)
def test_logits_agree_with_transformers(ours, theirs, tokenizer, sentence):
    tokens = tokenizer(sentence, return_tensors="pt").input_ids
    got, want = ours(tokens, labels=tokens), theirs(tokens, labels=tokens)
    assert (got.logits - want.logits).abs().max() <= 1e-4
    assert got.loss.item() == pytest.approx(want.loss.item(), abs=1e-4)
    assert want.loss.item() < 5  # these are weights that know English, not noise


def test_paris(ours, tokenizer):
    tokens = tokenizer(SENTENCES[0], return_tensors="pt")
    out = ours.generate(**tokens, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(out[0, -1:]) == " Paris"


def test_greedy_generation_is_the_same_64_tokens(ours, theirs, tokenizer):
    """Two prompts of different length, so that one is padded on its left."""
    tokens = tokenizer(SENTENCES[:2], return_tensors="pt", padding=True)
    assert (tokens.attention_mask == 0).any()
    options = {"min_new_tokens": 64, "max_new_tokens": 64, "do_sample": False}
    got, want = ours.generate(**tokens, **options), theirs.generate(**tokens, **options)
    assert got.shape[1] == tokens.input_ids.shape[1] + 64
    assert torch.equal(got, want)


def test_out_again_as_a_stock_llama(ours, theirs, tokenizer, tmp_path):
    save_pretrained(ours, tmp_path, tokenizer=tokenizer)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is StockLlama
    tokens = AutoTokenizer.from_pretrained(tmp_path)(SENTENCES[3], return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, theirs(tokens).logits)


def test_lm_eval_scores_it_as_it_scores_the_stock_model(ours, theirs, tokenizer):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    pairs = [(SENTENCES[0], word) for word in (" Paris", " London", " a city of light and of smoke")]
    scores = [
        [score for score, _ in HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2).loglikelihood(
            [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
        )]
        for model in (ours, theirs)
    ]  # fmt: skip
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    assert scores[0][0] > scores[0][1]  # Paris, not London


def test_a_task_gives_the_verb_the_score_of_the_stock_model(file, theirs, tokenizer, tmp_path):
    """Which of four words goes on a sentence: the one that stands there, among words from elsewhere."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tasks = write_sentences(tmp_path)
    _, recipe = load_base(ROOT / "experiments/base/smollm2-135m.yaml")
    recipe = replace(recipe, train=recipe.train.model_copy(update={"precision": "float32"}))
    (ours,) = benchmarks.measure(
        of_file(str(file), recipe, tmp_path), benchmarks.load(["words"], include_path=tasks), torch.device("cpu")
    )
    lm = HFLM(pretrained=theirs, tokenizer=tokenizer, batch_size=1)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    results = lm_eval.simple_evaluate(model=lm, tasks=["words"], task_manager=manager)
    wanted = {key.removesuffix(",none"): value for key, value in results["results"]["words"].items()}
    assert (ours.metrics["acc"], ours.metrics["acc_stderr"]) == (wanted["acc"], wanted["acc_stderr"])
    assert ours.metrics["brier_score/lower"] == pytest.approx(wanted["brier_score"], abs=1e-5)
    assert ours.metrics["acc"] > 0.5  # weights that know English; chance is 0.25
