"""The loop and the evaluation against plain PyTorch around transformers' own Llama."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F  # noqa: N812
from transformers import AutoModelForCausalLM, AutoTokenizer

from llama_variants import LlamaMLP, build_model
from runners.data import prepare
from runners.execution import journal
from runners.execution.one_run import RunOptions, execute
from runners.planning.recipe import Recipe
from runners.runs.checkpoint import Checkpoints
from runners.runs.folder import RunFolder
from runners.runs.signals import Stopped, StopRequest
from runners.training import loop
from runners.training.determinism import make_deterministic
from runners.training.loss import evaluate
from tests.llama_variants.models import stock
from tests.runners.children import new_run
from tests.runners.helpers import changed, trained_rows

SEED = 5
CPU = torch.device("cpu")


def trained(recipe: Recipe, folder: str = "run", **options) -> list[dict]:
    """What a run logs, by step."""
    corpus = prepare(recipe.data, Path("cache"))
    return trained_rows(recipe, SEED, corpus, RunFolder(Path("runs"), folder), **options)


def in_pieces(folder: Path, words: int) -> None:
    """Each text of a folder as several, so that a window holds more than one."""
    for file in sorted(folder.iterdir()):
        text = file.read_text().split()
        file.unlink()
        for start in range(0, len(text), words):
            (folder / f"{file.stem}-{start:03}.txt").write_text(" ".join(text[start : start + words]))


def places(batch: torch.Tensor, end_id: int) -> torch.Tensor:
    """Each token's place in its document."""
    rows = []
    for row in batch.tolist():
        rows.append([0])
        for token in row[:-1]:
            rows[-1].append(0 if token == end_id else rows[-1][-1] + 1)
    return torch.tensor(rows)


@pytest.mark.parametrize("masked", [False, True])
def test_losses_are_those_of_a_plain_loop_around_transformers(recipe, masked):
    """Same initial values and batches; the schedule, the clipping and the decay groups written out once more."""
    if masked:  # transformers keeps documents apart by positions that start again
        in_pieces(Path("text"), words=7)
        recipe = replace(recipe, train=changed(recipe.train, mask_documents=True))
    corpus, config = prepare(recipe.data, Path("cache")), recipe.train
    end_id = corpus.manifest["end_id"]
    model = stock(recipe.model).train()
    model.load_state_dict(build_model(recipe.model, seed=SEED).state_dict())
    decayed = [p for name, p in model.named_parameters() if "norm" not in name]
    plain = [p for name, p in model.named_parameters() if "norm" in name]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    rates = [1e-2 * min(1, (i + 1) / 3, (30 - i) / 6) for i in range(30)]
    expected = []
    for step, rate in enumerate(rates):
        batch = torch.from_numpy(corpus.train.batch(step, seed=SEED, batch_size=4, seq_len=32))
        for group in optimizer.param_groups:
            group["lr"] = rate
        positions = places(batch, end_id) if masked else None
        assert not masked or (positions[:, 1:] == 0).any()
        loss = model(batch, position_ids=positions, labels=batch, use_cache=False).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        expected.append((loss.item(), norm.item()))
    assert config.num_steps == len(expected)
    rows = [row["metrics"] for row in trained(recipe)]
    assert [row["train/lr"] for row in rows] == pytest.approx(rates)
    assert [row["train/loss"] for row in rows] == pytest.approx([loss for loss, _ in expected], abs=1e-4)
    assert [row["train/grad_norm"] for row in rows] == pytest.approx([norm for _, norm in expected], rel=1e-2)

    windows = corpus.validation.windows(recipe.eval.num_windows, config.seq_len)
    tokens = torch.from_numpy(windows)
    with torch.no_grad():
        result = model(
            tokens, position_ids=places(tokens, end_id) if masked else None, labels=tokens, use_cache=False
        ).loss.item()
    assert rows[-1]["final/val_loss"] == pytest.approx(result, abs=1e-4)
    assert rows[-1]["final/train_loss"] == pytest.approx(sum(loss for loss, _ in expected[-3:]) / 3, abs=1e-4)


def test_evaluates_at_the_declared_steps_however_seldom_it_logs(recipe, monkeypatch):
    monkeypatch.setattr(journal, "LOG_POINTS", 3)
    seldom = trained(replace(recipe, eval=recipe.eval.model_copy(update={"every_steps": 7})), "seldom")
    assert [row["step"] for row in seldom] == [1, 7, 10, 14, 20, 21, 28, 30]
    assert [row["step"] for row in seldom if "val/loss" in row["metrics"]] == [7, 14, 21, 28, 30]
    often = trained(replace(recipe, eval=recipe.eval.model_copy(update={"every_steps": 1})), "often")
    losses = {row["step"]: row["metrics"]["train/loss"] for row in often}
    assert all(losses[row["step"]] == row["metrics"]["train/loss"] for row in seldom)


