"""From an experiment's YAML to the list of runs that answers its question.

An experiment is a question and a few deltas over a base. The base holds every number of the control; each variant is
the control with its delta merged in, and nothing else.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from analysis.store import schema
from llama_variants.errors import ConfigError, Problem, check, one_of
from runners.planning import strict_yaml
from runners.planning.lookup import find_file, refusal

if TYPE_CHECKING:
    from runners.data.config import Sizes
    from runners.planning.arms import ArmBuilder, PlannedArm, PlannedRun
    from runners.planning.files import Decide, ExperimentFile, Mode, Spread, VariantDelta


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A validated experiment on one base: its arms, the control first, and how they will be judged."""

    name: str
    question: str
    base: str
    source: str
    decide: Decide
    arms: tuple[PlannedArm, ...]  # that it runs
    screen: bool  # one block: numbers, no verdict
    independent: bool = False  # every arm has seeds of its own; else block i of every arm has seed first_seed + i
    first_seed: int = 0
    looks: tuple[int, ...] = ()  # numbers of blocks after which arms are judged, ascending; () is once, after all
    declared: tuple[PlannedArm, ...] = ()  # of a part (`up_to`), all arms with all of their runs
    budgets: tuple[PlannedArm, ...] = ()  # of the base, which another experiment runs
    confirm: Plan | None = None  # the second stage
    confirms: bool = False  # it is one

    @property
    def stages(self) -> tuple[Plan, ...]:
        """This plan, and the one that confirms it where there is one."""
        return (self, self.confirm) if self.confirm else (self,)

    @property
    def blocks(self) -> int:
        """Blocks of the control."""
        return len(self.arms[0].runs)

    @property
    def prior(self) -> schema.Prior | None:
        """What the base knows of the sd that arms are judged by: of a difference within a block, or of a run.

        None where the base states none, or does not say how well it is known.
        """
        spread = self.decide.seed if self.independent else self.decide.difference
        return schema.Prior(sd=spread.sd, df=spread.df, source=spread.source) if spread and spread.df else None

    def up_to(self, blocks: int, without: Container[str] = ()) -> Plan:
        """The part of this plan that is its first ``blocks`` blocks, with no runs of the arms named in ``without``.

        Its design stays that of the whole declaration. The control stays, whatever ``without`` names.
        """
        arms = tuple(
            replace(arm, runs=arm.runs[:blocks])
            for arm in self.arms
            if arm.role == "control" or arm.name not in without
        )
        return replace(self, arms=arms, declared=self.declared or self.arms)

    def runs(self) -> list[PlannedRun]:
        """All runs, block by block: a drift of the machine then hits all arms of a block alike."""
        most = max(len(arm.runs) for arm in self.arms)
        return [arm.runs[block] for block in range(most) for arm in self.arms if block < len(arm.runs)]

    def run_of(self, arm: str, index: int) -> PlannedRun:
        """One run, by its arm and its block, from 0. Raises ConfigError where there is none."""
        runs = {planned.name: planned.runs for planned in self.arms}
        if arm not in runs:
            raise ConfigError([Problem(path=("arm",), received=repr(arm), allowed=one_of(arm, runs))])
        if not 0 <= index < len(runs[arm]):
            raise ConfigError([Problem(path=("index",), received=str(index), allowed=f"0 to {len(runs[arm]) - 1}")])
        return runs[arm][index]

    def elsewhere(self) -> list[PlannedRun]:
        """Runs of budgets, which count where another experiment on this base made them."""
        return [run for arm in self.budgets for run in arm.runs]

    def check_sizes(self, sizes: Sizes) -> None:
        """Raises ConfigError where a corpus of at most these ``sizes`` is too small, or its tokenizer too large."""
        arms: dict[Problem, list[str]] = {}
        for arm in self.arms:
            for problem in arm.recipe.size_problems(sizes):
                arms.setdefault(problem, []).append(arm.name)
        if arms:
            problems = [
                replace(problem, received=f"{problem.received} ({', '.join(names)})") for problem, names in arms.items()
            ]
            count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
            raise ConfigError(problems, title=f"{self.name} on {self.base}: {count}, nothing was run")

    def design(self) -> schema.Design:
        """The declaration that the tracking store keeps and the analysis judges by."""
        return schema.Design(
            name=self.name,
            question=self.question,
            base=self.base,
            metric=self.decide.metric,
            alpha=self.decide.alpha,
            margin=self.decide.margin,
            tokens_per_run=self.arms[0].recipe.train.num_tokens,
            arms=tuple(
                schema.Arm(
                    name=arm.name,
                    role=arm.role,
                    run_keys=tuple(run.key for run in arm.runs),
                    num_params=arm.recipe.num_params,
                    flops_per_token=arm.recipe.flops_per_token,
                    diff=arm.diff,
                    expect=arm.expect,
                    solved=arm.solved,
                    tokens=arm.recipe.train.num_tokens if arm.role == "budget" else None,
                )
                for arm in (*(self.declared or self.arms), *self.budgets)
            ),
            independent=self.independent,
            first_seed=self.first_seed,
            looks=self.looks,
            prior=self.prior,
            screen=self.screen,
            confirms=self.confirms,
            source=self.source,
        )


