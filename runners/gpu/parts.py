"""What is done on a card, in order, and how long it is predicted to take."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_variants.errors import ConfigError, Problem, one_of
from runners.data.config import DataConfig
from runners.execution.slots import Slots, training_flops_per_s
from runners.planning.arms import PlannedRun
from runners.planning.plan import Plan, load_plan
from runners.runs.folder import RunFolder

PARTS = {
    "tests": "correctness on the card",
    "bench": "training beside peers, and decoding beside variants",
    "rate": "bracket of the learning rate",
    "noise": "blocks of the control, its twin, known-bad variant",
    "five": "the mission's five experiments",
    "baseline": "the baseline and its training.log, twice",
}
EXPERIMENTS = Path("experiments")
FIVE = ("rotary_theta", "head_grouping", "mlp_width", "norm_eps", "head_tying")
JUDGED = ("learning_rate_8m", "controls", *FIVE)
"""Experiments whose verdicts follow from the runs."""
ABLATION_BASE, BASELINE = "smollm2-135m-8m", "baseline"
AGAIN = Path("cache/gpu-again")
"""Where the baseline is made a second time: with run folders of its own, and the first one's tokens."""
REHEARSED = ("--threads", "1", "--rounds", "2", "--seconds", "0.2")
"""The bench without a card, which rehearses and measures nothing that counts."""
STOP_BEFORE = 50  # steps before its end at which the baseline is stopped, and resumed


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command of a part. ``minutes``: of one that can only begin again, estimated and not measured; else None."""

    name: str
    part: str
    words: tuple[str, ...]  # behind `python -m`
    folder: Path = Path()  # in which it is started
    runs: tuple[PlannedRun, ...] = ()  # that it carries out
    minutes: float | None = None


def ablation_base(base: str | None) -> str:
    """The base of the experiments where the user names ``base``, or none."""
    return base or ABLATION_BASE


def steps(base: str | None, device: str, parts: Sequence[str] = (), out: Path = Path("gpu-results")) -> list[Step]:
    """The steps of ``parts``, of all where none is named; on ``base`` where one is given.

    Raises ConfigError for an unknown part or base.
    """
    for name in parts:
        if name not in PARTS:
            raise ConfigError([Problem(path=("--parts",), received=repr(name), allowed=one_of(name, PARTS))])
    found = [*_tests(device, out), *_bench(base, device), *_experiments(base, device), *_baseline(base, device, out)]
    return [step for step in found if step.part in (parts or PARTS)]


def data_of(found: Iterable[Step]) -> list[DataConfig]:
    """The texts that the runs of these steps learn from, each once."""
    configs: dict[str, DataConfig] = {}
    for run in (run for step in found for run in step.runs):
        configs.setdefault(json.dumps(run.recipe.data.identity(), sort_keys=True), run.recipe.data)
    return list(configs.values())


def _tests(device: str, out: Path) -> list[Step]:
    # Without a card the golden losses stand in for what only a card can show.
    what = ("tests/runners/training/test_golden.py",) if device == "cpu" else ("-m", "cuda", "tests/cuda")
    words = ("pytest", "-p", "no:cacheprovider", f"--junitxml={out.absolute()}/tests.xml", *what)
    return [Step(name="tests", part="tests", words=words, minutes=4.0)]


def _bench(base: str | None, device: str) -> list[Step]:
    given = ("--device", device, *(("--base", base) if base else ()))
    if device == "cpu":
        given += REHEARSED
    longest = load_plan(EXPERIMENTS / "controls.yaml", base=ablation_base(base)).arms[0].recipe.model
    # One point: each model and each point is compiled anew, as a whole.
    point = ("--batch", "8", "--context", str(longest.max_position_embeddings))
    decoded = (*point, "--only", "attention=mqa,attention=mha", "--seconds", "0.2")
    return [
        Step(name="peers", part="bench", words=("runners", "bench", "peers", *given), minutes=4.0),
        Step(name="decode", part="bench", words=("runners", "bench", "decode", *given, *decoded), minutes=4.0),
    ]


def _experiments(base: str | None, device: str) -> list[Step]:
    found = []
    for part, names in (("rate", JUDGED[:1]), ("noise", JUDGED[1:2]), ("five", FIVE)):
        for name in names:
            file = EXPERIMENTS / f"{name}.yaml"
            plan = load_plan(file, base=ablation_base(base))
            words = ("runners", "run", str(file), "--base", plan.base, "--device", device)
            runs = tuple(run for stage in plan.stages for run in stage.runs())
            found.append(Step(name=name, part=part, words=words, runs=runs))
    return found


def baseline_plan(base: str | None) -> Plan:
    """The baseline, on its own base unless the user names one."""
    return load_plan(EXPERIMENTS / f"{BASELINE}.yaml", base=base)


def _baseline(base: str | None, device: str, out: Path) -> list[Step]:
    plan = baseline_plan(base)
    run = plan.run_of("control", 0)
    which = (str(EXPERIMENTS / f"{BASELINE}.yaml"), "control", "--base", plan.base, "--device", device)
    stop = -min(STOP_BEFORE, run.recipe.train.num_steps // 2)
    found = []
    for name, folder in (("baseline", Path()), ("baseline-again", AGAIN)):
        to = ("--out", f"{out.absolute()}/{'training' if folder == Path() else 'training-again'}.log")
        rows: list[tuple[str, tuple[str, ...]]] = [("", ("train", *which)), ("-log", ("log", *which, *to))]
        if folder == Path():  # as `make baseline` does it
            rows.insert(0, ("-stopped", ("train", *which, "--stop-after", str(stop))))
        for ending, words in rows:
            trains = (run,) if words[0] == "train" else ()
            step = Step(name=name + ending, part="baseline", words=("runners", *words), folder=folder, runs=trains)
            found.append(step)
    return found


def predicted_minutes(found: Sequence[Step], slots: Slots, out: Path) -> tuple[dict[str, float], str]:
    """Minutes that each step has left to do, and what that is estimated from.

    A run that several steps have in common is the first one's. From what finished runs took, else from the tokens/s
    that the bench measured, else from a matrix product timed now, without what a run takes to start and to evaluate.
    """
    status = {
        (step.folder, run.key): RunFolder(step.folder / "runs", run.key).status for step in found for run in step.runs
    }
    flops = {run.key: run.recipe.train.num_tokens * run.recipe.flops_per_token for step in found for run in step.runs}
    took = [flops[key] / _seconds(folder, key) for (folder, key), s in status.items() if s.state == "FINISHED"]
    if took:
        rate, basis = statistics.median(took), f"{len(took)} runs that are done"
    elif measured := _measured(found, out):
        rate, basis = measured, "the tokens/s of the bench; start and evaluation come on top"
    else:
        rate, basis = training_flops_per_s(slots), "a matrix product timed now; start and evaluation come on top"
    claimed = {where for where, known in status.items() if known.state == "FINISHED"}
    minutes = {}
    for step in found:
        left = [(step.folder, run.key) for run in step.runs if (step.folder, run.key) not in claimed]
        claimed.update(left)
        at_once = max(1, min(len(slots.devices), len(left)))
        minutes[step.name] = step.minutes or sum(flops[key] for _, key in left) / rate / at_once / 60
    return minutes, basis


def _seconds(folder: Path, key: str) -> float:
    """What a finished run took in all its processes, without the time between them."""
    return RunFolder(folder / "runs", key).final_metrics()["final/wall_time_s"]


def _measured(found: Sequence[Step], out: Path) -> float | None:
    """FLOP/s of this project's fastest way in the bench's record of a base that a step trains on."""
    runs = [run for step in found for run in step.runs]
    for file in sorted((out / "bench").glob("peers-*.json")) if runs else ():
        rows = json.loads(file.read_text())["rows"]
        if speeds := [row["tokens_per_s"] for row in rows if row["name"].startswith("ours")]:
            return float(max(speeds)) * runs[0].recipe.flops_per_token
    return None
