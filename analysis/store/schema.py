"""Names and units of every logged key, and the design of an experiment as the tracking store keeps it.

Standard library only: `runners.tracking` writes by this module and `analysis.store.load` reads by it, so neither
can drift from the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, TypedDict, get_type_hints

Role = Literal["control", "check", "variant", "budget"]
"""control: the base itself. check: a row that shows whether the harness works (the control's twin, a known-bad
variant). variant: what the experiment asks about; these form the family of comparisons.
budget: the control trained on fewer or more tokens, which says what a difference in loss is worth in data."""

Expectation = Literal["same", "worse", "better"]


@dataclass(frozen=True)
class Metric:
    """One logged key: its unit, and what it is."""

    unit: str
    meaning: str


Metrics = TypedDict(
    "Metrics",
    {
        "tokens": Annotated[float, "tokens", "training tokens so far; an x axis that does not depend on the batch"],
        "epochs": Annotated[float, "1", "passes over the training windows so far"],
        "train/loss": Annotated[float, "nats/token", "training cross-entropy of the step's whole batch"],
        "train/grad_norm": Annotated[float, "1", "global gradient norm before clipping"],
        "train/lr": Annotated[float, "1", "learning rate of the step"],
        "train/loss_spikes": Annotated[float, "1", "losses so far that lay 6 sigma or more above the 128 before them"],
        "throughput/tokens_per_s": Annotated[float, "tokens/s", "training tokens over the time since the last log"],
        "throughput/step_time_s": Annotated[float, "s", "mean time of a step since the last log, without evaluation"],
        "memory/micro_batch": Annotated[float, "windows", "windows that went through the model at a time"],
        "memory/peak_bytes": Annotated[float, "bytes", "peak memory: allocated on a GPU, resident on a CPU"],
        "val/loss": Annotated[float, "nats/token", "cross-entropy on the fixed validation windows"],
        "val/bits_per_byte": Annotated[float, "bits/byte", "the same per byte of the text of these windows"],
        "val/loss_se": Annotated[float, "nats/token", "standard error of val/loss over validation windows"],
        "val/loss_by_domain/*": Annotated[float, "nats/token", "val/loss of the windows that begin in a domain"],
        "val/loss_by_position/*": Annotated[float, "nats/token", "val/loss by how many tokens stand before"],
        "val/loss_past_window/*": Annotated[float, "nats/token", "loss in longer windows, by training lengths"],
        "val/induction_loss": Annotated[float, "nats/token", "loss on the second occurrence of a random string"],
        "val/induction_first_loss": Annotated[float, "nats/token", "loss on its first occurrence"],
        "val/task_excess_loss": Annotated[float, "nats/token", "loss on a task's text less its entropy"],
        "val/task_answer_loss": Annotated[float, "nats/token", "loss where a task's answer is certain"],
        "val/task_accuracy": Annotated[float, "1", "share of certain answers that are the likeliest token"],
        "final/val_loss": Annotated[float, "nats/token", "val/loss after the last step: what verdicts are about"],
        "final/val_bits_per_byte": Annotated[float, "bits/byte", "val/bits_per_byte after the last step"],
        "final/val_loss_se": Annotated[float, "nats/token", "standard error of final/val_loss over validation windows"],
        "final/val_loss_by_domain/*": Annotated[float, "nats/token", "val/loss_by_domain after the last step"],
        "final/train_loss": Annotated[float, "nats/token", "mean training loss of the last tenth of the steps"],
        "final/tokens_per_s": Annotated[float, "tokens/s", "median training throughput of the run"],
        "final/compiled": Annotated[float, "0 or 1", "whether the model was compiled"],
        "final/peak_memory_bytes": Annotated[float, "bytes", "peak memory of the run"],
        "final/wall_time_s": Annotated[float, "s", "start of the run to its end, evaluation included"],
    },
    total=False,
)
"""What the training loop and this project's probes log. A key that ends in ``*`` stands for one a name."""

METRICS: dict[str, Metric] = {
    key: Metric(*hint.__metadata__) for key, hint in get_type_hints(Metrics, include_extras=True).items()
}


def undeclared(keys: Iterable[str], declared: Mapping[str, Metric] = METRICS) -> list[str]:
    """Those of ``keys`` that no entry of ``declared`` stands for."""
    beginnings = tuple(key.removesuffix("*") for key in declared if key.endswith("*"))
    return [key for key in keys if key not in declared and not (beginnings and key.startswith(beginnings))]


# Run tags. A run of the store is one (experiment, arm, seed); `run_key` names the run folder that it mirrors.
TAG_RUN_KEY = "ablation.run_key"
TAG_ARM = "ablation.arm"
TAG_ROLE = "ablation.role"
TAG_SEED = "ablation.seed"
TAG_STRATUM = "ablation.stratum"  # a Stratum as JSON: what shifts bits but is not a recipe
TAG_ATTEMPT = "ablation.attempt"  # one log that only grows: a run stopped and gone on with is the same attempt
TAG_INVALID = "ablation.invalid"  # why a validity gate failed; absent on a valid run
TAG_DETERMINISTIC = "env.deterministic"  # "true": kernels that give equal bits were asked for
TAG_REASON = "ablation.reason"  # why a run failed or was stopped; absent on a valid run
PARAM_DATA = "data.fingerprint"  # a run parameter: digest of the very tokens that it was trained and judged on
RUN_TAGS = (TAG_RUN_KEY, TAG_ARM, TAG_ROLE, TAG_SEED, TAG_STRATUM)

# A run that holds a report; not a run of an arm.
TAG_REPORT = "ablation.report"

