"""The files that experiments build on: bases, and data that several share."""

from __future__ import annotations

from pathlib import Path as FilePath

from llama_variants.config import read
from llama_variants.errors import ConfigError, Problem, check
from runners.data.config import DataConfig
from runners.planning import strict_yaml
from runners.planning.delta import budget, merge
from runners.planning.files import CONTROL, BaseFile, with_new_words
from runners.planning.lookup import find_file, refusal
from runners.planning.plugins import import_plugins
from runners.planning.recipe import Recipe, read_eval, read_train


def load_base(file: FilePath) -> tuple[BaseFile, Recipe]:
    """A base and its recipe. Raises ConfigError with every problem of the file."""
    document = strict_yaml.load(file)
    written = document.data
    if isinstance(written, dict) and isinstance(name := written.get("data"), str):
        written = written | {"data": named_data(name, file.parent.parent, document).model_dump()}
    head, problems = check(BaseFile, written)
    problems = document.problems + with_new_words(problems, written)
    if broken := import_plugins(head.plugins if head else (), file.parent):
        raise refusal(document, problems + broken)
    if (
        head and head.name != file.stem
    ):  # runs are kept and judged under it: a copy would pass for what it was copied from
        problems.append(
            Problem(path=("name",), received=repr(head.name), allowed=f"the file's own name, {file.stem!r}")
        )
    sections = written if isinstance(written, dict) else {}
    model, found = read(sections["model"]) if "model" in sections else (None, [])
    problems += [problem.under(("model",)) for problem in found]
    train, found = read_train(sections["train"]) if "train" in sections else (None, [])
    problems += [problem.under(("train",)) for problem in found + (list(train.problems()) if train else [])]
    evaluation, found = read_eval(sections["eval"]) if "eval" in sections else (None, [])
    problems += [problem.under(("eval",)) for problem in found]
    if head:
        try:
            head.data.identity()
        except ConfigError as error:
            problems += error.problems
    if head and model and train and evaluation:
        recipe = Recipe(model=model, data=head.data, train=train, eval=evaluation, plugins=head.plugins)
        problems += list(recipe.problems())
        known = [(CONTROL, recipe.resolved())]
        for name, delta in head.checks.items():
            checked, found = merge(recipe, delta)
            problems += [problem.under(("checks", name)) for problem in found if problem not in problems]
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
                problems.append(
                    Problem(
                        path=("checks", name), received=f"the name {name!r}", allowed="any name but that of the control"
                    )
                )
        for place, factor in enumerate(head.budgets):
            if factor == 1 or factor in head.budgets[:place]:
                problems.append(
                    Problem(
                        path=("budgets",),
                        received=f"{factor:g}",
                        allowed="each number of tokens once, and other than 1",
                    )
                )
            problems += [problem.under(("budgets",)) for problem in budget(recipe, factor).train.problems()]
        if not problems:
            return head, recipe
    raise refusal(document, problems)


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
