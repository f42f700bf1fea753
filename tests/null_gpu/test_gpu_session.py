"""`make gpu` on the null card, from the packed folder in an empty directory."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from runners.gpu import manifest
from tests.null_gpu.conftest import PYTHON, built, variables
from tests.runners.gpu.rehearsal import environment, make_clone, packed

DISBELIEVES = """
try:
    from tests.null_gpu import values
except ImportError:  # a process that is none of the project's, such as pip
    pass
else:
    values.disbelieve()
"""


def make_machine(folder: Path) -> Path:
    """A Python in ``folder`` that sees the packages of `.venv-null-gpu`, and whose processes disbelieve their gates."""
    purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
    seen = subprocess.check_output([PYTHON, "-c", purelib], text=True).strip()
    subprocess.run([PYTHON, "-m", "venv", folder], check=True)
    python = folder / "bin/python"
    site = Path(subprocess.check_output([python, "-c", purelib], text=True).strip())
    (site / "packages.pth").write_text(f"import site; site.addsitedir({seen!r})\n")
    (site / "disbelieves.py").write_text(DISBELIEVES)
    (site / "values.pth").write_text("import disbelieves\n")
    return python


def test_a_session_goes_through_on_a_card(tmp_path: Path) -> None:
    """Bench, noise floor and baseline, whose runs compile for the card; every step comes to a good end."""
    project = packed(make_clone(tmp_path / "clone"), tmp_path / "packed")
    python = make_machine(tmp_path / "python")
    around = environment() | variables(built())
    around.pop("CUDA_VISIBLE_DEVICES", None)  # by which tests/conftest.py hides every card
    command = ["make", "gpu", "BASE=tiny", "DEVICE=cuda", f"PYTHON={python}", "PARTS=bench,noise,baseline"]
    done = subprocess.run(command, cwd=project, env=around, capture_output=True, text=True)
    results = project / "gpu-results"
    logs = {file.stem: file.read_text()[-2000:] for file in (results / "logs").glob("*.log")}
    assert done.returncode == 0, (done.stdout, done.stderr, logs)
    steps = {file.stem: json.loads(file.read_text()) for file in (results / "steps").glob("*.json")}
    assert {step["part"] for step in steps.values()} == {"bench", "noise", "baseline"}
    assert {step["code"] for step in steps.values()} == {0}
    assert manifest.faults(results, "results.json") == []
    statuses = [json.loads(file.read_text()) for file in (results / "runs").glob("*/status.json")]
    assert statuses
    assert all(status["state"] == "FINISHED" for status in statuses)
    assert not [status for status in statuses if status["environment"]["device"].startswith("cpu")]
    metrics = [(file.parent / "metrics.jsonl").read_text() for file in (results / "runs").glob("*/status.json")]
    assert all('"final/compiled": 1.0' in text for text in metrics)
    (record,) = (results / "bench").glob("peers-*.json")
    names = {row["name"] for row in json.loads(record.read_text())["rows"]}
    assert {"ours", "ours-compiled", "ours-deterministic", "transformers-compiled"} <= names
