"""The control's recipe with a delta merged in."""

from __future__ import annotations

from dataclasses import replace

from llama_variants.config import read
from llama_variants.errors import Problem
from runners.planning.files import Delta
from runners.planning.plugins import try_out, try_out_recipe
from runners.planning.recipe import Recipe, read_train


def merge(base: Recipe, delta: Delta) -> tuple[Recipe | None, list[Problem]]:
    """The base's recipe with ``delta`` merged in, where that can be had, and every problem found."""
    model, found = read(delta.model, base=base.model)
    problems = [problem.under(("model",)) for problem in found]
    train, found = read_train(delta.train, base=base.train)
    problems += [problem.under(("train",)) for problem in found + (list(train.problems()) if train else [])]
    if model is None or train is None:
        return None, problems
    recipe = replace(base, model=model, train=train)
    problems += list(recipe.problems())
    if not problems and recipe.plugins:
        problems += [problem.under(("model",)) for problem in try_out(model)] + try_out_recipe(recipe)
    return recipe, problems


def budget(base: Recipe, factor: float) -> Recipe:
    """The base on ``factor`` times the tokens, with the same warm-up and the same share of decay."""
    return replace(base, train=base.train.model_copy(update={"num_steps": round(factor * base.train.num_steps)}))
