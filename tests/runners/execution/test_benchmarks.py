"""lm_eval's tasks on finished runs and other weights: one score through every door, kept once, refused in words."""

from __future__ import annotations

import json
import random
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import lm_eval
import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer
from transformers import LlamaForCausalLM as StockLlama

from llama_variants import load_pretrained
from llama_variants.errors import ConfigError
from runners.execution import benchmarks
from runners.execution.measure import Text, measure, of_file, of_run
from runners.planning.components import PROBE
from runners.runs.evaluations import Measurement
from runners.runs.folder import RunFolder
from tests.conftest import ROOT
from tests.runners.conftest import SYLLABLES
from tests.runners.helpers import carried_out

CPU = torch.device("cpu")
CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {items}, train: {examples}}}}}
output_type: multiple_choice
validation_split: validation
training_split: train
fewshot_split: train
doc_to_text: "{{{{query}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
target_delimiter: " "
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
  - {{metric: brier_score, aggregation: brier_score, higher_is_better: false}}
metadata: {{version: 1.0}}
"""
ROLLING = """
task: rolling
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {items}}}}}
output_type: loglikelihood_rolling
validation_split: validation
doc_to_text: ""
doc_to_target: "{{{{query}}}}"
metric_list:
  - {{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}
metadata: {{version: 1.0}}
"""
GROUP = """
group: both
task: [choice, other]
aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]
metadata: {version: 1.0}
"""
WRITTEN = """
task: written
dataset_path: json
dataset_kwargs: ITEMS
output_type: generate_until
validation_split: validation
doc_to_text: "{{query}}"
doc_to_target: "{{query}}"
generation_kwargs: {until: ["!"], max_gen_toks: 2}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
TAGGED = "tag: tagged\n"
DRAWN = """
task: drawn
custom_dataset: !function drawn.items
output_type: multiple_choice
validation_split: validation
process_results: !function drawn.score
doc_to_text: ""
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
CODE = """
import random
import datasets
import numpy as np
import torch

def items(**options):
    words = ["alpha", "beta", "gamma", "delta", "epsilon"]
    draws = [random.choice(words), words[np.random.randint(5)], words[torch.randint(5, ()).item()]]
    return {"validation": datasets.Dataset.from_list([{"choices": draws, "gold": 0}])}

def score(doc, results):
    return {"acc": value()}

def value():
    return 1.0
"""
HEX = "-[0-9a-f]{6}/"
"""What stands behind the name of a task of one's own."""


