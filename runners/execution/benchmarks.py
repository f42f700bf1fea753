"""lm_eval's tasks on any weights, kept as what probes measure is: beside the weights, and once."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import json
import logging
import math
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.store.schema import LOWER, TASK_PREFIX
from llama_variants.errors import ConfigError, Problem
from runners.data.config import DataError, too_large
from runners.data.declared import file_sha256, local
from runners.data.tokenizer import load_auto
from runners.execution.measure import Weights, rows_at_a_time
from runners.runs.evaluations import Measurement
from runners.runs.machine import device_name

INSTALL = 'python -m pip install -e ".[eval]"'
LM_EVAL = "lm_eval"
"""What these measurements are kept as, where those of a probe have its name."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One of lm_eval's tasks, or a group of them that has a score of its own."""

    name: str  # lm_eval's
    label: str  # in keys of the tracking store, where one key stands for one way to measure
    task: Any  # lm_eval's Task or Group
    leaves: tuple[str, ...]  # the tasks in it
    num_fewshot: int | None
    limit: int | None
    generates: bool  # text, for which the model's own generation_config.json counts
    identity: Mapping[str, Any]  # what bears on its scores, besides weights, tokenizer and precision


def load(
    names: Sequence[str],
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    include_path: Path | None = None,
) -> list[Benchmark]:
    """The tasks of these names, with their data; a tag stands for its tasks, and so does a group without a score.

    Each name is loaded from lm_eval's seeds, whatever the others draw; the caller's generators stay as they are.

    Args:
        names: of lm_eval's tasks, groups and tags, or those of ``include_path``.
        num_fewshot: examples before each item, other than as the task says; one that says 0 keeps to it, as in lm_eval.
        limit: items, the first of each task; all when None.
        include_path: a folder of task YAMLs; they come before lm_eval's own of the same name.

    Raises:
        ConfigError: without lm_eval, for a name that it does not know, and for a task that cannot be loaded or needs
            what this does not do.
        DataError: when the data cannot be fetched.
    """
    if missing := [name for name in ("lm_eval", "accelerate") if importlib.util.find_spec(name) is None]:
        received = f"tasks, without the package {missing[0]}"
        raise ConfigError([Problem(path=("--tasks",), received=received, allowed=f"them, after: {INSTALL}")])
    if include_path is not None and not include_path.is_dir():
        received = f"{str(include_path)!r}, which is no folder"
        raise ConfigError([Problem(path=("--include-path",), received=received, allowed="a folder of task YAMLs")])
    manager = _manager(names, include_path)
    known = manager.all_tasks
    if problems := [_unknown(name, known) for name in names if name not in known]:
        raise ConfigError(problems)
    return [one for name in names for one in _load(manager, name, num_fewshot, limit)]


def _manager(names: Sequence[str], include_path: Path | None) -> Any:
    """lm_eval's index of tasks; its own thousands are looked through only where they are asked for."""
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        alone = TaskManager(include_path=str(include_path), include_defaults=False)
        if set(names) <= set(alone.all_subtasks):  # groups and tags may have members among lm_eval's own
            return alone
    return TaskManager(include_path=str(include_path) if include_path else None)


def _unknown(name: str, known: Sequence[str]) -> Problem:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    allowed = f"{hint}a task of lm_eval (lm_eval ls tasks) or of --include-path"
    return Problem(path=("--tasks",), received=repr(name), allowed=allowed)


def _load(manager: Any, name: str, num_fewshot: int | None, limit: int | None) -> list[Benchmark]:
    try:
        with _quiet(), _seeded():
            loaded = manager.load([name])
            tasks, group = loaded["tasks"], loaded["groups"].get(name)
            parts = [(name, group)] if group is not None and group.has_aggregation else list(tasks.items())
            return [_benchmark(manager, title, part, tasks, num_fewshot, limit) for title, part in parts]
    except ConfigError:
        raise
    except Exception as error:  # whatever a task's code, its YAML or the hub that has its data may raise
        raise _refusal(repr(name), error, "a task that loads, with its data") from None


