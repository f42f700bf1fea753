"""Compiled code computes what is written: every block, in training and in evaluation; what fails runs as written.

pytest's import hook wraps every forward in checks that cannot be compiled, so the compiling is done in children.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from llama_variants import LlamaForCausalLM, ModelConfig, build_model
from runners.execution.one_run import RunOptions, execute
from runners.planning.bases import load_base
from runners.planning.recipe import TrainConfig
from runners.runs.folder import RunFolder
from runners.runs.signals import Stopped, StopRequest
from runners.training import autotune, loss
from runners.training import compile as compile_module
from runners.training.autotune import AT_ONCE, find_micro_batch, settle
from runners.training.compile import (
    CACHE_DIR,
    attention_kernels,
    compile_model,
    eager,
    is_compiled,
    keep_compiled_in,
    uncompile_model,
    wants_compile,
)
from runners.training.gradients import gradients
from runners.training.loss import evaluate
from runners.training.parallel import World
from tests.llama_variants.models import BLOCKS, PATTERNS, TINY, ids
from tests.runners.children import SEED, Plan, call, finish, new_run, start, wait_for
from tests.runners.conftest import write_project
from tests.runners.helpers import optimizer_of


def together() -> dict[str, ModelConfig]:
    """Every registered block but the control's, in as few models as there are blocks of one family.

    A layer is compiled as a whole, so that a model for each block would compile all the others once more.
    """
    others = {
        family: [block for block in blocks if TINY.override({family: block}) != TINY]
        for family, blocks in BLOCKS.items()
    }
    deltas = [
        {family: block for family, block in zip(others, row, strict=True) if block}
        for row in zip_longest(*others.values())
    ]
    return {
        " ".join(f"{family}={block['type']}" for family, block in delta.items()): TINY.override(delta)
        for delta in deltas
    }


MODELS = {"control": TINY} | together() | PATTERNS
BATCH, MICRO_BATCH = 4, 2  # windows of a step, and at a time: the only shape, for each takes its own compiling


@pytest.fixture
def config(recipe) -> TrainConfig:
    return recipe.train.model_copy(update={"seq_len": 16, "tokens_per_step": 16 * BATCH})


# In a child


def compare_all(config: TrainConfig, file: Path, cache: Path) -> None:
    """Losses and gradients of every model, compiled and as it is written, in both precisions for the control."""
    torch.set_num_threads(1)
    keep_compiled_in(cache)
    cases = [(name, "float32") for name in MODELS] + [("control", "bfloat16")]
    record = {}
    for name, precision in cases:
        own = config.model_copy(update={"precision": precision})
        record[f"{name}, {precision}"] = _compared(build_model(MODELS[name], seed=SEED), own)
    file.write_text(json.dumps(record))


def _compared(model: LlamaForCausalLM, config: TrainConfig) -> dict[str, object]:
    said: list[str] = []
    batch = ids(TINY, batch=BATCH, time=config.seq_len)
    windows = ids(TINY, batch=7, time=config.seq_len, seed=1).numpy()  # the last batch is not whole
    _, compiled = settle(
        model, optimizer_of(model, config), batch, config, World(), said.append, compiled=True, micro_batch=MICRO_BATCH
    )
    loss, grads = _step(model, batch, config)
    judged = evaluate(model, windows, batch_size=MICRO_BATCH, precision=config.precision)
    with eager():
        stance_loss, _ = _step(model, batch, config)
    uncompile_model(model)
    plain_loss, plain_grads = _step(model, batch, config)
    plain = evaluate(model, windows, batch_size=MICRO_BATCH, precision=config.precision)
    furthest = max(
        float((grads[name] - grad).norm() / grad.norm()) for name, grad in plain_grads.items() if grad.norm() > 1e-12
    )
    return {
        "compiled": compiled,
        "said": said,
        "loss": loss - plain_loss,
        "in the eager stance": stance_loss - plain_loss,
        "evaluation": judged.loss_nats - plain.loss_nats,
        "its error": judged.se_nats - plain.se_nats,
        "gradients": furthest,
    }


def _step(model: LlamaForCausalLM, batch: Tensor, config: TrainConfig) -> tuple[float, dict[str, Tensor]]:
    loss = float(gradients(model, batch, config, World(), MICRO_BATCH))
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def compared(made_once) -> dict[str, dict]:
    def fill(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(write_project(folder))
            train = load_base(Path("experiments/base/micro.yaml"))[1].train
        config = train.model_copy(update={"seq_len": 16, "tokens_per_step": 16 * BATCH})
        assert call(compare_all, config, folder / "record.json", folder / "cache") == 0

    return json.loads((made_once("compiled", fill) / "record.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"{name}, float32" for name in MODELS] + ["control, bfloat16"])
def test_compiled_is_what_is_written(compared, name):
    found, exact = compared[name], name.endswith("float32")
    assert found["compiled"], found["said"]
    assert found["said"] == []
    assert found["in the eager stance"] == 0
    for what in ("loss", "evaluation", "its error"):
        assert abs(found[what]) < (1e-5 if exact else 1e-2), what
    assert found["gradients"] < (1e-4 if exact else 0.05)
    assert found["loss"] or found["gradients"], "the very same bits: was it compiled?"


def test_every_block_is_among_what_is_compiled():
    used = {pair for model in MODELS.values() for pair in model.used}
    assert used >= {(family, block["type"]) for family, blocks in BLOCKS.items() for block in blocks}


@pytest.mark.slow
def test_a_compiled_run_goes_on_bit_for_bit_and_as_it_was_begun(project, recipe):
    """Stopped by a kill and gone on with under `auto`, which alone would not compile on a CPU."""
    train = recipe.train.model_copy(update={"num_steps": 8})
    short = replace(recipe, train=train)
    whole, cut = (new_run(project / folder, short) for folder in ("", "cut"))
    for folder in ("experiments", "text"):
        (project / "cut" / folder).symlink_to(project / folder)
    assert finish(Plan(project, whole.key, 1000.0, compile_mode="on"), 300) == 0

    child = start(Plan(project / "cut", cut.key, step_takes_s=0.2, compile_mode="on"))
    wait_for(lambda: len(cut.rows()[0]) >= 4, child, timeout_s=300)
    child.kill()
    child.join()
    assert finish(Plan(project / "cut", cut.key, compile_mode="auto"), 300) == 0
    assert "going on after step" in " ".join(cut.events()[0])

    def losses(run: RunFolder) -> list[float]:
        return [row["metrics"]["train/loss"] for row in run.rows()[0]]

    assert losses(cut) == losses(whole)
    assert (cut.final / "model.safetensors").read_bytes() == (whole.final / "model.safetensors").read_bytes()
    assert [run.rows()[0][-1]["metrics"]["final/compiled"] for run in (cut, whole)] == [1, 1]


# Without a compiler


class Chatty(nn.Module):
    """Fine as it is written, but a print cannot stand inside compiled code."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        print(end="")
        return self.inner(x)


