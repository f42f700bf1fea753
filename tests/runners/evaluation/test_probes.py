"""What probes measure, under which keys, and what becomes of one that measures something else."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from llama_variants import build_model
from runners.data.shards import prepare
from runners.evaluation.loss_by_domain import _key
from runners.evaluation.subject import Subject, declared, final_key
from runners.execution.one_run import RunOptions, execute
from runners.planning.bases import load_base
from runners.planning.recipe import read_eval
from runners.runs.folder import RunFolder
from runners.runs.signals import StopRequest
from tests.runners.children import new_run

PLUGIN = """
from typing import ClassVar
from analysis.store.schema import Metric
from runners.planning.components import PROBE, ProbeConfig

@PROBE.register("my_probe")
class Mine:
    '''The number of windows.'''

    class Config(ProbeConfig):
        times: int = 1

    metrics: ClassVar = {"val/windows": Metric("1", "how many windows there were")}

    def __init__(self, config):
        self.config = config

    def __call__(self, subject):
        return {KEY: float(len(subject.evaluation.windows)) * self.config.times}
"""


def probed(recipe, **probes):
    config, problems = read_eval({**recipe.to_dict()["eval"], "probes": {"loss": {}, **probes}})
    assert not problems
    return replace(recipe, eval=config)


def test_losses_by_domain_average_to_the_loss(project, monkeypatch):
    monkeypatch.chdir(project)
    recipe = probed(load_base(Path("experiments/base/micro.yaml"))[1], loss_by_domain={})
    corpus = prepare(recipe.data, Path("cache"))
    subject = Subject(build_model(recipe.model, seed=1), recipe, corpus, 3)
    measured = subject.measure()
    domains = {key: value for key, value in measured.items() if key.startswith("val/loss_by_domain/")}
    assert len(domains) == 3
    places = corpus.validation.fixed_places(8, 32) * 32
    spans = corpus.manifest["splits"]["validation"]["domains"].values()
    counts = [sum(s["start"] <= place < s["start"] + s["tokens"] for place in places) for s in spans]
    assert sum(counts) == 8
    mean = sum(n * loss for n, loss in zip(counts, domains.values(), strict=True)) / 8
    assert mean == pytest.approx(measured["val/loss"], abs=1e-9)
    tokenizer = Tokenizer.from_file(str(corpus.folder / "tokenizer.json"))
    windows = corpus.validation.windows(8, 32)
    # In ASCII each token is a text of its own; the end of a document is none.
    text = "".join(tokenizer.decode([i for i in row[1:] if i != corpus.manifest["end_id"]]) for row in windows.tolist())
    assert text.isascii()
    assert measured["val/bits_per_byte"] == pytest.approx(measured["val/loss"] * 8 * 31 / math.log(2) / len(text))
    assert measured["val/loss_se"] > 0


@pytest.mark.parametrize("domain", ["text/a b.txt", "/abs/é?*.txt", "org/data [x]", "..", "a" * 300])
def test_a_domain_of_any_name_gives_a_key_that_mlflow_takes(domain):
    key = _key(domain)
    assert re.fullmatch(r"val/loss_by_domain/[\w.-]{0,100}", key)
    assert "//" not in key
    assert "/." not in key


def test_finals_are_named_after_what_was_measured():
    assert final_key("val/loss") == "final/val_loss"
    assert final_key("val/loss_by_domain/networkx") == "final/val_loss_by_domain/networkx"


@pytest.mark.parametrize(("key", "state"), [("val/windows", "FINISHED"), ("val/window", "FAILED")])
def test_a_plugin_s_probe_is_logged_and_one_that_is_not_declared_fails_at_once(project, monkeypatch, key, state):
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(project)
    name = f"probe_{key[-1]}"
    (project / f"{name}.py").write_text(PLUGIN.replace("KEY", repr(key)).replace("my_probe", name))
    _, base = load_base(Path("experiments/base/micro.yaml"))
    __import__(name)
    recipe = probed(replace(base, plugins=(name,)), **{name: {"times": 2}})
    assert final_key("val/windows") in declared(recipe)
    run = new_run(project, recipe)
    assert run.key == new_run(project, base).key  # a probe only observes
    run = RunFolder(Path("runs"), run.path.name)
    (run.path / "config.yaml").unlink()
    run.create(recipe, 5)
    execute(run, Path("cache"), "cpu", RunOptions(), StopRequest())
    assert run.status.state == state
    rows = run.rows()[0]
    if state == "FAILED":
        assert "logged but not declared" in run.status.reason
        assert key in run.status.reason
        assert rows == []  # not even the first step's
    else:
        assert rows[-1]["metrics"]["final/val_windows"] == rows[-1]["metrics"]["val/windows"] == 16.0


@pytest.mark.parametrize(
    ("probes", "says"),
    [
        (
            {"loss": {}, "a": {"type": "loss"}},
            ["probes.a.type: received 'loss' (text); allowed: 'a', which is its key"],
        ),
        ({"loss": {"type": "loss_by_domain"}}, ["probes.loss.type: received 'loss_by_domain' (text)"]),
        ({"los": {}}, ["did you mean 'loss'?", "`loss` among them"]),
        ({"loss": None}, ["probes.loss: received nothing; allowed: a mapping"]),
        (["loss"], ["probes: received ['loss']; allowed: a mapping"]),
        ({"loss_by_domain": {}}, ["`loss` among them: it is judged"]),
    ],
)
def test_probes_that_cannot_be_are_refused(probes, says):
    _, problems = read_eval({"every_steps": 1, "num_windows": 1, "probes": probes})
    told = "\n".join(map(str, problems))
    assert all(words in told for words in says), told
    assert ("`loss` among them" in told) == any("among them" in words for words in says)


def test_too_few_validation_windows_are_found_before_the_first_step(project, monkeypatch):
    monkeypatch.chdir(project)
    _, recipe = load_base(Path("experiments/base/micro.yaml"))
    run = new_run(project, replace(recipe, eval=recipe.eval.model_copy(update={"num_windows": 100_000})))
    execute(run, Path("cache"), "cpu", RunOptions(), StopRequest())
    assert run.status.state == "INVALID"
    assert re.search(r"eval\.num_windows: received 100,000; allowed: at most \d+: ", run.status.reason)
    assert run.rows()[0] == []


def test_a_key_that_comes_up_later_undeclared_fails_too(project, monkeypatch):
    """After the check of the first step, at the first evaluation."""
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(project)
    key = "'val/windows' if len(subject.evaluation.windows) == 1 else 'val/late'"
    (project / "late_probe.py").write_text(PLUGIN.replace("KEY", key).replace("my_probe", "late_probe"))
    _, base = load_base(Path("experiments/base/micro.yaml"))
    __import__("late_probe")
    run = new_run(project, probed(replace(base, plugins=("late_probe",)), late_probe={}))
    execute(run, Path("cache"), "cpu", RunOptions(), StopRequest())
    assert run.status.state == "FAILED"
    assert "val/late" in run.status.reason
    assert max(row["step"] for row in run.rows()[0]) == 9
