"""Blocks of somebody else's, named by a YAML: no line of the project is touched."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from llama_variants import ConfigError, meaning
from llama_variants.errors import check
from llama_variants.registry import ATTENTION, FAMILIES
from runners.planning.components import OPTIMIZER, SCHEDULE
from runners.planning.files import ExperimentFile
from runners.planning.plan import load_plan
from tests.conftest import ROOT

EXPERIMENT = """
name: plugged
version: 1
question: Does another block do?
base: micro
plugins: [my_blocks]
variants:
  relu: {model: {mlp: {type: relu, intermediate_size: 64}}}
  both: {model: {attention: {type: qk_norm_sliding, window_fraction: 1/4}}}
  tau: {model: {attention: {type: temperature}}}
  theta: {model: {rotary: {theta: 100.0}}}
"""

BOTH = '''
from typing import ClassVar

from llama_variants.blocks.attention import QKNormAttention, SlidingWindowAttention
from llama_variants.registry import ATTENTION


@ATTENTION.register("qk_norm_sliding")
class Both(QKNormAttention, SlidingWindowAttention):
    """Two options at once. Differs from the control by both. Source: Gemma 3 (arXiv:2503.19786)."""

    class Config(QKNormAttention.Config, SlidingWindowAttention.Config):
        """The window and the grouping."""

        alternatives: ClassVar = SlidingWindowAttention.Config.alternatives
'''


def contributing() -> str:
    """The documented example as a module: the imports and the class of CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    codes = [textwrap.dedent(code) for code in re.findall(r"```python\n(.*?) *```", text, flags=re.DOTALL)]
    block, imports, attention, _ = codes
    assert block.startswith("@MLP.register")
    return "\n\n".join((imports, block, attention))


@pytest.fixture
def plugged(project: Path) -> Path:
    (project / "experiments/plugged.yaml").write_text(EXPERIMENT)
    (project / "experiments/my_blocks.py").write_text(contributing() + BOTH)
    return project


def plan(cli) -> dict[str, dict]:
    done = cli("plan", "experiments/plugged.yaml", "--json")
    assert done.returncode == 0, done.stderr
    return {row["arm"]: row for row in json.loads(done.stdout)["arms"]}


def test_the_checklist_is_short():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    checklist = text.split("## Add a block")[1].split("**Without")[0]
    prose = re.sub(r"```.*?```", "", checklist, flags=re.DOTALL).strip().splitlines()
    assert len([line for line in prose if line.strip()]) < 30


def test_a_plan_knows_its_costs_and_its_diff(cli, plugged):
    rows = plan(cli)
    assert rows["relu"]["diff"]["model.mlp.type"] == ["swiglu", "relu"]
    assert rows["relu"]["num_params"] == rows["control"]["num_params"] - 2 * 24 * 64
    assert rows["both"]["diff"]["model.attention.window_size"] == [None, 8]
    assert rows["both"]["num_params"] == rows["control"]["num_params"] + 2 * 2 * 4
    assert rows["tau"]["num_params"] == rows["control"]["num_params"] + 2 * 6
    assert rows["both"]["flops_per_token"] < rows["control"]["flops_per_token"]


@pytest.mark.slow
def test_workers_train_it_and_an_edit_trains_it_again(cli, plugged):
    done = cli("run", "experiments/plugged.yaml", "--jobs", 2, "--seeds", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^relu +1 ", done.stdout, flags=re.MULTILINE)
    assert len(list(plugged.glob("runs/*/config.yaml"))) == 6
    assert "6 runs, 0 left" in cli("plan", "experiments/plugged.yaml", "--seeds", 1).stdout
    with (plugged / "experiments/my_blocks.py").open("a") as file:
        file.write("EDITED = True\n")
    # The three that use it are to be made again; the control, its check and the other variant stand.
    assert "6 runs, 3 left" in cli("plan", "experiments/plugged.yaml", "--seeds", 1).stdout


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (
            None,
            ["plugins.0: received 'my_blocks', which raises ModuleNotFoundError", "or beside this file"],
        ),
        ("import nothing_of_that_name", ["No module named 'nothing_of_that_name'", "my_blocks.py:1"]),
        ("1 / 0", ["ZeroDivisionError: division by zero", "my_blocks.py:1"]),
        ("def", ["SyntaxError"]),
        (
            "from llama_variants.blocks.mlp import LlamaMLP\nfrom llama_variants.registry import MLP\n"
            "@MLP.register('swiglu')\nclass Mine(LlamaMLP):\n    class Config(LlamaMLP.Config): pass\n",
            ["mlp block 'swiglu' is registered twice", "blocks/mlp.py", "my_blocks.py:3"],
        ),
        (
            "from llama_variants.registry import MLP\n@MLP.register('relu')\nclass Mine:\n    pass\n",
            ["mlp block 'relu' must derive from Module", "my_blocks.py:2"],
        ),
    ],
)
def test_a_plugin_that_cannot_be_used_is_named(plugged, monkeypatch, module, says):
    monkeypatch.chdir(plugged)
    monkeypatch.setattr(sys, "path", [*sys.path])
    importlib.invalidate_caches()
    file = plugged / "experiments/my_blocks.py"
    file.unlink() if module is None else file.write_text(module)
    with pytest.raises(ConfigError) as caught:
        load_plan(plugged / "experiments/plugged.yaml")
    assert len(caught.value.problems) == 1  # and nothing of what follows from it
    for words in ["plugged.yaml:6", *says]:
        assert words in str(caught.value)


