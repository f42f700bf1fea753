import json
import re
from dataclasses import replace

import pytest

from analysis.store.schema import METRICS, TAG_DESIGN, Design, Metric, Prior, undeclared
from tests.analysis.tables import arm, design

PLANS = {
    "plain": design(arm("a", 2)),
    "all": design(
        arm("twin", 8, "check", expect="same"),
        arm("half", 8, "budget", tokens=128_000),
        arm(
            "wide",
            8,
            diff={"model.mlp.intermediate_size": (256, 512)},
            solved=("model.mlp.intermediate_size",),
            looked="3 blocks then, 8 now, as width-first",
        ),
        control=8,
        first_seed=100,
        looks=(3, 5, 8),
        prior=Prior(sd=0.0165, df=4.5, source="measured on tiny"),
        changed={"margin": (0.5, 1.0)},
        order=3,
        source="arXiv:1",
    ),
    "independent": design(arm("a", 2), independent=True, confirms=True),
}


@pytest.mark.parametrize("name", PLANS)
def test_tags_restore_the_design(name):
    plan = PLANS[name]
    restored = Design.from_tags(plan.to_tags())
    assert restored == plan
    assert hash((restored.prior, restored.looks)) == hash((plan.prior, plan.looks))  # power remembers answers by them
    assert restored != replace(plan, margin=2.0)
    assert {type(then) for then in restored.changed.values()} <= {tuple}


def test_another_stage_is_another_experiment():
    assert PLANS["plain"].experiment == "width-tiny"
    assert PLANS["independent"].experiment == "width-confirm-tiny"


def test_arms_are_compared_or_budgets():
    plan = PLANS["all"]
    assert [one.name for one in plan.compared] == ["control", "twin", "wide"]
    assert [one.name for one in plan.budgets] == ["half"]


def test_tags_without_a_design_are_refused():
    with pytest.raises(KeyError, match=TAG_DESIGN):
        Design.from_tags({"mlflow.note.content": "hello"})


@pytest.mark.parametrize(
    ("gone", "new"), [("looks", "paired"), ("prior", "sigma_prior"), ("", "paired"), ("looks", "")]
)
def test_a_design_of_other_fields_is_refused_in_words(gone, new):
    """Such as another version stored."""
    tags = PLANS["all"].to_tags()
    head = json.loads(tags[TAG_DESIGN])
    head = {key: value for key, value in head.items() if key != gone} | ({new: None} if new else {})
    with pytest.raises(ValueError, match="its design is of another version, or damaged"):
        Design.from_tags(tags | {TAG_DESIGN: json.dumps(head)})


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
        if re.search(rf"(^|[/_]){end}$", re.sub(r"_(by_domain|by_position|past_window)/\*$", "", key))
    }
    assert declared | named == declared
    others = {"epochs", "train/grad_norm", "train/lr", "train/loss_spikes", "memory/micro_batch", "final/compiled"}
    others |= {"val/task_accuracy"}
    assert declared.keys() - named.keys() == others
    assert all(METRICS[key].unit in ("1", "windows", "0 or 1") for key in others)


def test_a_key_that_nobody_declared_is_found():
    assert undeclared(["val/loss", "val/loss_by_domain/networkx"]) == []
    assert undeclared(["val/los", "val/loss_by_domainx", "final/val_loss_by_domain/a"]) == [
        "val/los",
        "val/loss_by_domainx",
    ]
    assert undeclared(["mine/a"], {"mine/*": Metric("1", "of a plugin")}) == []