# Experiment tags: the design, and one tag per arm (a tag holds at most 5,000 characters).
TAG_DESIGN = "ablation.design"
TAG_ARM_PREFIX = "ablation.arm."


PROBE_PREFIX = "probe/"
"""Of what probes measured after a run was done: ``probe/TEXT/METRIC``, with the metric's key without ``val/``."""

TASK_PREFIX = "lm_eval/"
"""Of what lm_eval's tasks gave: ``lm_eval/TASK/METRIC``, with the names of lm_eval; higher is better."""
LOWER = "/lower"
"""Ends the key of a task's metric of which lm_eval says that lower is better."""
MEASURED = (PROBE_PREFIX, TASK_PREFIX)


def sign_of(metric: str) -> int:
    """By what a metric is multiplied to become one of which lower is better: -1 for the score of a task, else 1."""
    return -1 if metric.startswith(TASK_PREFIX) and not metric.endswith(LOWER) else 1


def counts_items(metric: str) -> bool:
    """Whether a metric may take few values, such as a share of so many items: equal ones are no sign of a fault."""
    return metric.startswith(TASK_PREFIX)


def unit_of(metric: str) -> str:
    """The unit of a declared metric, or of what a probe of this project measured; "" where none is known."""
    if metric.startswith(PROBE_PREFIX):
        metric = f"val/{metric.removeprefix(PROBE_PREFIX).partition('/')[2]}"
    exact = METRICS.get(metric)
    found = exact or next((m for key, m in METRICS.items() if key.endswith("*") and metric.startswith(key[:-1])), None)
    return found.unit if found else ""


def difference_unit(metric: str) -> str:
    """The unit of a difference in ``metric``; that tokens are meant goes without saying."""
    return unit_of(metric).replace("nats/token", "nats")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One group of runs that differ in nothing but their seed."""

    name: str
    role: Role
    run_keys: tuple[str, ...]  # the declared runs, block by block; their number is the declared n
    num_params: int
    flops_per_token: int  # forward and backward, causal attention
    diff: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)  # path -> (control's value, arm's value)
    expect: Expectation | None = None
    solved: tuple[str, ...] = ()  # paths in `diff` that a matching mode solved for
    tokens: int | None = None  # training tokens of each run of a budget; None: those of the design
    looked: str = ""  # what an earlier look at this very comparison was declared with, where it is not this


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What earlier experiments on a base know of a standard deviation: as much as ``df`` degrees of freedom would."""

    sd: float  # in the metric's unit
    df: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Design:
    """What an experiment declared before it ran; everything a verdict needs besides the runs themselves."""

    name: str
    question: str
    base: str
    metric: str  # a key of METRICS; lower is better
    alpha: float
    margin: float  # nats/token inside which two arms count as equivalent
    tokens_per_run: int
    arms: tuple[Arm, ...]  # the control first
    independent: bool = False  # seeds of their own for every arm; else a seed is a block, shared by all arms
    first_seed: int = 0  # of the blocks, which are counted up from it
    looks: tuple[int, ...] = ()  # numbers of blocks after which arms are judged, ascending; () is once, after all
    prior: Prior | None = None  # of the sd of a difference within a block; of a run, where seeds are independent
    screen: bool = False  # one block: numbers, no verdict
    source: str = ""
    changed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)  # measure -> (at an earlier look, now)
    order: int = 1  # which experiment this is of all that the control has served
    confirms: bool = False  # the second stage: fresh seeds for what the first one showed

    @property
    def experiment(self) -> str:
        """Name of the experiment in the tracking store: another base or stage of the same question is another one."""
        return f"{self.name}{'-confirm' if self.confirms else ''}-{self.base}"

    @property
    def control(self) -> Arm:
        """The arm that every other is compared with."""
        return self.arms[0]

    @property
    def compared(self) -> tuple[Arm, ...]:
        """The control and the arms that are judged against it."""
        return tuple(arm for arm in self.arms if arm.role != "budget")

    @property
    def budgets(self) -> tuple[Arm, ...]:
        """The control on fewer or more tokens."""
        return tuple(arm for arm in self.arms if arm.role == "budget")

    def to_tags(self) -> dict[str, str]:
        """Experiment tags from which :meth:`from_tags` restores the design."""
        head = {key: value for key, value in asdict(self).items() if key != "arms"}
        head["arms"] = [arm.name for arm in self.arms]
        tags = {TAG_DESIGN: json.dumps(head)}
        tags |= {TAG_ARM_PREFIX + arm.name: json.dumps(asdict(arm)) for arm in self.arms}
        return tags

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Design:
        """The design that :meth:`to_tags` stored.

        Raises:
            KeyError: when the tags hold none.
            ValueError: when they hold one of other fields, such as another version of this module stores.
        """
        stored = tags[TAG_DESIGN]
        try:
            return cls._restored(json.loads(stored), tags)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"its design is of another version, or damaged ({type(error).__name__}: {error})"
            ) from None

    @classmethod
    def _restored(cls, head: dict[str, Any], tags: Mapping[str, str]) -> Design:
        arms = []
        for name in head.pop("arms"):
            record = json.loads(tags[TAG_ARM_PREFIX + name])
            record["run_keys"] = tuple(record["run_keys"])
            record["solved"] = tuple(record["solved"])
            record["diff"] = {path: tuple(pair) for path, pair in record["diff"].items()}
            arms.append(Arm(**record))
        head["looks"] = tuple(head["looks"])
        head["changed"] = {name: tuple(pair) for name, pair in head["changed"].items()}
        head["prior"] = Prior(**head["prior"]) if head["prior"] else None
        return cls(arms=tuple(arms), **head)
