"""What a file of experiments/ may say: its keys, their types and their ranges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, Strict, model_validator

from analysis.store.schema import Expectation
from llama_variants.errors import Path, Problem, StrictModel, matching
from runners.data.config import DataConfig

CONTROL = "control"


MLP_WIDTH = {"intermediate_size", "expansion"}  # the ways to write what `match: [params]` solves for


MAX_BLOCKS = 200  # the run keys of an arm go into one tag of the tracking store


Name = Annotated[
    str,
    matching(
        r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}",
        "a name of up to 100 letters, digits, '_', '.' and '-', the first a letter or a digit, such as mlp_half",
    ),
]


Count = Annotated[int, Field(ge=1, le=MAX_BLOCKS)]


FirstSeed = Annotated[int, Field(ge=0, le=10**9)]


Text = Annotated[str, Field(min_length=1, max_length=1000)]


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


def _ascending(looks: tuple[int, ...]) -> tuple[int, ...]:
    if list(looks) != sorted(set(looks)):
        raise ValueError("ascending numbers of blocks, such as [3, 5, 8]")
    return looks


Looks = Annotated[
    tuple[Annotated[int, Field(ge=2, le=MAX_BLOCKS)], ...],
    Strict(False),
    Field(min_length=1),
    AfterValidator(_ascending),
]
"""Numbers of blocks after which arms are judged; the last is the number of blocks."""


Module = Annotated[str, matching(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", "the name of a Python module, such as my_blocks")]
Plugins = Annotated[tuple[Module, ...], Strict(False)]
"""Modules with components of one's own: installed, on the path, or beside the file that names them."""


class Spread(StrictModel):
    """A standard deviation of the metric as earlier runs give it, in the metric's unit, and where it may lie."""

    sd: PositiveFloat
    df: PositiveFloat | None = None  # how well it is known, in degrees of freedom; None: it plans, and judges nothing
    low: PositiveFloat
    high: PositiveFloat
    kinds: dict[Name, PositiveFloat] = {}  # sd by kind of change: first name under `model` or `train`, such as norm
    source: Text

    @model_validator(mode="after")
    def _in_its_range(self) -> Spread:
        if not self.low <= self.sd <= self.high:
            raise ValueError("low, sd and high that ascend")
        return self


class Decide(StrictModel):
    """How runs on a base are judged; it depends on the base's noise, so it stands in the base."""

    metric: Literal["final/val_loss", "final/val_bits_per_byte"]
    alpha: Annotated[float, Field(gt=0, lt=0.5)]
    margin: PositiveFloat  # in the metric's unit: smaller differences count as none
    difference: Spread | None = None  # of variant minus control within a block
    seed: Spread | None = None  # of one recipe's runs between seeds


class Delta(StrictModel):
    """What an arm changes. Its content is checked when it is merged into the base."""

    model: dict[str, Any] = {}
    train: dict[str, Any] = {}


class VariantDelta(Delta):
    """A variant, with blocks of its own where it needs other than the rest."""

    blocks: Count | None = None


class CheckDelta(Delta):
    """An arm that checks the harness: the base's twin, or a variant known to be bad."""

    expect: Expectation


class Confirm(StrictModel):
    """A second stage on fresh blocks, for what the first one showed; the two are never pooled."""

    variants: Annotated[tuple[str, ...], Strict(False), Field(min_length=1)]
    blocks: Count | None = None


class BaseFile(StrictModel):
    """A file of experiments/base/."""

    name: Name
    extends: Name | None = None  # a base that this one is a delta over: what is left out is as it is there
    model: dict[str, Any]
    data: DataConfig
    train: dict[str, Any]
    eval: dict[str, Any]
    decide: Decide
    blocks: Count  # runs of every arm, one a seed
    first_seed: FirstSeed = 0  # block i has seed first_seed + i
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
    question: Text
    base: Name
    data: Name | None = None  # a file of experiments/data/ to use instead of the base's
    blocks: Count | None = None  # instead of the base's
    first_seed: FirstSeed | None = None  # instead of the base's, for fresh blocks
    looks: Looks = ()
    design: Literal["blocks", "independent"] = "blocks"  # independent: every arm has seeds of its own
    match: Annotated[tuple[Mode, ...], Strict(False), Field(min_length=1), AfterValidator(_each_once)] = ("tokens",)
    variants: dict[Name, VariantDelta] = {}
    expect: dict[str, Expectation] = {}
    budgets: bool = False  # also train the control on the base's other numbers of tokens
    confirm: Confirm | None = None
    plugins: Plugins = ()
    source: str = ""

    def problems(self) -> Iterator[Problem]:
        """What is wrong between fields."""
        if not self.looks:
            return
        if self.design == "independent":
            allowed = "`design: blocks`, or `blocks:` instead of looks: independent seeds are judged once"
            yield Problem(path=("looks",), received=f"{list(self.looks)} with `design: independent`", allowed=allowed)
        last = self.looks[-1]
        allowed = f"{last}, the last of `looks`, or nothing: looks say how many blocks there are"
        written: list[tuple[Path, int | None]] = [(("blocks",), self.blocks)]
        written += [(("variants", name, "blocks"), delta.blocks) for name, delta in self.variants.items()]
        for path, blocks in written:
            if blocks not in (None, last):
                yield Problem(path=path, received=str(blocks), allowed=allowed)


def with_new_words(problems: Iterable[Problem], data: Any) -> list[Problem]:
    """The problems of a file, those of keys that earlier versions had with what to write now. ``data``: the file's."""
    found = list(problems)
    for place, problem in enumerate(found):
        key = problem.path[-1] if problem.path else ""
        if key in _EARLIER and problem.received == f"unknown key {key!r}":
            section = problem.path[0] if len(problem.path) > 2 else ""
            allowed = _EARLIER[str(key)].get(str(section), _EARLIER[str(key)][""])
            received = f"{key!r}, which earlier versions had"
            found[place] = replace(problem, received=received, allowed=allowed.format(count=_count(data, problem)))
    if any(problem.path == ("seeds",) for problem in found):  # that blocks are missing is said by then
        found = [one for one in found if (one.path, one.received) != (("blocks",), "nothing")]
    return found


_EARLIER = {  # key -> section of the file that it stands in -> what to write now
    "seeds": {
        "": "`blocks: {count}`: every arm, the control too, runs this many seeds",
        "variants": "`blocks: {count}`, or nothing: a variant has as many as the rest",
        "checks": "nothing: a check has as many blocks as the rest",
    },
    "paired": {"": "nothing: seeds are blocks by default, and `design: independent` gives every arm its own"},
    "sigma": {"": "`seed: {{sd: …, df: …, low: …, high: …, source: …}}`, or nothing where it is not known"},
    "sigma_range": {"": "nothing: `low` and `high` of `seed`"},
    "sigma_source": {"": "nothing: `source` of `seed`"},
}


def _count(data: Any, problem: Problem) -> int:
    """The number that stands at the problem's place; 5 where none does."""
    for part in problem.path:
        data = data.get(part) if isinstance(data, dict) else None
    return data if isinstance(data, int) and 1 <= data <= MAX_BLOCKS else 5
