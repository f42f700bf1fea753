"""From an experiment's YAML to the list of runs that answers its question.

An experiment is a question and a few deltas over a base. The base holds every number of the control; each variant is
the control with its delta merged in, and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, Strict

from analysis import schema
from analysis.samples import MIN_PAIRS
from analysis.schema import Expectation, Role
from llama_variants import ConfigError
from llama_variants.config import read
from llama_variants.errors import Problem, StrictModel, check, one_of
from runners import strict_yaml
from runners.data import DataConfig
from runners.matching import difference, match_params
from runners.plugins import Plugins, import_plugins, try_out
from runners.recipe import EvalConfig, Recipe, TrainConfig, run_key

CONTROL = "control"
MLP_WIDTH = {"intermediate_size", "expansion"}  # the ways to write what `match: [params]` solves for
MAX_SEEDS = 200  # of an arm; their run keys go into one tag of the tracking store
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
Count = Annotated[int, Field(ge=1, le=MAX_SEEDS)]
Factor = Annotated[float, Field(ge=1 / 16, le=16)]  # of the base's training tokens
Mode = Literal["tokens", "params"]


def _version(value: object) -> object:
    if value is True:  # equal to 1 for Python, but not what the file should say
        raise ValueError("1")
    return value


def _each_once(modes: tuple[Mode, ...]) -> tuple[Mode, ...]:
    if len(set(modes)) < len(modes):
        raise ValueError("each mode once")
    return modes


class Decide(StrictModel):
    """How runs on a base are judged; it depends on the base's noise, so it stands in the base."""

    metric: Literal["final/val_loss", "final/val_bits_per_byte"]
    alpha: Annotated[float, Field(gt=0, lt=0.5)]
    margin: PositiveFloat  # in the metric's unit: smaller differences count as none
    sigma: PositiveFloat | None = None  # seed sd of the metric on this base, for planning before runs exist
    sigma_range: Annotated[tuple[PositiveFloat, PositiveFloat] | None, Strict(False)] = None  # where it may lie
    sigma_source: str = ""


class Seeds(StrictModel):
    """Runs of each arm, fixed before the first one starts."""

    control: Count | None = None
    check: Count | None = None
    variant: Count | None = None
    budget: Count | None = None


class Delta(StrictModel):
    """What an arm changes. Its content is checked when it is merged into the base."""

    model: dict[str, Any] = {}
    train: dict[str, Any] = {}
    seeds: Count | None = None


class CheckDelta(Delta):
    """An arm that checks the harness: the base against itself, or a variant known to be bad."""

    expect: Expectation


class Confirm(StrictModel):
    """A second stage on fresh seeds, for what the first one showed; the two are never pooled."""

    variants: Annotated[tuple[str, ...], Strict(False), Field(min_length=1)]
    seeds: Seeds = Seeds()


class BaseFile(StrictModel):
    """A file of experiments/base/."""

    name: Name
    model: dict[str, Any]
    data: DataConfig
    train: TrainConfig
    eval: EvalConfig
    decide: Decide
    seeds: Seeds
    checks: dict[Name, CheckDelta] = {}
    budgets: Annotated[tuple[Factor, ...], Strict(False)] = ()
    plugins: Plugins = ()


def _not_a_stage(name: str) -> str:
    if name.endswith("-confirm"):
        raise ValueError("another ending: NAME-confirm is the second stage of NAME")
    return name


class ExperimentFile(StrictModel):
    """A file of experiments/."""

    name: Annotated[Name, AfterValidator(_not_a_stage)]
    version: Annotated[Literal[1], BeforeValidator(_version)]
    question: Annotated[str, Field(min_length=1, max_length=1000)]
    base: Name
    data: Name | None = None  # a file of experiments/data/ to use instead of the base's
    seeds: Seeds = Seeds()
    match: Annotated[tuple[Mode, ...], Strict(False), Field(min_length=1), AfterValidator(_each_once)] = ("tokens",)
    variants: dict[Name, Delta] = {}
    expect: dict[str, Expectation] = {}
    paired: bool = False  # variants take the control's seeds, and are compared seed by seed
    budgets: bool = False  # also train the control on the base's other numbers of tokens
    confirm: Confirm | None = None
    plugins: Plugins = ()
    source: str = ""