def write_tasks(folder: Path, num_items: int = 24) -> Path:
    """Tasks ``choice`` and ``other``, their group ``both``, and ``rolling``, on made-up items; a folder of YAMLs."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for name in ("choice", "other", "examples"):
        items = []
        for _ in range(num_items):
            choices = [" ".join(draw.choices(SYLLABLES, k=1 + i)) for i in range(3)]
            query = " ".join(draw.choices(SYLLABLES, k=5))
            items.append({"query": query, "choices": choices, "gold": draw.randrange(3)})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    places = {name: (folder / f"{name}.jsonl").absolute() for name in ("choice", "other", "examples")}
    for name in ("choice", "other"):
        text = CHOICE.format(name=name, items=places[name], examples=places["examples"])
        (folder / f"{name}.yaml").write_text(text + TAGGED)
    (folder / "rolling.yaml").write_text(ROLLING.format(items=places["choice"]))
    (folder / "both.yaml").write_text(GROUP)
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks") / "tasks")


def run_of(recipe, model, steps: int = 12) -> RunFolder:
    short = recipe.train.model_copy(update={"num_steps": steps})
    folder = carried_out(replace(recipe, train=short, model=recipe.model.override(model)))
    assert folder.status.state == "FINISHED", folder.status.reason
    return folder


def measured(weights, names, tasks, **options) -> list[Measurement]:
    return benchmarks.measure(weights, benchmarks.load(names, include_path=tasks, **options), CPU)


def scores(weights, names, tasks, **options) -> dict[str, float]:
    found = [one.mirrored() for one in measured(weights, names, tasks, **options)]
    return {re.sub(HEX, "/", key): value for one in found for key, value in one.items()}


def by_lm_eval(lm: HFLM, names, tasks, **options) -> dict[str, float]:
    """What lm_eval's own API says, under this project's keys."""
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return keyed(lm_eval.simple_evaluate(model=lm, tasks=names, task_manager=manager, **options)["results"])


def keyed(results) -> dict[str, float]:
    lower = {"brier_score": "brier_score/lower", "word_perplexity": "word_perplexity/lower"}
    pairs = [(task, name.removesuffix(",none"), value) for task, of in results.items() for name, value in of.items()]
    return {
        f"lm_eval/{task}/{lower.get(name, name)}": value
        for task, name, value in pairs
        if isinstance(value, float) and name not in ("alias", "sample_len")
    }


@pytest.fixture
def variant(recipe) -> RunFolder:
    """A finished run of a model that is no stock Llama."""
    return run_of(recipe, {"attention": {"type": "gated_output"}, "rotary": {"type": "nope"}})


def test_a_variant_scores_the_same_here_and_where_lm_eval_loads_it_by_the_auto_classes(variant, tasks):
    names = ["choice", "rolling"]
    assert json.loads((variant.final / "config.json").read_text())["model_type"] == "llama_variant"
    theirs = by_lm_eval(HFLM(pretrained=str(variant.final), device="cpu", batch_size=8), names, tasks)
    ours = scores(of_run(variant, "a"), names, tasks)
    assert (
        set(ours)
        == set(theirs)
        == {
            *(f"lm_eval/choice/{name}" for name in ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr")),
            *("lm_eval/choice/brier_score/lower", "lm_eval/rolling/word_perplexity/lower"),
        }
    )
    assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.slow
def test_a_variant_scores_the_same_by_lm_eval_s_own_command(variant, tasks, tmp_path):
    """The command is the one that docs/evaluate.md shows; as lm_eval is installed, it cannot load the model."""
    page = (ROOT / "docs/evaluate.md").read_text()
    words = shlex.split(re.search(r"^\.venv/bin/python (-c .*lm_eval.*)$", page, flags=re.MULTILINE)[1])
    words[words.index("--model_args") + 1] = f"pretrained={variant.final}"
    words[words.index("--tasks") + 1] = "both,rolling"
    words += ["--include_path", str(tasks), "--output_path", str(tmp_path / "out.json"), "--device", "cpu"]
    for start, code in ((words[:2], 0), (["-m", "lm_eval"], 1)):
        command = [sys.executable, *start, *words[2:]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stderr[-2000:]
    assert "llama_variant" in done.stderr
    (file,) = tmp_path.glob("out*.json")
    theirs = keyed(json.loads(file.read_text())["results"])
    tagged = measured(of_run(variant, "a"), ["tagged"], tasks)
    assert [one.text[:-7] for one in tagged] == ["choice", "other"]
    ours = scores(of_run(variant, "a"), ["both", "tagged", "rolling"], tasks)
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert {key for key in ours if key.startswith("lm_eval/both/")} == {"lm_eval/both/acc", "lm_eval/both/acc_stderr"}


def test_a_stock_shape_scores_what_transformers_llama_scores(recipe, tasks):
    run = run_of(recipe, {"rotary": {"theta": 500.0}})
    stock = StockLlama.from_pretrained(run.final)
    assert type(stock) is StockLlama
    lm = HFLM(pretrained=stock, tokenizer=AutoTokenizer.from_pretrained(run.final), batch_size=8)
    names = ["choice", "rolling"]
    theirs = by_lm_eval(lm, names, tasks, num_fewshot=2)
    ours = scores(of_run(run, "a"), names, tasks, num_fewshot=2)
    plain = {key.replace("-2shot/", "/"): value for key, value in ours.items()}
    assert len(ours) == 6
    assert plain == pytest.approx(theirs, rel=1e-5)
    recipe_of_run, _ = run.config()
    saved = of_file(str(run.final), recipe_of_run, Path("runs"))
    assert scores(saved, names, tasks, num_fewshot=2) == ours


@pytest.mark.slow
def test_half_precision_is_autocast_with_logits_in_float32(variant, tasks):
    recipe, _ = variant.config()
    half = replace(recipe, train=recipe.train.model_copy(update={"precision": "bfloat16"}))
    ours = scores(of_file(str(variant.final), half, Path("runs")), ["choice"], tasks)
    model = load_pretrained(variant.final)
    logits = {}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits["half"] = model(torch.arange(8)[None]).logits
    assert logits["half"].dtype == torch.bfloat16
    whole = scores(of_run(variant, "a"), ["choice"], tasks)
    brier = "lm_eval/choice/brier_score/lower"
    assert ours[brier] != whole[brier]
    assert ours[brier] == pytest.approx(whole[brier], abs=0.02)
    options = {"mixed_precision_dtype": "bfloat16", "softmax_dtype": "float32"}
    lm = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(variant.final), batch_size=8, **options)
    assert ours == pytest.approx(by_lm_eval(lm, ["choice"], tasks), rel=1e-5)


def test_a_score_is_made_once_and_again_for_what_bears_on_it(variant, tasks, tmp_path, monkeypatch):
    folder = shutil.copytree(tasks, tmp_path / "tasks")  # elsewhere, with the same items
    for file in folder.glob("*.yaml"):
        file.write_text(file.read_text().replace(str(tasks), str(folder)))
    weights = of_run(variant, "a")
    first = measured(weights, ["choice"], tasks)
    with monkeypatch.context() as patch:
        patch.setattr(benchmarks, "_lm", None)  # the weights are not even read
        assert measured(weights, ["choice"], tasks) == first
        assert measured(weights, ["choice"], folder) == first
    assert np.mean(first[0].items["acc"]) == first[0].metrics["acc"]
    assert set(first[0].items) == {"acc", "acc_norm"}  # a Brier score is no mean of numbers
    assert first[0].identity["tasks"]["choice"]["version"] == 1.0
    keys = {
        key for options in ({"limit": 5}, {"num_fewshot": 1}) for key in scores(weights, ["choice"], tasks, **options)
    }
    assert {key.split("/")[1] for key in keys} == {"choice-limit5", "choice-1shot"}
    assert len(list(variant.evaluations.glob("*.json"))) == 3
    tokenizer = variant.final / "tokenizer.json"
    before = tokenizer.read_text()
    tokenizer.write_text(re.sub(r'("use_regex": ?)true', r"\1false", before))
    assert tokenizer.read_text() != before
    measured(weights, ["choice"], tasks)
    tokenizer.write_text(before)
    assert len(list(variant.evaluations.glob("*.json"))) == 4
    lines = (folder / "choice.jsonl").read_text().splitlines()
    (folder / "choice.jsonl").write_text("\n".join(lines[1:]))
    (other,) = measured(weights, ["choice"], folder)
    assert len(other.items["acc"]) == len(lines) - 1
    assert re.sub(HEX, "/", f"{other.text}/") == "choice/"
    assert other.text != first[0].text  # one key is one way to measure


def test_generated_text_depends_on_the_model_s_own_generation_config(variant, tasks, tmp_path):
    folder = shutil.copytree(tasks, tmp_path / "tasks")
    items = f"{{data_files: {{validation: {folder / 'choice.jsonl'}}}}}"
    (folder / "written.yaml").write_text(WRITTEN.replace("ITEMS", items))
    file = variant.final / "generation_config.json"
    shown = json.loads(file.read_text())
    found = []
    for text in (shown, shown, shown | {"repetition_penalty": 1.5}):
        file.write_text(json.dumps(text))
        found += measured(of_run(variant, "a"), ["written", "choice"], folder, limit=2)
    written, choice = found[::2], found[1::2]
    assert written[0] == written[1] != written[2]
    assert choice[0] == choice[2]


def test_a_task_that_draws_is_the_one_that_lm_eval_loads_and_knows_its_helpers(tmp_path):
    (tmp_path / "drawn.yaml").write_text(DRAWN)
    code = tmp_path / "drawn.py"
    code.write_text(CODE)
    random.seed(0), np.random.seed(1234), torch.manual_seed(1234)
    theirs = TaskManager(include_path=str(tmp_path), include_defaults=False).load(["drawn"])["tasks"]["drawn"]
    states = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    (once,) = benchmarks.load(["drawn"], include_path=tmp_path)
    drawn = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    assert drawn == (random.random(), np.random.rand(), torch.rand(()).item()) != states
    (again,) = benchmarks.load(["drawn"], include_path=tmp_path)
    assert once.task.eval_docs[:] == again.task.eval_docs[:] == theirs.eval_docs[:]
    assert (once.identity, once.label) == (again.identity, again.label)
    code.write_text(CODE.replace("return 1.0", "return 0.0"))  # no function that the YAML names
    (other,) = benchmarks.load(["drawn"], include_path=tmp_path)
    assert other.identity["tasks"] == once.identity["tasks"]
    assert other.label != once.label


def test_a_task_scores_the_plain_model_whatever_a_probe_set_on_it_before(variant, tasks):
    recipe, _ = variant.config()
    half = {"precision": "bfloat16", "residual_stream": "bfloat16", "mask_documents": True}
    recipe = replace(recipe, train=recipe.train.model_copy(update=half))
    found = []
    for asked in ([], [Text(name="own", source=None)]):
        weights = of_file(str(variant.final), recipe, Path(f"runs{len(asked)}"))
        measure(weights, asked, {"loss": PROBE.config_class("loss")()}, CPU, Path("cache"))
        found.append(scores(weights, ["choice"], tasks))
    assert found[0] == found[1]


def test_what_fails_while_it_is_scored_is_named_with_its_option(variant, tasks, tmp_path):
    folder = shutil.copytree(tasks, tmp_path / "tasks")
    (folder / "drawn.yaml").write_text(DRAWN)
    (folder / "drawn.py").write_text(CODE.replace("return 1.0", "raise KeyError('lost')"))
    for name, options, says in (
        ("choice", {"num_fewshot": 50}, "'choice' --num-fewshot 50, which raises ValueError: "),
        ("drawn", {}, "'drawn', which raises KeyError: 'lost'"),
    ):
        with pytest.raises(ConfigError, match=re.escape(says)):
            measured(of_run(variant, "a"), [name], folder, **options)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        pytest.param(
            ["choise", "arc_esy"],
            "--tasks: received 'arc_esy'; allowed: did you mean 'arc_easy'",
            marks=pytest.mark.slow,  # lm_eval looks through its thousands of tasks
        ),
        (["broken"], "'broken', which raises "),
        (["unsafe"], "'unsafe', which runs code that the model writes"),
    ],
)
def test_what_cannot_be_asked_is_named(tasks, tmp_path, names, says):
    folder = shutil.copytree(tasks, tmp_path / "tasks")
    text = (folder / "choice.yaml").read_text()
    (folder / "broken.yaml").write_text(
        text.replace("task: choice", "task: broken").replace("choice.jsonl", "gone.jsonl")
    )
    (folder / "unsafe.yaml").write_text(text.replace("task: choice", "task: unsafe") + "unsafe_code: true\n")
    with pytest.raises(ConfigError) as error:
        benchmarks.load(names, include_path=folder)
    assert says in str(error.value)
    assert len(error.value.problems) == len(names)


def test_the_page_s_task_is_one(variant):
    page = (ROOT / "docs/evaluate.md").read_text()
    Path("tasks").mkdir()
    Path("tasks/mine.yaml").write_text(re.search(r"```yaml\n(.*?)```", page, flags=re.DOTALL)[1])
    item = {"query": "alpha", "choices": ["beta", "gamma delta"], "gold": 1}
    Path("tasks/mine.jsonl").write_text(f"{json.dumps(item)}\n" * 3)
    (found,) = measured(of_run(variant, "a"), ["mine"], Path("tasks"))
    assert found.metrics["acc"] in (0.0, 1.0)
    assert len(found.items["acc"]) == 3


def test_requests_that_are_cut_are_counted(variant, tasks):
    said: list[str] = []
    asked = benchmarks.load(["choice"], include_path=tasks, num_fewshot=4)
    benchmarks.measure(of_run(variant, "a"), asked, CPU, say=said.append)
    assert [re.sub("-[0-9a-f]{6}", "", line) for line in said] == [
        "choice-4shot",
        "choice-4shot: 72 requests are longer than the model's window and lose their beginning",
    ]


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(variant, tasks, tmp_path):
    folder = shutil.copytree(variant.final, tmp_path / "final")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["one_too_many"])
    tokenizer.save_pretrained(folder)
    recipe, _ = variant.config()
    with pytest.raises(ConfigError, match="301"):
        measured(of_file(str(folder), recipe, Path("runs")), ["choice"], tasks)
    assert not list(Path("runs").glob("weights/*/evaluations/*"))


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="which is no folder"):
        benchmarks.load(["choice"], include_path=tmp_path / "nowhere")
