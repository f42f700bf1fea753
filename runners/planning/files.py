"""What a file of experiments/ may say: its keys, their types and their ranges."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, Strict

from analysis.store.schema import Expectation
from llama_variants.errors import StrictModel, matching
from runners.data.config import DataConfig

CONTROL = "control"


MLP_WIDTH = {"intermediate_size", "expansion"}  # the ways to write what `match: [params]` solves for


MAX_SEEDS = 200  # of an arm; their run keys go into one tag of the tracking store


Name = Annotated[
    str,
    matching(
        r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}",
        "a name of up to 100 letters, digits, '_', '.' and '-', the first a letter or a digit, such as mlp_half",
    ),
]


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


Module = Annotated[str, matching(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", "the name of a Python module, such as my_blocks")]
Plugins = Annotated[tuple[Module, ...], Strict(False)]
"""Modules with components of one's own: installed, on the path, or beside the file that names them."""


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
    train: dict[str, Any]
    eval: dict[str, Any]
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
