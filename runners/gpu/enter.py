"""``gpu-import``: what came of a session on a card, checked as a whole and then entered into this checkout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.report import results
from llama_variants.errors import ConfigError, Problem
from llama_variants.meaning import digest
from runners.data.atomic import whole_folder, write_atomically
from runners.execution.mirrors import Mirrors
from runners.gpu import manifest
from runners.gpu.parts import EXPERIMENTS, FIVE, JUDGED, ablation_base
from runners.gpu.session import KEPT_OF_A_RUN, RESULTS
from runners.planning.plan import load_plan
from runners.planning.recipe import run_key
from runners.reproduce.training_log import TrainingLog
from runners.runs.folder import RunFolder
from runners.runs.proofs import proven
from runners.runs.stratum import executed
from runners.verdicts import report

LOG, PAGE = EXPERIMENTS / "LOG.md", Path("README.md")
LOGS = {"training.log": Path("training.log"), "training-again.log": EXPERIMENTS / "results/training-again.log"}


@dataclass(frozen=True, kw_only=True)
class Found:
    """A session's folder, checked."""

    folder: Path
    head: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    runs: Sequence[Path]
    files: Mapping[Path, Path]  # of this checkout, and what of the folder goes there


def check(folder: Path, root: Path) -> Found:
    """The session's folder. Raises ConfigError with everything for which it cannot be entered; writes nothing."""
    try:
        faults = manifest.faults(folder, RESULTS)
        head = manifest.read(folder, RESULTS)
    except ValueError as error:
        allowed = "a folder that `make gpu` wrote, such as gpu-results"
        raise ConfigError([Problem(path=("FROM",), received=str(error), allowed=allowed)]) from None
    if faults:
        raise _refusal(folder, faults, "the folder as `make gpu` left it")
    listed = [folder / name for name in head["files"]]  # nothing else is entered: its content is not checked
    runs = [file.parent for file in listed if file.match("runs/*/status.json") and _is_over(file.parent)]
    if others := [fault for run in runs for fault in _other_code(run)]:
        raise _refusal(folder, others, f"the code that they were made with: git checkout {_commit(head)}")
    if taken := [run.name for run in runs if (root / run.name).exists() and not _equal(run, root / run.name)]:
        raise _refusal(folder, [f"run {name} is here, and another" for name in taken], "to move those away first")
    files = {target: folder / name for name, target in LOGS.items()}
    if not str(head["environment"]["device"]).startswith("cpu"):  # whose bench rehearses, and measures nothing
        files |= {EXPERIMENTS / "bench" / file.name: file for file in listed if file.match("bench/*.json")}
    steps = [json.loads(file.read_text()) for file in listed if file.match("steps/*.json")]
    return Found(
        folder=folder,
        head=head,
        steps=sorted(steps, key=lambda step: str(step["ended"])),
        runs=runs,
        files={target: file for target, file in files.items() if file in listed},
    )


def enter(found: Found, root: Path, reports: Path, say: Callable[[str], None]) -> None:
    """Enter what :func:`check` let pass: runs, records, verdicts, the results table and a draft for the lab book."""
    for run in found.runs:
        if not (root / run.name).exists():
            with whole_folder(root / f".{run.name}.partial", root / run.name) as partial:
                for name in KEPT_OF_A_RUN:
                    if str((run / name).relative_to(found.folder)) in found.head["files"]:
                        shutil.copyfile(run / name, partial / name)
    say(f"{len(found.runs)} runs are in {root}")
    for target, file in found.files.items():
        text = file.read_bytes()
        if not target.exists() or target.read_bytes() != text:
            say(f"{'replaced' if target.exists() else 'written'}: {target}")
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, text)
    kept = list(_verdicts(found, root, reports, say))
    table = results.results_markdown(kept) if kept else ""
    asked = {load_plan(EXPERIMENTS / f"{name}.yaml").name for name in FIVE}
    judged = {results.read(file)[0].name for file in kept}
    if asked <= judged:
        those = [file for file in kept if results.read(file)[0].name in asked]
        write_atomically(PAGE, results.insert(PAGE.read_text(encoding="utf-8"), results.results_markdown(those)))
        say(f"replaced: the results table of {PAGE}; the words around it are for you to put right")
    else:
        say(f"the results table of {PAGE} stays as it is: not finished: {', '.join(sorted(asked - judged))}")
    _note(found, table)
    say(f"a draft for you to judge: {LOG}")


