"""The stratum of a run that would be made here and now: machine, torch, and the meaning of the code it executes."""

from __future__ import annotations

from pathlib import Path

import torch

import runners
from analysis.store.stratum import Stratum, facets
from llama_variants.blocks.masks import documents_of, extent, visible
from llama_variants.meaning import class_meaning, digest, module_meaning
from llama_variants.registry import FAMILIES
from runners.planning.components import OPTIMIZER, PROBE, SCHEDULE
from runners.planning.recipe import Recipe
from runners.runs.machine import device_name, processor
from runners.runs.proofs import proven

WHOLE = {
    "model": ("llama_variants.model", "llama_variants.pretrained"),
    "data": ("runners.data.batches",),
    "evaluation": ("runners.evaluation.subject",),
    "training": tuple(
        f"runners.training.{file.stem}"
        for file in sorted((Path(runners.__file__).parent / "training").glob("[!_]*.py"))
    ),
}
"""Modules that every run executes, by part of the recipe; all of each counts."""

APART = ("llama_variants.config", "llama_variants.registry", "llama_variants.types", "runners.planning.components")
"""Modules of which only the functions count that a component names: their classes read recipes, and a recipe's meaning
is in the run's key."""

NOT_EXECUTED = {
    "llama_variants": "names only",
    "llama_variants.blocks": "of a block's file what the classes in use need",
    "llama_variants.config": "reads a recipe; what it comes to is in the run's key",
    "llama_variants.errors": "words",
    "llama_variants.hf": "weights in and out, after the training",
    "llama_variants.meaning": "computes these digests",
    "llama_variants.registry": "as config",
    "llama_variants.stock": "as hf",
    "llama_variants.summary": "as config",
    "llama_variants.types": "as config",
    "llama_variants.variant": "as config",
    "runners": "the rest carries runs out, writes them down, and reports",
    "runners.data": "the tokens that it makes have a fingerprint of their own, beside the stratum",
    "runners.evaluation": "of the probes that are judged what their classes need; the others observe",
    "runners.planning": "as config",
    "runners.runs": "files; that a resume changes no bit is tested, not assumed",
    "runners.training": "names only",
    "runners.training.optimizers": "of an optimizer's file what the class in use needs",
    "runners.training.schedules": "of a schedule's file what the class in use needs",
    "analysis": "reads what runs have logged",
}
"""Why a module that a run imports does not count as a whole: by its name, or by that of the nearest package."""


def stratum(recipe: Recipe, device: torch.device, threads: int) -> Stratum:
    """What shifts the bits of a run of ``recipe`` here; verdicts compare runs of one stratum only."""
    on_cpu, parts = device.type == "cpu", executed(recipe)
    return Stratum(
        device=device_name(device).replace(" ", "-"),
        torch=torch.__version__,
        processor=processor() if on_cpu else "",
        threads=threads if on_cpu else 0,
        code={part: digest(meaning) for part, meaning in parts.items()},
        definitions={name: one for meaning in parts.values() for name, one in meaning.items()},
    )


def executed(recipe: Recipe) -> dict[str, dict[str, str]]:
    """What a run of ``recipe`` executes, of ours and of plugins: part → ``module:name`` → digest of its meaning."""
    config = recipe.train
    used = [(FAMILIES[family], name) for family, name in recipe.model.used]
    used += [(OPTIMIZER, config.optimizer.type), (SCHEDULE, config.schedule.type)]
    used += [(PROBE, name) for name, probe in recipe.eval.probes.items() if probe.judged]
    parts = {}
    for part, modules in WHOLE.items():
        parts[part] = {name: one for module in modules for name, one in module_meaning(module).items()}
    for function in (documents_of, extent, visible):  # all that model.py takes out of a block's file
        parts["model"] |= class_meaning(function, apart=APART)
    skip = (*(module for modules in WHOLE.values() for module in modules), "llama_variants.errors")
    for registry, name in used:
        parts[f"{registry.family}.{name}"] = class_meaning(registry[name], apart=APART, skip=skip)
    return parts


def told(before: Stratum, now: Stratum) -> str:
    """In what a run that was made before differs from one made now, in words; "" where they can be compared."""
    names = proven(before).differs(proven(now))
    place = [name for name in names if not name.startswith("code of ")]
    then, here = facets([before, now])
    words = [f"{name} {then[name] or 'none'} (now {here[name] or 'none'})" for name in place if name in here]
    if parts := [name.removeprefix("code of ") for name in names if name not in place]:
        files = now.changed_files(before) if before.definitions else []
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        words.append(f"code of {', '.join(parts)}" + (f": {', '.join(files[:3])}{more}" if files else ""))
    return "; ".join(words)
