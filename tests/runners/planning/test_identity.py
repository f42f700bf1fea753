"""What names a run: everything that bears on its losses, nothing that only observes, and room for fields to come.

`tests/golden/identity.json` holds the fields that bear on losses since the second version, and the keys of the bases'
control runs. A field that is not among them says what it is to a run's identity, by a mark in its annotation.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from llama_variants import ModelConfig
from llama_variants.registry import FAMILIES, ComponentConfig
from llama_variants.types import OBSERVES, Neutral, bearing
from runners.planning.bases import load_base
from runners.planning.components import COMPONENTS, OPTIMIZER, PROBE, SCHEDULE
from runners.planning.recipe import EvalConfig, Recipe, TrainConfig, read_eval, read_train, run_key
from tests.conftest import ROOT

GOLDEN = json.loads((ROOT / "tests/golden/identity.json").read_text())
BASES = sorted(file.stem for file in (ROOT / "experiments/base").glob("*.yaml"))


def configurations() -> dict[str, type[BaseModel]]:
    """Every class whose fields make up a recipe, but for the data's, whose identity is its pins."""
    found: dict[str, type[BaseModel]] = {"model": ModelConfig, "train": TrainConfig, "eval": EvalConfig}
    for registry in (*FAMILIES.values(), OPTIMIZER, SCHEDULE, PROBE):
        for name in registry.names:
            if registry[name].__module__.partition(".")[0] in ("llama_variants", "runners"):
                found[f"{registry.family}.{name}"] = registry.config_class(name)
    return found


def marks(cls: type[BaseModel], name: str) -> list[Any]:
    return [mark for mark in cls.model_fields[name].metadata if mark is OBSERVES or isinstance(mark, Neutral)]


@pytest.mark.parametrize("place", configurations())
def test_every_field_says_what_it_is_to_a_run_s_identity(place):
    cls, since = configurations()[place], GOLDEN["fields"].get(place)
    if since is None:  # a component that came later: its first fields all bear on the losses, and no run lacks them
        return
    for name in cls.model_fields:
        told = "bears" if name in since else "marked" if len(marks(cls, name)) == 1 else "nothing"
        assert told != "nothing", (
            f"{place}.{name} is new: mark it Annotated[…, Neutral(value)], with the value at which runs are what they "
            "were before, or OBSERVES, where it bears on no loss (llama_variants/types.py)"
        )
        assert (told == "bears") == (not marks(cls, name)), f"{place}.{name} bears on the losses, and is marked too"
    assert set(since) <= cls.model_fields.keys(), f"{place} has lost a field that names runs"


@pytest.mark.parametrize("base", BASES)
def test_the_control_s_runs_keep_their_keys(base):
    _, recipe = load_base(ROOT / f"experiments/base/{base}.yaml")
    found = run_key(recipe.identity(), 0)
    assert found == GOLDEN["keys"][base], "every run of this base would be trained again"


OTHER = {  # another value for each field; what is left out here is a component, whose own fields follow
    "train": {
        "seq_len": 32,
        "tokens_per_step": 512,
        "num_steps": 1201,
        "lr": 2e-3,
        "max_grad_norm": 2.0,
        "precision": "bfloat16",
        "deterministic": True,
        "residual_stream": "bfloat16",
        "mask_documents": True,
        "init_seed_shift": 1,
        "data_seed_shift": 1,
        "init_perturbation": 2**-20,
    },
    "eval": {"every_steps": 100, "num_windows": 500, "probes": {"loss": {}}},
    "optimizer.adamw": {"betas": [0.9, 0.99], "eps": 1e-9, "weight_decay": 0.1},
    "schedule.wsd": {"warmup_steps": 61, "decay_fraction": 0.3},
}


