"""Components of somebody else's: modules that a YAML names are imported, and models of their blocks are tried out."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llama_variants.errors import Problem
from llama_variants.meaning import OURS
from llama_variants.registry import FAMILIES
from runners.planning.components import OPTIMIZER, PROBE, SCHEDULE

if TYPE_CHECKING:
    from llama_variants import ModelConfig
    from runners.planning.recipe import Recipe


def import_plugins(names: Sequence[str], folder: Path) -> list[Problem]:
    """Import modules that register components, and say what is wrong with those that cannot be.

    ``folder`` joins the path last: a file beside an experiment hides nothing that is installed. Worker processes
    inherit the path and import by name.
    """
    if names and str(folder.resolve()) not in sys.path:
        sys.path.append(str(folder.resolve()))
    problems = []
    for i, name in enumerate(names):
        try:
            module = importlib.import_module(name)
        except (Exception, SystemExit) as error:  # whatever a module of somebody else's may raise
            for registry in (*FAMILIES.values(), OPTIMIZER, SCHEDULE, PROBE):
                registry.forget(name)  # of a module that failed halfway
            absent = isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]
            allowed = "a module that is installed, on the path, or beside this file" if absent else "one that imports"
            problems.append(
                Problem(path=("plugins", i), received=f"{name!r}, which raises {_say(error)}", allowed=allowed)
            )
            continue
        beside, file = (folder / f"{name}.py").resolve(), getattr(module, "__file__", None)
        if beside.is_file() and (file is None or Path(file).resolve() != beside):
            received = f"{name!r}, which is another module already: {file or 'built in'}"
            problems.append(Problem(path=("plugins", i), received=received, allowed=f"a name of its own for {beside}"))
    return problems


def try_out(model: ModelConfig, seq_len: int = 16) -> list[Problem]:
    """What is wrong with a model of somebody else's blocks: it runs forward and back, at the cost that they state.

    On the meta device: no storage, no arithmetic.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from llama_variants import build_model  # with transformers, which no plan without plugins needs

    try:
        built = build_model(model, device="meta")
        with FlopCounterMode(display=False) as counter:
            built(torch.zeros(1, seq_len, dtype=torch.long, device="meta")).logits.sum().backward()
        stated = {"parameters": model.num_params, "FLOPs": model.flops_per_token(seq_len, causal=False) * seq_len}
    except Exception as error:  # whatever a block of somebody else's may raise
        return [
            Problem(path=(), received=f"a model that raises {_say(error)}", allowed="one that can be built and run")
        ]
    counted = {
        "parameters": sum(parameter.numel() for parameter in built.parameters()),
        "FLOPs": counter.get_total_flops(),
    }
    return [
        Problem(
            path=(),
            received=f"{stated[what]:,} {what} by its blocks' cost()",
            allowed=f"the {counted[what]:,} that the built model has",
        )
        for what, tolerance in (("parameters", 0), ("FLOPs", 0.01))
        if abs(stated[what] - counted[what]) > tolerance * counted[what]
    ]


def try_out_recipe(recipe: Recipe) -> list[Problem]:
    """What is wrong with somebody else's optimizer, schedule or probes in a recipe, as far as a moment shows it.

    An optimizer makes steps on a small model, of which ``found_inf`` forbids all but the first; a schedule says its
    first and its last rate; a probe has to declare what it measures.
    """
    train = recipe.train
    trials: list[tuple[tuple[str, ...], type, Callable[[], str]]] = [
        (("train", "optimizer"), OPTIMIZER[train.optimizer.type], lambda: _try_optimizer(recipe)),
        (("train", "schedule"), SCHEDULE[train.schedule.type], lambda: _try_schedule(recipe)),
        *((("eval", "probes", name), PROBE[name], partial(_try_probe, PROBE[name])) for name in recipe.eval.probes),
    ]
    problems = []
    for path, cls, trial in trials:
        if cls.__module__.partition(".")[0] in OURS:
            continue
        try:
            fault = trial()
        except Exception as error:  # whatever a component of somebody else's may raise
            fault = f"which raises {_say(error)}"
        if fault:
            allowed = "a component that works as CONTRIBUTING.md says"
            problems.append(Problem(path=path, received=f"{cls.__name__}, {fault}", allowed=allowed))
    return problems


def _try_optimizer(recipe: Recipe) -> str:
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        optimizer = OPTIMIZER[recipe.train.optimizer.type](recipe.train.optimizer, model)
        optimizer.state_numel()
        grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
        if sorted(grouped) != sorted(map(id, model.parameters())):
            return "whose groups do not hold each parameter once"
        for found_inf, gradient in ((0.0, 1.0), (1.0, 1.0), (1.0, float("nan"))):
            before = [p.detach().clone() for p in model.parameters()]
            for p in model.parameters():
                p.grad = torch.full_like(p, gradient)
            optimizer.set_lr(recipe.train.lr)
            optimizer.found_inf = torch.tensor(found_inf)
            optimizer.step()
            kept = all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
            if found_inf and not kept:
                return "which steps although found_inf is 1"
    return ""


def _try_schedule(recipe: Recipe) -> str:
    schedule = SCHEDULE[recipe.train.schedule.type](recipe.train.schedule, recipe.train.num_steps)
    rates = [schedule(step) for step in (0, recipe.train.num_steps - 1)]
    wrong = [rate for rate in rates if not (isinstance(rate, float | int) and rate >= 0)]
    return f"whose rate is {wrong[0]!r}" if wrong else ""


def _try_probe(cls: type) -> str:
    return "" if isinstance(getattr(cls, "metrics", None), Mapping) else "which declares no `metrics`"


def _say(error: BaseException) -> str:
    """An exception of somebody else's code in one line, with the place that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {' '.join(str(error).split())} ({frame.filename}:{frame.lineno})"
