"""The notebooks as they are stored, and run by nbclient on runs of a real sweep."""

from __future__ import annotations

import ast
import math
import re
import signal
import subprocess
import sys
from dataclasses import replace

import nbformat
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.report import explore
from analysis.report.export import NOTEBOOKS, NotebookError, execute, export
from analysis.store.load import CURVE_COLUMNS, load_design, load_runs
from tests.analysis.tables import arm, design, frame
from tests.conftest import ROOT
from tests.runners.children import wait_for
from tests.runners.conftest import clean_environment, write_project
from tests.runners.helpers import start_main

STORED = sorted(NOTEBOOKS.glob("*.ipynb"))
EXPERIMENT = "micro-theta-micro"


def test_all_three_are_there():
    assert [file.stem for file in STORED] == ["baseline", "losses", "throughput"]


@pytest.mark.parametrize("file", STORED, ids=lambda file: file.stem)
def test_stored_thin_and_without_outputs(file):
    book = nbformat.read(file, as_version=4)
    nbformat.validate(book)
    assert len(book.cells) < 18
    for cell in book.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
            assert len(cell.source.splitlines()) <= 12
            imported = [
                node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Import | ast.ImportFrom)
            ]
            modules = {n.module if isinstance(n, ast.ImportFrom) else n.names[0].name for n in imported}
            assert all(str(module).split(".")[0] == "analysis" for module in modules)


def test_the_strip_has_every_run_its_block_and_its_mean():
    plan = design(arm("a", 3), arm("none", 2))
    runs = frame({"control": [1.0, 2.0, 3.0, 6.0], "a": [2.0, 3.0, 4.0]}, plan)
    (axes,) = explore.strip(runs, plan, plan.metric).axes
    points = [line.get_xdata().tolist() for line in axes.lines if line.get_linestyle() == "None"]
    assert points == [[1.0, 2.0, 3.0, 6.0], [2.0, 3.0, 4.0], []]
    blocks = [line.get_xdata().tolist() for line in axes.lines if line.get_color() == "0.8"]
    assert blocks == [[1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [6.0]]
    means = [line.get_xdata()[0] for line in axes.lines if line.get_linewidth() == 2]
    assert means == [3.0, 3.0]
    assert axes.get_xlabel() == "final/val_loss (nats/token)"
    (apart,) = explore.strip(runs, replace(plan, independent=True), plan.metric).axes
    assert not [line for line in apart.lines if line.get_color() == "0.8"]


def test_what_a_block_shares_is_measured_along_the_way():
    """Against the sd and the correlation of normal losses that are known: the arm is 0.6 of the control, and noise."""
    generator = np.random.default_rng(0)
    blocks = 20_000
    plan = design(arm("a", blocks), arm("late", 2), control=blocks)
    control, noise = generator.normal(size=(2, blocks))
    rows = [
        (f"{name}-{block}", name, 7 + block, "val/loss", step, 256.0 * step, value + step)
        for step in (1, 2)
        for name, values in (("control", control), ("a", 0.6 * control + 0.8 * noise), ("late", control[:2]))
        for block, value in enumerate(values)
    ]
    found = explore.pairing(pd.DataFrame(rows, columns=CURVE_COLUMNS), plan)
    assert found["arm"].tolist() == ["a", "a"]  # two blocks of the other know no sd
    assert found["tokens"].tolist() == [256.0, 512.0]
    assert found["blocks"].tolist() == [blocks] * 2
    assert found["correlation"].tolist() == pytest.approx([0.6] * 2, abs=0.02)
    assert found["sd"].tolist() == pytest.approx([math.sqrt(0.8)] * 2, rel=0.02)  # 1 + 1 - 2 * 0.6
    assert found["independent"].tolist() == pytest.approx([math.sqrt(2)] * 2, rel=0.02)
    left, right = explore.pairing_figure(found, plan, "nats/token").axes
    assert left.lines[0].get_ydata().tolist() == found["sd"].tolist()
    assert right.lines[0].get_ydata().tolist() == found["correlation"].tolist()
    explore.pairing_figure(found.iloc[:0], plan, "nats/token").canvas.draw()


def test_the_spread_is_that_of_the_seeds():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(3, 6))  # evaluation, seed
    rows = [
        ("k", "control", seed, "val/loss", step, 10.0 * step, values[step, seed])
        for step in range(3)
        for seed in range(6)
        if (step, seed) != (1, 0)  # one evaluation was lost: its step has no spread of all seeds
    ]
    curves = pd.DataFrame(rows, columns=["run_key", "arm", "seed", "metric", "step", "tokens", "value"])
    found = explore.spread(curves, "control")
    assert found["tokens"].tolist() == [0.0, 20.0]
    assert found["sd"].tolist() == pytest.approx(values[[0, 2]].std(axis=1, ddof=1))
    sd, low = found.loc[0, ["sd", "sd_low"]]
    assert stats.chi2.cdf(5 * (sd / low) ** 2, 5) == pytest.approx(0.975)
    assert found["correlation"].tolist() == pytest.approx([np.corrcoef(values[0], values[2])[0, 1], 1.0])
    few = explore.spread(curves[curves["seed"] < 2], "control")
    assert few["sd"].isna().all()
    left, _ = explore.spread_figure(found, "nats/token").axes
    assert left.lines[0].get_ydata().tolist() == found["sd"].tolist()


