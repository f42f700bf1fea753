import inspect
import re
from dataclasses import replace

import pytest

from analysis.store import schema
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


def test_no_metric_is_declared_twice():
    """The second would replace the first without a word."""
    assert inspect.getsource(schema).count("        Metric(") == len(METRICS)


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
    named = {key: unit for key in METRICS for end, unit in units.items() if re.search(rf"(^|[/_]){end}$", key)}
    assert declared | named == declared
    others = {"epochs", "train/grad_norm", "train/lr", "train/loss_spikes", "memory/micro_batch", "final/compiled"}
    assert declared.keys() - named.keys() == others
    assert all(METRICS[key].unit in ("1", "windows", "0 or 1") for key in others)
