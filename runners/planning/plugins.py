"""Components of somebody else's: modules that a YAML names are imported, and models of their blocks are tried out."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llama_variants.errors import Problem
from llama_variants.registry import FAMILIES
from runners.planning.components import OPTIMIZER, PROBE, SCHEDULE

if TYPE_CHECKING:
    from llama_variants import ModelConfig


def import_plugins(names: Sequence[str], folder: Path) -> list[Problem]:
    """Import modules that register blocks, and say what is wrong with those that cannot be.

    ``folder`` joins the path last: a file beside an experiment hides nothing that is installed. Worker processes
    inherit the path and import by name.
    """
    if not names:
        return []
    # This project's own blocks first: a plugin's are told from them, and may derive from them.

    if str(folder.resolve()) not in sys.path:
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


def _say(error: BaseException) -> str:
    """An exception of somebody else's code in one line, with the place that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {' '.join(str(error).split())} ({frame.filename}:{frame.lineno})"
