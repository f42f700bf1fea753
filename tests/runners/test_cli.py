"""Whole commands in a project folder of their own, real MLflow included."""

from __future__ import annotations

import csv
import functools
import json
import math
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analysis.store.schema import METRICS, TAG_ARM, TAG_INVALID, TAG_REPORT, TAG_SEED
from llama_variants import ModelConfig, build_model
from runners.cli import main
from runners.runs.folder import RunFolder
from tests.conftest import ROOT
from tests.runners.conftest import clean_environment
from tests.runners.helpers import start_main

# Without what a probe logs by name, and without probes that the base does not have.
LOGGED = {key for key in METRICS if "*" not in key and not key.startswith(("val/induction", "val/task"))}
EXPERIMENT = "experiments/micro_theta.yaml"
ARMS = {"control": 3, "twin": 3, "theta_100": 3}


def store(project: Path):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{project}/mlflow.db")
    experiment = client.get_experiment_by_name("micro-theta-micro")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    return client, [run for run in runs if TAG_REPORT not in run.data.tags], experiment


def run_folders(project: Path) -> dict[str, dict]:
    return {file.parent.name: json.loads(file.read_text()) for file in project.glob("runs/*/status.json")}


def test_plan_writes_nothing_and_prints_costs(cli, inside, project):
    before = sorted(project.rglob("*"))
    done = cli("plan", EXPERIMENT)
    assert done.returncode == 0, done.stderr
    assert "rotary.theta 10000 → 100" in done.stdout
    assert "9 runs, 9 left" in done.stdout
    record = json.loads(inside(project, "plan", EXPERIMENT, "--json")[1])
    assert {row["arm"]: row["runs"] for row in record["arms"]} == ARMS
    assert record["smallest_detectable_effect"] is None  # the base states no spread
    assert sorted(project.rglob("*")) == before


