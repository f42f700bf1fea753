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


def test_every_metric_has_a_unit_that_is_one():
    units = {"tokens", "1", "nats/token", "tokens/s", "s", "windows", "bytes", "bits/byte", "0 or 1"}
    assert {metric.unit for metric in METRICS.values()} <= units
    assert all(len(metric.meaning.split()) > 2 for metric in METRICS.values())


def test_a_key_that_nobody_declared_is_found():
    assert undeclared(["val/loss", "val/loss_by_domain/networkx"]) == []
    assert undeclared(["val/los", "val/loss_by_domainx", "final/val_loss_by_domain/a"]) == [
        "val/los",
        "val/loss_by_domainx",
    ]
    assert undeclared(["mine/a"], {"mine/*": Metric("1", "of a plugin")}) == []
