"""A log is reproduced when what it says comes out again; any change of it, of the recipe or of the data is noticed."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runners.cli import main
from runners.data import prepare
from runners.execution.one_run import RunOptions, execute
from runners.planning.plan import load_plan
from runners.reproduce.log_compare import Known, Way, hold_exactly, hold_statistically
from runners.reproduce.training_log import TrainingLog, training_log
from runners.runs.folder import RunFolder
from runners.runs.signals import StopRequest
from runners.training.gates import log_faults
from tests.conftest import ROOT
from tests.runners.conftest import clean_environment, write_project

CPU = torch.device("cpu")
EXPERIMENT = "experiments/micro_theta.yaml"
STEPS = 30


def make_log(micro_batch: int | None = None, root: str = "made") -> str:
    """The text of the log of the control's first run, in the current folder."""
    run = load_plan(Path(EXPERIMENT)).arms[0].runs[0]
    folder = RunFolder(Path(root), run.key)
    folder.create(run.recipe, run.seed)
    execute(folder, Path("cache"), "cpu", RunOptions(micro_batch=micro_batch), StopRequest())
    command = f"python -m runners train {EXPERIMENT} control 0"
    return training_log("micro", command, folder, prepare(run.recipe.data, Path("cache")), CPU)


@pytest.fixture(scope="module")
def made(made_once) -> Path:
    """A project with its log, and logs of the same run with other micro-batches."""

    def fill(folder: Path) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(write_project(folder))
            Path("training.log").write_text(make_log())
            for size in (1, 2, 3):
                Path(f"split-{size}.log").write_text(make_log(size, f"made-{size}"))
        torch.set_num_threads(threads)

    return made_once("reproduce", fill)