def test_what_cannot_be_compiled_runs_as_it_is_written(config):
    model, said = build_model(TINY, seed=SEED), []
    model.model.layers[1].mlp = Chatty(model.model.layers[1].mlp)
    batch = ids(TINY, batch=BATCH, time=16)
    expected = _step(model, batch, config)[0]
    assert settle(model, optimizer_of(model, config), batch, config, World(), said.append, compiled=True) == (
        BATCH,
        False,
    )
    assert not is_compiled(model)
    (line,) = said
    assert line.startswith("not compiled, and slower: ")
    assert "\n" not in line
    assert _step(model, batch, config)[0] == expected


@pytest.mark.slow
def test_another_loss_is_not_believed(config, monkeypatch):
    """The loss of training is made to lie by twice what is allowed."""

    def lie(model: LlamaForCausalLM) -> None:
        honest = model.loss_function
        model.loss_function = lambda *arguments: honest(*arguments) + 2e-4 * torch.is_grad_enabled()

    monkeypatch.setattr(autotune, "compile_model", lie)
    model, said = build_model(TINY, seed=SEED), []
    batch = ids(TINY, batch=BATCH, time=16)
    assert settle(model, optimizer_of(model, config), batch, config, World(), said.append, compiled=True) == (
        BATCH,
        False,
    )
    assert "in training" in said[0]
    assert not is_compiled(model)


