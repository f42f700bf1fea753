"""What is demanded of a run on the null card: `faults` says what it does otherwise, and `row` what there is to show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from runners.planning.recipe import Recipe
from runners.training.gates import GRADIENT_STEPS
from tests.null_gpu.cases import BATCH, EVALUATES, Case

MOST_LAUNCHES = {False: (30, 90, 150), True: (60, 60, 60)}
"""By whether it is compiled: for a step, for each of its micro-batches, and for each layer of each micro-batch. For two
layers that is 420 and 240; the control has 289 and 153 (`make test-null-gpu ARGS="-k control"`)."""
DOCUMENT_LAUNCHES = 100
"""More for each micro-batch whose documents are kept apart by blocks: which blocks, is found anew for each."""
PEAK_SHARE = 0.05
"""How far the peak of steps and evaluations may lie from that of the attempts before the first step."""
EVALUATION_READS = 3  # the logged read, the losses of the windows, and no more

Answer = dict[str, Any]  # of `process.py`


def phases(answer: Answer, name: str, *steps: int) -> list[dict[str, Any]]:
    """Those called ``name``, of these steps, or of all."""
    return [one for one in answer["phases"] if one["name"] == name and (not steps or one["step"] in steps)]


def steady_steps(answer: Answer) -> list[dict[str, Any]]:
    """The last two that are neither logged nor evaluated, nor among the first ones, whose gradients are watched."""
    made = [phase["step"] for phase in phases(answer, "step")]
    plain = [step for step in made[GRADIENT_STEPS:-1] if step % EVALUATES]
    assert plain, made
    return phases(answer, "step", *plain[-2:])


def evaluations(answer: Answer) -> list[dict[str, Any]]:
    """What followed the steps after which the run was evaluated."""
    return [phase for phase in phases(answer, "after") if phase["step"] % EVALUATES == 0]


def count(found: list[dict[str, Any]], kind: str) -> int:
    """The most events of a kind that one of these phases has."""
    return max(phase["events"].get(kind, 0) for phase in found)


def kernels(answer: Answer) -> set[str]:
    """Which kernels computed attention in the steady steps and in the evaluations."""
    found = steady_steps(answer) + evaluations(answer)
    return {kernel for phase in found for kernel in phase["attention"]}


def searches(case: Case) -> bool:
    """Whether a micro-batch is found by trying, and not given, or known from a checkpoint."""
    return case.micro_batch is None and case.stop_after is None


def peaks(answer: Answer) -> tuple[int, int]:
    """Bytes: of the attempts before the first step, and of the steps and evaluations."""
    (tried,) = phases(answer, "settle")
    return tried["peak_bytes"], max(phase["peak_bytes"] for phase in phases(answer, "step") + evaluations(answer))


def compiled_late(answer: Answer) -> int:
    """Graphs and kernels compiled after the first step, evaluations and their last batch included."""
    (tried,) = phases(answer, "settle")
    later = [phase for phase in answer["phases"] if phase["step"]]
    return max(phase["graphs"] for phase in later) - tried["graphs"] + sum(p["events"].get("module", 0) for p in later)


def most_launches(case: Case, answer: Answer, layers: int) -> int:
    """The bound for a step."""
    step, part, layer = MOST_LAUNCHES[case.compiled]
    part += DOCUMENT_LAUNCHES if case.train.get("mask_documents") else 0
    return step + -(-BATCH // answer["micro_batch"]) * (part + layers * layer)


def faults(case: Case, answer: Answer, recipe: Recipe) -> dict[str, str]:
    """Each thing that is not as it should be, by the check's name."""
    if answer["state"] != "FINISHED":
        return {"goes through": f"{answer['state']} {answer['reason']}\n{answer['error']}"}
    return dict(_faults(case, answer, recipe))


def _faults(case: Case, answer: Answer, recipe: Recipe) -> Iterator[tuple[str, str]]:
    steady = steady_steps(answer)
    for name, kind, allowed in (
        ("waits", "wait", 0),
        ("read-backs", "d2h", 0),
        ("copies to the card", "h2d", 1),
        ("copies out of memory that is not pinned", "pageable", 0),
        ("allocations", "alloc", 0),
        ("launches", "launches", most_launches(case, answer, recipe.model.num_hidden_layers)),
    ):
        if (found := count(steady, kind)) > allowed:
            yield name, f"{found} in a steady step, at most {allowed}"
    if (found := count(evaluations(answer), "d2h")) > EVALUATION_READS:
        yield "read-backs", f"{found} in an evaluation, at most {EVALUATION_READS}"
    if answer["compiled"] != case.compiled:
        yield "compiled", f"{answer['compiled']}: {answer['said']}"
    if late := compiled_late(answer):
        yield "recompilations", f"{late} graphs or kernels after the first step"
    used = kernels(answer)
    if not used or "math" in used:
        yield "attention", f"by {', '.join(used) or 'no kernel that is known'}"
    tried, seen = peaks(answer)
    if searches(case) and abs(seen - tried) > PEAK_SHARE * tried:
        yield "peak memory", f"{seen / 2**30:.2f} GiB, {tried / 2**30:.2f} before the first step"
    if fell := [phase["step"] for phase in answer["phases"] if phase["step"] and phase["events"].get("refused")]:
        yield "falls", f"out of memory in steps {fell}: {answer['said']}"


def row(case: Case, answer: Answer) -> dict[str, Any]:
    """What a finished run shows."""
    steady, (tried, seen) = steady_steps(answer), peaks(answer)
    return {
        "waits": count(steady, "wait"),
        "read back": count(steady, "d2h"),
        "to the card": count(steady, "h2d"),
        "allocated": count(steady, "alloc"),
        "recompiled": compiled_late(answer),
        "launches": count(steady, "launches"),
        "evaluation": count(evaluations(answer), "launches"),
        "attention": "+".join(sorted(kernels(answer))),
        "predicted GiB": f"{tried / 2**30:.2f}" if searches(case) else "",
        "seen GiB": f"{seen / 2**30:.2f}",
        "micro-batch": answer["micro_batch"],
    }
