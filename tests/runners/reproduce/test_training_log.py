"""training.log says what the run logged, to the last digit, and what its weights say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from runners.cli import main
from runners.data import prepare
from runners.planning.bases import load_base
from runners.reproduce import training_log as training_log_module
from runners.reproduce.training_log import TrainingLog, training_log
from runners.runs.folder import RunFolder
from runners.runs.signals import Stopped
from runners.training.loss import evaluate
from tests.runners.children import new_run
from tests.runners.helpers import carried_out

CPU = torch.device("cpu")
EXPERIMENT = "experiments/micro_theta.yaml"


def text_of(run: RunFolder) -> str:
    recipe, _ = run.config()
    return training_log(
        "micro",
        "python -m runners train experiments/micro_theta.yaml control 0",
        run,
        prepare(recipe.data, Path("cache")),
        CPU,
    )


def timeless(text: str) -> list[str]:
    """The lines of steps and validations without the time and the speed."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [re.sub(r"^\S+ \S+ - |tokens/s \d+, ", "", line) for line in lines]


def test_a_run_that_is_stopped_and_gone_on_with_has_the_log_of_one_that_is_not(recipe):
    whole = text_of(carried_out(recipe))
    with pytest.raises(Stopped, match="stopped as asked"):
        carried_out(recipe, "cut", stop_after=23)
    run = new_run(Path(), recipe, root="cut")
    assert (run.status.state, run.status.reason) == ("KILLED", "stopped as asked")
    assert run.rows()[0][-1]["step"] == 23
    cut = text_of(carried_out(recipe, "cut"))
    assert "# stopped: KILLED: stopped as asked; going on after step 23" in cut
    assert "# stopped: no" in whole
    assert timeless(cut) == timeless(whole)
    final = [line for line in whole.splitlines() if line.startswith("# final")]
    assert [line for line in cut.splitlines() if line.startswith("# final")] == final


def test_a_log_of_a_run_that_is_not_done_has_no_footer_and_says_what_it_is_told(recipe):
    with pytest.raises(Stopped):
        carried_out(recipe, stop_after=12)
    run, corpus = new_run(Path(), recipe), prepare(recipe.data, Path("cache"))
    for compiled in (True, False):
        log = TrainingLog.parse(training_log("micro", "none", run, corpus, CPU, compiled=compiled))
        assert (max(log.losses), log.compiled) == (12, compiled)
        assert "final" not in log.header


def test_what_is_read_back_is_what_was_logged(recipe):
    run = carried_out(recipe)
    log = TrainingLog.parse(text_of(run))
    rows = {row["step"]: row["metrics"] for row in run.rows()[0]}
    assert log.losses == {step: metrics["train/loss"] for step, metrics in rows.items()}
    assert log.rates == {step: metrics["train/lr"] for step, metrics in rows.items()}
    assert log.validation == {step: m["val/loss"] for step, m in rows.items() if "val/loss" in m}
    assert log.header["data"].startswith(run.status.data_fingerprint)
    assert run.key in log.header["run"]
    assert log.header["stratum"] == str(run.status.stratum)


def test_the_footer_is_computed_from_the_kept_weights(recipe):
    run = carried_out(recipe)
    last = run.rows()[0][-1]["metrics"]
    found = re.findall(r"# final on (.+): validation loss (\S+), bits/byte \S+, (\d+) windows", text_of(run))
    assert sum(int(n) for *_, n in found) == recipe.eval.num_windows
    mean = sum(float(loss) * int(n) for _, loss, n in found) / recipe.eval.num_windows
    assert mean == pytest.approx(last["final/val_loss"], abs=1e-12)
    weights = load_file(run.final / "model.safetensors")
    weights["model.norm.weight"] += 1  # of other weights, it is another
    save_file(weights, run.final / "model.safetensors", metadata={"format": "pt"})
    others = re.findall(r"# final on .+: validation loss (\S+),", text_of(run))
    assert [float(loss) for loss in others] != [float(loss) for _, loss, _ in found]


def test_the_footer_is_computed_with_the_kernels_of_the_run(recipe, monkeypatch):
    """Outside, a card would take other kernels for attention, and those of deterministic runs not at all."""
    run, inside = carried_out(recipe), []

    @contextmanager
    def kernels(device: torch.device, deterministic: bool) -> Iterator[None]:
        inside.append((device, deterministic))
        yield
        inside.append("left")

    def watched(*arguments: object, **options: object) -> object:
        assert inside == [(CPU, False)]
        return evaluate(*arguments, **options)

    monkeypatch.setattr(training_log_module, "attention_kernels", kernels)
    monkeypatch.setattr(training_log_module, "evaluate", watched)
    assert "# final on" in text_of(run)
    assert inside == [(CPU, False), "left"]


def test_the_described_format_is_read_too():
    log = TrainingLog.parse("2025-01-26 23:53:43,986 - Step 10, Loss: 10.6962, LR: 2.20e-06\nnoise\n")
    assert (log.losses, log.rates, log.validation, log.header) == ({10: 10.6962}, {10: 2.2e-06}, {}, {})
    with pytest.raises(ValueError, match="no line like"):
        TrainingLog.parse("Step 10: 3.2")


@pytest.mark.parametrize("step", ["0", "30", "-30", "31"])
def test_a_step_that_cannot_be_stopped_after_is_refused(recipe, capsys, step):
    assert main(["train", EXPERIMENT, "control", "--device", "cpu", "--stop-after", step]) == 2
    assert "1 to 29, or -1 to -29" in capsys.readouterr().err
    assert not list(Path("runs").glob("*"))


@pytest.mark.slow
def test_the_way_of_make_baseline(cli, project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    assert main(["log", EXPERIMENT]) == 2
    assert "python -m runners train" in capsys.readouterr().err
    stopped = cli("train", EXPERIMENT, "control", "--device", "cpu", "--stop-after", -5)
    assert (stopped.returncode, "the same command goes on" in stopped.stderr) == (0, True), stopped.stderr
    assert cli("train", EXPERIMENT, "control", "--device", "cpu").returncode == 0
    assert cli("train", EXPERIMENT, "control", "--device", "cpu", "--stop-after", -5).returncode == 0  # nothing left
    assert main(["log", EXPERIMENT, "control", "--out", "training.log"]) == 0
    capsys.readouterr()
    text = (project / "training.log").read_text()
    assert "going on after step 25" in text
    assert main(["log", EXPERIMENT]) == 0
    assert capsys.readouterr().out == text


def test_the_log_in_the_repository_is_one_of_the_baseline(root):
    """And is not changed by hand: header, lines and footer agree with each other."""
    text = (root / "training.log").read_text()
    log, recipe = TrainingLog.parse(text), load_base(root / "experiments/base/tiny.yaml")[1]
    assert log.header["run"].startswith("baseline on tiny, control, seed 0")
    assert "changed" not in log.header["commit"]
    assert max(log.losses) == max(log.validation) == recipe.train.num_steps
    assert f"validation loss {log.validation[recipe.train.num_steps]!r}," in log.header["final"]
    assert f"going on after step {recipe.train.num_steps - 50}" in log.header["stopped"]
