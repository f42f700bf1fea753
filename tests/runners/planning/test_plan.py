"""From YAML to a plan: what is varied, what is matched, what is refused."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llama_variants import ConfigError, ModelConfig, build_model
from runners.planning.bases import load_base, load_data
from runners.planning.plan import load_plan
from tests.conftest import ROOT

EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))
BASES = sorted((ROOT / "experiments/base").glob("*.yaml"))
SMOLLM2_DECLARED = {"control": 134_515_008, "mha": 147_786_048, "mqa": 130_091_328}


SEQ_LEN = 64
BASE = "experiments/base/micro.yaml"


@pytest.fixture(scope="module")
def built(made_once) -> Callable[[str], tuple[int, float]]:
    """Parameters of a model as it is built, and FLOPs per token as torch counts them.

    Once for each model: the control and the checks are in every plan, and two workers share the plans.
    """

    @cache
    def counted(model: str) -> tuple[int, float]:
        def fill(folder: Path) -> None:
            one = build_model(ModelConfig.from_dict(json.loads(model)), device="meta")
            tokens = torch.zeros(1, SEQ_LEN, dtype=torch.long, device="meta")
            with FlopCounterMode(display=False) as counter:
                one(tokens).logits.sum().backward()
            params, flops = sum(p.numel() for p in one.parameters()), counter.get_total_flops() / SEQ_LEN
            (folder / "counted.json").write_text(json.dumps([params, flops]))

        name = f"counted-{hashlib.sha256(model.encode()).hexdigest()[:16]}"
        params, flops = json.loads((made_once(name, fill) / "counted.json").read_text())
        return params, flops

    return counted


def arms(plan) -> dict[str, int]:
    return {arm.name: arm.recipe.num_params for arm in plan.arms}


# Of the base with two layers and 17 tokens: what cannot be asked of it, and why.
REFUSED = {
    ("head_tying", "recall"): "variants.untied: received the recipe of 'untied' again, as 'untied/params'",
    ("position_pattern", "recall"): "'every 4' (text); allowed: some of the layers 0 to 1",
    ("sliding_window", "recall"): "variants.local: received the recipe of 'window' again",
}


@pytest.mark.parametrize(("file", "base"), REFUSED, ids=map("-".join, REFUSED))
def test_what_a_base_is_too_small_for_is_refused_with_the_reason(file, base):
    with pytest.raises(ConfigError, match=re.escape(REFUSED[file, base])):
        load_plan(ROOT / f"experiments/{file}.yaml", base=base)


@pytest.mark.parametrize(
    ("file", "base"),
    [
        pytest.param(file, base, marks=() if base.stem == "tiny" else pytest.mark.slow, id=f"{file.stem}-{base.stem}")
        for file, base in itertools.product(EXPERIMENTS, BASES)
        if (file.stem, base.stem) not in REFUSED
    ],
)
def test_every_experiment_plans_on_every_base_at_its_exact_cost(file, base, built):
    plan = load_plan(file, base=base.stem)
    assert plan.arms[0].name == "control"
    for arm in plan.arms:
        params, flops = built(json.dumps(arm.recipe.model.to_dict()))
        assert arm.recipe.num_params == params, arm.name
        assert arm.recipe.model.flops_per_token(SEQ_LEN, causal=False) == pytest.approx(flops, rel=0.01), arm.name
    keys = [run.key for run in plan.runs()]
    assert len(set(keys)) == len(keys)  # no run stands for two


def test_head_grouping_at_full_size():
    plan = load_plan(ROOT / "experiments/head_grouping.yaml")
    got = arms(plan)
    assert SMOLLM2_DECLARED.items() <= got.items()
    assert got["mha/params"] == SMOLLM2_DECLARED["control"]  # MLP 1280 matches exactly
    by_name = {arm.name: arm for arm in plan.arms}
    assert by_name["mha/params"].diff["model.mlp.intermediate_size"] == (1536, 1280)
    assert by_name["mha/params"].solved == ("model.mlp.intermediate_size",)
    assert by_name["mqa/params"].diff["model.mlp.intermediate_size"] == (1536, 1624)
    assert by_name["mqa"].diff == {
        "model.attention.type": ("gqa", "mqa"),
        "model.attention.num_key_value_heads": (3, 1),
    }
    assert by_name["mqa"].expect == "worse"


def test_another_kind_of_mlp_is_matched_by_its_width():
    by_name = {arm.name: arm for arm in load_plan(ROOT / "experiments/mlp_activation.yaml").arms}
    assert "geglu/params" not in by_name  # as many as the control's already
    matched = by_name["relu2/params"]
    assert matched.recipe.num_params == SMOLLM2_DECLARED["control"]  # two projections of 3/2 the width
    assert matched.diff == {"model.mlp.type": ("swiglu", "relu2"), "model.mlp.intermediate_size": (1536, 2304)}


def test_a_layer_s_difference_is_held_against_the_control_s_value():
    by_name = {arm.name: arm for arm in load_plan(ROOT / "experiments/position_pattern.yaml").arms}
    at = "model.layers.3,7,11,15,19,23,27.rotary"
    assert by_name["nope_every_4"].diff == {f"{at}.type": ("rope", "nope"), f"{at}.theta": (10_000.0, None)}
    windows = {arm.name: arm for arm in load_plan(ROOT / "experiments/sliding_window.yaml").arms}
    local = "model.layers.0-2,4-6,8-10,12-14,16-18,20-22,24-26,28-29.attention"
    assert windows["local_global"].diff == {
        f"{local}.type": ("gqa", "sliding_window"),
        f"{local}.window_size": (None, 256),
    }
    flops = [windows[name].recipe.flops_per_token for name in ("local", "local_global", "control")]
    assert flops == sorted(flops)


def test_screening_and_seed_override():
    plan = load_plan(ROOT / "experiments/demo.yaml", seeds=1)
    assert plan.screen
    assert [len(arm.runs) for arm in plan.arms] == [1, 1, 1, 1]
    full = load_plan(ROOT / "experiments/demo.yaml", seeds=5)
    assert not full.screen
    assert {run.key for run in plan.runs()} <= {run.key for run in full.runs()}  # a screen is not wasted


def test_a_variant_with_blocks_of_its_own_is_no_screen(project):
    edit(project, "blocks: 3", "blocks: 1", BASE)
    file = project / "experiments/micro_theta.yaml"
    assert load_plan(file).screen
    edit(project, "  theta_100: {", "  theta_100: {blocks: 2, ")
    assert not load_plan(file).screen
    assert {arm: len(runs) for arm, runs in keys(project).items()} == {"control": 2, "twin": 1, "theta_100": 2}


def test_the_name_of_a_second_stage_is_taken(project):
    with pytest.raises(ConfigError, match="NAME-confirm is the second stage of NAME"):
        load_plan(edit(project, "name: micro-theta", "name: micro-theta-confirm"))


def edit(project: Path, old: str, new: str, file: str = "experiments/micro_theta.yaml") -> Path:
    path = project / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return project / "experiments/micro_theta.yaml"


@pytest.fixture(autouse=True)
def _in_project(project, monkeypatch):
    monkeypatch.chdir(project)


def keys(project: Path) -> dict[str, list[str]]:
    plan = load_plan(project / "experiments/micro_theta.yaml")
    return {arm.name: [run.key for run in arm.runs] for arm in plan.arms}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("lr: 1e-2", "lr: 0.011"),
        ("num_steps: 30", "num_steps: 31"),
        ("eps: 1e-5", "eps: 1e-6"),
        ("num_windows: 8", "num_windows: 9"),
        ("precision: float32", "precision: bfloat16"),
        ("bpe, vocab_size: 300", "bpe, vocab_size: 299"),
        ("text/train-*.txt", "text/train-0*.txt"),
    ],
)
def test_whatever_bears_on_the_result_is_in_the_identity(project, old, new):
    before = keys(project)
    edit(project, old, new, "experiments/base/micro.yaml")
    after = keys(project)
    assert all(set(before[arm]).isdisjoint(after[arm]) for arm in before)


def test_a_changed_text_file_changes_the_identity(project):
    before = keys(project)
    (project / "text/train-00.txt").write_text("something else")
    assert set(before["control"]).isdisjoint(keys(project)["control"])


def test_what_does_not_bear_on_the_result_is_not_in_the_identity(project):
    before = keys(project)
    edit(project, "expansion: 8/3", "intermediate_size: 64", "experiments/base/micro.yaml")  # the same width
    edit(project, "margin: 0.05", "margin: 0.01", "experiments/base/micro.yaml")
    edit(project, "Does theta matter here?", "Well?")
    (project / "moved").mkdir()
    for name in ("experiments", "text"):
        shutil.move(project / name, project / "moved" / name)
    import os

    os.chdir(project / "moved")
    assert keys(project / "moved") == before


def test_layers_that_a_base_has_already_are_no_difference(project):
    base = project / "experiments/base/micro.yaml"
    base.write_text(base.read_text().replace("data:\n", "  layers: {0: {rotary: {type: nope}}}\ndata:\n", 1))
    edit(project, "{rotary: {theta: 100.0}}", "{layers: {1: {rotary: {type: nope}}}}")
    (arm,) = [arm for arm in load_plan(project / "experiments/micro_theta.yaml").arms if arm.role == "variant"]
    changed = {"model.layers.1.rotary.type": ("rope", "nope"), "model.layers.1.rotary.theta": (10_000.0, None)}
    assert arm.diff == changed


def problems(project: Path, text: str) -> list[str]:
    file = project / "experiments/bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_plan(file)
    return [str(problem) for problem in caught.value.problems]


def test_four_mistakes_in_one_message(project):
    found = problems(
        project,
        "name: bad\n"
        "version: 1\n"
        "question: what?\n"
        "base: micro\n"
        "variants:\n"
        "  a: {model: {attention: {type: gqqa}}}\n"
        "  b:\n"
        "    model:\n"
        "      norm: {eps: '1e-6'}\n"
        "      norm: {eps: 1e-6}\n"
        "  c: {model: {attention: {num_attention_heads: 9, queries_per_kv: 2}}}\n",
    )
    assert len(found) == 4
    assert (
        "bad.yaml:6: variants.a.model.attention.type: received 'gqqa' (text); allowed: did you mean 'gqa'?" in found[0]
    )
    assert "bad.yaml:9: variants.b.model.norm.eps: received '1e-6' (text); allowed: a finite number" in found[1]
    assert "bad.yaml:10: variants.b.model.norm: received the key 'norm' a second time" in found[2]
    assert "bad.yaml:11: variants.c.model.attention.queries_per_kv: received 2; allowed: a divisor of the 9" in found[3]


HEAD = "name: bad\nversion: 1\nquestion: what?\nbase: micro\n"


THETA = "variants: {a: {model: {rotary: {theta: 3.0}}}}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a mapping with keys out of"),
        ("- 1\n", "a mapping with keys out of"),
        (HEAD.replace("base: micro", "base: mirco"), "did you mean 'micro'"),
        (HEAD.replace("version: 1", "version: 2"), "allowed: 1"),
        (HEAD.replace("name: bad", "name: a/b"), "such as mlp_half"),
        (HEAD + "block: 3\n", "did you mean 'blocks'"),
        (HEAD + "blocks: 0\n", "at least 1"),
        (HEAD + "blocks: [0, 1, 2]\n", "a whole number"),
        (HEAD + "first_seed: -1\n", "at least 0"),
        (HEAD + "looks: []\n", "at least 1"),
        (HEAD + "looks: [1, 3]\n", "at least 2"),
        (HEAD + "looks: [3, 3]\n", "ascending numbers of blocks"),
        (HEAD + "looks: [5, 3]\n", "ascending numbers of blocks"),
        (HEAD + "looks: [3, 201]\n", "at most 200"),
        (HEAD + "looks: 3\n", "a list, such as"),
        (HEAD + "blocks: 5\nlooks: [3, 8]\n", "blocks: received 5; allowed: 8, the last of `looks`"),
        (HEAD + "design: paired\n", "'blocks' or 'independent'"),
        (HEAD + "looks: [3, 5]\ndesign: independent\n", "or `blocks:` instead of looks"),
        (HEAD + "variants: {a: {}}\n", "at least one changed value"),
        (HEAD + "variants: {a: {model: {rotary: {theta: 10000.0}}}}\n", "at least one changed value"),
        (
            HEAD + "variants: {twin: {model: {rotary: {theta: 3.0}}}}\n",
            "differs from the base's 'twin' in more than case",
        ),
        (HEAD + "variants: {a: {modle: {rotary: {theta: 3.0}}}}\n", "did you mean 'model'"),
        (HEAD + "variants: {a: {train: {lrr: 3.0}}}\n", "did you mean 'lr'"),
        (HEAD + "variants: {a: {train: {tokens_per_step: 33}}}\n", "a multiple of seq_len (32)"),
        (HEAD + "variants: {a: {train: {seq_len: 64, tokens_per_step: 64}}}\n", "max_position_embeddings (32)"),
        (HEAD + "variants: {a: {train: {schedule: {warmup_steps: 28}}}}\n", "at most the 30 steps"),
        (HEAD + "variants: {a: {model: {vocab_size: 100}}}\n", "at least the tokenizer's 300"),
        (HEAD + "match: [flops]\n", "'tokens' or 'params'"),
        (HEAD + "match: [tokens, tokens]\n", "each mode once"),
        (HEAD.replace("version: 1", "version: true"), "allowed: 1"),
        (HEAD + "variants: {a: {train: {num_steps: 60}}}\n", "the base's 3,840 tokens"),
        (HEAD + "variants: {a: {train: {seq_len: 16}}}\n", "losses in windows of another length"),
        (HEAD + "variants: {a: {train: {optimizer: {betas: [0.9, 1.0]}}}}\n", "less than 1"),
        (HEAD + "variants: {a: {model: {mlp: {expansion: big}}}}\n", "a fraction such as 8/3"),
        (HEAD + "match: [params]\nvariants: {a: {model: {num_hidden_layers: 400}}}\n", "no MLP width can match"),
        (
            HEAD + "match: [params]\nvariants: {a: {model: {layers: {0-1: {mlp: {intermediate_size: 8}}}}}}\n",
            "no MLP width can match",
        ),
        (HEAD + "blocks: 201\n", "at most 200"),
        (HEAD + f"variants: {{a: {{train: {{lr: {'9' * 5000}}}}}}}\n", "plain values"),
        (HEAD + "variants: " + "[" * 3000 + "\n", "nested too deep"),
        (HEAD + "match: [params]\nvariants: {a: {model: {mlp: {expansion: 2}}}}\n", "match: [tokens]"),
        (HEAD + "variants: {a: {model: {rotary: {theta: 3.0}}}}\nexpect: {b: worse}\n", "one of a"),
        (HEAD + "variants: {a: {model: {rotary: {theta: 3.0}}}}\nexpect: {a: wrose}\n", "'same', 'worse' or 'better'"),
        (HEAD + "variants: {a: {model: {rotary: {theta: true}}}}\n", "received True"),
        (HEAD + "variants: {a: {model: {rotary: {theta: .inf}}}}\n", "a finite number"),
        (HEAD + "variants: {a: {model: [1]}}\n", "mapping"),
        (HEAD + THETA + "confirm: {variants: [b]}\n", "unknown variant 'b'"),
        (HEAD + THETA + "confirm: {variants: [twin]}\n", "unknown variant 'twin'"),
        (HEAD + THETA + "confirm: {variants: []}\n", "at least 1"),
        (HEAD + THETA + "confirm: {variants: [a], blocks: 0}\n", "at least 1"),
        (
            HEAD + THETA.replace("{model", "{blocks: 4, model") + "looks: [2, 3]\n",
            "variants.a.blocks: received 4; allowed: 3",
        ),
    ],
)
def test_single_mistakes(project, text, says):
    found = problems(project, text)
    assert any(says in problem for problem in found), found
    assert all("bad.yaml:" in problem for problem in found)


def test_a_wrong_head_hides_no_problem_of_a_variant(project):
    """Neither a missing version nor blocks of the wrong kind keep the base from being read."""
    found = problems(
        project,
        "name: bad\n"
        "question: what?\n"
        "base: micro\n"
        'blocks: "two"\n'
        "variants:\n"
        "  a: {model: {attention: {type: gqaa}}}\n"
        "  b: {model: {attention: {num_attention_heads: 9, queries_per_kv: 2}}}\n"
        "  c: {model: {norm: {esp: 1e-6}}}\n",
    )
    assert [problem.partition("received")[0].partition("bad.yaml:")[2] for problem in found] == [
        "1: version: ",
        "4: blocks: ",
        "6: variants.a.model.attention.type: ",
        "7: variants.b.model.attention.queries_per_kv: ",
        "8: variants.c.model.norm.esp: ",
    ]


@pytest.mark.parametrize(
    "head",
    [
        "name: [bad]\nversion: 1\nquestion: what?\nbase: micro\n",
        HEAD + "match: {}\n",
        HEAD + "budgets: 2\nplugins: 3\n",
    ],
)
def test_no_wrong_field_of_the_head_hides_a_variant_s(project, head):
    found = problems(project, head + "variants: {a: {model: {norm: {esp: 1e-6}}}}\n")
    assert any("variants.a.model.norm.esp" in problem for problem in found), found
    assert len(found) >= 2


@pytest.mark.parametrize(
    ("variants", "says"),
    [
        ("{a: {train: {lr: 2e-2}}, b: {train: {lr: 2e-2}}}", "variants.b: received the recipe of 'a' again"),
        # Two ways to write one width, and a key whose value is the base's.
        (
            "{a: {model: {mlp: {expansion: 2}}}, b: {model: {mlp: {intermediate_size: 48}, norm: {eps: 1e-5}}}}",
            "variants.b: received the recipe of 'a' again",
        ),
        # A block in all layers that differ, and in none.
        (
            "{a: {model: {mlp: {type: gelu}}}, b: {model: {layers: {0-1: {mlp: {type: gelu}}}}}}",
            "variants.b: received the recipe of 'a' again",
        ),
        ("{no_position: {model: {rotary: {type: nope}}}}", "received the recipe of 'nope' again"),
    ],
)
def test_an_equal_arm_names_its_twin(project, variants, says):
    edit(project, "checks:\n", "checks:\n  nope: {model: {rotary: {type: nope}}, expect: worse}\n", BASE)
    (found,) = problems(project, HEAD + f"variants: {variants}\n")
    assert says in found


def test_an_arm_that_matching_makes_equal_names_its_twin(project):
    """An ungated MLP of one and a half times the width has the control's parameters exactly."""
    file = project / "experiments/bad.yaml"
    text = HEAD + "match: [tokens, params]\nvariants: {a: {model: {mlp: {type: gelu}}}}\n"
    file.write_text(text)
    solved = {arm.name: arm.recipe.model.mlp.intermediate_size for arm in load_plan(file).arms}["a/params"]
    (found,) = problems(
        project, text.replace("}}}}", f"}}}}}}, b: {{model: {{mlp: {{type: gelu, intermediate_size: {solved}}}}}}}}}")
    )
    assert "variants.b: received the recipe of 'a/params' again" in found