@dataclass(frozen=True)
class PlannedRun:
    """One run: an arm's recipe with one seed."""

    arm: str
    role: Role
    seed: int
    key: str
    recipe: Recipe


@dataclass(frozen=True)
class PlannedArm:
    """One group of runs that differ in nothing but their seed."""

    name: str
    role: Role
    recipe: Recipe
    runs: tuple[PlannedRun, ...]
    diff: Mapping[str, tuple[Any, Any]]  # path -> (control's value, arm's value), in absolute form
    expect: Expectation | None
    solved: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A validated experiment on one base: its arms, the control first, and how they will be judged."""

    name: str
    question: str
    base: str
    source: str
    decide: Decide
    arms: tuple[PlannedArm, ...]  # that it runs
    screen: bool
    paired: bool = False
    budgets: tuple[PlannedArm, ...] = ()  # of the base, which another experiment runs
    confirm: Plan | None = None  # the second stage
    confirms: bool = False  # it is one

    @property
    def stages(self) -> tuple[Plan, ...]:
        """This plan, and the one that confirms it where there is one."""
        return (self, self.confirm) if self.confirm else (self,)

    def runs(self) -> list[PlannedRun]:
        """All runs, the arms spread evenly over the sequence, so that a drift of the machine hits all alike."""
        placed = [
            ((i + 0.5) / len(arm.runs), j, run) for j, arm in enumerate(self.arms) for i, run in enumerate(arm.runs)
        ]
        return [run for _, _, run in sorted(placed, key=lambda item: item[:2])]

    def run_of(self, arm: str, index: int) -> PlannedRun:
        """One run, by its arm and which of the arm's seeds, from 0. Raises ConfigError where there is none."""
        runs = {planned.name: planned.runs for planned in self.arms}
        if arm not in runs:
            raise ConfigError([Problem(("arm",), repr(arm), one_of(arm, runs))])
        if not 0 <= index < len(runs[arm]):
            raise ConfigError([Problem(("index",), str(index), f"0 to {len(runs[arm]) - 1}")])
        return runs[arm][index]

    def elsewhere(self) -> list[PlannedRun]:
        """Runs of budgets, which count where another experiment on this base made them."""
        return [run for arm in self.budgets for run in arm.runs]

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
                for arm in (*self.arms, *self.budgets)
            ),
            paired=self.paired,
            screen=self.screen,
            confirms=self.confirms,
            sigma_prior=self.decide.sigma,
            sigma_source=self.decide.sigma_source,
            source=self.source,
        )