def test_without_a_store_it_says_so(tmp_path):
    with pytest.raises(LookupError, match="no tracking store"):
        explore.choose(tracking_uri=f"sqlite:///{tmp_path}/none.db")


def test_a_cell_that_fails_is_named(tmp_path):
    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1"), nbformat.v4.new_code_cell("1 / 0")])
    nbformat.write(broken, tmp_path / "broken.ipynb")
    with pytest.raises(NotebookError, match=r"broken.ipynb, cell 2: ZeroDivisionError: division by zero"):
        execute(tmp_path / "broken.ipynb", "x", tracking_uri=f"sqlite:///{tmp_path}/none.db")


@pytest.mark.slow
@pytest.mark.parametrize(("left_by", "raised"), [("SIGINT", "Stopped"), ("SIGTERM", "Stopped"), ("", "NotebookError")])
def test_no_kernel_outlives_it(tmp_path, left_by, raised):
    """Left by a signal, whose handler stays this program's, or by the time that a cell may take."""
    pid = tmp_path / "pid"
    slow = f"import os, pathlib, time\npathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\ntime.sleep(100)"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(slow)]), tmp_path / "slow.ipynb")
    command = [sys.executable, "-c", LEFT, str(tmp_path / "slow.ipynb"), "100" if left_by else "2"]
    child = subprocess.Popen(
        command, env=clean_environment() | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    )
    wait_for(lambda: pid.exists() and pid.read_text())
    if left_by:
        child.send_signal(getattr(signal, left_by))
    said, _ = child.communicate(timeout=30)
    assert said.split() == [raised, "alive:", "False"]


LEFT = """
import os, pathlib, signal, sys
from analysis.report import export
from runners.runs.signals import StopRequest
StopRequest().install(signal.SIGINT, signal.SIGTERM)
notebook, export.TIMEOUT_S = pathlib.Path(sys.argv[1]), int(sys.argv[2])
try:
    export.execute(notebook, "x", tracking_uri=f"sqlite:///{notebook.parent}/none.db")
except BaseException as error:
    print(type(error).__name__, "alive:", os.path.exists("/proc/" + (notebook.parent / "pid").read_text()))
"""


@pytest.mark.slow
def test_it_runs_on_this_interpreter_whatever_kernels_there_are(tmp_path, monkeypatch):
    kernel = tmp_path / "kernels/python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text('{"argv": ["/bin/false"], "display_name": "x", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import sys\nsys.executable")])
    nbformat.write(book, tmp_path / "which.ipynb")
    done = execute(tmp_path / "which.ipynb", "x", tracking_uri=f"sqlite:///{tmp_path}/none.db")
    assert done.cells[0].outputs[0].data["text/plain"] == repr(sys.executable)


@pytest.mark.slow
def test_the_notebooks_show_what_the_store_holds(tmp_path):
    project = write_project(tmp_path)
    sweep = start_main(project, "run", "experiments/micro_theta.yaml", "--device", "cpu", "--jobs", 1, out=tmp_path)
    sweep.join(timeout=300)
    assert sweep.exitcode == 0, (tmp_path / "stderr").read_text()
    uri = f"sqlite:///{project}/mlflow.db"
    plan = load_design(EXPERIMENT, uri)
    control = load_runs(plan, uri).query("arm == 'control'")["final/val_loss"]
    assert explore.choose(tracking_uri=uri)[0] == plan
    valid = sum(len(one.run_keys) for one in plan.compared)
    with pytest.raises(LookupError, match="nosuch"):
        explore.choose("nosuch", uri)
    files = export(EXPERIMENT, tmp_path / "out", tracking_uri=uri)
    assert sorted(files) == ["notebook baseline", "notebook losses", "notebook throughput"]
    for name, file in files.items():
        text = file.read_text(encoding="utf-8")
        assert f"{EXPERIMENT}: {valid} valid finished runs" in text
        assert "<script" not in text
        assert not re.search(r'(src|href)="(?!data:|#)', text)
        assert text.count("data:image/png") >= (3 if "losses" in name else 4)
        assert "Traceback" not in text
    assert f"{control.mean():.4f}".rstrip("0") in files["notebook losses"].read_text()
    assert f"{control.std():.4f}".rstrip("0") in files["notebook baseline"].read_text()
    assert math.isfinite(control.std())