def test_evaluation_is_the_mean_over_windows_in_any_batches(recipe):
    windows = prepare(recipe.data, Path("cache")).validation.windows(8, 32)
    model = build_model(recipe.model, seed=SEED)
    with torch.no_grad():
        logits = model.double()(torch.from_numpy(windows)).logits[:, :-1]
    losses = F.cross_entropy(logits.transpose(1, 2), torch.from_numpy(windows[:, 1:]), reduction="none").mean(1)
    model.float()
    for batch_size in (1, 3, 8):
        result = evaluate(model, windows, batch_size=batch_size, precision="float32")
        assert result.loss_nats == pytest.approx(losses.mean().item(), abs=1e-5)
        assert result.se_nats == pytest.approx(losses.std().item() / math.sqrt(8), rel=1e-4)
    assert model.training


def test_dropout_is_a_function_of_the_step(recipe, monkeypatch):
    """A block with random numbers of its own: equal bits whatever ran before, and after a resume."""
    forward = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: F.dropout(forward(self, x), 0.3, self.training))
    straight = trained(recipe, "straight")
    stop, run = StopRequest(), RunFolder(Path("runs"), "stopped")

    def stopping(training):
        if training.progress.step == 11:
            stop.signum = 15

    with pytest.raises(Stopped):
        trained(recipe, "stopped", on_step=stopping, stop=stop)
    with Checkpoints(run, 1000, run.say) as checkpoints:
        checkpoint = checkpoints.newest()
    assert checkpoint.state["step"] == 11
    torch.rand(100)
    trained(recipe, "stopped", checkpoint=checkpoint)
    assert losses(run.rows()[0]) == losses(straight)

    monkeypatch.setattr(loop, "seed_step", lambda *a: None)  # without, they would differ
    assert losses(trained(recipe, "unseeded")) != losses(straight)


def losses(rows: list[dict]) -> list[float]:
    return [row["metrics"]["train/loss"] for row in rows]


def test_a_twin_differs_by_what_rounding_becomes_and_repeats_its_bits(recipe):
    moved = replace(recipe, train=recipe.train.model_copy(update={"init_perturbation": 2**-20}))
    run, twin, repeated = (losses(trained(one, name)) for one, name in ((recipe, "a"), (moved, "b"), (moved, "c")))
    assert twin == repeated
    assert twin != run
    assert twin[0] == pytest.approx(run[0], rel=1e-6)
    assert twin[-1] == pytest.approx(run[-1], rel=1e-3)  # in 30 steps rounding does not carry far


def test_deterministic_holds_for_compiled_code_too_and_changes_no_cpu_loss(recipe):
    try:
        fixed = replace(recipe, train=recipe.train.model_copy(update={"deterministic": True}))
        rows = trained(fixed, "fixed")
        assert torch.are_deterministic_algorithms_enabled()
        assert torch._inductor.config.deterministic  # or it times kernels, and takes whichever wins
        assert losses(rows) == losses(trained(recipe, "free"))
        assert not torch.are_deterministic_algorithms_enabled()
        assert not torch._inductor.config.deterministic
    finally:
        make_deterministic(False)


def test_final_weights_load_in_plain_transformers_and_are_those_that_were_judged(recipe, project):
    run = new_run(project, recipe)
    execute(run, Path("cache"), "cpu", RunOptions(), StopRequest())
    rows = run.rows()[0]
    model = AutoModelForCausalLM.from_pretrained(run.final)
    assert type(model).__module__.startswith("transformers.")
    corpus = prepare(recipe.data, Path("cache"))
    windows = corpus.validation.windows(8, 32)
    ids = torch.from_numpy(windows)
    with torch.no_grad():
        assert model(ids, labels=ids).loss.item() == pytest.approx(rows[-1]["metrics"]["final/val_loss"], abs=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(run.final)
    text = "alpha beta"
    assert tokenizer(text)["input_ids"] == Tokenizer.from_file(str(corpus.folder / "tokenizer.json")).encode(text).ids
    assert tokenizer.eos_token_id == corpus.manifest["end_id"]


@pytest.mark.parametrize("mlp", ["swiglu", "relu2"])
def test_generation_from_final_weights_stops_at_the_end_of_a_text(recipe, project, mlp):
    """As a stock Llama and as a variant: a model made to say the end of text says nothing after it, in a batch too."""
    recipe = recipe.with_model(recipe.model.override({"mlp": {"type": mlp}}))
    run = new_run(project, recipe)
    execute(run, Path("cache"), "cpu", RunOptions(), StopRequest())
    end = prepare(recipe.data, Path("cache")).manifest["end_id"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run.final), AutoTokenizer.from_pretrained(run.final)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id == end
    model.lm_head.register_forward_hook(lambda module, args, logits: logits.index_fill(-1, torch.tensor([end]), 1e4))
    prompt = tokenizer("alpha beta", return_tensors="pt").input_ids
    out = model.generate(prompt.repeat(2, 1), max_new_tokens=8, do_sample=False)
    assert out[:, prompt.shape[1] :].tolist() == [[end], [end]]


def test_epochs_and_tokens_count_alike(recipe):
    last = trained(recipe)[-1]["metrics"]
    corpus = prepare(recipe.data, Path("cache"))
    assert last["tokens"] == 30 * 128
    assert last["epochs"] == pytest.approx(30 * 4 / corpus.train.num_windows(32))