def load_plan(file: FilePath, *, base: str | None = None, seeds: int | None = None) -> Plan:
    """Read an experiment and its base, and plan its runs.

    Args:
        file: the experiment's YAML.
        base: a base to use instead of the one that the file names.
        seeds: runs of every arm instead of the declared ones; 1 screens, without verdicts.

    Raises:
        ConfigError: with every problem of the experiment, or of its base, each with file and line.
    """
    document = strict_yaml.load(file)
    head, problems = check(ExperimentFile, document.data)
    problems = document.problems + problems
    base_name = base or (head.base if head else None)
    if base_name is None:  # nothing to hold the variants against
        raise _error(document, problems)
    try:
        base_path = find_file("base", base_name, file.parent)
    except ConfigError as error:
        raise _error(document, list(error.problems)) from None
    base_file, control = load_base(base_path)
    decide = base_file.decide
    if head and head.data:
        control = replace(control, data=_named_data(head.data, file.parent, document))
        decide = decide.model_copy(update={"sigma_source": f"{decide.sigma_source}; on the base's own data"})
    plugins = head.plugins if head else ()
    if broken := import_plugins(plugins, file.parent):  # whatever its blocks are used for would be a problem too
        raise _error(document, problems + broken)
    control = replace(control, plugins=tuple(dict.fromkeys((*control.plugins, *plugins))))
    variants = document.data.get("variants") if isinstance(document.data, dict) else None
    builder = _ArmBuilder(control, base_file, head.seeds if head else Seeds(), seeds, bool(head and head.paired))
    arms, budgets = [builder.control(), *builder.checks()], list(builder.budgets())
    taken = {arm.name for arm in (*arms, *budgets)}
    match: tuple[Mode, ...] = head.match if head else ("tokens",)
    declared = head.variants if head else {}
    expect = head.expect if head else {}
    written = variants if isinstance(variants, dict) else {}
    for name, raw in written.items():
        path = ("variants", name)
        delta = declared.get(name) or _salvage(raw)
        if name in taken:
            problems.append(Problem(path, f"the name {name!r}", f"a name that the base does not use: {sorted(taken)}"))
        for mode in match:
            arm, found = builder.variant(name, delta, mode, expect.get(name))
            problems += [problem.under(path) for problem in found if name in declared or problem.path]
            if arm is not None:
                arms.append(arm)
    for name in expect:
        if name not in written:
            problems.append(Problem(("expect", name), f"unknown variant {name!r}", one_of(name, written)))
    problems += builder.pairing_problems(arms)
    confirming = head.confirm if head else None
    by_name = {arm.name: arm for arm in arms if arm.role == "variant"}
    for name in confirming.variants if confirming else ():
        if name not in by_name:
            problems.append(Problem(("confirm", "variants"), f"unknown variant {name!r}", one_of(name, by_name)))
    if problems:
        raise _error(document, problems)
    assert head is not None
    plan = Plan(
        head.name,
        head.question,
        base_file.name,
        head.source,
        decide,
        arms=(*arms, *(budgets if head.budgets else ())),
        screen=_screens(arms),
        paired=head.paired,
        budgets=() if head.budgets else tuple(budgets),
    )
    if confirming is None:
        return plan
    fresh = builder.fresh([arms[0], *(by_name[name] for name in dict.fromkeys(confirming.variants))], confirming.seeds)
    if problems := builder.pairing_problems(fresh):
        raise _error(document, [problem.under(("confirm",)) for problem in problems])
    return replace(plan, confirm=replace(plan, arms=tuple(fresh), confirms=True))


def load_base(file: FilePath) -> tuple[BaseFile, Recipe]:
    """A base and its recipe. Raises ConfigError with every problem of the file."""
    document = strict_yaml.load(file)
    written = document.data
    if isinstance(written, dict) and isinstance(name := written.get("data"), str):
        written = written | {"data": _named_data(name, file.parent.parent, document).model_dump()}
    head, problems = check(BaseFile, written)
    problems = document.problems + problems
    if broken := import_plugins(head.plugins if head else (), file.parent):
        raise _error(document, problems + broken)
    raw = document.data.get("model") if isinstance(document.data, dict) else None
    model, found = read(raw) if raw is not None else (None, [])
    problems += [problem.under(("model",)) for problem in found]
    if head:
        problems += [problem.under(("train",)) for problem in head.train.problems()]
        try:
            head.data.identity()
        except ConfigError as error:
            problems += error.problems
    if head and model:
        recipe = Recipe(model, head.data, head.train, head.eval, head.plugins)
        problems += list(recipe.problems())
        for name, delta in head.checks.items():
            _, found = merge(recipe, delta)
            problems += [problem.under(("checks", name)) for problem in found if problem not in problems]
            if name == CONTROL:
                problems.append(Problem(("checks", name), f"the name {name!r}", "any name but that of the control"))
        for place, factor in enumerate(head.budgets):
            if factor == 1 or factor in head.budgets[:place]:
                problems.append(Problem(("budgets",), f"{factor:g}", "each number of tokens once, and other than 1"))
            problems += [problem.under(("budgets",)) for problem in _budget(recipe, factor).train.problems()]
        if not problems:
            return head, recipe
    raise _error(document, problems)


