"""Probes on finished runs and on other weights: what they give, what is kept, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama_variants import save_pretrained
from llama_variants.errors import ConfigError
from runners.data.config import FilesSource
from runners.execution import measure as module
from runners.execution.measure import Text, measure, of_file, of_run
from runners.execution.one_run import RunOptions, execute
from runners.planning.components import PROBE
from runners.runs.folder import RunFolder
from runners.runs.signals import StopRequest
from runners.training.loss import evaluate
from tests.runners.children import new_run
from tests.runners.helpers import changed

CPU, CACHE = torch.device("cpu"), Path("cache")
OWN = [Text(name="own", source=None)]


def probes(*names: str):
    found = {name: PROBE.read({"type": name}) for name in names}
    assert not any(problems for _, problems in found.values())
    return {name: config for name, (config, _) in found.items()}


@pytest.fixture
def run(recipe, project) -> RunFolder:
    """A finished run of two steps."""
    short = recipe.train.model_copy(update={"num_steps": 4})
    folder = new_run(project, replace(recipe, train=short))
    folder = RunFolder(Path("runs"), folder.path.name)
    execute(folder, CACHE, "cpu", RunOptions(), StopRequest())
    assert folder.status.state == "FINISHED", folder.status.reason
    return folder


def test_a_run_s_own_text_gives_the_loss_that_it_logged(run):
    (found,) = measure(of_run(run, "a"), OWN, probes("loss"), CPU, CACHE)
    final = run.final_metrics()
    for key in ("val/loss", "val/bits_per_byte", "val/loss_se"):
        assert found.metrics[key] == pytest.approx(final[f"final/{key.replace('/', '_')}"], abs=2e-6)
    assert found.mirrored()["probe/own/loss"] == found.metrics["val/loss"]


def test_the_loss_of_each_window_is_kept_as_it_was_computed(run):
    weights = of_run(run, "a")
    loss, position = measure(weights, OWN, probes("loss", "loss_by_position"), CPU, CACHE)
    recipe, _ = run.config()
    windows = weights.corpus(OWN[0], CACHE, print).validation.windows(recipe.eval.num_windows, recipe.train.seq_len)
    computed = evaluate(weights.load(), windows, batch_size=8, precision="float32").windows
    assert loss.by_item() == {"probe/own/loss": tuple(loss.items["val/loss"])}
    assert torch.equal(torch.tensor(loss.items["val/loss"], dtype=torch.float32), computed.float())
    assert position.items == {}
    file = next(run.evaluations.glob("loss-*.json"))
    earlier = {key: value for key, value in json.loads(file.read_text()).items() if key not in ("items", "prefix")}
    file.write_text(json.dumps(earlier))  # one that was written before there were any
    (again,) = measure(weights, OWN, probes("loss"), CPU, CACHE)
    assert (again.mirrored(), again.items) == (loss.mirrored(), {})


def test_nothing_is_measured_twice_and_what_bears_on_it_is_measured_again(run, monkeypatch):
    said: list[str] = []
    names = probes("loss", "induction")
    first = measure(of_run(run, "a"), OWN, names, CPU, CACHE, say=said.append)
    assert len(said) == 2
    with monkeypatch.context() as patch:
        patch.setattr(module, "load_pretrained", None)  # the weights are not even read
        assert measure(of_run(run, "a"), OWN, names, CPU, CACHE, say=said.append) == first
    assert len(said) == 2
    fewer = measure(of_run(run, "a"), OWN, names, CPU, CACHE, num_windows=4, say=said.append)
    assert len(said) == 4
    assert fewer[0].metrics["val/loss"] != first[0].metrics["val/loss"]


def test_other_text_and_the_same_text_from_elsewhere(run, project):
    recipe, _ = run.config()
    named = [Text(name="words", source=recipe.data.source)]
    own, elsewhere = (measure(of_run(run, "a"), texts, probes("loss"), CPU, CACHE)[0] for texts in (OWN, named))
    assert elsewhere.metrics == own.metrics  # the same tokens, in a file of its own
    (project / "notes.txt").write_text("alpha beta gamma " * 400)
    source = FilesSource(type="files", train=("notes.txt",), validation=("notes.txt",))
    (other,) = measure(of_run(run, "a"), [Text(name="notes", source=source)], probes("loss"), CPU, CACHE, num_windows=2)
    assert set(other.mirrored()) == {f"probe/notes-w2/{name}" for name in ("loss", "bits_per_byte", "loss_se")}
    assert other.metrics["val/loss"] != own.metrics["val/loss"]


def test_weights_are_measured_as_each_recipe_has_them(run):
    """One set of weights: in bfloat16, with the stream in it, and with documents kept apart."""
    recipe, _ = run.config()
    for number, word in enumerate(["alpha", "beta", "gamma", "delta"] * 80):
        Path(f"text/short-{number:03}.txt").write_text(f"{word} {number}")  # several in each window
    source = FilesSource(type="files", train=("text/train*.txt",), validation=("text/short*.txt",))
    own = [Text(name="short", source=source)]
    changes = ({}, {"residual_stream": "bfloat16"}, {"mask_documents": True}, {})
    losses = []
    for change in changes:
        asked = replace(recipe, train=changed(recipe.train, precision="bfloat16", **change))
        (found,) = measure(of_file(str(run.final), asked, Path("runs")), own, probes("loss"), CPU, CACHE)
        losses.append(found.metrics["val/loss"])
    assert losses[0] == losses[-1]
    assert len(set(losses)) == 3
    assert len(list(Path("runs/weights").rglob("*.json"))) == 3


def test_saved_weights_are_measured_as_the_run_that_kept_them(run, tmp_path):
    recipe, _ = run.config()
    source = [Text(name="words", source=recipe.data.source)]
    (of_the_run,) = measure(of_run(run, "a"), source, probes("loss"), CPU, CACHE)
    weights = of_file(str(run.final), recipe, Path("runs"))
    (of_the_file,) = measure(weights, source, probes("loss"), CPU, CACHE)
    assert of_the_file.metrics == of_the_run.metrics
    kept = list(Path("runs/weights").rglob("*.json"))
    assert [file.name for file in kept] == [re.sub(r".*/", "", str(next(Path(run.path, "evaluations").glob("*"))))]
    other = of_run(run, "a").load()
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    save_pretrained(other, tmp_path / "other")
    for file in run.final.glob("tokenizer*"):
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    (moved,) = measure(of_file(str(tmp_path / "other"), recipe, Path("runs")), source, probes("loss"), CPU, CACHE)
    assert moved.metrics != of_the_run.metrics  # by content: other weights, other measurements


def test_a_text_with_too_few_windows_is_refused_with_how_many_it_has(run, project):
    (project / "notes.txt").write_text("alpha " * 40)
    source = FilesSource(type="files", train=("notes.txt",), validation=("notes.txt",))
    with pytest.raises(ConfigError) as error:
        measure(of_run(run, "a"), [Text(name="notes", source=source)], probes("loss"), CPU, CACHE)
    assert re.search(r"8 windows of 32 tokens; allowed: at most \d, which the text 'notes' has", str(error.value))
    assert not (run.path / "evaluations").exists()


def test_one_key_stands_for_one_way_to_measure(run, project):
    """Or the store would hold now the one and now the other under the same name."""
    keys = set()
    settings, _ = PROBE.read({"type": "induction", "num_strings": 9})
    for texts, names, windows in (
        (OWN, probes("induction"), None),
        (OWN, probes("induction"), 4),
        (OWN, {"induction": settings}, None),
    ):
        (found,) = measure(of_run(run, "a"), texts, names, CPU, CACHE, num_windows=windows)
        keys |= set(found.mirrored())
    for words in ("alpha beta ", "gamma delta "):
        (project / "notes.txt").write_text(words * 400)
        source = FilesSource(type="files", train=("notes.txt",), validation=("notes.txt",))
        text = Text(name="notes.txt", source=source, files=True)
        (found,) = measure(of_run(run, "a"), [text], probes("induction"), CPU, CACHE, num_windows=8)
        keys |= set(found.mirrored())
    assert len(keys) == 2 * 5


def test_a_run_that_is_trained_again_keeps_no_measurement(run):
    measure(of_run(run, "a"), OWN, probes("loss"), CPU, CACHE)
    assert run.evaluations.exists()
    assert run.forget()
    execute(run, CACHE, "cpu", RunOptions(), StopRequest())
    assert run.status.state == "FINISHED"
    assert not run.evaluations.exists()


def test_own_text_that_has_changed_is_refused(run, project):
    file = project / "text/validation-00.txt"
    file.write_text(file.read_text() + " alpha")
    with pytest.raises(ConfigError, match="a text that has changed since"):
        measure(of_run(run, "a"), OWN, probes("loss"), CPU, CACHE)


def test_weights_that_do_not_load_are_an_error(run, recipe):
    for file in run.final.glob("*.safetensors"):
        file.unlink()
    source = [Text(name="words", source=recipe.data.source)]
    with pytest.raises(ConfigError, match="weights that transformers can load"):
        measure(of_file(str(run.final), recipe, Path("runs")), source, probes("loss"), CPU, CACHE)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json"])
def test_other_weights_have_another_folder(tmp_path, name):
    found = set()
    for content in ("one", "two"):
        (tmp_path / name).write_text(content)
        found.add(module._content(tmp_path, str(tmp_path), None))
    assert len(found) == 2


def test_a_damaged_measurement_is_named(run):
    measure(of_run(run, "a"), OWN, probes("loss"), CPU, CACHE)
    (file,) = (run.path / "evaluations").glob("*.json")
    whole = json.loads(file.read_text())
    for text in ("", '{"text": "own"}', json.dumps({**whole, "metrics": {"val/loss": "low"}})):
        file.write_text(text)
        with pytest.raises(ConfigError, match=rf"{file.name} is damaged"):
            measure(of_run(run, "a"), OWN, probes("loss"), CPU, CACHE)


def test_a_run_without_weights_is_refused(run, recipe, project):
    with pytest.raises(ConfigError, match="NEW"):
        unborn = new_run(project, recipe)
        of_run(RunFolder(Path("runs"), unborn.path.name), "b")
    for file in run.final.iterdir():
        file.unlink()
    run.final.rmdir()
    with pytest.raises(ConfigError, match="FINISHED, without its weights"):
        of_run(run, "a")