def test_a_cost_that_is_wrong_is_found_before_anything_runs(cli, plugged):
    file = plugged / "experiments/my_blocks.py"
    file.write_text(file.read_text().replace("self.intermediate_size) * 2", "self.intermediate_size) * 3"))
    done = cli("run", "experiments/plugged.yaml")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for what in ("parameters", "FLOPs"):
        said = rf"plugged.yaml:8: variants.relu.model: received [\d,]+ {what} by its blocks' cost"
        assert re.search(said, done.stderr)
    assert not (plugged / "runs").exists()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("F.relu(self.up_proj(x))", "F.relu(self.up_prj(x))", "'ReLUMLP' object has no attribute 'up_prj'"),
        ("    def init_parameters(self):", "    def init(self):", "has parameters but no init_parameters()"),
        ("def cost(self, model: ModelConfig", "def costs(self, model: ModelConfig", "needs a cost() in its Config"),
        ("return self.down_proj(", "return (", "RuntimeError"),
        ("import torch\n", "import sys\nsys.exit(3)\n", "SystemExit"),
    ],
)
def test_a_slip_in_a_block_is_found_before_anything_runs(plugged, monkeypatch, old, new, says):
    monkeypatch.chdir(plugged)
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = plugged / "experiments/my_blocks.py"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    importlib.invalidate_caches()
    try:
        with pytest.raises(ConfigError) as caught:
            load_plan(plugged / "experiments/plugged.yaml")
    finally:
        sys.modules.pop("my_blocks", None)
        for registry in FAMILIES.values():
            registry.forget("my_blocks")
    assert says in str(caught.value)
    assert re.search(r"\.py:\d+", str(caught.value))


def test_the_summary_tries_a_plugin_out(cli, plugged):
    (plugged / "my_blocks.py").write_text((plugged / "experiments/my_blocks.py").read_text())
    delta = ("--set", "attention.type=temperature")
    done = cli("model", "--model", "experiments/base/micro.yaml", "--plugin", "my_blocks", *delta)
    assert done.returncode == 0, done.stderr
    assert "temperature" in done.stdout
    assert cli("model", "--model", "experiments/base/micro.yaml", *delta).returncode == 2


@pytest.mark.slow
def test_the_suite_runs_on_a_plugin_s_blocks(plugged):
    """As CONTRIBUTING says; and it finds what is wrong with one."""
    file = plugged / "experiments/my_blocks.py"
    environment = os.environ | {"PYTHONPATH": str(file.parent), "PLUGINS": "my_blocks"}

    def suite(which: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "-m", "not slow", "-k", which, "tests/llama_variants"]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    done = suite("temperature or relu or sliding")
    assert done.returncode == 0, done.stdout
    file.write_text(file.read_text().replace("return q * self.tau, k, v", "return q * self.tau, k, v.flip(2)"))
    done = suite("temperature and test_no_token_sees_a_later_one")
    assert done.returncode == 1
    assert "test_no_token_sees_a_later_one[attention=temperature]" in done.stdout


@pytest.mark.parametrize("name", ["../my_blocks", "my blocks", "os; import", "", "3"])
def test_a_plugin_is_a_module_s_name(name):
    _, problems = check(ExperimentFile, {"name": "a", "version": 1, "question": "?", "base": "b", "plugins": [name]})
    assert [problem.path for problem in problems] == [("plugins", 0)]


TWO = """
from llama_variants.blocks.attention import GroupedConfig, LlamaAttention
from llama_variants.registry import ATTENTION
from {helper} import SCALE

@ATTENTION.register("{name}")
class Fixed(LlamaAttention):
    class Config(GroupedConfig):
        temperature: float = 1.0

    def project(self, x):
        q, k, v = super().project(x)
        return q * SCALE, k, v
"""


COUNT = itertools.count()


@pytest.fixture
def fixed(plugged, monkeypatch):
    """Plans with a plugin of two files, whose modules and block have a new name each time."""
    monkeypatch.chdir(plugged)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def identity(temperature: float, scale: float, folder: str = "plans", name: str = "") -> tuple[str, str]:
        i = next(COUNT)
        name, helper, place = name or f"fixed_block_{i}", f"fixed_helper_{i}", plugged / folder
        place.mkdir(exist_ok=True)
        (place / f"{helper}.py").write_text(f"SCALE = {scale}\n")
        (place / f"{name}.py").write_text(TWO.format(helper=helper, name=f"fixed_{i}"))
        importlib.invalidate_caches()
        yaml = EXPERIMENT.split("variants:")[0].replace("my_blocks", name)
        arm = f"variants: {{a: {{model: {{attention: {{type: fixed_{i}, temperature: {temperature}}}}}}}}}\n"
        (place / "fixed.yaml").write_text(yaml + arm)
        plan = load_plan(place / "fixed.yaml")
        (found,) = [arm.recipe.identity() for arm in plan.arms if arm.name == "a"]
        return json.dumps(found["model"]["attention"]), found["semantics"][f"attention.fixed_{i}"]

    yield identity
    for registry in FAMILIES.values():
        for module in [name for name in sys.modules if name.startswith(("fixed_", "twice"))]:
            registry.forget(module)


