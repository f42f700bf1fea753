"""On a card: the losses of the CPU, resumes bit for bit, memory that runs out, fast kernels, compiled as written.

Each test states what it allows, and where that comes from. All was written without a card; the figures that a card
gives belong into experiments/LOG.md.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from llama_variants import build_model
from runners.planning.bases import load_base
from runners.runs.folder import RunFolder
from runners.training import memory
from runners.training.autotune import find_micro_batch
from runners.training.compile import attention_kernels
from runners.training.gradients import gradients
from runners.training.parallel import World
from tests.conftest import ROOT
from tests.llama_variants.models import EVERY_MODEL, TINY, ids
from tests.runners.conftest import clean_environment
from tests.runners.helpers import exact, optimizer_of
from tests.runners.training.golden import NAMES, Suite

EXPERIMENT = "experiments/micro_theta.yaml"
GOLDEN_TOLERANCE = 1e-4
"""Nats, in float32 without TF32. Two kinds of processor differ by 1e-6 over these twelve steps (the files under
tests/golden); the step of a wrong kernel by 1e-2 and more (tests/runners/training/test_tolerance.py)."""


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Suite:
    return Suite(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_those_of_a_processor(suite, name, card):
    golden = json.loads(sorted((ROOT / "tests/golden").glob("cpu-*.json"))[0].read_text())["losses"]
    assert suite.losses(name, device=card) == pytest.approx(golden[name], abs=GOLDEN_TOLERANCE)


def command(project: Path, *arguments: object) -> list[str]:
    given = map(str, (EXPERIMENT, "control", "--device", "cuda:0", *arguments))
    return [sys.executable, "-m", "runners", "train", *given]


def trained(project: Path, *arguments: object, compiled: bool) -> RunFolder:
    """The control's run, carried out to its end by the command line."""
    mode = ("--compile", "on" if compiled else "off")
    environment = clean_environment()
    done = subprocess.run(
        command(project, *arguments, *mode), cwd=project, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return the_run(project)


def the_run(project: Path) -> RunFolder:
    (file,) = project.glob("runs/*/status.json")
    return RunFolder(project / "runs", file.parent.name)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_a_killed_run_goes_on_bit_for_bit_where_it_is_deterministic(project, precision, compiled):
    """kill -9 in the middle, and the rest in another process, against a run that was left alone."""
    base = project / "experiments/base/micro.yaml"
    text = base.read_text().replace("deterministic: false", "deterministic: true")
    base.write_text(
        text.replace("precision: float32", f"precision: {precision}").replace("num_steps: 30", "num_steps: 300")
    )
    whole = exact(trained(project, compiled=compiled))
    run = the_run(project)
    run.forget()
    mode = ("--save-every", 0, "--compile", "on" if compiled else "off")
    child = subprocess.Popen(command(project, *mode), cwd=project, env=clean_environment(), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while child.poll() is None and not (run.rows()[0] and run.rows()[0][-1]["step"] >= 100):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert child.poll() is None, "it ended before it could be killed"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert exact(trained(project, compiled=compiled)) == whole
    assert any(event.startswith("going on after step") for event in run.events()[0])


def test_compiled_runs_are_compiled_and_compute_what_is_written(project):
    """Nothing said "not compiled", and the losses are those as written, but for rounding to bfloat16."""
    base = project / "experiments/base/micro.yaml"
    base.write_text(base.read_text().replace("precision: float32", "precision: bfloat16"))
    losses = []
    for compiled in (True, False):
        run = trained(project, "--fresh", compiled=compiled)
        assert not [event for event in run.events()[0] if event.startswith("not compiled")]
        rows = [row["metrics"] for row in run.rows()[0]]
        assert rows[-1]["final/compiled"] == compiled
        losses.append([row["train/loss"] for row in rows])
        run.forget()
    assert losses[0][0] == pytest.approx(losses[1][0], abs=5e-3)
    assert losses[0] == pytest.approx(losses[1], abs=0.05)  # rounding grows over thirty steps


def test_a_step_waits_for_nothing(card, recipe):
    """No number is read back, and no copy waited for, in a step between two logged ones."""
    model = build_model(TINY, device=card)
    optimizer = optimizer_of(model, recipe.train)
    batch = ids(TINY, batch=recipe.train.batch_size, time=16).to(card)
    gradients(model, batch, recipe.train, World(), 2)
    optimizer.found_inf = torch.zeros((), device=card)
    optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradients(model, batch, recipe.train, World(), 2)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_that_runs_out_splits_the_batch_and_changes_no_loss(card, recipe):
    """Three quarters of what the whole batch takes: the search finds less, and its gradients are the whole's."""
    train = recipe.train.model_copy(update={"seq_len": 64, "tokens_per_step": 64 * 256})
    model = build_model(TINY, seed=1, device=card)
    optimizer = optimizer_of(model, train)
    batch = ids(TINY, batch=256, time=64).to(card)
    memory.reset_peak(card)
    whole = float(gradients(model, batch, train, World(), 256))
    peak, total = memory.peak_bytes(card), torch.cuda.get_device_properties(card).total_memory
    model.zero_grad(set_to_none=True)
    memory.release()
    said: list[str] = []
    torch.cuda.set_per_process_memory_fraction(0.75 * peak / total, card)
    try:
        count = find_micro_batch(model, optimizer, batch, train, 1, said.append)
        assert count < 256
        assert said[0] == "out of memory with 256 windows at a time; going on with 128"
        assert float(gradients(model, batch, train, World(), count)) == pytest.approx(whole, abs=1e-5)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, card)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", [name for name in EVERY_MODEL if name.startswith("attention=")])
def test_no_attention_falls_to_the_kernel_that_holds_all_scores(card, recipe, name, precision):
    """Grouped heads in float32 neither: they would be compared with another kernel's full heads."""
    masked = "sliding" in name  # a dense mask, which flash does not take
    train = replace(recipe, train=recipe.train.model_copy(update={"precision": precision})).train
    variant = EVERY_MODEL[name]
    attention = {**variant.to_dict()["attention"], "head_dim": 64}  # as at full size: each kernel has sizes of its own
    model = build_model(variant.override({"attention": attention}), device=card)
    batch = ids(TINY, batch=train.batch_size, time=16).to(card)
    fast = [SDPBackend.EFFICIENT_ATTENTION]
    fast += [SDPBackend.CUDNN_ATTENTION] if precision == "bfloat16" else []
    fast += [SDPBackend.FLASH_ATTENTION] if precision == "bfloat16" and not masked else []
    with sdpa_kernel(fast):  # raises where none of these takes it
        gradients(model, batch, train, World(), len(batch))


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_kernel_is_the_one_that_is_preferred(card, deterministic):
    """Heads as at full size, in bfloat16: cuDNN's on Hopper and later, flash's where it has to repeat its bits."""
    q, k, v = (torch.randn(2, heads, 512, 64, device=card, dtype=torch.bfloat16) for heads in (9, 3, 3))
    activity = torch.profiler.ProfilerActivity.CPU
    with attention_kernels(card, deterministic), torch.profiler.profile(activities=[activity]) as profile:
        torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    names = {event.key for event in profile.key_averages()}
    kind = "flash" if deterministic or torch.cuda.get_device_capability(card)[0] < 9 else "cudnn"
    assert f"aten::_scaled_dot_product_{kind}_attention" in names


def test_the_base_at_full_size_is_within_its_memory(card):
    """No micro-batch that the search finds makes a step fall to a smaller one."""
    recipe = load_base(ROOT / "experiments/base/smollm2-135m.yaml")[1]
    model = build_model(recipe.model, device=card)
    optimizer, said = optimizer_of(model, recipe.train), []
    batch = ids(recipe.model, batch=recipe.train.batch_size, time=recipe.train.seq_len).to(card)
    with attention_kernels(card, recipe.train.deterministic):
        count = find_micro_batch(model, optimizer, batch, recipe.train, 1, said.append)
        for _ in range(3):
            gradients(model, batch, recipe.train, World(), count)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.found_inf = torch.zeros((), device=card)
            optimizer.step()
    torch.cuda.synchronize(card)