@pytest.fixture
def pretended(monkeypatch) -> None:
    """Models are compiled as far as anyone can tell; torch compiles nothing."""

    def pretend(model: LlamaForCausalLM) -> None:
        honest = model.loss_function
        model.loss_function = lambda *arguments: honest(*arguments)

    monkeypatch.setattr(autotune, "compile_model", pretend)
    monkeypatch.setattr(loss, "compiled", lambda function: function)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [0.0, 2e-4])
def test_a_block_that_draws_random_numbers_is_compiled_and_compared_in_evaluation(config, monkeypatch, wrong):
    """Its gradients differ from themselves; a loss that is wrong in evaluation is seen all the same."""

    def lie(model: LlamaForCausalLM) -> None:
        honest = model.loss_function
        model.loss_function = lambda *arguments: honest(*arguments) + wrong * (not torch.is_grad_enabled())

    monkeypatch.setattr(autotune, "compile_model", lie)
    model, said = build_model(TINY, seed=SEED), []
    model.model.layers[1].mlp = nn.Sequential(model.model.layers[1].mlp, nn.Dropout(0.5))
    batch = ids(TINY, batch=BATCH, time=16)
    _, compiled = settle(model, optimizer_of(model, config), batch, config, World(), said.append, compiled=True)
    assert compiled == (not wrong)
    assert ("in evaluation" if wrong else "a block draws random numbers") in said[0]
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.usefixtures("pretended")
def test_eager_code_that_takes_too_much_memory_is_no_reason_not_to_compile(config, monkeypatch):
    """One window as it is written may take more than all that are compiled."""

    def needs(model: nn.Module, batch: Tensor, config: TrainConfig, world: World, micro_batch: int) -> Tensor:
        if micro_batch == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gradients(model, batch, config, world, micro_batch)

    monkeypatch.setattr(autotune, "gradients", needs)
    model, said = build_model(TINY, seed=SEED), []
    batch, optimizer = ids(TINY, batch=BATCH, time=16), optimizer_of(model, config)
    found = settle(model, optimizer, batch, config, World(), said.append, compiled=True)
    assert said == ["compiled gradients are not compared with eager ones, which take more memory than there is"]
    assert found == (BATCH, True)


def test_running_out_of_memory_is_no_reason_not_to_compile(config, monkeypatch):
    def needs(room: int) -> None:
        def check(model: LlamaForCausalLM, batch: Tensor, config: TrainConfig) -> None:
            if len(batch) > room:
                raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(autotune, "_check_compiled", check)

    said: list[str] = []
    needs(room=1)
    batch = ids(TINY, batch=BATCH, time=16)
    model = build_model(TINY)
    optimizer = optimizer_of(model, config)
    assert settle(model, optimizer, batch, config, World(), said.append, compiled=True, micro_batch=9) == (1, True)
    assert said[0] == "out of memory with 4 windows at a time; going on with 2"
    needs(room=0)
    with pytest.raises(torch.OutOfMemoryError):
        settle(model, optimizer, batch, config, World(), print, compiled=True, micro_batch=1)


def said_by(code: str, **environment: str) -> list[str]:
    """What a Python of its own prints, with nothing but these variables said about compiling."""
    own = {name: value for name, value in os.environ.items() if name != CACHE_DIR} | environment
    return subprocess.run(
        [sys.executable, "-c", code], env=own, capture_output=True, text=True, check=True
    ).stdout.split()