def _error(document: strict_yaml.Document, problems: list[Problem]) -> ConfigError:
    located = sorted(dict.fromkeys(map(document.locate, problems)), key=lambda p: int(p.where.rpartition(":")[2]))
    count = f"{len(located)} problem{'s' if len(located) != 1 else ''}"
    return ConfigError(located, title=f"{document.file}: {count}, nothing was run")


def load_data(file: FilePath) -> DataConfig:
    """A file of experiments/data/. Raises ConfigError with every problem of the file."""
    document = strict_yaml.load(file)
    config, problems = check(DataConfig, document.data)
    if config is None or (problems := document.problems + problems):
        raise _error(document, problems)
    return config


def _named_data(name: str, beside: FilePath, document: strict_yaml.Document) -> DataConfig:
    """The data that ``document`` names. Raises ConfigError, in its words where there is no such file."""
    try:
        file = find_file("data", name, beside)
    except ConfigError as error:
        raise _error(document, list(error.problems)) from None
    return load_data(file)


def find_file(kind: Literal["base", "data"], name: str, beside: FilePath | None = None) -> FilePath:
    """The file of a base, or of data: in a folder ``kind`` under ``beside``, or in experiments/ of the current folder.

    Raises ConfigError when neither holds it.
    """
    folders = [*([beside / kind] if beside else []), FilePath("experiments") / kind]
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted({found.stem for folder in folders for found in folder.glob("*.yaml")})
    raise ConfigError([Problem((kind,), f"unknown {kind} {name!r}", one_of(name, known))])


def _salvage(raw: object) -> Delta:
    """The readable sections of a variant whose mapping has other problems, so that these sections are checked too."""
    sections = raw if isinstance(raw, dict) else {}
    model, train = (value if isinstance(value := sections.get(key), dict) else {} for key in ("model", "train"))
    return Delta(model=model, train=train)


def merge(base: Recipe, delta: Delta) -> tuple[Recipe | None, list[Problem]]:
    """The base's recipe with ``delta`` merged in, where that can be had, and every problem found."""
    model, found = read(delta.model, base=base.model)
    problems = [problem.under(("model",)) for problem in found]
    written = base.train.model_dump(mode="json")
    train, found = check(TrainConfig, written | delta.train, fallback=written)
    problems += [problem.under(("train",)) for problem in found + (list(train.problems()) if train else [])]
    if model is None or train is None:
        return None, problems
    recipe = replace(base, model=model, train=train)
    problems += list(recipe.problems())
    if not problems and recipe.plugins:
        problems += [problem.under(("model",)) for problem in try_out(model)]
    return recipe, problems


def _budget(base: Recipe, factor: float) -> Recipe:
    """The base on ``factor`` times the tokens, with the same warm-up and the same share of decay."""
    return replace(base, train=base.train.model_copy(update={"num_steps": round(factor * base.train.num_steps)}))