@pytest.mark.parametrize("other", ["A", "CONTROL", "Twin"])
def test_names_that_differ_in_case_alone_are_refused(project, other):
    (found,) = problems(project, HEAD + f"variants: {{a: {{train: {{lr: 2e-2}}}}, {other}: {{train: {{lr: 3e-2}}}}}}\n")
    assert f"variants.{other}: received the name '{other}'" in found
    assert "in more than case" in found


def test_common_parts_are_written_once(project):
    file = project / "experiments/micro_theta.yaml"
    file.write_text(
        "x-common: &slow {train: {lr: 2e-3}}\n" + HEAD + "variants:\n"
        "  a: {<<: *slow, model: {norm: {eps: 1e-6}}}\n"
        "  b: {train: {lr: 3e-3}, <<: *slow}\n"
    )
    rates = {arm.name: arm.recipe.train.lr for arm in load_plan(file).arms if arm.role == "variant"}
    assert rates == {"a": 2e-3, "b": 3e-3}


def test_an_experiment_anywhere_finds_the_project_s_bases(tmp_path, monkeypatch):
    file = tmp_path / "elsewhere.yaml"
    file.write_text(HEAD.replace("micro", "tiny") + THETA)
    monkeypatch.chdir(tmp_path)
    assert load_plan(file).arms[0].recipe == load_base(ROOT / "experiments/base/tiny.yaml")[1]