def test_compiled_code_is_kept_where_it_is_told_and_where_the_user_says(tmp_path):
    """transformers enters torch's own default into the environment, as if a user had set it."""
    code = f"""
import os, pathlib, transformers, torch._dynamo
print(os.environ["{CACHE_DIR}"])
from runners.training.compile import keep_compiled_in
keep_compiled_in(pathlib.Path({str(tmp_path / "ours")!r}))
from torch._inductor.runtime.cache_dir_utils import cache_dir
print(cache_dir())
"""
    default, place = said_by(code)
    assert default == default_cache_dir() != place == str(tmp_path / "ours")
    assert said_by(code, **{CACHE_DIR: str(tmp_path / "own")}) == [str(tmp_path / "own")] * 2
    assert said_by(code, **{CACHE_DIR: default}) == [default, place]  # as a child inherits it


IN_A_THREAD = """
import threading, torch
from torch._inductor.graph import GraphLowering
from llama_variants import build_model
from runners.training.compile import compile_model
from runners.training.determinism import make_deterministic
from tests.llama_variants.models import TINY, ids
seen, honest = [], GraphLowering.run
def record(*arguments, **options):
    seen.append(torch._inductor.config.deterministic)
    return honest(*arguments, **options)
GraphLowering.run = record
make_deterministic(True)
model = build_model(TINY.override({"num_hidden_layers": 1})).train()
compile_model(model)
loss = model(ids(TINY), labels=ids(TINY)).loss
thread = threading.Thread(target=loss.backward)
thread.start()
thread.join()
print(len(seen), all(seen), model.lm_head.weight.grad is not None)
"""


@pytest.mark.slow
def test_the_backward_pass_is_compiled_deterministic_too(tmp_path):
    """On a card it runs in a thread of autograd's own, to which torch's configuration is the default."""
    assert said_by(IN_A_THREAD, **{CACHE_DIR: str(tmp_path)}) == ["4", "True", "True"]


COMPILES = """
import pathlib, sys, torch
from torch._dynamo.utils import counters
from runners.training.compile import attention_kernels, keep_compiled_in
keep_compiled_in(pathlib.Path(sys.argv[1]))
with attention_kernels(torch.device(sys.argv[2]), sys.argv[3] == "fixed"):
    torch.compile(lambda x: (x @ x).relu())(torch.ones(8, 8))
print(counters["inductor"]["fxgraph_cache_hit"], counters["aot_autograd"]["autograd_cache_hit"])
"""


@pytest.mark.slow
def test_a_cache_on_disk_keeps_what_attention_preferred_apart(tmp_path):
    """One folder, a process each: the second of a kind finds the first one's code, and none finds another kind's."""
    code = COMPILES.replace("sys.argv[1]", repr(str(tmp_path)))
    hits = []
    for device, fixed in (("cuda", "free"), ("cuda", "fixed"), ("cpu", "free"), ("cuda", "free"), ("cuda", "fixed")):
        said = said_by(code.replace("sys.argv[2]", repr(device)).replace("sys.argv[3]", repr(fixed)))
        hits.append(any(map(int, said)))
    assert hits == [False, False, False, True, True]


def test_a_process_forgets_what_it_compiled_for_another_preference(monkeypatch):
    forgotten = []
    monkeypatch.setattr(compile_module, "_preference", "")
    monkeypatch.setattr(torch._dynamo, "reset", lambda: forgotten.append(torch.compiler.config.cache_key_tag))
    cpu, card = torch.device("cpu"), torch.device("cuda:0")
    tags = []
    for device, deterministic in ((card, False), (card, False), (cpu, True), (card, True), (card, True), (card, False)):
        with attention_kernels(device, deterministic):
            tags.append(torch.compiler.config.cache_key_tag)
        assert torch.compiler.config.cache_key_tag == ""
    fast, fixed = tags[0], tags[3]
    assert tags == [fast, fast, "", fixed, fixed, fast]
    assert "CUDNN" in fast
    assert "CUDNN" not in fixed
    assert len(forgotten) == 2