class _ArmBuilder:
    """Makes the arms of one experiment over one base."""

    def __init__(self, recipe: Recipe, base: BaseFile, declared: Seeds, override: int | None, paired: bool) -> None:
        self.recipe = recipe
        self.base = base
        self.override = override
        self.paired = paired
        self.declared = declared
        written = [declared, base.seeds]
        self.count = {
            role: next((n for seeds in written if (n := getattr(seeds, role))), 1)
            for role in ("control", "check", "variant", "budget")
        }

    def control(self) -> PlannedArm:
        return self._arm(CONTROL, "control", self.recipe, None, ())

    def checks(self) -> Iterator[PlannedArm]:
        for name, delta in self.base.checks.items():
            recipe, problems = merge(self.recipe, delta)
            assert recipe is not None, "load_base has seen to it"
            assert not problems
            yield self._arm(name, "check", recipe, delta.expect, (), self.declared.check or delta.seeds)

    def variant(
        self, name: str, delta: Delta, mode: str, expect: Expectation | None
    ) -> tuple[PlannedArm | None, list[Problem]]:
        recipe, problems = merge(self.recipe, delta)
        if recipe is None or problems:
            return None, problems
        if recipe.resolved() == self.recipe.resolved():
            return None, [Problem((), "nothing that differs from the base", "at least one changed value")]
        if problems := list(_not_comparable(self.recipe.train, recipe.train)):
            return None, problems
        if mode == "tokens":
            return self._arm(name, "variant", recipe, expect, (), delta.seeds), []
        if recipe.num_params == self.recipe.num_params:
            return None, []  # matched as it is: the same arm a second time would only widen the family
        sets_width = bool(MLP_WIDTH & delta.model.get("mlp", {}).keys())
        model = None if sets_width else match_params(recipe.model, self.recipe.model.num_params)
        if model is None:
            why = "a variant that sets the MLP width itself" if sets_width else "one that no MLP width can match"
            return None, [Problem(("model",), why, "match: [tokens] for such a variant")]
        solved = ("model.mlp.intermediate_size",)
        return self._arm(f"{name}/{mode}", "variant", recipe.with_model(model), None, solved, delta.seeds), []

    def budgets(self) -> Iterator[PlannedArm]:
        for factor in self.base.budgets:
            yield self._arm(f"tokens_{factor:g}x", "budget", _budget(self.recipe, factor), None, ())

    def fresh(self, arms: list[PlannedArm], declared: Seeds) -> list[PlannedArm]:
        """The arms again, with seeds that come after their own."""
        made = []
        for arm in arms:
            role: Literal["control", "variant"] = "control" if arm.role == "control" else "variant"
            after = len(arms[0].runs if self.paired else arm.runs)
            count = getattr(declared, role) or len(arm.runs)
            made.append(self._arm(arm.name, role, arm.recipe, arm.expect, arm.solved, count, after))
        return made

    def pairing_problems(self, arms: list[PlannedArm]) -> list[Problem]:
        """What keeps the variants from being compared with the control seed by seed."""
        if not self.paired or _screens(arms):
            return []
        most = len(arms[0].runs)
        wrong = sorted({n for arm in arms if arm.role == "variant" and not MIN_PAIRS <= (n := len(arm.runs)) <= most})
        allowed = f"{MIN_PAIRS} or more seeds of a variant, and no more than the control's {most}"
        return [Problem(("paired",), f"variants with {', '.join(map(str, wrong))}", allowed)] if wrong else []

    def _arm(
        self,
        name: str,
        role: Role,
        recipe: Recipe,
        expect: Expectation | None,
        solved: tuple[str, ...],
        declared: int | None = None,
        after: int = 0,
    ) -> PlannedArm:
        count = self.override or declared or self.count[role]
        identity = recipe.identity()
        shared = self.paired and role == "variant"
        seeds = [seed_of(CONTROL if shared else name, after + index) for index in range(count)]
        runs = tuple(PlannedRun(name, role, seed, run_key(identity, seed), recipe) for seed in seeds)
        return PlannedArm(name, role, recipe, runs, difference(self.recipe, recipe), expect, solved)


def _screens(arms: Iterable[PlannedArm]) -> bool:
    """Whether there is but one seed of everything that is compared, which gives numbers and no verdict."""
    return max(len(arm.runs) for arm in arms if arm.role in ("control", "variant")) == 1


def _not_comparable(base: TrainConfig, other: TrainConfig) -> Iterator[Problem]:
    """What would make another quantity of a variant's loss."""
    if other.seq_len != base.seq_len:
        allowed = f"the base's {base.seq_len}: losses in windows of another length are another quantity"
        yield Problem(("train", "seq_len"), str(other.seq_len), allowed)
    elif other.num_tokens != base.num_tokens:
        received = f"{other.num_steps} steps of {other.tokens_per_step}, which are {other.num_tokens:,} tokens"
        yield Problem(("train", "num_steps"), received, f"the base's {base.num_tokens:,} tokens")


def seed_of(arm: str, index: int) -> int:
    """Seed of an arm's run: 0, 1, … for the control, and for the variants of a paired design.

    For any other arm 31 bits of a hash of its name and number: so no variant shares a seed with the control, and adding
    a variant moves no other variant's seeds.
    """
    if arm == CONTROL:
        return index
    return int.from_bytes(hashlib.sha256(f"{arm}/{index}".encode()).digest()[:4], "big") >> 1