def test_a_confirmation_has_fresh_blocks_and_a_name_of_its_own(project):
    before = keys(project)
    edit(project, "base: micro", "base: micro\nconfirm: {variants: [theta_100], blocks: 4}")
    plan = load_plan(project / "experiments/micro_theta.yaml")
    assert keys(project) == before  # the first stage is what it was
    first, second = plan.stages
    assert {arm.name: [run.seed for run in arm.runs] for arm in second.arms} == {
        "control": [3, 4, 5, 6],
        "theta_100": [3, 4, 5, 6],
    }
    assert (second.first_seed, second.design().first_seed) == (3, 3)
    assert (first.design().experiment, second.design().experiment) == ("micro-theta-micro", "micro-theta-confirm-micro")
    assert (first.design().confirms, second.design().confirms) == (False, True)
    edit(project, "blocks: 4}", "blocks: 1}\nlooks: [2, 4]")
    first, second = load_plan(project / "experiments/micro_theta.yaml").stages
    assert (first.looks, second.looks) == ((2, 4), ())  # a confirmation is judged once
    assert (first.screen, second.screen) == (False, True)
    assert second.first_seed == 4


def test_budgets_are_the_control_on_other_numbers_of_tokens(project):
    before = keys(project)
    edit(project, "blocks: 3", "budgets: [2, 0.5]\nblocks: 3", BASE)
    assert keys(project) == before  # not run by every experiment …
    plan = load_plan(project / "experiments/micro_theta.yaml")
    design = plan.design()
    assert [(arm.name, arm.tokens, len(arm.run_keys)) for arm in design.budgets] == [
        ("tokens_2x", 7680, 3),
        ("tokens_0.5x", 1920, 3),
    ]
    edit(project, "base: micro", "base: micro\nbudgets: true")
    running = load_plan(project / "experiments/micro_theta.yaml")  # … but by the one that says so
    assert {run.key for run in plan.elsewhere()} == {run.key for run in running.runs()} - {
        run.key for run in plan.runs()
    }
    assert running.elsewhere() == []
    assert running.design().budgets == design.budgets
    (half,) = (arm for arm in running.arms if arm.name == "tokens_0.5x")
    assert half.diff == {"train.num_steps": (30, 15)}