@pytest.fixture
def here(made, tmp_path, monkeypatch) -> Path:
    """A copy of that project, to work in."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def elsewhere(text: str) -> str:
    """The log as one of a platform that this is not."""
    return re.sub(r"processor=\S+", "processor=Another-AVX", text)


def changed(line: str, place: int) -> str:
    """The line with another digit at ``place``."""
    return line[:place] + str((int(line[place]) + 1) % 10) + line[place + 1 :]


def test_what_the_log_says_comes_out_again(here, capsys):
    assert main(["reproduce", "training.log"]) == 0
    said = capsys.readouterr().out
    assert "training.log: agrees; held to the last digit" in said
    assert "not checked" not in said
    assert (here / "reports/reproduce/training.svg").read_text().startswith("<?xml")


def test_a_changed_digit_of_a_line_that_is_made_again_departs(here, capsys):
    text = Path("training.log").read_text()
    line = next(line for line in text.splitlines() if " - Step 20," in line)
    Path("training.log").write_text(text.replace(line, changed(line, line.index("LR:") - 3)))
    assert main(["reproduce", "training.log"]) == 1
    said = capsys.readouterr().out
    assert "training.log: DEPARTS" in said
    assert f"{STEPS + 3} lines made again and held against it, 1 of them depart" in said
    assert "  step 20: `Step 20, Loss:" in said


@pytest.mark.parametrize("of", [" - Step ", " - Validation, ", "# final"])
def test_any_changed_digit_departs(made, of):
    """Of the losses, rates, norms, tokens, bits per byte and of what the kept weights say; not of time and speed."""
    text = (made / "training.log").read_text()
    again = TrainingLog.parse(text)
    fixed = re.compile(r"^\S+ \S+ - |tokens/s \d+, |^# .*: ")  # the header is held against recipe and data elsewhere
    places = []
    for number, line in enumerate(text.splitlines()):
        if of in line:
            outside = {i for found in fixed.finditer(line) for i in range(*found.span())}
            places += [(number, i) for i, letter in enumerate(line) if letter.isdigit() and i not in outside]

    @given(st.sampled_from(places))
    def holds(place):
        lines = text.splitlines()
        lines[place[0]] = changed(lines[place[0]], place[1])
        outcome = hold_exactly(Known(Path("log"), TrainingLog.parse("\n".join(lines))), again, STEPS, STEPS)
        assert outcome.verdict == "departs"

    holds()
    assert hold_exactly(Known(Path("log"), again), again, STEPS, STEPS).verdict == "agrees"


@pytest.mark.parametrize("step", [7, 20, 31])
def test_a_line_left_out_or_added_departs(here, capsys, step):
    lines = Path("training.log").read_text().splitlines()
    kept = [line for line in lines if f"Step {step}," not in line]
    if step > STEPS:  # such as a run of that many steps has none
        kept.insert(-4, f"2026-01-01 00:00:00,000 - Step {step}, Loss: 3.0, LR: 0.001")
        kept = [line for line in kept if not line.startswith("# final")]
    Path("training.log").write_text("\n".join(kept))
    assert main(["reproduce", "training.log"]) == 1
    said = capsys.readouterr().out
    assert f"step {step}:" in said
    assert "no such line" in said


def test_what_is_not_made_again_is_said(here, capsys):
    text = Path("training.log").read_text()
    line = next(line for line in text.splitlines() if " - Step 20," in line)
    Path("training.log").write_text(text.replace(line, changed(line, line.index("LR:") - 3)))
    assert main(["reproduce", "training.log", "--steps", "12"]) == 0
    said = capsys.readouterr().out
    assert "13 lines made again and held against it, 0 of them depart" in said
    assert "not checked: lines of steps 13 to 30 (20), and the footer" in said
    assert main(["reproduce", "training.log", "--steps", "25"]) == 1


def test_steps_are_made_anew_each_time_and_no_others(here, monkeypatch):
    """Where few steps are logged, the last one made again is not among them."""
    monkeypatch.setattr("runners.execution.journal.LOG_POINTS", 3)
    log = make_log(root="sparse")
    Path("sparse.log").write_text(log)
    assert sorted(TrainingLog.parse(log).losses) == [1, 10, 20, 30]
    for _ in range(2):
        assert main(["reproduce", "sparse.log", "--steps", "15"]) == 0
        (rows,) = [file.read_text().splitlines() for file in Path("reports").rglob("metrics.jsonl")]
        assert [json.loads(row)["step"] for row in rows] == [1, 10]
    (file,) = Path("reports").rglob("metrics.jsonl")
    file.write_text(file.read_text().replace('"train/loss": ', '"train/loss": 1'))  # what lies there is not believed
    assert main(["reproduce", "sparse.log", "--steps", "15"]) == 0


def test_another_recipe_is_refused_and_named(here, capsys):
    base = here / "experiments/base/micro.yaml"
    base.write_text(base.read_text().replace("theta: 10000.0", "theta: 500.0"))
    assert main(["reproduce", "training.log"]) == 2
    error = capsys.readouterr().err
    assert "cannot compare" in error
    assert "model.rotary.theta: 10000.0 in the log, 500.0 here" in error
    assert not list((here / "reports").rglob("*"))


def test_other_text_is_refused_and_named(here, capsys):
    (here / "text/train-00.txt").write_text("al bet gam")
    assert main(["reproduce", "training.log"]) == 2
    assert "data.source.train: [['train-00.txt'," in capsys.readouterr().err


def test_other_tokens_are_refused(here, capsys):
    text = Path("training.log").read_text()
    Path("training.log").write_text(re.sub(r"# data: \w{16}", "# data: 0123456789abcdef", text))
    assert main(["reproduce", "training.log"]) == 2
    error = capsys.readouterr().err
    assert "cannot compare, the data is another" in error
    assert "fingerprint 0123456789abcdef in the log" in error


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"lr": 0.01', '"lr": 0.02', "does not agree with itself"),
        ("# computed: micro", "# calculated: micro", "its header lacks computed"),
        ("# deterministic: yes", "# deterministic: no", "deterministic: 'no'"),
        ("threads=1", "threads=-1", "names no processor and threads"),
        ("micro-batch 4", "micro-batch 0", "computed: 'micro-batch 0"),
        ("# units: ", "# data: 0123456789abcdef, 1\n# units: ", "more than once in it: # data"),
        ("# final: ", "# final: validation loss 3.0, bits/byte 3.0\n# final: ", "more than once in it: # final"),
        ("# final: validation loss ", "# final: validation loss 1", "final is not its last validation"),
        ("# recipe: {", "# recipe: [1, 2]\n# was: {", "recipe: '[1, 2]'"),
        ("# command: python", "# command: perl", "python -m runners train EXPERIMENT"),
        (
            f"train {EXPERIMENT}",
            "train experiments/moved.yaml",
            "it was made by `python -m runners train experiments/mov",
        ),
        ("control 0", "control 3", "allowed: 0 to 2"),
        ("control 0", "contrl 0", "did you mean 'control'"),
        ("# computed: micro", "# computed: macro", "computed"),
        ("Loss: ", "Loss: x", "could not convert"),
        (" - Step", " - Stop", "no line like"),
    ],
)
def test_a_broken_log_is_refused(here, capsys, old, new, said):
    text = Path("training.log").read_text()
    assert old in text
    Path("training.log").write_text(text.replace(old, new))
    assert main(["reproduce", "training.log"]) == 2
    assert said in capsys.readouterr().err


def test_no_such_log(here, capsys):
    assert main(["reproduce", "nothing.log"]) == 2
    assert "No such file" in capsys.readouterr().err


def others(count: int) -> list[str]:
    """Files of logs of ``count`` platforms that are not this one, apart from training.log by rounding."""
    names = [f"other-{i}.log" for i in range(count)]
    for i, name in enumerate(names):
        text = re.sub(r"processor=\S+", f"processor=Other-{i}", Path("training.log").read_text())
        text = re.sub(r"(Loss: \d+\.\d{7})(\d+)", lambda found, i=i: f"{found[1]}{i}{found[2]}", text)
        last = TrainingLog.parse(text).validation[STEPS]
        Path(name).write_text(re.sub(r"(# final: validation loss )[^,]+", rf"\g<1>{last!r}", text))
    return names


def test_a_log_of_another_platform_is_held_against_the_scatter_of_others(here, capsys):
    logs = ["training.log", *others(6)]
    Path("training.log").write_text(elsewhere(Path("training.log").read_text()))
    assert main(["reproduce", *logs, "training.log", logs[1]]) == 0  # twice is once
    said = capsys.readouterr().out
    assert "agrees; held against the scatter of 6 logs of this run computed in other ways" in said
    assert "not checked: gradient norms, bits/byte" in said
    assert "not checked, used for the scatter alone, made in other ways: other-0.log, other-1.log" in said
    text = Path("training.log").read_text()
    Path("training.log").write_text(re.sub(r"- Step 20, Loss: (\d)\.\d", r"- Step 20, Loss: \1.0", text))
    assert main(["reproduce", *logs, "--json"]) == 1
    (outcome,) = json.loads(capsys.readouterr().out)
    assert {(row["step"], row["kind"]) for row in outcome["rows"] if row["text"]} == {(20, "loss")}
    assert outcome["verdict"] == "departs"


def test_copies_show_no_scatter_and_short_logs_none_beyond_their_end(made):
    log = TrainingLog.parse((made / "training.log").read_text())
    known = Known(Path("log"), log)
    assert hold_statistically(known, log, STEPS, [log] * 9, None).verdict == "not checked"
    ways = [replace(log, header=log.header | {"computed": f"micro-batch {n}, not compiled"}) for n in range(5, 11)]
    assert "scatter of 6 logs" in hold_statistically(known, log, STEPS, ways, None).basis
    short = replace(ways[0], losses={step: loss for step, loss in log.losses.items() if step < 20})
    assert "scatter of 5 logs" in hold_statistically(known, log, STEPS, [short, *ways[1:]], None).basis


def test_another_way_on_this_platform_is_no_exact_one(here, capsys):
    assert main(["reproduce", "training.log", "--micro-batch", "1"]) == 1
    said = capsys.readouterr().out
    assert "training.log: NOT CHECKED; held against nothing" in said
    assert "nothing was checked" in said
    assert main(["reproduce", "training.log", "split-1.log", "--micro-batch", "1", "--out", "new.log"]) == 0
    assert "split-1.log: agrees; held to the last digit" in capsys.readouterr().out
    new, split = (TrainingLog.parse(Path(name).read_text()) for name in ("new.log", "split-1.log"))
    assert new.lines == split.lines


@pytest.mark.parametrize(
    ("out", "said"),
    [("training.log", "which is read"), ("nowhere/new.log", "a folder that is there"), ("text", "a folder that is")],
)
def test_a_target_that_cannot_be_written_is_refused_before_the_work(here, capsys, out, said):
    assert main(["reproduce", "training.log", "--out", out]) == 2
    assert said in capsys.readouterr().err
    assert main(["reproduce", "training.log", "--out", "new.log", "--steps", "3"]) == 2
    assert "all of its steps" in capsys.readouterr().err
    assert not Path("reports").exists()


def test_where_seed_noise_alone_is_known_validations_are_held_against_it(made):
    log = TrainingLog.parse((made / "training.log").read_text())
    moved = replace(log, validation={step: loss + 0.05 for step, loss in log.validation.items()})
    outcome = hold_statistically(Known(Path("log"), log), moved, STEPS, [], 0.03)
    assert outcome.verdict == "agrees"
    assert f"{STEPS} of the lines made again, for which no scatter is known" in outcome.unchecked
    outcome = hold_statistically(Known(Path("log"), log), moved, STEPS, [], 0.003)
    assert outcome.departs.step == 10
    assert "sd 0.003" in outcome.basis


LOGS = sorted((ROOT / "tests/golden/baseline-tiny").glob("*.log"))


@pytest.mark.parametrize("file", LOGS, ids=lambda file: file.stem)
def test_the_logs_of_tiny_lie_inside_each_other_s_scatter(file):
    """Each, as if made again here, against every other, by the scatter of the rest."""
    logs = {one: TrainingLog.parse(one.read_text()) for one in LOGS}
    again = logs[file]
    for other in LOGS:
        rest = [log for one, log in logs.items() if one not in (file, other)]
        outcome = hold_statistically(Known(other, logs[other]), again, 1200, rest, None)
        assert "scatter of" in outcome.basis
        assert outcome.verdict == "agrees", outcome.departs
        assert other == file or Way.of(logs[other]) != Way.of(again)


def test_that_scatter_is_narrow_enough_to_be_of_use():
    """Less than a tenth of what was learned by then; less than a thousandth while chaos has not set in."""
    first, *rest = (TrainingLog.parse(file.read_text()) for file in LOGS)
    outcome = hold_statistically(Known(LOGS[0], first), first, 1200, rest, None)
    allowed = {(row.step, row.kind): row.allowed for row in outcome.rows}
    assert allowed[1, "loss"] < 1e-4
    assert allowed[1200, "validation"] < 0.1 * (first.losses[1] - first.validation[1200])


def test_every_log_of_tiny_is_of_the_run_that_training_log_is_of():
    recipes = {TrainingLog.parse(file.read_text()).header["recipe"] for file in LOGS}
    assert len(recipes) == 1
    run = load_plan(ROOT / "experiments/baseline.yaml", base="tiny").arms[0].runs[0]
    assert all(f"key {run.key}" in TrainingLog.parse(file.read_text()).header["run"] for file in LOGS)
    assert len(LOGS) > 6


def test_the_way_of_a_log_says_what_its_bits_depend_on(made):
    logs = [TrainingLog.parse((made / name).read_text()) for name in ("training.log", "split-1.log")]
    ways = [Way.of(log) for log in logs]
    assert ways[0] != ways[1]
    assert ways[0].platform == ways[1].platform
    assert ways[0].threads == 1
    assert "not compiled" in str(ways[0])


@pytest.mark.slow
def test_a_reproduction_that_is_stopped_goes_on(here):
    base = here / "experiments/base/micro.yaml"
    base.write_text(base.read_text().replace("num_steps: 30", "num_steps: 500"))
    Path("long.log").write_text(make_log(root="long"))
    command = [sys.executable, "-m", "runners", "reproduce", "long.log"]
    child = subprocess.Popen(
        command, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

    def rows() -> list[str]:
        return [line for file in Path("reports").rglob("metrics.jsonl") for line in file.read_text().splitlines()]

    deadline = time.monotonic() + 120
    while len(rows()) < 20:
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=60)
    assert child.returncode == 143
    before = len(rows())
    again = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "agrees; held to the last digit" in again.stdout
    events = next(Path("reports").rglob("events.log")).read_text()
    assert "going on after step" in events
    assert before < len(rows())


# The first batch


@pytest.fixture
def first(here) -> Path:
    assert main(["log", EXPERIMENT, "control", "--first-batch", "--out", "first.json"]) == 0
    return here / "first.json"


def test_a_first_batch_comes_out_again(first, capsys):
    assert main(["reproduce", "first.json", "--rows", "2"]) == 0
    said = capsys.readouterr().out
    assert "first.json: agrees; held to the last digit" in said
    assert "not checked: windows 1, 3 (2)" in said


def test_a_second_platform_is_entered_beside_the_first(first):
    record = json.loads(first.read_text())
    (mine,) = record["losses"]
    record["losses"] = {"another": record["losses"][mine]}
    first.write_text(json.dumps(record))
    assert main(["log", EXPERIMENT, "control", "--first-batch", "--out", "first.json"]) == 0
    losses = json.loads(first.read_text())["losses"]
    assert list(losses) == ["another", mine]
    assert losses["another"] == losses[mine]


def test_its_mean_is_the_first_loss_of_the_run(first):
    (losses,) = json.loads(first.read_text())["losses"].values()
    log = TrainingLog.parse(Path("training.log").read_text())
    assert np.mean(losses) == pytest.approx(log.losses[1], rel=1e-6)


def test_a_changed_digit_of_a_window_departs(first, capsys):
    record = json.loads(first.read_text())
    (losses,) = record["losses"].values()
    losses[2] = float(changed(repr(losses[2]), len(repr(losses[2])) - 1))
    first.write_text(json.dumps(record))
    assert main(["reproduce", "first.json", "--rows", "2"]) == 1
    assert "window 2:" in capsys.readouterr().out


def test_a_first_batch_elsewhere_is_held_against_the_scatter_of_platforms(first, capsys):
    record = json.loads(first.read_text())
    (losses,) = record["losses"].values()
    record["losses"] = {f"p{i}": [loss + i * 1e-7 for loss in losses] for i in range(3)}
    first.write_text(json.dumps(record))
    assert main(["reproduce", "first.json"]) == 0
    assert "the scatter of 3 other platforms" in capsys.readouterr().out
    record["losses"] = {name: [loss + 0.01 for loss in values] for name, values in record["losses"].items()}
    first.write_text(json.dumps(record))
    assert main(["reproduce", "first.json"]) == 1
    del record["losses"]["p0"], record["losses"]["p1"]
    first.write_text(json.dumps(record))
    assert main(["reproduce", "first.json"]) == 2
    assert "two others" in capsys.readouterr().err


@pytest.mark.parametrize(
    "record",
    [
        [1],
        {"run": 1},
        {"losses": [1]},
        {"losses": {}},
        {"losses": {"p": [5.0] * 4, "q": [5.0] * 3}},
        {"losses": {"p": [5.0] * 4, "q": [6.0] * 4}},
    ],
)
def test_a_broken_record_is_refused(first, capsys, record):
    whole = json.loads(first.read_text())
    first.write_text(json.dumps(whole | record if isinstance(record, dict) else record))
    assert main(["reproduce", "first.json"]) == 2
    assert "first.json" in capsys.readouterr().err


def test_a_first_batch_of_another_model_is_refused_but_not_of_another_rate(first, here, capsys):
    base = here / "experiments/base/micro.yaml"
    text = base.read_text()
    base.write_text(text.replace("lr: 1e-2", "lr: 2e-2"))
    assert main(["reproduce", "first.json"]) == 0
    base.write_text(text.replace("std: 0.2", "std: 0.1"))
    assert main(["reproduce", "first.json"]) == 2
    assert "model.init.std: 0.2 in the log, 0.1 here" in capsys.readouterr().err
    assert main(["log", EXPERIMENT, "control", "--first-batch", "--out", "first.json"]) == 2  # what is there stays
    assert "cannot compare" in capsys.readouterr().err


# Logs of other projects


def described(losses: dict[int, float], rate) -> str:
    """In the line format of the log that this project repeats, with what else stands in it."""
    lines = ["2025-01-26 23:53:36,170 - === End of Samples ===", ""]
    lines += [f"2025-01-26 23:53:43,986 - Step {s}, Loss: {loss:.4f}, LR: {rate(s):.2e}" for s, loss in losses.items()]
    return "\n".join(lines)


def published(step: int) -> float:
    """Its fall, by a few of its own figures: 10.70, 5.88, 1.97, 1.01, 0.68 and, to its end, 0.38."""
    known = {10: 10.6962, 100: 5.8841, 500: 1.9677, 1000: 1.0082, 1500: 0.6835, 4000: 0.4025, 5040: 0.3904}
    return float(np.interp(step, list(known), list(known.values())))


def underflowing(step: int) -> float:
    return 1e-4 if step <= 2000 else 1e-4 * 0.9983 ** ((step - 2000) * 24)


def test_the_published_log_is_invalid_by_its_lines_alone(here, capsys):
    Path("published.log").write_text(described({s: published(s) for s in range(10, 5050, 10)}, underflowing))
    assert main(["reproduce", "published.log"]) == 1
    said = capsys.readouterr().out
    assert "published.log: INVALID" in said
    assert re.search(r"learning rate: \S+e-10 at step \d+, \d.\d+e-5\d at step 5030; below 1e-09 no weight moves", said)
    assert "too good: 1.0" in said
    assert "names no recipe" in said
    assert "in training.log" in said  # laid beside ours
    assert Path("reports/reproduce/published.svg").exists()


def test_a_log_of_another_vocabulary_is_judged_by_that(here, capsys):
    Path("letters.log").write_text(described({1: 4.17, 100: 1.6, 5000: 0.9}, lambda step: 1e-3))
    assert main(["reproduce", "letters.log"]) == 1
    assert "(of a model with 49,152 tokens)" in capsys.readouterr().out
    assert main(["reproduce", "letters.log", "--vocab-size", "65"]) == 0


def test_another_project_s_training_log_is_not_laid_beside_itself(here, capsys):
    Path("training.log").write_text(described({100: 9.76, 5000: 3.0}, lambda step: 1e-3))
    assert main(["reproduce", "training.log"]) == 0
    assert "in nothing" in capsys.readouterr().out


def test_the_corrected_one_is_not(here, capsys):
    losses = {100: 9.76, 500: 5.47, 1000: 4.34, 2000: 3.63, 3000: 3.31, 4000: 3.10, 5000: 3.018}
    Path("corrected.log").write_text(described(losses, lambda step: max(1e-8, 2e-4 * (1 - step / 5000))))
    assert main(["reproduce", "corrected.log"]) == 0
    assert "no gate fails that its lines alone can show" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("steps", "losses", "rates", "said"),
    [
        ([1, 2, 3], [10.8, 5.0, float("nan")], [1e-3] * 3, "not finite"),
        ([1, 10, 5], [10.8, 5.0, 4.0], [1e-3] * 3, "steps: 5 stands after 10"),
        ([1, 10, 10], [10.8, 5.0, 4.0], [1e-3] * 3, "steps: 10 stands after 10"),
        ([1, 10, 20], [7.0, 5.0, 4.0], [1e-3] * 3, "first loss 7.0000"),
        ([1, 10, 20], [10.8, 5.0, 4.0], [1e-3, 1e-40, 1e-41], "learning rate: 1e-40"),
        ([1, 10, 200], [10.8, 10.8, 10.8], [1e-3] * 3, "learns nothing"),
        ([1, 10, 20], [10.8, 2.0, 0.4], [1e-3] * 3, "too good"),
    ],
)
def test_what_a_log_alone_shows(steps, losses, rates, said):
    (fault,) = log_faults(steps, losses, rates, 49_152)
    assert said in fault
    assert not list(log_faults([1, 10, 20], [10.8, 5.0, 4.0], [1e-3] * 3, 49_152))
    assert not list(log_faults([1, 10, 20], [10.8, 5.0, 4.0], [0.0, 1e-3, 0.0], 49_152))  # as schedules begin and end
