"""Files of a run folder that are empty, cut off or edited: each is named, with what to do, by whatever reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis.store.stratum import Stratum
from llama_variants.errors import ConfigError
from runners.cli import main
from runners.planning.plan import load_plan
from runners.runs import ledger
from runners.runs.folder import RunFolder
from runners.tracking import Mirror

ROOT = Path("runs")
EXPERIMENT = "experiments/micro_theta.yaml"
REMEDY = "allowed: the file as it was; or move {folder} away, and the run is trained again"


@pytest.fixture
def run(project, monkeypatch):
    """A finished run of the control."""
    monkeypatch.chdir(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")
    return load_plan(Path(EXPERIMENT)).runs()[0]


@pytest.fixture
def folder(run):
    folder = RunFolder(ROOT, run.key)
    folder.create(run.recipe, run.seed)
    folder.begin(Stratum(device="cpu"), {"pid": "1"}, "data")
    folder.log(1, {"train/loss": 5.0})
    folder.log(30, {"train/loss": 3.0, "final/val_loss": 3.0})
    folder.end("FINISHED")
    return folder


DAMAGES = {
    "empty": b"",
    "zeros, as after a power cut": b"\0" * 40,
    "cut off": b'{"state": "FINISHED", "att',
    "another kind": b"[1, 2]\n",
    "not text": b"\xff\xfe\x00\n",
    "deep": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_status_is_named(folder, damage):
    file = folder.path / "status.json"
    file.write_bytes(DAMAGES[damage])
    with pytest.raises(ConfigError) as raised:
        _ = folder.status
    assert f"{file}: received" in str(raised.value)
    assert REMEDY.format(folder=folder.path) in str(raised.value)


@pytest.mark.parametrize("words", [("plan",), ("run",), ("report",), ("train", "control")], ids=lambda words: words[0])
def test_no_verb_goes_on_with_a_damaged_status(folder, capsys, words):
    file = folder.path / "status.json"
    file.write_bytes(b"")
    before = sorted(Path().rglob("*"))
    assert main([words[0], EXPERIMENT, *words[1:]]) == 2
    said = capsys.readouterr().err
    assert f"{file}: received" in said
    assert REMEDY.format(folder=folder.path) in said
    assert file.read_bytes() == b""
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ({"state": "DONE"}, "state: Input should be"),
        ({"started": "yesterday"}, "started: Input should be a valid number"),
        ({"environment": None}, "environment: Input should be a valid dictionary"),
        ({"stratum": {"threads": "many"}}, "stratum.threads: Input should be a valid integer"),
    ],
)
def test_an_edited_status_is_named_with_its_field(folder, edit, says):
    file = folder.path / "status.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | edit))
    with pytest.raises(ConfigError, match=says):
        _ = folder.status


def test_a_status_of_a_later_version_is_read(folder):
    file = folder.path / "status.json"
    before = folder.status
    file.write_text(json.dumps(json.loads(file.read_text()) | {"nodes": 8}))
    assert folder.status == before


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name not in ("empty", "cut off")])
def test_a_damaged_row_is_named_by_its_line(run, folder, damage):
    lines = folder.log_file.read_bytes().splitlines(keepends=True)
    folder.log_file.write_bytes(lines[0] + DAMAGES[damage].strip() + b"\n" + lines[1])
    for start in (0, len(lines[0])):
        with pytest.raises(ConfigError, match=r"metrics\.jsonl:2: received"):
            folder.rows(start)


@pytest.mark.parametrize("row", [{}, {"step": 1, "time": 0}, {"step": 1, "time": 0, "metrics": {"x": None}}])
def test_a_row_that_lacks_something_is_named(folder, row):
    folder.log_file.write_text(json.dumps(row) + "\n")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl:1: received a row without step, time or metrics"):
        folder.rows()


def test_a_row_that_is_being_written_is_left(folder):
    rows, end = folder.rows()
    with folder.log_file.open("ab") as file:
        file.write(b'{"time": 1, "st')
    assert folder.rows() == (rows, end)


@pytest.mark.parametrize("kept", [0, 1])
def test_a_finished_run_without_its_last_row_is_no_result(run, folder, kept):
    folder.log_file.write_bytes(b"".join(folder.log_file.read_bytes().splitlines(keepends=True)[:kept]))
    with pytest.raises(ConfigError, match=rf"metrics\.jsonl: received {kept} rows, and none of the last step"):
        Mirror(load_plan(Path(EXPERIMENT)), ROOT).sync(run)


@pytest.mark.parametrize("text", ["", "seed: 1\n", "[", "model: 3\nseed: 1\n", "\0\0"])
def test_a_damaged_recipe_is_named_and_written_again_where_it_is_known(run, folder, text):
    file = folder.path / "config.yaml"
    sound = file.read_text()
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml: received"):
        folder.config()
    folder.create(run.recipe, run.seed)
    assert file.read_text() == sound


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_list_of_events_stops_nothing(folder, damage):
    (folder.path / "events.log").write_bytes(DAMAGES[damage])
    assert isinstance(folder.events()[0], list)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_ledger_is_named(run, folder, damage):
    (ROOT / "ledger.json").write_bytes(DAMAGES[damage])
    with pytest.raises(ConfigError, match=r"ledger\.json: received .*; allowed: the file as it was; or none"):
        ledger.seen(load_plan(Path(EXPERIMENT)), ROOT)


@pytest.mark.parametrize("verb", [["plan"], ["run"], ["report"], ["train", "control"]], ids=lambda words: words[0])
def test_a_run_that_calls_itself_finished_without_its_last_step_is_refused(project, monkeypatch, capsys, verb):
    """Whatever the tracking store may hold of it; it would be neither trained nor judged."""
    monkeypatch.chdir(project)
    run = load_plan(Path(EXPERIMENT)).runs()[0]
    folder = RunFolder(Path("runs"), run.key)
    folder.create(run.recipe, run.seed)
    folder.begin(Stratum(device="here"), {}, "data")
    folder.log(10, {"train/loss": 5.0})
    folder.end("KILLED", "stopped")
    file = folder.path / "status.json"
    file.write_text(file.read_text().replace("KILLED", "FINISHED"))
    assert main([verb[0], EXPERIMENT, *verb[1:]]) == 2
    told = capsys.readouterr().err
    assert f"{folder.log_file}: received 1 rows, and none of the last step of a finished run" in told
    assert "move" in told