@pytest.mark.parametrize(
    ("budgets", "says"),
    [("[1]", "other than 1"), ("[2, 2]", "once"), ("[0.07]", "warmup"), ("[17]", "16"), ("2", "a list, such as")],
)
def test_impossible_budgets_are_refused(project, budgets, says):
    file = edit(project, "blocks: 3", f"budgets: {budgets}\nblocks: 3", BASE)
    with pytest.raises(ConfigError, match=says):
        load_plan(file)


def test_a_variant_with_a_problem_is_no_unknown_variant(project):
    found = problems(project, HEAD + "variants: {a: {modle: {}}}\nexpect: {a: worse}\n")
    assert len(found) == 1
    assert "did you mean 'model'" in found[0]


def test_a_match_that_is_met_already_adds_no_arm(project):
    edit(project, "variants:", "match: [tokens, params]\nvariants:")
    assert list(keys(project)) == ["control", "twin", "theta_100"]


def test_an_experiment_s_blocks_win_over_its_base_s(project):
    edit(project, "blocks: 3", "blocks: 3\nfirst_seed: 50", BASE)
    assert load_plan(project / "experiments/micro_theta.yaml").first_seed == 50
    edit(project, "base: micro", "base: micro\nblocks: 4\nfirst_seed: 0")  # 0 is said, too
    plan = load_plan(project / "experiments/micro_theta.yaml")
    assert (plan.blocks, plan.first_seed) == (4, 0)