def _refusal(what: str, error: Exception, allowed: str) -> ConfigError | DataError:
    """What a task raised, in words: the network's fault where it is behind the error, else the task's."""
    from httpx import TransportError
    from huggingface_hub.errors import LocalEntryNotFoundError

    received = f"{what}, which raises {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (ConnectionError, LocalEntryNotFoundError, TransportError)):
            return DataError(f"could not fetch the data of {received}")
        cause = cause.__cause__ or cause.__context__
    return ConfigError([Problem(path=("--tasks",), received=received, allowed=allowed)])


def _benchmark(
    manager: Any, name: str, part: Any, tasks: Mapping[str, Any], num_fewshot: int | None, limit: int | None
) -> Benchmark:
    import lm_eval

    leaves = {name: part} if name in tasks else tasks
    for title, task in leaves.items():
        for flag, what in (("UNSAFE_CODE", "runs code that the model writes"), ("MULTIMODAL", "is not of text alone")):
            if getattr(task, flag, False):
                allowed = "a task of text that runs no code; lm_eval's own command has the rest"
                raise ConfigError([Problem(path=("--tasks",), received=f"{title!r}, which {what}", allowed=allowed)])
    own = {title: task.get_config("num_fewshot") for title, task in leaves.items()}
    shots = {title: n if num_fewshot is None or n == 0 else num_fewshot for title, n in own.items()}
    label = [re.sub(r"[^\w.-]+", "_", name)]
    if any((shots[title] or 0) != (own[title] or 0) for title in leaves):
        label.append(f"{num_fewshot}shot")
    if limit:
        label.append(f"limit{limit}")
    identity = {
        "lm_eval": lm_eval.__version__,
        "task": name,
        "limit": limit,
        "group": None if name in tasks else _digest([part.version, *map(vars, part.aggregate_metric_list)]),
        "tasks": {title: _identity(task, shots[title] or 0) for title, task in sorted(leaves.items())},
    }
    if (own_code := _own_code(manager, [name, *leaves])) is not None:
        identity["code"] = own_code
        label.append(_digest([identity])[:6])  # another task may have the same name
    return Benchmark(
        name=name,
        label="-".join(label),
        task=part,
        leaves=tuple(leaves),
        num_fewshot=num_fewshot,
        limit=limit,
        generates=any(task.OUTPUT_TYPE == "generate_until" for task in leaves.values()),
        identity=identity,
    )


def _own_code(manager: Any, titles: Iterable[str]) -> str | None:
    """A digest of all Python files of ``--include-path``, where any of these tasks and groups is from there.

    A configuration holds the source of the functions that it names, and not of those that they call.
    """
    if manager.include_path is None:
        return None
    root, roots = Path(manager.include_path), {title.partition("::")[0] for title in titles}  # GROUP::TASK is of GROUP
    entries = [manager.task_index[title] for title in roots if title in manager.task_index]
    if not any(entry.yaml_path and entry.yaml_path.is_relative_to(root) for entry in entries):
        return None
    return _digest([file.relative_to(root).as_posix(), file_sha256(file)] for file in sorted(root.rglob("*.py")))


def _identity(task: Any, num_fewshot: int) -> dict[str, Any]:
    """What a task is: its version and configuration as lm_eval states them, and its items.

    Where its data lies is left out, for the items are there: those that are asked, and those that examples come from.
    """
    places = ("dataset_kwargs", "metadata")
    stated = {key: value for key, value in task.dump_config().items() if key not in places}
    docs = [task.eval_docs, *([task.fewshot_docs()] if num_fewshot else [])]
    return {
        "version": task.VERSION,
        "num_fewshot": num_fewshot,
        "config": _digest([stated]),
        "items": [_digest(one) for one in docs],
    }


