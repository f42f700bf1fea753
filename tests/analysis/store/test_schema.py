from dataclasses import replace

import pytest

from analysis.store.schema import METRICS, TAG_DESIGN, Design
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


def test_every_metric_is_filed_under_its_own_key_with_a_unit():
    assert all(metric.key == key and metric.unit and metric.meaning for key, metric in METRICS.items())
