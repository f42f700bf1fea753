"""What a GPU run does besides computing, for each block, on a card that writes down what it is asked to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llama_variants.registry import FAMILIES
from tests.null_gpu.cases import STEPS, Case, recipe_of
from tests.null_gpu.checks import Answer, faults, kernels, phases, row
from tests.null_gpu.conftest import Card

CONTROL = recipe_of(Case()).model
BLOCKS: dict[str, dict[str, Any]] = {
    f"{family}={name}": {family: {"type": name, **registry.config_class(name).example}}
    for family, registry in FAMILIES.items()
    for name in registry.names
    if CONTROL.override({family: {"type": name, **registry.config_class(name).example}}) != CONTROL
}
WINDOW = BLOCKS["attention=sliding_window"]
MODES = pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])

Check = Callable[..., Answer]


@pytest.fixture
def check(card: Card, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Check:
    """Runs a case, demands all of `faults` of it, and has its row in the table."""

    def run(case: Case) -> Answer:
        answer = card(case)
        name = request.node.name.removeprefix("test_")
        if answer["state"] == "FINISHED":
            record_property("row", {"case": name, **row(case, answer)})
        assert faults(case, answer, recipe_of(case)) == {}
        return answer

    return run


@MODES
def test_control(check: Check, compiled: bool) -> None:
    answer = check(Case(compiled=compiled))
    assert kernels(answer) == {"cudnn"}
    assert answer["micro_batch"] == 16


@MODES
@pytest.mark.parametrize("block", BLOCKS)
def test_block(check: Check, block: str, compiled: bool) -> None:
    check(Case(model=BLOCKS[block], compiled=compiled))


@MODES
def test_float32(check: Check, compiled: bool) -> None:
    check(Case(train={"precision": "float32"}, compiled=compiled))


@MODES
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_deterministic(check: Check, compiled: bool, precision: str) -> None:
    """cuDNN's attention has no backward pass that repeats its bits."""
    answer = check(Case(train={"deterministic": True, "precision": precision}, compiled=compiled))
    assert "cudnn" not in kernels(answer)


@MODES
@pytest.mark.parametrize(
    "change", [{"precision": "float32"}, {"deterministic": True}], ids=["float32", "deterministic"]
)
def test_window(check: Check, compiled: bool, change: dict[str, Any]) -> None:
    check(Case(model=WINDOW, train=change, compiled=compiled))


@MODES
@pytest.mark.parametrize("model", [{}, WINDOW], ids=["control", "window"])
def test_documents(check: Check, compiled: bool, model: dict[str, Any]) -> None:
    """Documents end elsewhere in each batch, which is no reason to wait or to compile again."""
    check(Case(model=model, train={"mask_documents": True}, compiled=compiled))


@MODES
def test_micro_batches_of_four(check: Check, compiled: bool) -> None:
    assert check(Case(micro_batch=4, compiled=compiled))["micro_batch"] == 4


@MODES
def test_little_memory(check: Check, compiled: bool) -> None:
    """What fits is found before the first step, and fits to the end."""
    answer = check(Case(memory_gib=7.0 if compiled else 14.0, compiled=compiled))
    assert answer["micro_batch"] < 16
    assert count_refused(answer, "settle") > 0


def count_refused(answer: Answer, name: str) -> int:
    """Allocations that the card refused in phases of this name."""
    return sum(phase["events"].get("refused", 0) for phase in phases(answer, name))


@MODES
def test_resume(check: Check, compiled: bool) -> None:
    """Stopped after its first step, a run goes on from its checkpoint as if it had not been."""
    answer = check(Case(stop_after=1, compiled=compiled))
    assert "going on after step 1" in answer["said"]
    assert [phase["step"] for phase in phases(answer, "step")] == list(range(2, STEPS + 1))


@MODES
def test_two_processes(card: Card, compiled: bool, record_property: Callable[[str, object], None]) -> None:
    """Real are torchrun, DistributedDataParallel, torch's process group and gloo. NCCL's calls are written down."""
    # DistributedDataParallel takes the times of its first ten steps, and waits for them.
    case = Case(train={"num_steps": 15}, compiled=compiled, micro_batch=4)
    for rank, answer in enumerate(card.together(case, 2)):
        assert faults(case, answer, recipe_of(case)) == {}
        record_property(
            "row", {"case": f"{'compiled' if compiled else 'eager'}, process {rank} of 2", **row(case, answer)}
        )
        exchanges = [phase["events"].get("nccl", 0) for phase in phases(answer, "step")]
        assert min(exchanges) >= 2, exchanges  # the gradients' buckets, and the loss


PLANTED = {
    "item": "read-backs",
    "waits": "waits",
    "on_cpu": "goes through",
    "index_on_cpu": "copies to the card",
    "launches": "launches",
    "allocates": "allocations",
    "grows": "peak memory",
    "unfused_attention": "attention",
}


@pytest.mark.parametrize("plant", PLANTED)
def test_planted(card: Card, plant: str) -> None:
    case = Case(plant=plant)
    found = faults(case, card(case), recipe_of(case))
    assert PLANTED[plant] in found


def test_planted_shape(card: Card) -> None:
    case = Case(plant="other_shape", compiled=True)
    assert "recompilations" in faults(case, card(case), recipe_of(case))


def test_planted_fall(card: Card) -> None:
    """Steps that take more than was tried run out of memory after the first one."""
    case = Case(plant="surges", memory_gib=30.0)
    assert "falls" in faults(case, card(case), recipe_of(case))
