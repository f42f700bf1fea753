"""The arms of an experiment: the control, its checks, the variants, the budgets, and the runs of each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from analysis.store.schema import Expectation, Role
from llama_variants.errors import Problem
from runners.planning.delta import budget, merge
from runners.planning.diff import difference
from runners.planning.files import CONTROL, MLP_WIDTH, BaseFile, ExperimentFile, VariantDelta
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

    def __init__(self, recipe: Recipe, base: BaseFile, asked: ExperimentFile | None, override: int | None) -> None:
        self.recipe = recipe
        self.base = base
        self.override = override
        self.independent = asked is not None and asked.design == "independent"
        self.first_seed = asked.first_seed if asked and asked.first_seed is not None else base.first_seed
        declared = (asked.looks[-1] if asked and asked.looks else asked and asked.blocks) or base.blocks
        own = [delta.blocks for delta in asked.variants.values() if delta.blocks] if asked else []
        most = max(declared, *own, 0)
        self.looks = asked.looks if asked and not override else ()
        self.blocks = override or declared
        self.of_control = override or (declared if self.independent else most)  # a block needs its control
        self.next_seed = self.first_seed + max(most, override or 0)  # beyond the declared ones, whatever `override` is

    def control(self) -> PlannedArm:
        """The base itself."""
        return self._arm(CONTROL, "control", self.recipe, None, (), self.of_control)

    def checks(self) -> Iterator[PlannedArm]:
        """What the base declares to check the harness."""
        for name, delta in self.base.checks.items():
            recipe, problems = merge(self.recipe, delta)
            assert recipe is not None, "load_base has seen to it"
            assert not problems
            yield self._arm(name, "check", recipe, delta.expect, (), self.blocks)

    def variant(
        self, name: str, delta: VariantDelta, mode: str, expect: Expectation | None
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
        blocks = self.override or delta.blocks or self.blocks
        if mode == "tokens":
            return self._arm(name, "variant", recipe, expect, (), blocks), []
        if recipe.num_params == self.recipe.num_params:
            return None, []  # matched as it is: the same arm a second time would only widen the family
        sets_width = bool(MLP_WIDTH & delta.model.get("mlp", {}).keys())
        model = None if sets_width else match_params(recipe.model, self.recipe.model.num_params)
        if model is None:
            why = "a variant that sets the MLP width itself" if sets_width else "one that no MLP width can match"
            return None, [Problem(path=("model",), received=why, allowed="match: [tokens] for such a variant")]
        solved = ("model.mlp.intermediate_size",)
        return self._arm(f"{name}/{mode}", "variant", recipe.with_model(model), None, solved, blocks), []

    def budgets(self) -> Iterator[PlannedArm]:
        """The control on the base's other numbers of tokens."""
        for factor in self.base.budgets:
            yield self._arm(f"tokens_{factor:g}x", "budget", budget(self.recipe, factor), None, (), self.blocks)

    def fresh(self, arms: Iterable[PlannedArm], blocks: int | None) -> tuple[PlannedArm, ...]:
        """The control and variants again, on blocks that begin at ``next_seed``; as many as the rest has if None."""
        count = self.override or blocks or self.blocks
        return tuple(
            self._arm(arm.name, arm.role, arm.recipe, arm.expect, arm.solved, count, self.next_seed) for arm in arms
        )

    def _arm(
        self,
        name: str,
        role: Role,
        recipe: Recipe,
        expect: Expectation | None,
        solved: tuple[str, ...],
        blocks: int,
        first_seed: int | None = None,
    ) -> PlannedArm:
        identity = recipe.identity()
        first = self.first_seed if first_seed is None else first_seed
        seeds = [seed_of(name if self.independent else CONTROL, first + index) for index in range(blocks)]
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
    """Whether there is but one block of everything that is compared, which gives numbers and no verdict."""
    return max(len(arm.runs) for arm in arms if arm.role in ("control", "variant")) == 1


def _not_comparable(base: TrainConfig, other: TrainConfig) -> Iterator[Problem]:
    """What would make another quantity of a variant's loss."""
    if other.seq_len != base.seq_len:
        allowed = f"the base's {base.seq_len}: losses in windows of another length are another quantity"
        yield Problem(path=("train", "seq_len"), received=str(other.seq_len), allowed=allowed)
    elif other.num_tokens != base.num_tokens:
        received = f"{other.num_steps} steps of {other.tokens_per_step}, which are {other.num_tokens:,} tokens"
        yield Problem(path=("train", "num_steps"), received=received, allowed=f"the base's {base.num_tokens:,} tokens")


def seed_of(arm: str, number: int) -> int:
    """Seed of a run where every arm has seeds of its own, by the arm's name: the control's is ``number`` itself.

    For any other arm 31 bits of a hash of its name and number: so no variant shares a seed with the control, and adding
    a variant moves no other variant's seeds.
    """
    if arm == CONTROL:
        return number
    return int.from_bytes(hashlib.sha256(f"{arm}/{number}".encode()).digest()[:4], "big") >> 1