@pytest.mark.slow
def test_from_yaml_to_verdict_and_again(cli, prompt, inside, project):
    done = prompt("run", EXPERIMENT, "--jobs", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[ 9/9]" in done.stdout
    for word in ("control", "twin", "theta_100", "verdict", "reports/micro-theta-micro/report.html", "make ui"):
        assert word in done.stdout

    _, runs, experiment = store(project)
    seen: dict[str, list[str]] = {}
    for run in runs:
        assert run.info.status == "FINISHED"
        assert set(run.data.metrics) == LOGGED
        assert all(math.isfinite(value) for value in run.data.metrics.values())
        assert run.data.params["model.rotary.theta"] == (
            "100.0" if run.data.tags[TAG_ARM] == "theta_100" else "10000.0"
        )
        seen.setdefault(run.data.tags[TAG_ARM], []).append(run.data.tags[TAG_SEED])
    assert {arm: len(set(seeds)) for arm, seeds in seen.items()} == ARMS
    assert sum(map(len, seen.values())) == 9
    assert "theta_100" in experiment.tags["mlflow.note.content"]

    # The mirror holds what the run folders hold, to the last digit.
    by_key = {run.data.tags["ablation.run_key"]: run for run in runs}
    for key in run_folders(project):
        rows = [json.loads(line) for line in (project / "runs" / key / "metrics.jsonl").read_text().splitlines()]
        assert rows[-1]["step"] == 30
        assert by_key[key].data.metrics["final/val_loss"] == rows[-1]["metrics"]["final/val_loss"]

    # So does the report: every arm with its mean, every run with its loss, and three figures.
    report = project / "reports/micro-theta-micro"
    final = {key: run.data.metrics["final/val_loss"] for key, run in by_key.items()}
    rows = list(csv.DictReader((report / "runs.csv").read_text().splitlines()))
    assert {row["run_key"]: float(row["final/val_loss"]) for row in rows} == final
    for record in json.loads((report / "table.json").read_text()):
        losses = [final[row["run_key"]] for row in rows if row["arm"] == record["arm"]]
        assert (len(losses), record["mean"]) == (ARMS[record["arm"]], pytest.approx(statistics.fmean(losses)))
        assert all(f"{record['arm']}" in (report / name).read_text() for name in ("report.html", "report.md"))
    figures = {(report / f"{name}.png").read_bytes() for name in ("losses", "forest", "throughput")}
    assert len(figures) == 3
    assert all(figure.startswith(b"\x89PNG") for figure in figures)

    # Again: nothing is trained, nothing is logged twice.
    before = run_folders(project)
    again = cli("run", EXPERIMENT)
    assert again.returncode == 0
    assert run_folders(project) == before
    assert len(store(project)[1]) == 9
    assert again.stdout.strip().splitlines()[-6:] == done.stdout.strip().splitlines()[-6:]

    # The store is lost: it is made again from the run folders.
    (project / "mlflow.db").unlink()
    assert cli("report", EXPERIMENT).returncode == 0
    rebuilt = {run.data.tags["ablation.run_key"]: run.data.metrics for run in store(project)[1]}
    assert rebuilt == {key: run.data.metrics for key, run in by_key.items()}

    # Another question on the same base shares the control's runs.
    other = (project / EXPERIMENT).read_text().replace("micro-theta", "micro-two").replace("theta_100", "theta_200")
    (project / "experiments/two.yaml").write_text(other.replace("theta: 100.0", "theta: 200.0"))
    planned = json.loads(inside(project, "plan", "experiments/two.yaml", "--json")[1])
    assert {row["arm"]: row["done"] for row in planned["arms"]} == {"control": 3, "twin": 3, "theta_200": 0}


@pytest.mark.slow
def test_stages_requirements_budgets_and_a_look(cli, inside, project, monkeypatch):
    """One experiment through all that may follow a first verdict."""
    base = project / "experiments/base/micro.yaml"
    base.write_text(base.read_text().replace("blocks: 3", "budgets: [0.5]\nblocks: 3"))
    file = project / EXPERIMENT
    file.write_text(file.read_text() + "confirm: {variants: [theta_100], blocks: 2}\n")
    (project / "experiments/worth.yaml").write_text(
        file.read_text().split("variants:")[0].replace("micro-theta", "worth") + "budgets: true\n"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")
    assert "then, to confirm, on fresh blocks" in inside(project, "plan", EXPERIMENT)[1]
    assert "confirm" in json.loads(inside(project, "plan", EXPERIMENT, "--json")[1])
    done = cli("run", EXPERIMENT, "--jobs", 1, "--require", "worse:theta_100")
    verdicts = done.stdout.split("to confirm, on fresh blocks:")
    assert len(verdicts) == 2
    rows = [line for text in verdicts for line in text.splitlines() if re.match("theta_100 +[23] ", line)]
    words = [line.split("]")[1].split()[0] for line in rows]
    assert len(words) == 2
    assert done.returncode == int(words[1] != "worse"), done.stdout + done.stderr
    assert (f"required: theta_100 is {words[1]}, not worse" in done.stderr) == (words[1] != "worse")
    gates = "better,worse,equivalent,undecided:theta_100"
    assert inside(project, "report", EXPERIMENT, "--gate", gates)[0] == 0
    records = json.loads(inside(project, "report", EXPERIMENT, "--json")[1])
    assert [(r["stage"], r["arm"]) for r in records][-2:] == [("confirm", "control"), ("confirm", "theta_100")]
    assert all(record["worth"] is None for record in records)

    # The store has both stages, each with its report as artifacts, and nothing is in MLflow's own folder.
    client, runs, _ = store(project)
    assert len(runs) == 9
    for name, count in (("micro-theta-micro", 9), ("micro-theta-confirm-micro", 4)):
        experiment = client.get_experiment_by_name(name)
        every = client.search_runs([experiment.experiment_id])
        (report,) = [run for run in every if TAG_REPORT in run.data.tags]
        assert len(every) == count + 1
        assert "theta_100" in report.data.tags["mlflow.note.content"]
        assert {"report.html", "table.json", "forest.png"} <= {
            a.path for a in client.list_artifacts(report.info.run_id)
        }
    assert not (project / "mlruns").exists()

    # Budgets that another experiment has made say what a difference is worth.
    assert cli("run", "experiments/worth.yaml", "--jobs", 1).returncode == 0
    records = json.loads(inside(project, "report", EXPERIMENT, "--json")[1])
    table = {record["arm"]: record for record in records if record["stage"] == "declared"}
    losses = [record["mean"] for record in table.values()]
    assert all(loss is not None for loss in losses)
    html = (project / "reports/micro-theta-micro/report.html").read_text()
    assert "What a difference is worth in data" in html
    assert "git checkout " in html  # of the source that is being tested
    assert f"make ablation EXP={EXPERIMENT}" in html

    # More blocks after the look decide nothing, which is said before they are trained.
    more = cli("run", EXPERIMENT, "--jobs", 1, "--seeds", 4)
    assert "warning: theta_100 was looked at before (3 blocks then, 4 now): these blocks decide nothing" in more.stderr
    assert "first_seed: " in more.stderr
    assert "seen before with other blocks (3 blocks then, 4 now)" in " ".join(more.stdout.split())


@pytest.mark.slow
def test_looks_stop_what_is_decided(cli, inside, project):
    """An arm that is invalid is decided at the first look; then nothing is left to ask."""
    file = project / EXPERIMENT
    file.write_text(
        file.read_text().replace("model: {rotary: {theta: 100.0}}", "train: {lr: 1e38}") + "looks: [2, 4]\n"
    )
    planned = inside(project, "plan", EXPERIMENT)[1]
    assert "judged after 2, 4 blocks; a variant that is decided stops" in planned
    done = cli("run", EXPERIMENT, "--jobs", 1)
    assert done.returncode == 1
    assert "theta_100: invalid after 2 blocks; it stops" in done.stdout
    assert len(run_folders(project)) == 6
    again = cli("run", EXPERIMENT, "--jobs", 1)
    assert again.returncode == 1
    assert len(run_folders(project)) == 6


@pytest.mark.parametrize(
    ("required", "says"),
    [
        ("better:nope", "theta_100"),
        ("bettr:theta_100", "did you mean 'better'"),
        ("theta_100", "WORDS:ARM"),
        (":", "WORDS:ARM"),
        ("better:theta_100 worse:theta_100", "one requirement for theta_100"),
    ],
)
def test_a_requirement_that_cannot_be_is_refused(project, monkeypatch, capsys, required, says):
    monkeypatch.chdir(project)
    words = (part for text in required.split() for part in ("--require", text))
    assert main(["report", EXPERIMENT, *words]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_runs_do_not_depend_on_their_neighbours(cli, project):
    """The same run alone, or in a warm worker after others: equal bits."""
    assert cli("train", EXPERIMENT, "theta_100", "1").returncode == 0
    (alone,) = run_folders(project)
    rows = (project / "runs" / alone / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(row)["metrics"]["train/loss"] for row in rows]
    subprocess.run(["rm", "-r", str(project / "runs")], check=True)
    assert cli("run", EXPERIMENT, "--jobs", 1).returncode == 0
    rows = (project / "runs" / alone / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["metrics"]["train/loss"] for row in rows] == losses


@pytest.mark.slow
def test_a_sweep_without_a_valid_run_is_reported_too(cli, inside, project):
    base = project / "experiments/base/micro.yaml"
    base.write_text(base.read_text().replace("warmup_steps: 3", "warmup_steps: 0"))
    planned = inside(project, "plan", EXPERIMENT)[1]
    assert "warning: runs of control, twin, theta_100 would be invalid: warm-up: none" in planned
    done = cli("run", EXPERIMENT, "--seeds", 1)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stdout.count("INVALID: warm-up: none") == 3
    assert (project / "reports/micro-theta-micro/report.html").exists()


@pytest.mark.slow
def test_a_failing_run_says_why_and_does_not_stop_the_others(cli, project):
    """One arm's learning rate overflows: its runs are invalid, the rest finish, the exit code is 1."""
    text = (project / EXPERIMENT).read_text()
    (project / EXPERIMENT).write_text(text + "  hot: {train: {lr: 1e38}}\n")
    done = cli("run", EXPERIMENT)
    assert done.returncode == 1
    assert "INVALID: step" in done.stdout
    _, runs, _ = store(project)
    states = {(run.data.tags[TAG_ARM], run.info.status) for run in runs}
    assert states == {("control", "FINISHED"), ("twin", "FINISHED"), ("theta_100", "FINISHED"), ("hot", "FAILED")}
    assert all("step" in run.data.tags[TAG_INVALID] for run in runs if run.data.tags[TAG_ARM] == "hot")
    hot = next(line for line in done.stdout.splitlines() if line.startswith("hot "))
    assert "invalid" in hot


def longer(project: Path, num_steps: int) -> None:
    base = project / "experiments/base/micro.yaml"
    base.write_text(base.read_text().replace("num_steps: 30", f"num_steps: {num_steps}"))


def launch(project: Path, *arguments: object) -> subprocess.Popen[str]:
    """A command that goes on in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "runners", *map(str, arguments)],
        cwd=project,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that started the tests in the background has them ignore SIGINT, and children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def until_training(project: Path) -> None:
    deadline = time.monotonic() + 90
    while not any(file.read_text() for file in project.glob("runs/*/metrics.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def steps_of(project: Path, key: str) -> list[int]:
    return [row["step"] for row in RunFolder(project / "runs", key).rows()[0]]


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_sweep_is_marked_and_goes_on(cli, inside, project, signum, code):
    longer(project, 600)
    sweep = ("run", EXPERIMENT, "--jobs", 1, "--seeds", 1)
    process = launch(project, *sweep)
    until_training(project)
    process.send_signal(signum)
    output, _errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "stopping: the runs in hand save their state; once more to stop at once" in output
    (key,) = run_folders(project)
    assert run_folders(project)[key]["state"] == "KILLED"
    assert f"{key}" not in output
    assert "control seed 0: checkpoint of step" in output
    _, (killed,), _ = store(project)
    assert killed.info.status == "KILLED"
    assert json.loads(inside(project, "plan", EXPERIMENT, "--json", "--seeds", "1")[1])["runs_left"] == 3

    done = cli(*sweep)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "control seed 0: going on after step" in done.stdout
    client, runs, _ = store(project)
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    (same,) = (run for run in runs if run.data.tags["ablation.run_key"] == key)
    assert same.info.run_id == killed.info.run_id
    steps = steps_of(project, key)
    assert steps == sorted(set(steps))
    assert steps[-1] == 600
    assert [point.step for point in client.get_metric_history(same.info.run_id, "train/loss")] == steps


@pytest.mark.slow
def test_a_sweep_interrupted_twice_stops_at_once(project):
    """A worker that does not get round to saving is not waited for."""
    longer(project, 1200)
    process = launch(project, "run", EXPERIMENT, "--jobs", 1, "--seeds", 1)
    until_training(project)
    (key,) = run_folders(project)
    (worker,) = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "spawn_main"], capture_output=True, text=True
    ).stdout.split()
    subprocess.run(["kill", "-STOP", worker], check=True)  # it saves nothing now
    process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    status = run_folders(project)[key]
    assert (status["state"], status["reason"]) == ("KILLED", "stopped at once, without saving")
    assert not Path(f"/proc/{worker}").exists()


@pytest.mark.slow
def test_workers_whose_sweep_was_killed_save_and_leave(cli, project):
    longer(project, 600)
    process = launch(project, "run", EXPERIMENT, "--jobs", 1, "--seeds", 1)
    until_training(project)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while [status["state"] for status in run_folders(project).values()] != ["KILLED"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (key,) = run_folders(project)
    assert list((project / "runs" / key / "checkpoints").glob("step-*"))
    done = cli("run", EXPERIMENT, "--jobs", 1, "--seeds", 1)
    assert done.returncode == 0
    assert "control seed 0: going on after step" in done.stdout


@pytest.mark.slow
def test_a_worker_that_is_killed_takes_only_its_run_along(cli, project):
    longer(project, 600)
    sweep = ("run", EXPERIMENT, "--jobs", 1, "--seeds", 1, "--save-every", 0.5)
    process = launch(project, *sweep)
    until_training(project)
    children = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "spawn_main"], capture_output=True, text=True)
    (worker,) = children.stdout.split()
    subprocess.run(["kill", "-9", worker], check=True)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 1, errors
    assert "FAILED: the worker process died (exit code -9; the system kills what takes too much memory" in output
    assert sorted(state["state"] for state in run_folders(project).values()) == ["FAILED", "FINISHED", "FINISHED"]
    assert cli(*sweep).returncode == 0  # the same command makes up for it
    assert {state["state"] for state in run_folders(project).values()} == {"FINISHED"}
    for key in run_folders(project):
        assert steps_of(project, key) == sorted(set(steps_of(project, key)))


@pytest.mark.slow
def test_ten_launches_at_once_in_an_empty_folder(project, cli):
    """No corpus, no tracking store: who comes first makes them, and nobody trips over that."""
    (project / "experiments/base/micro.yaml").write_text(
        (project / "experiments/base/micro.yaml").read_text().replace("blocks: 3", "blocks: 10")
    )
    launched = [start_main(project, "train", EXPERIMENT, "control", index) for index in range(10)]
    for process in launched:
        process.join(timeout=400)
    assert [process.exitcode for process in launched] == [0] * 10, run_folders(project)
    assert len(run_folders(project)) == 10
    for key, status in run_folders(project).items():
        assert status["state"] == "FINISHED"
        assert steps_of(project, key) == list(range(1, 31))
    assert cli("report", EXPERIMENT).returncode == 0  # mirrors those that found the store busy for too long
    _, runs, _ = store(project)
    assert sorted(int(run.data.tags[TAG_SEED]) for run in runs) == list(range(10))
    assert all(run.info.status == "FINISHED" and set(run.data.metrics) == LOGGED for run in runs)


@pytest.mark.slow
def test_two_launches_of_the_same_run_train_it_once(project):
    longer(project, 800)
    first = launch(project, "train", EXPERIMENT, "control")
    until_training(project)
    first.send_signal(signal.SIGSTOP)  # however long the second takes to start
    second = launch(project, "train", EXPERIMENT, "control")
    said = next(line for line in second.stderr if "is being trained by process" in line)
    assert f"is being trained by process {first.pid}; waiting until that is over" in said
    first.send_signal(signal.SIGCONT)
    (_, _), (out, _) = first.communicate(timeout=200), second.communicate(timeout=200)
    assert (first.returncode, second.returncode) == (0, 0)
    assert "control seed 0: FINISHED" in out
    (status,) = run_folders(project).values()
    assert status["environment"]["pid"] == str(first.pid)
    assert len(store(project)[1]) == 1
    (key,) = run_folders(project)
    assert steps_of(project, key) == sorted(set(steps_of(project, key)))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run", "experiments/absent.yaml"), "No such file"),
        (("run", EXPERIMENT, "--base", "tiyn"), "unknown base"),
        (("run", EXPERIMENT, "--device", "tpu"), "allowed: auto, "),
        (("run", EXPERIMENT, "--device", "cpu:x"), "allowed: auto, "),
        (("run", EXPERIMENT, "--seeds", "0"), "not a positive whole number"),
        (("run", EXPERIMENT, "--save-every", "-1"), "'-1' is no number of seconds"),
        (("run", EXPERIMENT, "--save-every", "often"), "'often' is no number of seconds"),
        (("train", EXPERIMENT, "control", "--micro-batch", "0"), "not a positive whole number"),
        (("train", EXPERIMENT, "contrl"), "did you mean 'control'"),
        (("train", EXPERIMENT, "control", "3"), "0 to 2"),
        (("rnu", EXPERIMENT), "invalid choice"),
        (("report", EXPERIMENT), "nothing to report"),
    ],
)
def test_wrong_input_ends_in_2_and_leaves_nothing_behind(inside, project, arguments, says):
    before = sorted(project.rglob("*"))
    code, out, errors = inside(project, *arguments)
    assert (code, out) == (2, "")
    assert says in errors
    assert sorted(project.rglob("*")) == before


def test_wrong_input_at_a_real_prompt(prompt):
    done = prompt("run", EXPERIMENT, "--base", "tiyn")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: experiments/micro_theta.yaml: 1 problem, nothing was run")
    assert "Traceback" not in done.stderr


@pytest.fixture
def inside(capsys, monkeypatch):
    """Runs a verb in this process, in a folder: importing torch takes longer than most verbs."""

    def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        try:
            code = main(arguments)
        except SystemExit as error:  # of argparse
            code = error.code
        return code, *capsys.readouterr()

    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield run
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def here(inside):
    """The same at the project's root."""
    return functools.partial(inside, ROOT)


def test_model_says_what_a_model_costs(here):
    code, text, _ = here("model", "--model", "smollm2-135m")
    assert code == 0
    assert "134,515,008, all trainable" in text
    code, text, _ = here("model", "--set", "head.type=untied", "--set", "layers.every 4.rotary.type=nope", "--json")
    data = json.loads(text)
    assert data["params"]["total"] == 162_826_560
    assert [row["count"] for row in data["rows"]] == [1, 23, 7, 1, 1]
    assert "in windows of 32 tokens" in here("model", "--model", "experiments/base/tiny.yaml", "--seq-len", "32")[1]


def test_model_reads_a_saved_model(here, tmp_path):
    config = ModelConfig.preset("smollm2-135m").override({"num_hidden_layers": 1, "vocab_size": 300})
    for name, delta in (("stock", {}), ("variant", {"mlp": {"type": "relu2"}})):
        build_model(config.override(delta)).save_pretrained(tmp_path / name)
        code, text, _ = here("model", "--model", str(tmp_path / name))
        assert code == 0
        assert f"{config.override(delta).num_params:,}" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("model", "--model", "smollm2-153m"), "did you mean 'smollm2-135m'?"),
        (("model", "--model", "tests"), "a folder that transformers can load"),
        (("model", "--model", "absent.yaml"), "No such file"),
        (("model", "--model", "experiments/demo.yaml"), "an experiment; allowed: a base, as its tiny"),
        (("model", "--plugin", "no_such_module"), "a module that is installed, on the path"),
        (("blocks", "slidng_window"), "did you mean 'sliding_window'"),
        (("model", "--set", "head"), "PATH=VALUE"),
        (("model", "--set", "head.tpye=untied"), "did you mean 'type'?"),
        (("model", "--set", "mlp.expansion=[1"), "--set mlp.expansion"),
        (("model", "--set", "head=tied"), "a mapping with `type`"),
        (("model", "--set", "norm.eps='1e-5'"), "received '1e-5' (text)"),
        (("model", "--set", "head=1", "--set", "head.type=tied"), "one value for 'head', not two"),
        (("weights", "--base", "tiny"), "only that comes with weights"),
        (("weights", "--base", "tinny"), "did you mean 'tiny'?"),
        (("results", "nofile"), "received nofile: No such file or directory; allowed: results by `report --keep`"),
        (("results", "tests"), "received tests: Is a directory"),
        # Of a base that no newcomer's command runs: the checkout may hold runs of tiny.
        (
            ("report", "experiments/demo.yaml", "--base", "smollm2-135m-published"),
            "python -m runners run experiments/demo.yaml",
        ),
    ],
)
def test_wrong_allowedto_the_other_verbs(here, arguments, says):
    code, out, errors = here(*arguments)
    assert (code, out) == (2, "")
    assert says in errors


def test_blocks_are_listed(here):
    assert "qk_norm" in here("blocks")[1]
    rows = json.loads(here("blocks", "--json")[1])
    assert {"family": "norm", "type": "rms", "fields": "eps"}.items() <= rows[
        [r["type"] for r in rows].index("rms")
    ].items()
    one = here("blocks", "sliding_window")[1]
    assert "  window_fraction: float | str = None\n" in one
    assert "  exactly one of window_fraction, window_size" in one
    assert here("blocks", "scaled")[1].count("scaled\n") == 2  # an embedding and an init scheme
    assert here("blocks", "--markdown")[1] == (ROOT / "llama_variants/blocks/README.md").read_text()
