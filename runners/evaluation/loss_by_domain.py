"""The loss on each domain of the validation text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

import torch

from analysis.store.schema import METRICS, Metric
from runners.evaluation.subject import Subject
from runners.planning.components import PROBE, ProbeConfig


@PROBE.register("loss_by_domain")
class LossByDomain:
    """Mean next-token cross-entropy over the windows that begin in each domain: a package, a file, a dataset.

    Of a mixture, also of each part.
    """

    class Config(ProbeConfig):
        """No fields."""

    metrics: ClassVar[Mapping[str, Metric]] = {"val/loss_by_domain/*": METRICS["val/loss_by_domain/*"]}

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, subject: Subject) -> dict[str, float]:
        """A loss for each part and domain in which a window begins."""
        split, seq_len = subject.corpus.validation, subject.recipe.train.seq_len
        losses = subject.evaluation.windows  # (n,)
        starts = torch.from_numpy(split.fixed_places(subject.num_windows, seq_len)) * seq_len
        found: dict[str, float] = {}
        record = subject.corpus.manifest["splits"]["validation"]
        for name, domain in (*record.get("parts", {}).items(), *record["domains"].items()):
            inside = (starts >= domain["start"]) & (starts < domain["start"] + domain["tokens"])
            if inside.any():
                key = _key(name)
                found[key if key not in found else f"{key}_{len(found)}"] = float(losses[inside].mean())
        return found


def _key(domain: str) -> str:
    """MLflow takes few characters in a name, and no name that would be another one as a path."""
    return "val/loss_by_domain/" + re.sub(r"[^\w.-]+", "_", domain).strip("._")[-100:]