def load_plan(file: FilePath, *, base: str | None = None, seeds: int | None = None) -> Plan:
    """Read an experiment and its base, and plan its runs.

    Args:
        file: the experiment's YAML.
        base: a base to use instead of the one that the file names.
        seeds: blocks of every arm instead of the declared ones and their looks; 1 screens, without verdicts.

    Raises:
        ConfigError: with every problem of the experiment, or of its base, each with file and line.
    """
    document = strict_yaml.load(file)
    from runners.planning.files import ExperimentFile, with_new_words  # what can be said without these is said at once

    # A field that is wrong hides no other problem: the rest is read with an acceptable value in its place.
    stand_in = {"name": "unnamed", "version": 1, "question": "?"} | ({"base": base} if base else {})
    head, problems = check(ExperimentFile, document.data, fallback=stand_in)
    problems = document.problems + with_new_words(problems, document.data) + (list(head.problems()) if head else [])
    base_name = base or (head.base if head else None)
    if base_name is None:  # nothing to compare the variants with
        raise refusal(document, problems)
    try:
        base_path = find_file("base", base_name, file.parent)
    except ConfigError as error:
        raise refusal(document, problems + list(error.problems)) from None
    written = _variants(document)
    if problems and not (written or (head and (head.data or head.plugins))):  # it says nothing that a model could bear
        raise refusal(document, problems + (list(_strangers(head, written, ())) if head else []))
    return _on_base(document, head, problems, base_path, seeds)


def _on_base(
    document: strict_yaml.Document,
    head: ExperimentFile | None,
    problems: list[Problem],
    base_path: FilePath,
    seeds: int | None,
) -> Plan:
    """The plan over a base that is there; ``problems`` are told together with those of the variants."""
    from runners.planning.arms import ArmBuilder, screens  # with torch, whose modules the blocks are
    from runners.planning.bases import load_base, named_data
    from runners.planning.plugins import import_plugins

    folder = FilePath(document.file).parent
    base_file, control = load_base(base_path)
    decide = base_file.decide
    if head and head.data:
        asked = replace(control, data=named_data(head.data, folder, document))
        if unfit := [
            replace(
                problem,
                path=("data",),
                received=f"{head.data!r}, with which {'.'.join(map(str, problem.path))} would be {problem.received}",
            )
            for problem in asked.problems()
        ]:
            problems += unfit
        else:
            control = asked
        decide = _of_other_data(decide)
    plugins = head.plugins if head else ()
    if broken := import_plugins(plugins, folder):  # whatever its blocks are used for would be a problem too
        raise refusal(document, problems + broken)
    control = replace(control, plugins=tuple(dict.fromkeys((*control.plugins, *plugins))))
    builder = ArmBuilder(control, base_file, head, seeds)
    arms, budgets = [builder.control(), *builder.checks()], list(builder.budgets())
    written = _variants(document)
    variants, found = _variant_arms(builder, head, written, [*arms, *budgets])
    arms += variants
    by_name = {arm.name: arm for arm in variants}
    problems += found
    problems += _strangers(head, written, by_name) if head else []
    if problems:
        raise refusal(document, problems)
    assert head is not None
    plan = Plan(
        name=head.name,
        question=head.question,
        base=base_file.name,
        source=head.source,
        decide=decide,
        arms=(*arms, *(budgets if head.budgets else ())),
        screen=screens(arms),
        independent=builder.independent,
        first_seed=builder.first_seed,
        looks=builder.looks,
        budgets=() if head.budgets else tuple(budgets),
    )
    if head.confirm is None:
        return plan
    confirmed = [by_name[name] for name in dict.fromkeys(head.confirm.variants)]
    fresh = builder.fresh([arms[0], *confirmed], head.confirm.blocks)
    confirm = replace(plan, arms=fresh, screen=screens(fresh), first_seed=builder.next_seed, looks=(), confirms=True)
    return replace(plan, confirm=confirm)