def _digest(docs: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for doc in docs:
        text = json.dumps(doc, sort_keys=True, default=str)
        digest.update(re.sub(r" at 0x[0-9a-f]+", "", text).encode() + b"\n")  # of a function without source
    return digest.hexdigest()[:16]


def measure(
    weights: Weights,
    benchmarks: Iterable[Benchmark],
    device: torch.device,
    *,
    say: Callable[[str], None] = lambda text: None,
) -> list[Measurement]:
    """What these weights score in each task, at their recipe's precision; what was measured before is read.

    Args:
        weights: the model.
        benchmarks: of :func:`load`.
        device: where to compute.
        say: takes a line when something is computed.

    Raises:
        ConfigError: for a tokenizer that does not fit, and a task that fails.
        DataError: when the tokenizer cannot be fetched.
    """
    declared = weights.tokenizer
    tokenizer = load_auto(declared.path, declared.revision, declared.gguf_file)
    bears = {
        "precision": weights.recipe.train.precision,
        "tokenizer": _digest([tokenizer.backend_tokenizer.to_str(), tokenizer.special_tokens_map]),
    }
    generation = local(declared.path) / "generation_config.json"
    found: list[Measurement] = []
    lm: Any = None
    for one in benchmarks:
        identity = {**one.identity, **bears, "label": one.label}
        if one.generates and generation.is_file():
            identity["generation"] = file_sha256(generation)
        known = weights.kept.find(LM_EVAL, identity)
        if known is None:
            lm = lm or _lm(weights, tokenizer, device)
            say(one.label)
            metrics, items, cut = _evaluate(lm, one)
            if cut:
                say(f"{one.label}: {cut:,} requests are longer than the model's window and lose their beginning")
            made = Measurement(
                text=one.label,
                probe=LM_EVAL,
                identity=identity,
                metrics=metrics,
                device=device_name(device),
                prefix=TASK_PREFIX,
                items=items,
            )
            known = weights.kept.keep(made)
        found.append(known)
    return found


def _lm(weights: Weights, tokenizer: Any, device: torch.device) -> Any:
    """The plain model as lm_eval loads it, with logits in float32 under autocast too."""
    from lm_eval.models.huggingface import HFLM

    model: Any = weights.load()  # whose `to` is untyped
    model.to(device)
    model.model.residual_stream = model.model.document_end = None  # a probe may have set them on the same object
    if (ids := len(tokenizer)) > model.config.vocab_size:
        raise ConfigError([too_large(ids, model.config.vocab_size)])
    half = weights.recipe.train.precision == "bfloat16"
    with _quiet():
        return HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=rows_at_a_time(weights.recipe, device),
            mixed_precision_dtype="bfloat16" if half else None,
            softmax_dtype="float32" if half else None,
        )


def _evaluate(lm: Any, one: Benchmark) -> tuple[dict[str, float], dict[str, tuple[float, ...]], int]:
    """Metric -> its value, and on each item where the value is the mean of these; how many requests were cut."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    try:
        with _quiet() as warnings:
            results = lm_eval.simple_evaluate(
                model=lm,
                tasks=[one.task],
                task_manager=TaskManager(include_defaults=False),  # the task is there: no index of thousands for it
                num_fewshot=one.num_fewshot,
                limit=one.limit,
            )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a task's code may raise, or its examples, when they are too few
        given = {"--num-fewshot": one.num_fewshot, "--limit": one.limit}
        options = "".join(f" {option} {value}" for option, value in given.items() if value is not None)
        raise _refusal(f"{one.name!r}{options}", error, "a task that can be scored so") from None
    better = results["higher_is_better"].get(one.name, {})
    samples = [sample for leaf in one.leaves for sample in results["samples"][leaf]]
    metrics: dict[str, float] = {}
    items: dict[str, tuple[float, ...]] = {}
    for name, value in results["results"][one.name].items():
        metric, _, how = name.partition(",")
        if not how or not isinstance(value, Real):
            continue  # a title, or an error that lm_eval does not state
        key = metric.removesuffix("_stderr") + ("" if how == "none" else f"/{how}")
        if metric.endswith("_stderr"):
            metrics[f"{key}_stderr"] = float(value)
            continue
        if (higher := better.get(metric)) is None:
            continue  # its tasks disagree about which way is better, or none says
        key += "" if higher else LOWER
        metrics[key] = float(value)
        each = [sample.get(metric) for sample in samples if sample["filter"] == how]
        if each and all(isinstance(x, Real) for x in each) and math.isclose(sum(each) / len(each), value):
            items[key] = tuple(map(float, each))
    return metrics, items, sum("Truncating" in warning for warning in warnings)


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Inside, the global generators begin as lm_eval's command has them; afterwards they are as before."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(DEFAULT_RANDOM_SEED)
        np.random.seed(DEFAULT_OTHER_SEED)
        torch.default_generator.manual_seed(DEFAULT_OTHER_SEED)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """Inside, what lm_eval prints goes to stderr, for stdout is this program's; its warnings are collected."""
    logger, warnings = logging.getLogger("lm_eval"), list[str]()
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    before, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield warnings
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
