"""From run folders to verdicts: mirror, judge, write the report, and compare the verdicts with what is required."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.report import page as reports
from analysis.report import results
from analysis.report.decode import Decode
from analysis.report.sections import Stage
from analysis.stats.compare import VERDICTS, compare
from analysis.stats.secondary import ItemValues
from analysis.stats.solved import CURVE, has_task
from analysis.store import load
from analysis.store.schema import Design
from analysis.store.stratum import Stratum
from llama_variants.errors import ConfigError, Problem, one_of
from runners.execution.mirrors import Mirrors
from runners.planning.lookup import PROJECT
from runners.planning.plan import Plan
from runners.runs import ledger
from runners.runs.evaluations import Evaluations
from runners.runs.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Reported:
    """The verdicts of a plan's stages, and the files that hold them."""

    stages: tuple[Stage, ...]
    files: Mapping[str, Path]
    page: str  # of the runs, in the tracking UI
    faults: tuple[str, ...] = ()  # what of it could not be made, in words

    @property
    def text(self) -> str:
        """The verdict tables for a terminal."""
        texts = []
        for stage in self.stages:
            title = "to confirm, on fresh blocks:\n" if stage.design.confirms else ""
            texts.append(title + reports.table_text(stage.table, stage.design))
        return "\n\n".join(texts)

    def missed(self, required: Mapping[str, set[str]]) -> list[str]:
        """The requirements that are not met, in words. Where an arm was confirmed, that has the last word."""
        verdicts = {
            arm: word
            for stage in self.stages
            for arm, word in zip(stage.table["arm"], stage.table["verdict"], strict=True)
        }
        return [
            f"required: {arm} is {verdicts[arm]}, not {' or '.join(sorted(words))}"
            for arm, words in required.items()
            if verdicts[arm] not in words
        ]


def read_requirements(texts: Iterable[str], plan: Plan) -> dict[str, set[str]]:
    """Arm -> the verdicts that are let through, out of texts such as "better,equivalent:mqa".

    Raises:
        ConfigError: for an unknown arm or word.
    """
    required: dict[str, set[str]] = {}
    problems = []
    arms = [arm.name for arm in plan.arms if arm.role in ("variant", "check")]
    for text in texts:
        words, _, arm = text.partition(":")
        if arm not in arms:
            problems.append(
                Problem(
                    path=("--require",),
                    received=repr(text),
                    allowed=f"WORDS:ARM, with an arm of this experiment: {one_of(arm, arms)}",
                )
            )
        for word in words.split(","):
            if word not in VERDICTS:
                problems.append(
                    Problem(
                        path=("--require",),
                        received=repr(text),
                        allowed=f"WORDS:ARM, each word {one_of(word, VERDICTS)}",
                    )
                )
        if arm in required:
            problems.append(
                Problem(
                    path=("--require",),
                    received=repr(text),
                    allowed=f"one requirement for {arm}, all its words in it: A,B:{arm}",
                )
            )
        required[arm] = set(words.split(","))
    if problems:
        raise ConfigError(problems)
    return required


def report(
    plan: Plan,
    mirrors: Mirrors,
    folder: Path,
    command: str,
    *,
    notebooks: bool = False,
    keep: Path | None = None,
) -> Reported:
    """Judge what has run and write the report; all from the tracking store, as a notebook would.

    Where a server does not answer it is from mlflow.db instead (:meth:`Mirrors.ask`).

    Args:
        plan: the experiment; its stages are judged one by one, each with its own control.
        mirrors: of the run folders, the command's own.
        folder: the report goes into a folder of the experiment's name in here.
        command: what makes the same runs again.
        notebooks: also run the notebooks on it and keep them as HTML; takes the extra ``[notebooks]``.
        keep: a folder in which declaration and runs are kept too, for :mod:`analysis.report.page.results`.
    """
    root, faults = mirrors.root, []
    stages = mirrors.ask(lambda: [_mirrored(stage, mirrors) for stage in plan.stages])
    try:
        stages = [
            replace(made, decode=_decode(stage, made, folder)) for stage, made in zip(plan.stages, stages, strict=True)
        ]
    except ValueError as error:  # of a record; the verdicts stand without it
        faults.append(str(error))
    out_dir = folder / stages[0].design.experiment
    files = dict(reports.write(stages, out_dir, reproduce=_how_to_reproduce(plan, root, command)))
    if keep:
        files |= {f"kept-{i}": results.keep(stage.design, stage.runs, keep) for i, stage in enumerate(stages)}
    if notebooks:
        from analysis.report.export import NotebookError, export

        try:
            files |= export(stages[0].design.experiment, out_dir, tracking_uri=mirrors.uri)
        except (NotebookError, ImportError) as error:  # the verdicts stand without them
            faults.append(str(error))
    for stage, judged in zip(plan.stages, stages, strict=True):
        mirrors.publish(stage, reports.summary_markdown(judged.table, judged.design), files.values())
    return Reported(stages=tuple(stages), files=files, page=mirrors.of(plan).page, faults=tuple(faults))


