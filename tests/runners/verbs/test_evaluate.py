"""`evaluate` as a user types it."""

from __future__ import annotations

import json
import re

import pytest

from tests.runners.execution.test_benchmarks import write_tasks

EXPERIMENT = "experiments/micro_theta.yaml"
PROBES = ("--probe", "loss_past_window", "--probe", "induction")


@pytest.mark.slow
def test_an_experiment_is_measured_judged_and_reported(project, cli):
    assert cli("run", EXPERIMENT, "--jobs", 1).returncode == 0
    done = cli("evaluate", EXPERIMENT, *PROBES)
    assert done.returncode == 0, done.stderr
    assert "[1/9] control seed 0: loss_past_window on own" in done.stdout
    table = done.stdout.partition("as the verdicts are made: ")[2]
    assert table.startswith("5 metrics of 1 variants are one family")
    for metric in ("own/loss_past_window/1x", "own/loss_past_window/2x", "own/induction_loss"):
        assert metric in table
    once = cli("evaluate", EXPERIMENT, *PROBES)
    assert once.stdout.partition("as the verdicts are made: ")[2] == table
    assert "control seed 0" not in once.stdout  # nothing is measured twice

    one = cli("report", EXPERIMENT, "--metric", "probe/own/induction_loss")
    assert "1 metrics of 1 variants are one family" in one.stdout
    typo = cli("report", EXPERIMENT, "--metric", "probe/own/induction_los")
    assert (typo.returncode, "did you mean 'probe/own/induction_loss'" in typo.stderr) == (2, True)
    assert cli("report", EXPERIMENT).returncode == 0
    page = (project / "reports/micro-theta-micro/report.md").read_text()
    assert "## Probes" in page
    assert (project / "reports/micro-theta-micro/probes.png").stat().st_size > 5000

    (project / "notes.txt").write_text("alpha beta gamma " * 900)
    said = cli("evaluate", EXPERIMENT, "--on", "notes.txt", "--probe", "loss", "--windows", 8, "--json")
    assert said.returncode == 0, said.stderr
    values = json.loads(said.stdout)[EXPERIMENT]
    assert len(values) == 9
    named = {re.sub("-[0-9a-f]{6}/", "-CONTENT/", key) for key in values["control seed 0"]}
    assert named == {f"probe/notes.txt-CONTENT/{name}" for name in ("loss", "bits_per_byte", "loss_se")}

    other = cli("evaluate", EXPERIMENT, "--probe", "induction: {num_strings: 8}", "--json")
    assert re.search(r'"probe/own-s[0-9a-f]{4}/induction_loss"', other.stdout), other.stderr

    run = next((project / "runs").glob("*/final")).parent
    for what in (run.name, str(run)):
        alone = cli("evaluate", what, "--probe", "loss")
        assert alone.returncode == 0, alone.stderr
        assert "probe/own/loss " in alone.stdout
    saved = cli("evaluate", str(run / "final"), "--base", "micro", "--probe", "loss")
    assert saved.returncode == 0, saved.stderr
    assert saved.stdout.splitlines()[-3:] == [*alone.stdout.splitlines()[-3:]]


PLUGGED = """
name: plugged
version: 1
question: Does a block of somebody else's do?
base: micro
plugins: [somebody_s]
variants:
  relu: {model: {mlp: {type: relu_of_somebody, intermediate_size: 64}}}
"""
PLUGIN = """
from torch import nn
from pydantic import PositiveInt

from llama_variants.registry import MLP, BlockConfig, Cost, residual_output


@MLP.register("relu_of_somebody")
class ReLU(nn.Module):
    '''As CONTRIBUTING.md has it.'''

    class Config(BlockConfig):
        intermediate_size: PositiveInt

        def cost(self, model, seq_len):
            return Cost.linear(model.hidden_size, self.intermediate_size) * 2

    def __init__(self, config):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.mlp.intermediate_size, bias=False)
        self.down_proj = residual_output(nn.Linear(config.mlp.intermediate_size, config.hidden_size, bias=False))

    def forward(self, x):
        return self.down_proj(self.up_proj(x).relu())
"""


