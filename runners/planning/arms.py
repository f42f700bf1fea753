"""The arms of an experiment: the control, its checks, the variants, the budgets, and the runs of each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from analysis.store.schema import Expectation, Role
from llama_variants.errors import Problem
from runners.planning.delta import budget, merge
from runners.planning.diff import difference
from runners.planning.files import CONTROL, MLP_WIDTH, BaseFile, Delta, Seeds
from runners.planning.matching import match_params
from runners.planning.recipe import Recipe, TrainConfig, run_key


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run: an arm's recipe with one seed."""

    arm: str
    role: Role
    seed: int
    key: str
    recipe: Recipe = field(hash=False)


@dataclass(frozen=True, kw_only=True)
class PlannedArm:
    """One group of runs that differ in nothing but their seed."""

    name: str
    role: Role
    recipe: Recipe
    runs: tuple[PlannedRun, ...]
    diff: Mapping[str, tuple[Any, Any]]  # path -> (control's value, arm's value), in absolute form
    expect: Expectation | None
    solved: tuple[str, ...]


class ArmBuilder:
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
        """The base itself."""
        return self._arm(CONTROL, "control", self.recipe, None, ())

    def checks(self) -> Iterator[PlannedArm]:
        """What the base declares to check the harness."""
        for name, delta in self.base.checks.items():
            recipe, problems = merge(self.recipe, delta)
            assert recipe is not None, "load_base has seen to it"
            assert not problems
            yield self._arm(name, "check", recipe, delta.expect, (), self.declared.check or delta.seeds)

    def variant(
        self, name: str, delta: Delta, mode: str, expect: Expectation | None
    ) -> tuple[PlannedArm | None, list[Problem]]:
        """A variant in one way of matching; None where it cannot be, or would be the same arm a second time."""
        recipe, problems = merge(self.recipe, delta)
        if recipe is None or problems:
            return None, problems
        if recipe.resolved() == self.recipe.resolved():
            return None, [
                Problem(path=(), received="nothing that differs from the base", allowed="at least one changed value")
            ]
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
            return None, [Problem(path=("model",), received=why, allowed="match: [tokens] for such a variant")]
        solved = ("model.mlp.intermediate_size",)
        return self._arm(f"{name}/{mode}", "variant", recipe.with_model(model), None, solved, delta.seeds), []

    def budgets(self) -> Iterator[PlannedArm]:
        """The control on the base's other numbers of tokens."""
        for factor in self.base.budgets:
            yield self._arm(f"tokens_{factor:g}x", "budget", budget(self.recipe, factor), None, ())

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
        if not self.paired or screens(arms):
            return []
        from analysis.stats.eligibility import MIN_PAIRS  # with pandas, which an unpaired plan does without

        most = len(arms[0].runs)
        wrong = sorted({n for arm in arms if arm.role == "variant" and not MIN_PAIRS <= (n := len(arm.runs)) <= most})
        allowed = f"{MIN_PAIRS} or more seeds of a variant, and no more than the control's {most}"
        received = f"variants with {', '.join(map(str, wrong))}"
        return [Problem(path=("paired",), received=received, allowed=allowed)] if wrong else []

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
        runs = tuple(
            PlannedRun(arm=name, role=role, seed=seed, key=run_key(identity, seed), recipe=recipe) for seed in seeds
        )
        return PlannedArm(
            name=name,
            role=role,
            recipe=recipe,
            runs=runs,
            diff=difference(self.recipe, recipe),
            expect=expect,
            solved=solved,
        )


def screens(arms: Iterable[PlannedArm]) -> bool:
    """Whether there is but one seed of everything that is compared, which gives numbers and no verdict."""
    return max(len(arm.runs) for arm in arms if arm.role in ("control", "variant")) == 1


def _not_comparable(base: TrainConfig, other: TrainConfig) -> Iterator[Problem]:
    """What would make another quantity of a variant's loss."""
    if other.seq_len != base.seq_len:
        allowed = f"the base's {base.seq_len}: losses in windows of another length are another quantity"
        yield Problem(path=("train", "seq_len"), received=str(other.seq_len), allowed=allowed)
    elif other.num_tokens != base.num_tokens:
        received = f"{other.num_steps} steps of {other.tokens_per_step}, which are {other.num_tokens:,} tokens"
        yield Problem(path=("train", "num_steps"), received=received, allowed=f"the base's {base.num_tokens:,} tokens")


def seed_of(arm: str, index: int) -> int:
    """Seed of an arm's run: 0, 1, … for the control, and for the variants of a paired design.

    For any other arm 31 bits of a hash of its name and number: so no variant shares a seed with the control, and adding
    a variant moves no other variant's seeds.
    """
    if arm == CONTROL:
        return index
    return int.from_bytes(hashlib.sha256(f"{arm}/{index}".encode()).digest()[:4], "big") >> 1