def test_every_problem_of_a_base_has_its_line(project):
    file = edit(
        project,
        "twin: {train: {init_perturbation: 9.5367431640625e-07}, expect: same}",
        "control: {expect: same, model: {rotary: {tehta: 1.0}}}",
        "experiments/base/micro.yaml",
    )
    edit(project, "tokens_per_step: 128", "tokens_per_step: 129", "experiments/base/micro.yaml")
    edit(project, "text/validation-*.txt", "text/absent-*.txt", "experiments/base/micro.yaml")
    with pytest.raises(ConfigError) as caught:
        load_plan(file)
    found = [str(problem) for problem in caught.value.problems]
    assert len(found) == 4
    lines = (project / "experiments/base/micro.yaml").read_text().splitlines()
    for text, part in (
        ("absent", "which matches no file"),
        ("129", "a multiple of seq_len"),
        ("tehta", "did you mean 'theta'"),
        ("tehta", "the name 'control'"),
    ):
        (line,) = (i for i, written in enumerate(lines, start=1) if text in written)
        assert any(f"micro.yaml:{line}: " in problem and part in problem for problem in found), (line, part, found)


def test_a_broken_base_is_reported_with_its_own_lines(project):
    file = edit(project, "theta: 10000.0", "theta: '10000'", "experiments/base/micro.yaml")
    with pytest.raises(ConfigError, match=r"micro.yaml:9: model.rotary.theta: received '10000'"):
        load_plan(file)