def altered(recipe: Recipe, place: str, name: str) -> Recipe:
    value = OTHER[place][name]
    if place == "eval":
        config, problems = read_eval({**recipe.to_dict()["eval"], name: value})
        assert config is not None
        changed = replace(recipe, eval=config)
    else:
        family = place.partition(".")[0]
        delta = {name: value} if place == "train" else {family: {name: value}}
        config, problems = read_train(delta, recipe.train)
        assert config is not None
        changed = replace(recipe, train=config)
    assert not problems
    return changed


def test_a_stream_in_float32_said_or_not_is_one_run():
    _, recipe = load_base(ROOT / "experiments/base/smollm2-135m.yaml")
    said, problems = read_train({"residual_stream": "float32"}, recipe.train)
    assert said is not None
    assert not problems
    assert run_key(replace(recipe, train=said).identity(), 0) == run_key(recipe.identity(), 0)


def test_a_bfloat16_stream_needs_bfloat16_products():
    _, recipe = load_base(ROOT / "experiments/base/tiny.yaml")
    config, _ = read_train({"residual_stream": "bfloat16", "precision": "float32"}, recipe.train)
    assert config is not None
    found = list(config.problems())
    assert [problem.path for problem in found] == [("residual_stream",)]


@given(data=st.data())
def test_a_changed_field_renames_a_run_exactly_where_it_bears_on_losses(data):
    _, recipe = load_base(ROOT / "experiments/base/tiny.yaml")
    places = [(place, name) for place, values in OTHER.items() for name in values]
    chosen = data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=4, unique=True))
    changed = recipe
    for place, name in chosen:
        changed = altered(changed, place, name)
    bears = [(place, name) for place, name in chosen if OBSERVES not in marks(configurations()[place], name)]
    same = run_key(changed.identity(), 0) == run_key(recipe.identity(), 0)
    assert same == (not bears), chosen


def test_no_field_is_left_out_above():
    parts = {"optimizer", "schedule"}
    assert set(OTHER["train"]) | parts == TrainConfig.model_fields.keys()
    assert OTHER["eval"].keys() == EvalConfig.model_fields.keys()
    for place in ("optimizer.adamw", "schedule.wsd"):
        assert OTHER[place].keys() == configurations()[place].model_fields.keys()


class Later(ComponentConfig):
    """A component to which fields came later."""

    first: int
    second: Annotated[float, Neutral(0.0)] = 1.0  # its default has changed since
    third: Annotated[int, OBSERVES] = 3


@given(first=st.integers(), second=st.sampled_from([0.0, 1.0, 2.0]), third=st.integers())
def test_a_later_field_at_its_neutral_value_is_not_in_the_identity(first, second, third):
    config = Later(first=first, second=second, third=third)
    expected = {"first": first} | ({"second": second} if second else {})
    assert bearing(config, config.model_dump()) == expected


@pytest.mark.parametrize("family", COMPONENTS)
def test_components_are_found_by_their_table_and_named_when_misspelt(family):
    registry = {"optimizer": OPTIMIZER, "schedule": SCHEDULE, "probe": PROBE}[family]
    for name, module in COMPONENTS[family].items():
        assert registry[name].__module__ == module
        assert registry.config_class(name).type == name
    (problem,) = registry.read({"type": f"{registry.names[0]}x"})[1][:1]
    assert f"did you mean {registry.names[0]!r}?" in problem.allowed


def test_all_problems_of_a_recipe_s_components_come_at_once():
    _, problems = read_train(
        {
            "optimizer": {"type": "adamww", "betas": [0.9, 1.0], "epss": 1},
            "schedule": {"type": "wsd", "warmup_steps": -1},
            "lrr": 1,
        },
        load_base(ROOT / "experiments/base/tiny.yaml")[1].train,
    )
    found = {".".join(map(str, problem.path)): problem for problem in problems}
    assert found.keys() == {"optimizer.type", "optimizer.betas.1", "optimizer.epss", "schedule.warmup_steps", "lrr"}
    assert "did you mean 'adamw'?" in found["optimizer.type"].allowed
    assert "did you mean 'eps'?" in found["optimizer.epss"].allowed