def test_a_block_s_own_field_is_part_of_its_identity(fixed):
    (cold, _), (hot, _) = fixed(2.0, 1.0), fixed(9.0, 1.0)
    assert '"temperature": 2.0' in cold
    assert '"temperature": 9.0' in hot


def test_what_a_plugin_imports_from_beside_it_is_part_of_its_identity(plugged, fixed):
    _, first = fixed(1.0, 1.0)
    (helper,) = (plugged / "plans").glob("fixed_helper_*.py")
    helper.write_text("SCALE = 2.0\n")
    meaning.forget()  # as a new process would
    assert ATTENTION.version(helper.stem.replace("helper_", "")) != first


def test_a_second_module_of_the_same_name_is_not_taken_for_the_first(fixed):
    fixed(1.0, 1.0, name="twice")
    with pytest.raises(ConfigError, match="'twice', which is another module already"):
        fixed(1.0, 1.0, folder="elsewhere", name="twice")


FLAT = '''
from runners.planning.components import SCHEDULE, ScheduleConfig


@SCHEDULE.register("flat")
class Flat:
    """The peak rate at every step."""

    class Config(ScheduleConfig):
        """No fields of its own."""

    def __init__(self, config, num_steps):
        pass

    def __call__(self, step):
        return 1.0
'''
LION = re.findall(r"```python\n(.*?) *```", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.DOTALL)[-1] + FLAT


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "torch.where(keep, p - ",
            "torch.where(keep | True, p - ",
            "train.optimizer: received Lion, which steps although found_inf",
        ),
        ("def state_numel(self):", "def nothing(self):", "Lion lacks state_numel(): how many numbers its state holds"),
        ("list(model.parameters())", "[model[0].weight]", "whose groups do not hold each parameter once"),
        ("return 1.0", "return 'high'", "train.schedule: received Flat, whose rate is 'high'"),
        ("(RecipeOptimizer)", "(torch.optim.SGD)", "optimizer 'lion' must derive from RecipeOptimizer"),
        ('"lion"', '"adamw"', "optimizer 'adamw' is registered twice"),
    ],
)
def test_parts_of_one_s_own_are_tried_out_before_a_run(project, monkeypatch, old, new, says):
    assert old in LION
    name = f"parts_{abs(hash(says))}"
    (project / f"experiments/{name}.py").write_text(LION.replace(old, new))
    (project / "experiments/lion.yaml").write_text(
        f"name: lion\nversion: 1\nquestion: Do signs do?\nbase: micro\nplugins: [{name}]\n"
        "variants: {lion: {train: {optimizer: {type: lion}, schedule: {type: flat}}}}\n"
    )
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "path", [*sys.path])
    importlib.invalidate_caches()
    try:
        with pytest.raises(ConfigError) as caught:
            load_plan(Path("experiments/lion.yaml"))
    finally:
        for registry in (OPTIMIZER, SCHEDULE):
            registry.forget(name)
    assert says in str(caught.value)


def test_an_optimizer_and_a_schedule_of_one_s_own_work_as_a_block_does(cli, project):
    (project / "experiments/my_parts.py").write_text(LION)
    (project / "experiments/lion.yaml").write_text(
        "name: lion\nversion: 1\nquestion: Do signs do?\nbase: micro\nplugins: [my_parts]\n"
        "variants: {lion: {train: {optimizer: {type: lion}, schedule: {type: flat}}}}\n"
    )
    done = cli("train", "experiments/lion.yaml", "lion")
    assert done.returncode == 0, done.stderr + done.stdout
    (status,) = (json.loads(file.read_text()) for file in project.glob("runs/*/status.json"))
    assert {"optimizer.lion", "schedule.flat"} <= status["stratum"]["code"].keys()
    assert "my_parts" in status["stratum"]["definitions"]
    key = next(project.glob("runs/*/status.json")).parent.name
    edited = LION.replace("1 - self.beta", "1.0 - self.beta")
    (project / "experiments/my_parts.py").write_text(edited.replace("# ", "#  "))
    done = cli("train", "experiments/lion.yaml", "lion")
    assert done.returncode == 0, done.stderr
    assert len(list(project.glob("runs/*/status.json"))) == 2, key  # its source names its runs
    wrong = (project / "experiments/lion.yaml").read_text().replace("type: lion", "type: lyon, beta: two")
    (project / "experiments/lion.yaml").write_text(wrong)
    done = cli("plan", "experiments/lion.yaml")
    assert done.returncode == 2
    assert "did you mean 'lion'?" in done.stderr
    assert "variants.lion.train.optimizer.beta: received 'two' (text)" in done.stderr