def judge(stage: Plan, mirrors: Mirrors) -> pd.DataFrame:
    """The verdicts on what has run so far, as a report would have them: that these are shown is noted, and no more."""
    design, runs = stored(stage, mirrors)
    return compare(runs, design)


def stored(stage: Plan, mirrors: Mirrors) -> tuple[Design, pd.DataFrame]:
    """The declaration and the runs of a stage as the store has them; that differences can be shown is noted."""
    return mirrors.ask(lambda: _from_store(stage, mirrors))


def _mirrored(stage: Plan, mirrors: Mirrors) -> Stage:
    design, runs = _from_store(stage, mirrors)
    metrics = ("train/loss", "val/loss", *([CURVE] if has_task(runs) else []))
    curves = load.load_curves(runs, metrics, tracking_uri=mirrors.uri)
    return Stage(design=design, runs=runs, curves=curves, items=item_values(stage, mirrors.root))


def item_values(stage: Plan, root: Path) -> ItemValues:
    """What probes and tasks gave on each window or item, by run; the store has no room for it, the run folders have.

    A measurement that cannot be read has none: that it was not mirrored is said where that is tried.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for run in stage.runs():
        with suppress(ConfigError):
            for one in Evaluations(RunFolder(root, run.key).evaluations).all():
                found.setdefault(run.key, {}).update({key: np.asarray(kept) for key, kept in one.by_item().items()})
    return found


def _from_store(stage: Plan, mirrors: Mirrors) -> tuple[Design, pd.DataFrame]:
    """What the store has of a stage that is about to be judged, once it has all that the run folders have."""
    ledger.note(stage, _shown(stage, mirrors.root), mirrors.root)
    mirror = mirrors.of(stage)
    mirror.declare()
    for run in (*stage.runs(), *stage.elsewhere()):
        mirror.sync(run)
    design = load.load_design(stage.design().experiment, mirrors.uri)
    return design, load.load_runs(design, mirrors.uri)


def _shown(stage: Plan, root: Path) -> list[str]:
    """The arms of which a difference from the control can be shown."""
    done = {
        arm.name: {run.seed for run in arm.runs if RunFolder(root, run.key).status.state == "FINISHED"}
        for arm in stage.arms
    }
    control = done[stage.arms[0].name]
    return [name for name, seeds in done.items() if (seeds and control if stage.independent else seeds & control)]


def _decode(plan: Plan, made: Stage, reports: Path) -> Decode | None:
    """What `bench decode` measured of the arms on the device of the runs: here, else what this project keeps."""
    finished = made.runs.loc[made.runs["status"] == "FINISHED", "stratum"]
    devices = {Stratum.parse(str(text)).device for text in finished}
    names = [f"decode-{made.design.base}-{device}.json" for device in devices]
    folders = (reports, Path("experiments"), PROJECT / "experiments")
    files = [file for folder in folders for name in names if (file := folder / "bench" / name).is_file()]
    if len(devices) != 1 or not files:
        return None
    arms = [arm for arm in plan.arms if arm.role != "budget"]
    models = {arm.name: json.loads(json.dumps(arm.recipe.model.identity(), default=str)) for arm in arms}
    return Decode.of(files[0], models)


def _how_to_reproduce(plan: Plan, root: Path, command: str) -> str:
    """Shell commands, from the source that the runs were made with."""
    made = {
        (env.get("commit", ""), env.get("dirty", ""), run.key)
        for run in plan.runs()
        if (status := RunFolder(root, run.key).status).state == "FINISHED" and (env := status.environment)
    }
    lines = []
    commits = sorted({commit for commit, _, _ in made if commit})
    if len(commits) == 1:
        lines.append(f"git checkout {commits[0]}")
    elif commits:
        lines.append(f"# runs were made at {len(commits)} commits, with the same training code: {', '.join(commits)}")
    if changed := sorted(key for _, dirty, key in made if dirty == "true"):
        lines.append(
            f"git apply runs/{changed[0]}/source.diff  # what was not committed; {len(changed)} runs have such"
        )
    return "\n".join([*lines, "make setup", command])
