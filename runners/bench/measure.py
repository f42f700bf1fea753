"""Timing in turn, and what the times say."""

from __future__ import annotations

import gc
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

PEAK_FLOPS = {
    "A100": 312e12,
    "L4": 121e12,
    "L40": 181e12,
    "L40S": 362e12,
    "4090": 165e12,
    "5090": 209e12,
    "H100": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "GB200": 2500e12,
}
"""Dense bfloat16 with float32 accumulation, in FLOP/s, by whole words of the card's name, the longest that fit.

From NVIDIA's data sheets; where these state what two-to-four sparsity would give, half of it.
"""

BANDWIDTH = {
    "H100": 3.35e12,
    "H100 PCIe": 2.0e12,
    "H100 NVL": 3.9e12,
    "H200": 4.8e12,
    "B200": 8.0e12,
    "A100-SXM4-40GB": 1.555e12,
    "A100-PCIE-40GB": 1.555e12,
    "A100-SXM4-80GB": 2.039e12,
    "A100 80GB PCIe": 1.935e12,
    "L40S": 0.864e12,
    "4090": 1.008e12,
}
"""Bytes/s of a card's memory, by a part of its name, the longest that fits; from the makers' data sheets."""


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


Measure = Callable[[int], float]
"""Mean seconds of so many calls."""


def seconds_per_call(call: Callable[[], object], device: torch.device, calls: int) -> float:
    """Mean time of ``calls`` calls, the last of them waited for."""
    gc.collect()
    gc.disable()  # a collection would fall on whoever is being measured
    try:
        synchronize(device)
        began = time.perf_counter()
        for _ in range(calls):
            call()
        synchronize(device)
        return (time.perf_counter() - began) / calls
    finally:
        gc.enable()


def in_turn(measures: Mapping[str, Measure], *, rounds: int, least_s: float) -> dict[str, list[float]]:
    """Seconds of a call of each, measured once a round; where the turn begins moves on by one each round.

    Args:
        measures: each gives the mean seconds of as many calls as it is told to make.
        rounds: how often each is measured.
        least_s: a measurement takes at least so long, by as many calls as that asks for.
    """
    counts = {}
    for name, measure in measures.items():
        measure(1)  # warm
        counts[name] = max(1, math.ceil(least_s / measure(1)))
    names = list(measures)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for start in range(rounds):
        for name in names[start % len(names) :] + names[: start % len(names)]:
            seconds[name].append(measures[name](counts[name]))
    return seconds


def rate(seconds: Sequence[float], tokens: int) -> dict[str, float]:
    """Tokens/s: the median of the rounds, and the 95 % interval of the mean by Student's t on logarithms."""
    middle, low, high = _interval(np.log(tokens / np.array(seconds)))
    return {"tokens_per_s": float(np.median(tokens / np.array(seconds))), "low": low, "high": high, "mean": middle}


def ratio(seconds: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """How many times as fast as ``reference``, round for round, with the 95 % interval."""
    middle, low, high = _interval(np.log(np.array(reference) / np.array(seconds)))
    return {"ratio": middle, "ratio_low": low, "ratio_high": high}


def _interval(logs: np.ndarray) -> tuple[float, float, float]:
    middle = float(logs.mean())
    half = student_t(len(logs) - 1) * float(logs.std(ddof=1)) / len(logs) ** 0.5 if len(logs) > 1 else math.nan
    return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


def student_t(df: int) -> float:
    """Student's t that 2.5 % lie above, for a whole number of degrees of freedom.

    Here because a machine with a card may lack scipy, whose wheel is half of what can be carried there. The
    distribution function is a finite series (Abramowitz and Stegun, 26.7.3 and 26.7.4), inverted by bisection.
    """

    def inside(t: float) -> float:  # the probability between -t and t
        angle = math.atan(t / df**0.5)
        terms, k = [math.cos(angle) ** (df % 2)], 1 + df % 2
        while k < df - 1:
            terms.append(terms[-1] * k / (k + 1) * math.cos(angle) ** 2)
            k += 2
        series = math.sin(angle) * sum(terms) if df > 1 else 0.0
        return (angle + series) * 2 / math.pi if df % 2 else series

    low, high = 0.0, 16.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < 0.95 else (low, middle)
    return middle


def peak_flops(device: torch.device) -> float | None:
    """The card's peak in bfloat16, in FLOP/s; None where it is not known, as for a processor."""
    return _of_card(PEAK_FLOPS, torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def bandwidth(name: str) -> float | None:
    """Bytes/s of the memory of the card called ``name`` (as torch.cuda.get_device_name); None where not known."""
    return _of_card(BANDWIDTH, name)


def _of_card(figures: Mapping[str, float], name: str) -> float | None:
    """The figure of the longest words that stand in a card's name: an "H100 PCIe" is no "H100", nor "H200 NVL" one."""
    if re.search(r"\b(Laptop|MIG)\b", name):  # less than the card of that name
        return None
    parts = [part for part in figures if re.search(rf"\b{part}\b", name)]
    return figures[max(parts, key=len)] if parts else None