DATA = """
source: {type: files, train: [text/train-*.txt], validation: [text/validation-*.txt]}
tokenizer: {type: bpe, vocab_size: 300}
"""


def name_data(project: Path, text: str = DATA, name: str = "words") -> Path:
    """The project's base, with its data in a file of its own."""
    (project / "experiments/data").mkdir()
    (project / f"experiments/data/{name}.yaml").write_text(text)
    base = project / "experiments/base/micro.yaml"
    written = base.read_text()
    start, end = written.index("data:"), written.index("train:\n")
    base.write_text(f"{written[:start]}data: words\n{written[end:]}")
    return base


def test_data_in_a_file_of_its_own_is_the_same_data(project, monkeypatch):
    monkeypatch.chdir(project)
    base = project / "experiments/base/micro.yaml"
    inline = load_base(base)[1].identity()
    assert load_base(name_data(project))[1].identity() == inline


def test_an_experiment_may_ask_on_other_data(project, monkeypatch):
    monkeypatch.chdir(project)
    file = project / "experiments/micro_theta.yaml"
    spread = "{sd: 0.02, df: 9, low: 0.01, high: 0.03, source: measured}"
    edit(project, "margin: 0.05}", f"margin: 0.05, difference: {spread}}}", BASE)
    before = load_plan(file)
    name_data(project)
    (project / "experiments/data/fewer.yaml").write_text(DATA.replace("train-*", "train-0*"))
    file.write_text(file.read_text() + "data: fewer\n")
    plan = load_plan(file)
    assert {run.recipe.data.source.train for run in plan.runs()} == {("text/train-0*.txt",)}
    assert {run.key for run in plan.runs()}.isdisjoint(run.key for run in before.runs())
    assert plan.prior is not None
    assert before.prior is not None
    assert plan.prior.source == f"{before.prior.source}; on the base's own data"


