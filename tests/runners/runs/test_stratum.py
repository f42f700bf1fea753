"""What counts as the code of a run: what it executes, as the syntax tree has it, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analysis.store.stratum import Stratum
from llama_variants import ConfigError
from runners.planning.bases import find_file, load_base
from runners.runs.proofs import proven
from runners.runs.stratum import NOT_EXECUTED, WHOLE, stratum, told
from tests.conftest import ROOT

CPU = torch.device("cpu")

CODE = """
import json, sys
from pathlib import Path
from runners.planning.bases import find_file, load_base
from runners.runs.stratum import executed
from llama_variants.meaning import digest, forget
_, recipe = load_base(find_file("base", "tiny"))
for line in sys.stdin:  # files and the texts that they have for the moment
    texts = json.loads(line)
    forget()
    before = {file: Path(file).read_text() for file in texts}
    for file, text in texts.items():
        Path(file).write_text(text)
    print(json.dumps({part: digest(meaning) for part, meaning in executed(recipe).items()}), flush=True)
    for file, text in before.items():
        Path(file).write_text(text)
"""


@pytest.fixture(scope="module")
def code_after(tmp_path_factory) -> Iterator[Callable[..., dict[str, str]]]:
    """The code of the control's recipe, by part, in a copy of the project with edits: (file, pattern, replacement)."""
    copy = tmp_path_factory.mktemp("copy")
    for folder in ("llama_variants", "runners", "analysis", "experiments"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "results", "bench"))
    command, environment = [sys.executable, "-c", CODE], {"PYTHONPATH": str(copy)}
    with subprocess.Popen(
        command, cwd=copy, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:

        def code(*edits: tuple[str, str, str]) -> dict[str, str]:
            texts: dict[str, str] = {}
            for file, pattern, replacement in edits:
                texts[file], count = re.subn(pattern, replacement, texts.get(file, (copy / file).read_text()), count=1)
                assert count == 1, (file, pattern)
            assert child.stdin
            assert child.stdout
            child.stdin.write(json.dumps(texts) + "\n")
            child.stdin.flush()
            return json.loads(child.stdout.readline())

        yield code
        assert child.stdin
        child.stdin.close()


RELU = '''

@MLP.register("relu")
class ReLUMLP(nn.Module):
    """Another block."""

    class Config(BlockConfig):
        intermediate_size: PositiveInt

        def cost(self, model, seq_len):
            return Cost()
'''


def test_what_computes_nothing_leaves_the_code_alone(code_after):
    """A comment, a docstring, a type, hf.py, a new block, another block's body, another optimizer's file, the plan."""
    edits = (
        ("llama_variants/blocks/norm.py", "class LlamaRMSNorm", "# a comment\nclass LlamaRMSNorm"),
        ("llama_variants/blocks/norm.py", r"torch\.tanh\(", "2 * torch.tanh("),
        ("llama_variants/blocks/mlp.py", r"\Z", RELU),
        ("llama_variants/hf.py", r"\Z", "\nX = 1\n"),
        ("runners/training/loop.py", '"""The training loop\\.', '"""Another docstring of the training loop.'),
        ("runners/training/loop.py", r"optimizer\.set_lr\(lr\)", "optimizer.set_lr(lr)  # of this step"),
        ("runners/training/gradients.py", "micro_batch: int\\) -> Tensor:", "micro_batch: float) -> Tensor:"),
        ("runners/training/schedules/cosine.py", "0\\.1", "0.2"),
        ("runners/planning/plan.py", "base_name is None", "base_name == None"),
    )
    assert code_after(*edits) == code_after()


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        (("llama_variants/blocks/norm.py", r"self\.eps\)\.to", "self.eps * 2).to"), "norm.rms"),
        (("runners/training/loop.py", r"config\.lr \* schedule", "2 * config.lr * schedule"), "training"),
        (("runners/training/optimizers/adamw.py", '"weight_decay": 0.0', '"weight_decay": 0.1'), "optimizer.adamw"),
        (("runners/training/optimizers/base.py", r"p\.dim\(\) >= 2", "p.dim() >= 3"), "optimizer.adamw"),
        (("runners/training/schedules/wsd.py", r"step \+ 1", "step + 2"), "schedule.wsd"),
        (
            ("runners/evaluation/subject.py", r"windows\(self\.num_windows", "windows(2 * self.num_windows"),
            "evaluation",
        ),
        (("llama_variants/blocks/masks.py", r"def extent\(", "Z = 1\n\n\ndef extent(*, z=Z, "), "model"),
        (("runners/evaluation/loss.py", "found.loss_nats,", "2 * found.loss_nats,"), "probe.loss"),
        (("runners/data/batches.py", r"\Z", "\nX = 1\n"), "data"),
        (("llama_variants/model.py", "IGNORED = -100", "IGNORED = -101"), "model"),
        (
            ("llama_variants/registry.py", "projection.residual_output = True", "projection.residual_output = 2"),
            "mlp.swiglu",
        ),
    ],
)
def test_a_changed_literal_changes_its_part(code_after, edit, part):
    before, after = code_after(), code_after(edit)
    changed = {name for name in before if before[name] != after[name]}
    assert part in changed
    assert len(changed) <= 2  # attention names residual_output, too