def _is_over(folder: Path) -> bool:
    """Whether a run came to an end, good or bad; one that was stopped has its checkpoints on the card's machine."""
    return RunFolder(folder.parent, folder.name).status.state in ("FINISHED", "INVALID", "FAILED")


def _other_code(folder: Path) -> Iterator[str]:
    """In what the code that a run was made with is another one than here, in words; and whether it is another run."""
    run = RunFolder(folder.parent, folder.name)
    recipe, seed = run.config()
    made = run.checked_status().stratum
    if run_key(recipe.identity(), seed) != run.key:
        yield f"run {run.key} is not what its name says"
    elif not made:
        if run.status.state == "FINISHED":
            yield f"run {run.key} does not say with what code it was made"
    else:
        here = {part: digest(meaning) for part, meaning in executed(recipe).items()}
        known = proven(made).code
        if differs := [part for part in sorted({*here, *known}) if here.get(part) != known.get(part)]:
            yield f"run {run.key} was made with another code of {', '.join(differs)}"


def _verdicts(found: Found, root: Path, reports: Path, say: Callable[[str], None]) -> Iterator[Path]:
    """The kept results of each experiment whose runs are all done."""
    base = ablation_base(found.head["base"])
    for name in JUDGED:
        file = EXPERIMENTS / f"{name}.yaml"
        plan = load_plan(file, base=base)
        if any(RunFolder(root, run.key).status.state != "FINISHED" for stage in plan.stages for run in stage.runs()):
            continue
        command = f"make ablation EXP={file} BASE={base}"
        told = report(plan, Mirrors(root), reports, command, keep=EXPERIMENTS / "results")
        say(f"\n{told.text}\n")
        yield from (path for key, path in told.files.items() if key.startswith("kept"))


def _note(found: Found, table: str) -> None:
    """Enter a draft into the lab book, before its newest entry."""
    around = found.head["environment"]
    where = ", ".join(
        f"{name} {around[name]}" for name in ("torch", "transformers", "cuda", "driver") if name in around
    )
    date = found.steps[-1]["ended"][:10] if found.steps else ""
    failed = [step["name"] for step in found.steps if step["code"]]
    title = f"`make gpu` on {around['device']}: {len(found.steps) - len(failed)} steps done, {len(failed)} not (draft)"
    rows = ["| step | minutes | exit code |", "|---|---|---|"]
    rows += [f"| {step['name']} | {step['seconds'] / 60:.1f} | {step['code']} |" for step in found.steps]
    text = [f"## {date} · {title}", "", f"Commit {_commit(found.head)}; {where}.", "", *rows, ""]
    for file in (file for target, file in found.files.items() if target.parent.name == "bench"):
        for row in json.loads(file.read_text()).get("rows", ()):
            if "tokens_per_s" in row:
                low, high = row["low"], row["high"]
                text.append(
                    f"- `{file.stem}`, {row['name']}: {row['tokens_per_s']:,.0f} tokens/s [{low:,.0f}, {high:,.0f}]"
                )
    text += [*_twice(found.files), *(["", table] if table else []), ""]
    draft, book = "\n".join(text), LOG.read_text(encoding="utf-8")
    if draft not in book:  # else it was entered before
        before, mark, rest = book.partition("\n## ")
        write_atomically(LOG, f"{before}\n{draft}{mark}{rest}")


def _twice(files: Mapping[Path, Path]) -> list[str]:
    """How far the two logs of the baseline lie apart."""
    if not files.keys() >= set(LOGS.values()):
        return []
    one, other = (TrainingLog.parse(files[target].read_text()) for target in LOGS.values())
    apart = [abs(loss - other.losses[step]) for step, loss in one.losses.items() if step in other.losses]
    ends = ", ".join(f"{log.validation[max(log.validation)]:.6f}" for log in (one, other))
    return ["", f"The baseline twice: validation {ends}; training losses at most {max(apart):.3g} apart."]


def _commit(head: Mapping[str, Any]) -> str:
    return str(head["pack"] or head["environment"].get("commit", "unknown"))


def _equal(run: Path, here: Path) -> bool:
    names = [name for name in KEPT_OF_A_RUN if (run / name).exists()]
    return all((here / name).exists() and (here / name).read_bytes() == (run / name).read_bytes() for name in names)


def _refusal(folder: Path, faults: Sequence[str], allowed: str) -> ConfigError:
    shown = [*faults[:5], *([f"and {len(faults) - 5} more"] if len(faults) > 5 else [])]
    problems = [Problem(path=("FROM",), received=fault, allowed=allowed) for fault in shown]
    return ConfigError(problems, title=f"{folder}: {len(faults)} problems, nothing was entered")
