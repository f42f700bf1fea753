"""A base that extends another is the file that has all of it written out; what it may not inherit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_variants.errors import ConfigError
from runners.planning import strict_yaml
from runners.planning.bases import load_base
from runners.planning.files import BaseFile
from runners.planning.plan import load_plan
from runners.planning.recipe import Recipe
from tests.conftest import ROOT

SPREAD = {"sd": 0.02, "df": 9.0, "low": 0.01, "high": 0.03, "source": "measured"}
CHANGES: dict[str, list[Any]] = {  # section -> deltas over the micro base, one or none of which a file makes
    "model": [{"norm": {"eps": 1e-6}}, {"attention": {"num_key_value_heads": 1}}, {"num_hidden_layers": 1}],
    "train": [{"num_steps": 20}, {"schedule": {"warmup_steps": 2}}, {"lr": 1e-3, "optimizer": {"weight_decay": 0.0}}],
    "eval": [{"every_steps": 5}, {"num_windows": 4}],
    "data": [{"tokenizer": {"type": "bpe", "vocab_size": 280}}],
    "decide": [{"margin": 0.01}, {"alpha": 0.1, "difference": SPREAD}],
    "checks": [{"hot": {"train": {"lr": 1e-1}, "expect": "worse"}}],
    "blocks": [4],
    "first_seed": [7],
    "budgets": [[0.5]],
}


@pytest.fixture(autouse=True)
def _in_project(project, monkeypatch):
    monkeypatch.chdir(project)


def write(name: str, data: dict[str, Any]) -> Path:
    file = Path(f"experiments/base/{name}.yaml")
    file.write_text(yaml.safe_dump({"name": name, **data}))
    return file


def micro() -> dict[str, Any]:
    data = strict_yaml.load(Path("experiments/base/micro.yaml")).data
    return {name: value for name, value in data.items() if name != "name"}


def merged(over: Any, under: Any) -> Any:
    if not (isinstance(over, dict) and isinstance(under, dict)):
        return over
    return {**under, **{name: merged(value, under.get(name)) for name, value in over.items()}}


def fields(base: BaseFile) -> dict[str, Any]:
    """What a base decides beside its recipe."""
    return base.model_dump(exclude={"name", "extends", "model", "train", "eval"})


def refused(file: Path) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_base(file)
    return list(map(str, error.value.problems))


@given(st.fixed_dictionaries({}, optional={name: st.sampled_from(each) for name, each in CHANGES.items()}))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_delta_is_the_whole_file(delta):
    base, recipe = load_base(write("short", {"extends": "micro", **delta}))
    whole, written = load_base(write("long", merged(delta, micro())))
    assert recipe == written
    assert fields(base) == fields(whole)


def test_a_base_may_extend_one_that_extends(project):
    write("longer", {"extends": "micro", "train": {"num_steps": 60}})
    _, recipe = load_base(write("wider", {"extends": "longer", "model": {"norm": {"eps": 1e-6}}}))
    assert (recipe.train.num_steps, recipe.model.norm.eps) == (60, 1e-6)
    assert load_plan(Path("experiments/micro_theta.yaml"), base="wider").arms[0].recipe == recipe


def test_one_that_changes_nothing_shares_all_runs():
    write("more", {"extends": "micro", "blocks": 9})
    ours, theirs = (load_plan(Path("experiments/micro_theta.yaml"), base=name) for name in ("more", "micro"))
    assert {run.key for run in theirs.runs()} < {run.key for run in ours.runs()}


@pytest.mark.parametrize(
    ("delta", "kept"), [({"blocks": 9}, True), ({"eval": {"num_windows": 4}}, False), ({"train": {"lr": 1e-3}}, False)]
)
def test_a_spread_that_was_measured_holds_for_its_own_recipe_alone(delta, kept):
    public = {"sd": 0.02, "low": 0.01, "high": 0.03, "source": "other people's logs"}
    write("measured", {"extends": "micro", "decide": {"difference": SPREAD, "seed": public}})
    base, _ = load_base(write("child", {"extends": "measured", **delta}))
    assert (base.decide.difference is not None) is kept
    assert base.decide.seed is not None  # which only plans: it was measured on no base of ours


def test_initial_values_of_another_width_are_refused_with_those_that_fit():
    model = {"hidden_size": 96, "attention": {"num_attention_heads": 6, "num_key_value_heads": 2}}
    std = micro()["model"]["init"]["std"]
    (said,) = refused(write("wide", {"extends": "micro", "model": model}))
    width = micro()["model"]["hidden_size"]
    fits = f"{std * (width / 96) ** 0.5:.6g}"
    assert f"96, with the initial std {std:g} that 'micro' has for {width}" in said
    assert f"`init: {{std: {fits}}}`" in said
    _, recipe = load_base(write("wide", {"extends": "micro", "model": {**model, "init": {"std": float(fits)}}}))
    assert recipe.model.init.std == float(fits)


@pytest.mark.parametrize(
    ("delta", "says"),
    [
        ({"extends": "mircro"}, "extends: received unknown base 'mircro'; allowed: did you mean 'micro'?"),
        ({"extends": "own"}, "extends: received own → own; allowed: bases that end somewhere"),
        ({"extends": "micro", "model": {"norm": {"esp": 1e-6}}}, "model.norm.esp: received unknown key 'esp'"),
        ({"extends": "micro", "train": {"schedule": {"warmup_steps": 900}}}, "train.schedule.warmup_steps: received"),
        ({"extends": "micro", "data": {"tokenizer": {"type": "bpe", "vocab_size": 4000}}}, "at least the tokenizer's"),
        ({"extends": "micro", "eval": {"probes": {}}}, "`loss` among them"),
    ],
)
def test_what_is_wrong_is_said_once(delta, says):
    (said,) = refused(write("own", delta))
    assert says in said


def test_extends_takes_a_name():
    assert any("extends: received 3" in said for said in refused(write("own", {"extends": 3})))


def test_a_circle_is_named():
    write("a", {"extends": "b"})
    (said,) = refused(write("b", {"extends": "a"}))
    assert "extends: received b → a → b" in said


@pytest.mark.parametrize("name", ["smollm2-135m-8m", "smollm2-135m-published"])
def test_ours_that_extend_are_one_page(name):
    file = ROOT / f"experiments/base/{name}.yaml"
    base, recipe = load_base(file)
    assert base.extends == "smollm2-135m"
    assert isinstance(recipe, Recipe)
    assert len(file.read_text().splitlines()) < 25
