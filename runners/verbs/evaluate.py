"""`evaluate`: probes and lm_eval's tasks on finished runs, or on anybody's weights."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from runners.verbs.common import (
    CACHE,
    RUNS,
    Context,
    OnExperiment,
    add_device,
    add_json,
    not_negative,
    positive,
    read_plan,
    seeds,
    verb,
)
from runners.verbs.judge import print_probes

if TYPE_CHECKING:
    from runners.execution.benchmarks import Benchmark
    from runners.execution.measure import Text, Weights
    from runners.planning.components import ProbeConfig
    from runners.planning.plan import Plan

PROBES = ("loss", "loss_by_domain", "loss_by_position", "loss_past_window", "induction")
"""What is measured where nothing else is asked for."""
OWN = "own"
"""The name of a run's own validation text."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to evaluate, on what, with which probes."""

    what: list[str]
    on: list[str]
    probes: list[str]
    tasks: list[str]
    num_fewshot: int | None
    limit: int | None
    include_path: Path | None
    base: str | None
    seeds: int | None
    windows: int | None
    revision: str | None
    plugin: list[str]
    device: str
    as_json: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of :class:`Options`."""
    text = "an experiment's YAML, a run (its folder or key), a folder of weights, a GGUF file or a hub id"
    parser.add_argument("what", nargs="+", metavar="WHAT", help=text)
    text = "data of experiments/data/, or a file or glob; a run's own validation text where nothing is given"
    parser.add_argument("--on", action="append", default=[], metavar="DATA", help=text)
    text = f"a probe, with settings as YAML: 'loss_past_window: {{factors: [2, 8]}}' (default {', '.join(PROBES)})"
    parser.add_argument("--probe", action="append", default=[], dest="probes", metavar="PROBE", help=text)
    text = "tasks of lm_eval instead (extra [eval]), e.g. arc_easy,hellaswag; with --probe or --on beside the probes"
    parser.add_argument("--tasks", action="append", default=[], metavar="TASKS", help=text)
    text = "examples before each item, other than as the task says"
    parser.add_argument("--num-fewshot", type=not_negative, metavar="N", help=text)
    parser.add_argument("--limit", type=positive, metavar="N", help="the first N items of each task, to try it")
    parser.add_argument("--include-path", type=Path, metavar="FOLDER", help="of task YAMLs of your own")
    text = "an experiment's base, where it is not its own; what says length, precision and text for other weights"
    parser.add_argument("--base", help=text)
    parser.add_argument("--seeds", type=seeds, help="blocks of an experiment's arms")
    parser.add_argument("--windows", type=positive, help="evaluation windows (default: the base's)")
    parser.add_argument("--revision", help="of a hub id")
    text = "with blocks of your own, for weights away from their experiment"
    parser.add_argument("--plugin", action="append", default=[], metavar="MODULE", help=text)
    add_device(parser)
    add_json(parser, "print the measurements as JSON")


def evaluate(options: Options, context: Context) -> int:
    """Measure, keep and print. Raises ConfigError for what cannot be evaluated; what was measured before is kept."""
    from runners.data.config import DataError

    try:
        return _evaluate(options)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _evaluate(options: Options) -> int:
    if options.plugin:
        _import(options.plugin)
    plans = {what: _plan(what, options) for what in options.what if what.endswith((".yaml", ".yml"))}
    by_default = [] if options.tasks and not options.on else PROBES
    probes = _read_probes(options.probes or by_default)  # once the plugins of the plans are there
    tasks = _tasks(options)
    from llama_variants.errors import ConfigError, Problem
    from runners.execution import benchmarks
    from runners.execution.measure import measure
    from runners.execution.mirrors import Mirrors
    from runners.runs.machine import resolve_device

    try:
        device = resolve_device(options.device)
    except ValueError as error:
        raise ConfigError([Problem(path=("--device",), received=options.device, allowed=str(error))]) from None
    mirrors = Mirrors(RUNS)  # what is wrong with its address is said at once
    texts = _texts(options.on) if probes else []
    asked = {what: list(_weights(what, plans.get(what), options)) for what in options.what}
    out = sys.stderr if options.as_json else sys.stdout
    measured: dict[str, dict[str, dict[str, float]]] = {}  # WHAT → weights → metric
    for what, several in asked.items():
        for place, weights in enumerate(several, start=1):
            say = _teller(f"[{place}/{len(several)}] {weights.title}", out)
            found = measure(weights, texts, probes, device, CACHE, num_windows=options.windows, say=say)
            if tasks:
                found += benchmarks.measure(weights, tasks, device, say=say)
            values = {key: value for one in found for key, value in one.mirrored().items()}
            measured.setdefault(what, {})[weights.title] = values
    if options.as_json:
        print(json.dumps(measured, indent=1))
        return 0
    for what, by_title in measured.items():
        if what in plans and not mirrors.absent():
            print_probes(plans[what], mirrors)
            continue
        for title, values in by_title.items():
            print("\n".join([f"\n{title}", *(f"  {key:<44} {value:.4f}" for key, value in values.items())]))
    return 0


def _teller(title: str, out: TextIO) -> Callable[[str], None]:
    return lambda text: print(f"{title}: {text}", file=out, flush=True)


def _import(plugins: Sequence[str]) -> None:
    from llama_variants.errors import ConfigError
    from runners.planning.plugins import import_plugins

    if problems := import_plugins(plugins, Path()):
        raise ConfigError([replace(one, path=("--plugin",)) for one in problems])


def _plan(what: str, options: Options) -> Plan:
    return read_plan(OnExperiment(experiment=Path(what), base=options.base, seeds=options.seeds))


def _read_probes(texts: Sequence[str]) -> dict[str, ProbeConfig]:
    """Probe → settings. Raises ConfigError with every one that is wrong."""
    from llama_variants.errors import ConfigError, Problem
    from runners.planning import strict_yaml
    from runners.planning.components import PROBE

    found: dict[str, ProbeConfig] = {}
    problems: list[Problem] = []
    for text in texts:
        written = strict_yaml.parse(text, "--probe")
        asked = written if isinstance(written, dict) else {str(written): {}}
        for name, settings in asked.items():
            config, wrong = PROBE.read({**(settings or {}), "type": name} if isinstance(settings or {}, dict) else name)
            problems += [problem.under(("--probe", name)) for problem in wrong]
            if config is not None:
                found[name] = config
    if problems:
        raise ConfigError(problems)
    return found


def _tasks(options: Options) -> list[Benchmark]:
    """What is asked of lm_eval, which is imported for it alone: that takes seconds."""
    from llama_variants.errors import ConfigError, Problem

    names = [name.strip() for text in options.tasks for name in text.split(",") if name.strip()]
    if not names:
        given = {"--num-fewshot": options.num_fewshot, "--limit": options.limit, "--include-path": options.include_path}
        wrong = [name for name, value in given.items() if value is not None] or (["--tasks"] if options.tasks else [])
        if wrong:
            raise ConfigError([Problem(path=(one,), received="no task", allowed="it beside --tasks") for one in wrong])
        return []
    from runners.execution.benchmarks import load

    shown = {"num_fewshot": options.num_fewshot, "limit": options.limit}
    return load(list(dict.fromkeys(names)), include_path=options.include_path, **shown)


def _texts(names: Sequence[str]) -> list[Text]:
    """What is evaluated on; files that are given on the spot are one text."""
    from llama_variants.errors import ConfigError
    from runners.data.config import FilesSource
    from runners.execution.measure import Text
    from runners.planning.bases import load_data
    from runners.planning.lookup import find_file

    found, files = [], []
    for name in names:
        if Path(name).exists() or not re.fullmatch(r"[\w-]+", name):
            files.append(name)
            continue
        try:
            found.append(Text(name=name, source=load_data(find_file("data", name)).source))
        except ConfigError as error:
            raise ConfigError([replace(one, path=("--on",)) for one in error.problems]) from None
    if files:
        source = FilesSource(type="files", train=tuple(files), validation=tuple(files))
        source.readings("validation")  # what is not there is said before anything is measured
        name = re.sub(r"[^\w.-]+", "_", Path(files[0]).name).strip("._") or "files"
        found.append(Text(name=name, source=source, files=True))
    return found or [Text(name=OWN, source=None)]


def _weights(what: str, plan: Plan | None, options: Options) -> Iterator[Weights]:
    from llama_variants.errors import ConfigError, Problem
    from runners.data.config import check_commit
    from runners.execution.measure import of_file, of_run
    from runners.planning.bases import load_base
    from runners.planning.lookup import find_file
    from runners.runs.folder import RunFolder

    if plan is not None:
        done = {
            f"{run.arm} seed {run.seed}{' to confirm' if stage.confirms else ''}": RunFolder(RUNS, run.key)
            for stage in plan.stages
            for run in stage.runs()
            if run.role != "budget" and RunFolder(RUNS, run.key).status.state == "FINISHED"
        }
        there = {title: folder for title, folder in done.items() if folder.final.is_dir()}
        for title in done.keys() - there.keys():
            print(f"note: {title} has no weights any more, and is left out", file=sys.stderr)
        if not there:
            received = f"{what} on {plan.base}, of which no run is done"
            raise ConfigError([Problem(path=(), received=received, allowed=f"make ablation EXP={what}, then this")])
        yield from (of_run(folder, title) for title, folder in there.items())
        return
    folder = Path(what) if (Path(what) / "status.json").is_file() else RUNS / what
    if (folder / "status.json").is_file():
        yield of_run(RunFolder(folder.parent, folder.name), folder.name)
        return
    if not Path(what).exists() and (what.endswith(".gguf") or what.count("/") != 1):
        allowed = "an experiment's YAML, a run, a folder of weights, a GGUF file, or a hub id such as org/name"
        raise ConfigError([Problem(path=("WHAT",), received=f"{what!r}, which is not there", allowed=allowed)])
    if not Path(what).exists():
        check_commit(options.revision or "none", ("--revision",))
    _, recipe = load_base(find_file("base", options.base or "smollm2-135m"))
    yield of_file(what, recipe, RUNS, options.revision)


VERB = verb(
    Options,
    evaluate,
    add_arguments,
    summary="measure finished runs or any weights with probes, on any text, or with lm_eval's tasks",
    examples=(
        "evaluate experiments/rotary_theta.yaml --base tiny",
        "evaluate SmolLM2-135M-Instruct.Q4_1.gguf --on packages --probe loss_by_domain",
        "evaluate experiments/demo.yaml --tasks arc_easy,piqa --limit 200",
    ),
)
