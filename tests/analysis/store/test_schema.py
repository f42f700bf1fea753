import re
from dataclasses import replace

import pytest

from analysis.store.schema import METRICS, TAG_DESIGN, Design, Metric, undeclared
from tests.analysis.tables import arm, design


def test_tags_restore_the_design():
    plan = design(
        arm("again", 2, "check", expect="same"),
        arm("wide", 3, diff={"model.mlp.intermediate_size": (256, 512)}, solved=("model.mlp.intermediate_size",)),
        paired=True,
        sigma_prior=0.02,
        source="arXiv:1",
    )
    assert Design.from_tags(plan.to_tags()) == plan
    assert Design.from_tags(plan.to_tags()) != replace(plan, margin=2.0)
    assert plan.experiment == "width-tiny"


def test_tags_without_a_design_are_refused():
    with pytest.raises(KeyError, match=TAG_DESIGN):
        Design.from_tags({"mlflow.note.content": "hello"})


def test_a_metric_s_unit_is_the_one_that_its_name_ends_in():
    """Figures and tables take their units from here."""
    units = {
        "tokens": "tokens",
        "loss": "nats/token",
        "loss_se": "nats/token",
        "bits_per_byte": "bits/byte",
        "tokens_per_s": "tokens/s",
        "time_s": "s",
        "bytes": "bytes",
    }
    declared = {key: metric.unit for key, metric in METRICS.items()}
    named = {
        key: unit
        for key in METRICS
        for end, unit in units.items()
        if re.search(rf"(^|[/_]){end}$", key.removesuffix("_by_domain/*"))
    }
    assert declared | named == declared
    others = {"epochs", "train/grad_norm", "train/lr", "train/loss_spikes", "memory/micro_batch", "final/compiled"}
    assert declared.keys() - named.keys() == others
    assert all(METRICS[key].unit in ("1", "windows", "0 or 1") for key in others)


def test_a_key_that_nobody_declared_is_found():
    assert undeclared(["val/loss", "val/loss_by_domain/networkx"]) == []
    assert undeclared(["val/los", "val/loss_by_domainx", "final/val_loss_by_domain/a"]) == [
        "val/los",
        "val/loss_by_domainx",
    ]
    assert undeclared(["mine/a"], {"mine/*": Metric("1", "of a plugin")}) == []