def test_other_data_must_fit_the_base_s_model(project):
    """It is said of the line that names the data, and the variants are checked all the same."""
    name_data(project)
    (project / "experiments/data/large.yaml").write_text(DATA.replace("vocab_size: 300", "vocab_size: 4000"))
    found = problems(project, HEAD + "data: large\nvariants: {a: {model: {norm: {esp: 1e-6}}}}\n")
    assert "bad.yaml:5: data: received 'large', with which model.vocab_size would be 300" in found[0]
    assert "at least the tokenizer's 4000" in found[0]
    assert "norm.esp" in found[1]
    assert len(found) == 2


@pytest.mark.parametrize("whose", ["base", "experiment"])
def test_data_that_is_not_there_is_named_with_its_line(project, monkeypatch, whose):
    monkeypatch.chdir(project)
    name_data(project)
    file = project / f"experiments/{'base/micro' if whose == 'base' else 'micro_theta'}.yaml"
    file.write_text(file.read_text().replace("data: words", "") + "\ndata: wrods\n")
    with pytest.raises(ConfigError) as error:
        load_plan(project / "experiments/micro_theta.yaml")
    (problem,) = error.value.problems
    assert problem.where.startswith(str(file))
    assert problem.where.endswith(str(len(file.read_text().splitlines())))
    assert "did you mean 'words'" in problem.allowed


