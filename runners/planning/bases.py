"""The files that experiments build on: bases, and data that several share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

from llama_variants.config import read
from llama_variants.errors import ConfigError, Problem, check
from runners.data.config import DataConfig
from runners.planning import strict_yaml
from runners.planning.delta import budget, merge
from runners.planning.files import CONTROL, BaseFile, Decide, with_new_words
from runners.planning.lookup import find_file, refusal
from runners.planning.plugins import import_plugins
from runners.planning.recipe import Recipe, read_eval, read_train


def load_base(file: FilePath, below: tuple[FilePath, ...] = ()) -> tuple[BaseFile, Recipe]:
    """A base and its recipe, over those of the base that it extends. Raises ConfigError with every problem of the file.

    ``below``: the files that extend this one.
    """
    document = strict_yaml.load(file)
    written = document.data if isinstance(document.data, dict) else {}
    parent = _extended(document, written, file, below)
    if isinstance(name := written.get("data"), str):
        written = written | {"data": named_data(name, file.parent.parent, document).model_dump()}
    whole = _over(parent, written) if parent else written or document.data
    head, problems = check(BaseFile, whole)
    problems = document.problems + with_new_words(problems, whole)
    if broken := import_plugins(head.plugins if head else (), file.parent):
        raise refusal(document, problems + broken)
    if (
        head and head.name != file.stem
    ):  # runs are kept and judged under it: a copy would pass for what it was copied from
        problems.append(
            Problem(path=("name",), received=repr(head.name), allowed=f"the file's own name, {file.stem!r}")
        )
    recipe, found = _recipe(head, parent[1] if parent else None, written)
    problems += found
    if head and recipe:
        problems += recipe.problems()
        problems += _checks_and_budgets(head, recipe, problems)
        if parent:
            problems += list(_initial_values(recipe, *parent, written))
            if recipe.resolved() != parent[1].resolved():
                head = head.model_copy(update={"decide": _without_measured(head.decide, written)})
        if not problems:
            return head, recipe
    raise refusal(document, problems)


def _extended(
    document: strict_yaml.Document, written: Mapping[str, Any], file: FilePath, below: tuple[FilePath, ...]
) -> tuple[BaseFile, Recipe] | None:
    """The base that a file extends. Raises ConfigError where there is no such base, or it extends this file."""
    if not isinstance(name := written.get("extends"), str):
        return None
    try:
        found = find_file("base", name, file.parent.parent)
    except ConfigError as error:
        raise refusal(document, [replace(one, path=("extends",)) for one in error.problems]) from None
    below = (*below, file.resolve())
    if found.resolve() in below:
        loop = " → ".join(path.stem for path in (*below, found))
        raise refusal(document, [Problem(path=("extends",), received=loop, allowed="bases that end somewhere")])
    return load_base(found, below)


def _over(parent: tuple[BaseFile, Recipe], written: Mapping[str, Any]) -> dict[str, Any]:
    """A base's file with all that it leaves out as the base that it extends has it."""
    head, recipe = parent
    inherited = {name: getattr(head, name) for name in BaseFile.model_fields if name not in ("name", "extends")}
    whole = {**inherited, **written}
    for name in ("data", "decide", "checks"):  # field by field, check by check
        if isinstance(written.get(name), Mapping):
            above = inherited[name] if name == "checks" else dict(inherited[name])
            whole[name] = {**above, **written[name]}
    if isinstance(written.get("eval"), Mapping):
        whole["eval"] = {**recipe.to_dict()["eval"], **written["eval"]}
    if isinstance(written.get("plugins"), Sequence):
        whole["plugins"] = list(dict.fromkeys((*head.plugins, *written["plugins"])))
    return whole