@pytest.mark.usefixtures("pretended")
def test_an_interrupted_compilation_is_not_remembered(project, recipe, monkeypatch):
    """A Ctrl-C kills the compilers too: their failure is not why the run would go on without them for good."""
    run, stop = new_run(project, recipe), StopRequest()

    def interrupted(model: LlamaForCausalLM, batch: Tensor, config: TrainConfig) -> None:
        stop.signum = signal.SIGINT
        raise RuntimeError("g++ was killed")

    options, compiled = RunOptions(compile_mode="on"), []
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(autotune, "_check_compiled", interrupted)
        execute(run, Path("cache"), "cpu", options, stop, lambda training: pytest.fail("it made a step"))
    assert run.status.state == "KILLED"
    assert not run.checkpoints.exists() or not list(run.checkpoints.iterdir())
    execute(
        run, Path("cache"), "cpu", options, StopRequest(), lambda training: compiled.append(training.progress.compiled)
    )
    assert run.status.state == "FINISHED", run.status.reason
    assert set(compiled) == {True}


def test_compiling_is_for_cards_unless_asked_for():
    cpu, card = torch.device("cpu"), torch.device("cuda")
    wanted = [wants_compile(mode, device) for device in (cpu, card) for mode in ("auto", "on", "off")]
    assert wanted == [False, True, False, True, True, False]


def test_compiling_and_back_leaves_the_model_as_it_was(config):
    model = build_model(TINY, seed=SEED)
    names, expected = list(model.state_dict()), _step(model, ids(TINY, time=16), config)[0]
    compile_model(model)
    assert is_compiled(model)
    assert list(model.state_dict()) == names
    uncompile_model(model)
    assert not is_compiled(model)
    assert _step(model, ids(TINY, time=16), config)[0] == expected


def test_the_search_for_a_micro_batch_tries_all_that_a_step_holds(config, monkeypatch):
    """A second micro-batch beside the first one's gradients, and the clipping: it found what a step could not hold."""
    tried, gradients = [], autotune.gradients

    def watched(model: LlamaForCausalLM, part: Tensor, *others: object) -> Tensor:
        tried.append((len(part), others[-1]))
        if others[-1] > 3:
            raise torch.OutOfMemoryError
        return gradients(model, part, *others)

    monkeypatch.setattr(autotune, "gradients", watched)
    clipped = []
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda parameters, most: clipped.append(len(parameters)))
    model, said = build_model(TINY), []
    optimizer = optimizer_of(model, config)
    batch = torch.zeros(12, 16, dtype=torch.long)
    assert find_micro_batch(model, optimizer, batch, config, 1, said.append) == 3
    assert tried == [(12, 12), (12, 6), (6, 3)]
    assert clipped == [len(list(model.parameters()))]
    assert [p.grad for p in model.parameters()] == [None] * clipped[0]


def test_compiled_micro_batches_are_even(config, monkeypatch):
    """A part of another size would be compiled in the middle of a step."""
    monkeypatch.setattr(autotune, "_check_compiled", lambda *arguments: None)
    model, batch = build_model(TINY), torch.zeros(12, 16, dtype=torch.long)
    optimizer = optimizer_of(model, config)
    for asked, taken in ((5, 4), (6, 6), (99, 12), (1, 1)):
        got = settle(model, optimizer, batch, config, World(), print, compiled=True, micro_batch=asked)
        assert got == (taken, True)


def test_no_more_tokens_at_a_time_than_help(config):
    """On a processor what takes too much memory is killed, and cannot be tried again with less."""
    model, long = build_model(TINY), AT_ONCE["cpu"] // 4
    optimizer = optimizer_of(model, config)
    assert find_micro_batch(model, optimizer, torch.zeros(8, 16, dtype=torch.long), config, 1, print) == 8
    assert find_micro_batch(model, optimizer, torch.zeros(8, long, dtype=torch.long), config, 1, print) == 4
    assert find_micro_batch(model, optimizer, torch.zeros(2, 5 * long, dtype=torch.long), config, 1, print) == 1