def test_every_module_that_a_run_imports_counts_or_says_why_not(project):
    """After a real run, in a process of its own."""
    run = """
import json, sys, torch
from pathlib import Path
from runners.execution.one_run import RunOptions, execute
from runners.planning.plan import load_plan
from runners.runs.folder import RunFolder
from runners.runs.signals import StopRequest
planned = load_plan(Path("experiments/micro_theta.yaml")).runs()[0]
folder = RunFolder(Path("runs"), planned.key)
folder.create(planned.recipe, planned.seed)
execute(folder, Path("cache"), "cpu", RunOptions(), StopRequest())
assert folder.status.state == "FINISHED", folder.status
ours = [name for name in sys.modules if name.partition(".")[0] in ("llama_variants", "runners", "analysis")]
print(json.dumps([ours, sorted(folder.status.stratum.definitions)]))
"""
    done = subprocess.run([sys.executable, "-c", run], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours, definitions = json.loads(done.stdout)
    whole = {module for modules in WHOLE.values() for module in modules}
    assert whole <= set(definitions)
    executed = {module for module in ours if module.startswith("runners.training.") and module.count(".") == 2}
    assert executed - {"runners.training.optimizers", "runners.training.schedules"} <= whole
    for module in set(ours) - whole:
        parents = [".".join(module.split(".")[:n]) for n in range(module.count(".") + 1, 0, -1)]
        reason = next((NOT_EXECUTED[name] for name in parents if name in NOT_EXECUTED), None)
        assert reason, f"{module} is neither counted nor on the list that says why not"
    for name in NOT_EXECUTED:
        place = ROOT / name.replace(".", "/")
        assert place.is_dir() or place.with_suffix(".py").is_file(), name
    assert {d.partition(":")[0] for d in definitions if d.startswith("llama_variants.blocks.")} >= {
        "llama_variants.blocks.norm",
        "llama_variants.blocks.mlp",
        "llama_variants.blocks.fused",
    }


def test_the_stratum_names_what_changes_bits():
    _, recipe = load_base(find_file("base", "tiny"))
    here = stratum(recipe, CPU, 2)
    assert here.on_cpu
    assert here.processor.endswith(f"-{torch.backends.cpu.get_cpu_capability()}")
    assert (here.threads, here.torch) == (2, torch.__version__)
    assert Stratum.parse(here.to_json()) == here
    line = Stratum.parse(str(here))
    assert (line.device, line.processor, line.threads, line.code_digest) == (
        here.device,
        here.processor,
        2,
        here.code_digest,
    )
    elsewhere = stratum(recipe, torch.device("meta"), 2)  # as an accelerator: neither bears on what it computes
    assert (elsewhere.processor, elsewhere.threads) == ("", 0)


def test_two_arms_share_all_parts_but_those_of_their_blocks():
    _, recipe = load_base(find_file("base", "tiny"))
    wide, other = (
        recipe.with_model(recipe.model.override(delta))
        for delta in ({"mlp": {"intermediate_size": 128}}, {"mlp": {"type": "relu2"}})
    )
    control = stratum(recipe, CPU, 1)
    assert stratum(wide, CPU, 1) == control
    variant = stratum(other, CPU, 1)
    assert control.code.keys() ^ variant.code.keys() == {"mlp.swiglu", "mlp.relu2"}
    assert control.differs(variant) == []
    assert control.differs(stratum(recipe, CPU, 2)) == ["threads"]


def test_what_changed_is_told_by_its_file():
    norm = "llama_variants.blocks.norm:LlamaRMSNorm"
    before, now = (
        Stratum(device="cpu-x", threads=1, code={"norm.rms": one}, definitions={norm: one, "runners.a": "1"})
        for one in "12"
    )
    assert told(before, now) == "code of norm.rms: llama_variants/blocks/norm.py (LlamaRMSNorm)"
    assert told(now, now) == ""
    assert told(replace(now, threads=2), now) == "threads 2 (now 1)"


digests = st.sampled_from("abcde")
PLACE = {"device": "cpu-x", "processor": "p", "torch": "2.13.0+cpu"}


def proofs(file: Path, chain: list[tuple[str, str]], platform: str = "cpu-x-p-torch2.13.0") -> Path:
    head = {"platform": platform, "losses": 40, "old": "1", "new": "2"}
    file.write_text(json.dumps([head | {"parts": {"norm.rms": pair}} for pair in chain]))
    return file


@given(chain=st.lists(st.tuples(digests, digests), max_size=6), others=st.dictionaries(st.just("model"), digests))
def test_proofs_join_what_they_connect_and_nothing_else(tmp_path_factory, chain, others):
    """Forks, chains and circles: two digests count as one exactly where pairs lead from one to the other."""
    file = proofs(tmp_path_factory.mktemp("proofs") / "proofs.json", chain)
    groups: list[set[str]] = [{digest} for digest in "abcde"]
    for pair in chain:
        joined = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if group not in joined] + [set().union(*joined)]
    for a in "abcde":
        for b in "abcde":
            first, second = (Stratum(**PLACE, code={"norm.rms": x, **others}) for x in (a, b))
            alike = any({a, b} <= group for group in groups)
            assert (proven(first, file) == proven(second, file)) == alike, (a, b, chain)
            assert proven(first, file).code.get("model") == others.get("model")
    for old, new in chain[-1:]:
        assert proven(Stratum(**PLACE, code={"norm.rms": old}), file).code["norm.rms"] == new


def test_a_proof_counts_where_it_was_made(tmp_path):
    file = proofs(tmp_path / "proofs.json", [("a", "b")])
    for elsewhere in ({"device": "NVIDIA-H200"}, {"processor": "q"}, {"torch": "2.14.0"}):
        made = Stratum(**PLACE | elsewhere, code={"norm.rms": "a"})
        assert proven(made, file) == made
    assert proven(Stratum(**PLACE, code={"norm.rms": "a"}), file).proven == ("norm.rms",)


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 1}', '[{"parts": null}]', ""])
def test_a_damaged_file_of_proofs_is_named(tmp_path, text):
    file = tmp_path / "proofs.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"proofs.json: .*; allowed: what `make golden-equal` wrote"):
        proven(Stratum(code={"model": "a"}), file)


def test_a_bare_digest_of_the_code_is_not_equal_to_every_code():
    whole = Stratum(**PLACE, code={"norm.rms": "a"})
    line = Stratum.parse(str(whole))
    assert line.differs(whole) == whole.differs(line) == []
    assert line.differs(Stratum(**PLACE, code={"norm.rms": "b"})) == ["code"]