def _recipe(
    head: BaseFile | None, above: Recipe | None, written: Mapping[str, Any]
) -> tuple[Recipe | None, list[Problem]]:
    """The recipe of a file, over the one ``above`` it, and every problem of its sections."""
    model, train, evaluation = (above.model, above.train, above.eval) if above else (None, None, None)
    problems: list[Problem] = []
    if "model" in written:
        model, found = read(written["model"], base=model)
        problems += [problem.under(("model",)) for problem in found]
    if "train" in written:
        train, found = read_train(written["train"], base=train)
        problems += [problem.under(("train",)) for problem in found + (list(train.problems()) if train else [])]
    if "eval" in written:
        evaluation, found = read_eval(head.eval if head and above else written["eval"])
        problems += [problem.under(("eval",)) for problem in found]
    if head is None:
        return None, problems
    try:
        head.data.identity()
    except ConfigError as error:
        problems += error.problems
    if model is None or train is None or evaluation is None:
        return None, problems
    return Recipe(model=model, data=head.data, train=train, eval=evaluation, plugins=head.plugins), problems


def _checks_and_budgets(head: BaseFile, recipe: Recipe, known_problems: Sequence[Problem]) -> list[Problem]:
    """What is wrong with the arms that a base itself declares."""
    problems: list[Problem] = []
    known = [(CONTROL, recipe.resolved())]
    for name, delta in head.checks.items():
        checked, found = merge(recipe, delta)
        problems += [one.under(("checks", name)) for one in found if one not in known_problems]
        if checked and not found:
            resolved = checked.resolved()
            allowed = "another recipe: the same one on the same seed is the same bits. The control's twin is "
            allowed += f"`train: {{init_perturbation: {2**-20}}}`"
            problems += [
                Problem(path=("checks", name), received=f"the recipe of {other!r}", allowed=allowed)
                for other, its in known
                if its == resolved
            ]
            known.append((name, resolved))
        if name == CONTROL:
            allowed = "any name but that of the control"
            problems.append(Problem(path=("checks", name), received=f"the name {name!r}", allowed=allowed))
    for place, factor in enumerate(head.budgets):
        if factor == 1 or factor in head.budgets[:place]:
            allowed = "each number of tokens once, and other than 1"
            problems.append(Problem(path=("budgets",), received=f"{factor:g}", allowed=allowed))
        problems += [problem.under(("budgets",)) for problem in budget(recipe, factor).train.problems()]
    return problems


def _initial_values(recipe: Recipe, head: BaseFile, above: Recipe, written: Mapping[str, Any]) -> Iterator[Problem]:
    """An inherited std of initial values beside a width of one's own: it was chosen for another."""
    std, width, own = getattr(above.model.init, "std", None), above.model.hidden_size, recipe.model.hidden_size
    section = written.get("model")
    if std is None or own == width or (isinstance(section, Mapping) and "init" in section):
        return
    fits = std * math.sqrt(width / own)
    yield Problem(
        path=("model", "hidden_size"),
        received=f"{own}, with the initial std {std:g} that {head.name!r} has for {width}",
        allowed=f"`init: {{std: {fits:.6g}}}` beside it, which falls with the root of the width, or any other std",
    )


def _without_measured(decide: Decide, written: Mapping[str, Any]) -> Decide:
    """Without the spreads that were measured on the base above, with another recipe.

    Those of the file itself stay, and those that are for planning alone.
    """
    own = written["decide"] if isinstance(written.get("decide"), Mapping) else {}
    measured = {name for name in ("difference", "seed") if (one := getattr(decide, name)) and one.df}
    return decide.model_copy(update=dict.fromkeys(measured - own.keys()))


def load_data(file: FilePath) -> DataConfig:
    """A file of experiments/data/. Raises ConfigError with every problem of the file."""
    document = strict_yaml.load(file)
    config, problems = check(DataConfig, document.data)
    if config is None or (problems := document.problems + problems):
        raise refusal(document, problems)
    return config


def named_data(name: str, beside: FilePath, document: strict_yaml.Document) -> DataConfig:
    """The data that ``document`` names. Raises ConfigError, in its words where there is no such file."""
    try:
        file = find_file("data", name, beside)
    except ConfigError as error:
        raise refusal(document, list(error.problems)) from None
    return load_data(file)