@pytest.mark.slow
def test_an_experiment_s_tasks_are_scored_judged_and_reported_with_somebody_else_s_block(project, cli):
    (project / "experiments/plugged.yaml").write_text(PLUGGED)
    (project / "experiments/somebody_s.py").write_text(PLUGIN)
    write_tasks(project / "tasks")
    what = ("experiments/plugged.yaml", "--seeds", 2)
    ran = cli("run", *what, "--jobs", 1)
    assert ran.returncode == 0, ran.stderr
    asked = ("--tasks", "choice,rolling", "--include-path", "tasks")
    done = cli("evaluate", *what, *asked)
    assert done.returncode == 0, done.stderr
    choice, rolling = re.findall(r"\[1/6\] control seed 0: ((?:choice|rolling)-[0-9a-f]{6})\n", done.stdout)
    table = done.stdout.partition("as the verdicts are made: ")[2]
    assert table.startswith("4 metrics of 1 variants are one family")
    assert {line.split()[0] for line in table.splitlines() if line.startswith("lm_eval/")} == {
        *(f"lm_eval/{choice}/{name}" for name in ("acc", "acc_norm", "brier_score/lower")),
        f"lm_eval/{rolling}/word_perplexity/lower",
    }
    again = cli("evaluate", *what, *asked, "--probe", "loss")
    assert "control seed 0: choice" not in again.stdout  # scored once
    assert "control seed 0: loss on own" in again.stdout
    assert re.search(r"own/loss .*\n +twin .*\] +0\.0\d+ ", again.stdout)  # the evaluation's own error
    one = cli("report", *what, "--metric", f"lm_eval/{choice}/acc")
    assert "1 metrics of 1 variants are one family" in one.stdout
    assert cli("report", *what).returncode == 0
    page = (project / "reports/plugged-micro/report.md").read_text()
    for words in (f"lm_eval/{rolling}/word_perplexity/lower", "evaluation SE"):
        assert words in page
    said = cli("evaluate", *what, *asked, "--json")
    values = json.loads(said.stdout)["experiments/plugged.yaml"]["relu seed 1"]
    assert 0 < values[f"lm_eval/{choice}/acc_stderr"] < 0.2

    (project / "somebody_s.py").write_text(PLUGIN)
    recipe = next(file for file in (project / "runs").glob("*/config.yaml") if "relu_of_somebody" in file.read_text())
    saved = (recipe.parent / "final", "--base", "micro", *asked, "--json")
    unknown = cli("evaluate", *saved)
    assert unknown.returncode == 2
    assert "a plugin's blocks are known once its module is imported" in unknown.stderr
    scored = cli("evaluate", *saved, "--plugin", "somebody_s")
    run = cli("evaluate", recipe.parent.name, *asked, "--json")
    assert scored.returncode == run.returncode == 0, scored.stderr + run.stderr
    (ours,), (theirs,) = (json.loads(one.stdout).values() for one in (scored, run))
    assert [*ours.values()] == [*theirs.values()]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((EXPERIMENT,), "of which no run is done"),
        ((EXPERIMENT, "--probe", "los"), "did you mean 'loss'"),
        ((EXPERIMENT, "--probe", "induction: {num: 3}"), "unknown key 'num'"),
        ((EXPERIMENT, "--probe", "induction: 3"), "--probe"),
        ((EXPERIMENT, "--on", "packges"), "did you mean 'packages'"),
        (("nowhere.gguf",), "'nowhere.gguf', which is not there"),
        (("org/name",), "--revision: received 'none'; allowed: the 40 hex digits of a commit"),
        (("nowhere",), "an experiment's YAML, a run, a folder of weights"),
        (("experiments", "--base", "micro"), "a tokenizer that transformers can load"),
        ((EXPERIMENT, "--device", "tpu"), "--device"),
        ((EXPERIMENT, "--plugin", "nobody_s"), "--plugin: received 'nobody_s', which raises ModuleNotFoundError"),
        ((EXPERIMENT, "--limit", "3"), "--limit: received no task; allowed: it beside --tasks"),
        ((EXPERIMENT, "--tasks", ","), "--tasks: received no task"),
        ((EXPERIMENT, "--tasks", "a", "--include-path", "nowhere"), "'nowhere', which is no folder"),
    ],
)
def test_what_cannot_be_measured_is_an_error_with_nothing_written(project, cli, arguments, says):
    before = sorted(project.rglob("*"))
    done = cli("evaluate", *arguments)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path for path in project.rglob("*") if "cache" not in path.parts) == before


def test_a_task_whose_data_cannot_be_fetched_ends_as_a_fault_of_the_network(project, cli, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (project / "tasks").mkdir()
    (project / "tasks/far.yaml").write_text("task: far\ndataset_path: org/nowhere\noutput_type: loglikelihood\n")
    done = cli("evaluate", EXPERIMENT, "--tasks", "far", "--include-path", "tasks")
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: could not fetch the data of 'far', which raises Connection")
    assert "Traceback" not in done.stderr