def test_a_broken_data_file_is_reported_with_its_own_lines(project, monkeypatch):
    monkeypatch.chdir(project)
    name_data(project, DATA.replace("vocab_size: 300", "vocab_size: many"))
    with pytest.raises(ConfigError) as error:
        load_plan(project / "experiments/micro_theta.yaml")
    (problem,) = error.value.problems
    assert problem.where.endswith("experiments/data/words.yaml:3")


@pytest.mark.parametrize("file", sorted((ROOT / "experiments/data").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_data_file_is_pinned(file):
    identity = load_data(file).identity()
    assert identity["source"]["type"] in ("packages", "hub")


@pytest.mark.parametrize("file", sorted((ROOT / "experiments/base").glob("smollm2-135m*.yaml")), ids=lambda f: f.stem)
def test_every_full_size_base_has_the_model(file):
    base, recipe = load_base(file)
    assert base.name == file.stem
    assert recipe.model == ModelConfig.preset("smollm2-135m")


def test_all_layers_norms_are_not_the_last_norm_too(project):
    """Two variants that are told apart by what is printed of them, as they are by what they compute."""
    file = project / "experiments/bad.yaml"
    norms = "{a: {model: {norm: {eps: 1e-6}}}, b: {model: {layers: {0-1: {norm: {eps: 1e-6}}}}}}"
    file.write_text(HEAD + f"variants: {norms}\n")
    diffs = {arm.name: list(arm.diff) for arm in load_plan(file).arms if arm.role == "variant"}
    assert diffs == {"a": ["model.norm.eps"], "b": ["model.layers.0-1.norm.eps"]}


def test_an_unknown_base_hides_nothing_that_the_head_alone_shows(project):
    found = problems(project, "name: bad\nversion: one\nquestion: what?\nbase: mircro\nblocks: two\n" + THETA)
    assert [problem.partition("bad.yaml:")[2].partition(" received")[0] for problem in found] == [
        "2: version:",
        "4: base:",
        "5: blocks:",
    ]


def test_a_copied_base_must_have_a_name_of_its_own(project):
    """Its results would be kept, and judged, as those of the base that it was copied from."""
    shutil.copy(project / BASE, project / "experiments/base/copied.yaml")
    with pytest.raises(ConfigError, match="name: received 'micro'; allowed: the file's own name, 'copied'"):
        load_plan(project / "experiments/micro_theta.yaml", base="copied")


@pytest.mark.parametrize("written", ["micro_tetha.yaml", "experiments/micro_theta.yml", "micro_theta"])
def test_a_misspelt_file_is_answered_with_the_one_that_is_there(project, written):
    with pytest.raises(ConfigError, match=r"did you mean experiments/micro_theta.yaml\?"):
        load_plan(Path(written))


def test_a_path_is_the_one_that_is_written(project):
    """Pydantic's has the type of the source in it."""
    edit(project, "source: {type: files,", "source: {type: files, on_bad_row: never,", BASE)
    with pytest.raises(ConfigError, match=r"data\.source\.on_bad_row: received 'never'"):
        load_plan(project / "experiments/micro_theta.yaml")