def _of_other_data(decide: Decide) -> Decide:
    """The base's way to judge, with spreads that say that they were measured on its own data."""

    def said(spread: Spread | None) -> Spread | None:
        return spread and spread.model_copy(update={"source": f"{spread.source}; on the base's own data"})

    return decide.model_copy(update={"difference": said(decide.difference), "seed": said(decide.seed)})


def _variant_arms(
    builder: ArmBuilder, head: ExperimentFile | None, written: Mapping[str, Any], others: Iterable[PlannedArm]
) -> tuple[list[PlannedArm], list[Problem]]:
    """The arms of the variants, one for each matching mode, as far as they can be made; and what is wrong with them.

    ``others``: the arms of the base, from which they have to differ.
    """
    match: tuple[Mode, ...] = head.match if head else ("tokens",)
    declared = head.variants if head else {}
    expect = head.expect if head else {}
    arms: list[PlannedArm] = []
    problems: list[Problem] = []
    taken = {arm.name.casefold(): f"the base's {arm.name!r}" for arm in others}
    known = [(arm.name, arm.recipe.resolved()) for arm in others]
    for name, raw in written.items():
        path = ("variants", name)
        delta = declared.get(name) or _salvage(raw)
        if holder := taken.get(name.casefold()):  # names become files, and some file systems ignore case
            allowed = f"a name that differs from {holder} in more than case"
            problems.append(Problem(path=path, received=f"the name {name!r}", allowed=allowed))
        taken.setdefault(name.casefold(), repr(name))
        for mode in match:
            arm, found = builder.variant(name, delta, mode, expect.get(name))
            problems += [problem.under(path) for problem in found if name in declared or problem.path]
            if arm is None:
                continue
            resolved = arm.recipe.resolved()
            if twin := next((other for other, its in known if its == resolved), None):
                received = f"the recipe of {twin!r} again" + (f", as {arm.name!r}" if arm.name != name else "")
                allowed = "each recipe once: an equal arm only widens the family"
                problems.append(Problem(path=path, received=received, allowed=allowed))
            known.append((arm.name, resolved))
            arms.append(arm)
    return arms, problems


def _variants(document: strict_yaml.Document) -> Mapping[str, Any]:
    """The variants as they are written, whatever else is wrong with the file."""
    variants = document.data.get("variants") if isinstance(document.data, dict) else None
    return variants if isinstance(variants, dict) else {}


def _strangers(head: ExperimentFile, written: Mapping[str, Any], arms: Iterable[str]) -> Iterable[Problem]:
    """Variants that are spoken of and not there: in ``expect`` by their own names, in ``confirm`` by their arms'."""
    for name in head.expect:
        if name not in written:
            yield Problem(path=("expect", name), received=f"unknown variant {name!r}", allowed=one_of(name, written))
    for name in head.confirm.variants if head.confirm else ():
        if name not in arms:
            yield Problem(
                path=("confirm", "variants"), received=f"unknown variant {name!r}", allowed=one_of(name, arms)
            )


def _salvage(raw: object) -> VariantDelta:
    """The readable sections of a variant whose mapping has other problems, so that these sections are checked too."""
    from runners.planning.files import VariantDelta

    sections = raw if isinstance(raw, dict) else {}
    model, train = (value if isinstance(value := sections.get(key), dict) else {} for key in ("model", "train"))
    return VariantDelta(model=model, train=train)
