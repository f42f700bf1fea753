"""The bench: what it measures is what runs do, its arithmetic, and what it prints and keeps."""

from __future__ import annotations

import gc
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from analysis.report.bench_figure import figure
from llama_variants import build_model
from runners.bench import contenders, measure
from runners.bench.blocks import AGAIN, variants
from runners.bench.contenders import CONTENDERS, REFERENCE
from runners.bench.measure import peak_flops
from runners.bench.peers import kernel_class, kernel_shares
from runners.bench.suite import WHAT
from runners.cli import main
from runners.data import prepare
from runners.planning.bases import load_base
from runners.planning.components import SCHEDULE
from runners.planning.lookup import find_file
from runners.training import loop as loop
from runners.training.determinism import make_deterministic
from tests.llama_variants.models import TINY
from tests.runners.children import SEED
from tests.runners.helpers import carried_out, changed

CPU = torch.device("cpu")


def test_each_is_measured_once_a_round_in_turn_and_long_enough():
    calls: list[tuple[str, int]] = []

    def measured(name: str, seconds: float) -> measure.Measure:
        def call(count: int) -> float:
            calls.append((name, count))
            return seconds

        return call

    found = measure.in_turn({"a": measured("a", 0.1), "b": measured("b", 2.0)}, rounds=3, least_s=1.0)
    assert found == {"a": [0.1] * 3, "b": [2.0] * 3}
    assert calls[:4] == [("a", 1), ("a", 1), ("b", 1), ("b", 1)]  # warm, and how long one takes
    assert calls[4:] == [("a", 10), ("b", 1), ("b", 1), ("a", 10), ("a", 10), ("b", 1)]


def test_rates_and_ratios_have_students_intervals():
    generator = np.random.default_rng(0)
    slow = np.exp(generator.normal(0, 0.1, 6))
    fast = slow / 1.5 * np.exp(generator.normal(0, 0.01, 6))  # what slows one round slows both
    found = measure.ratio(fast, slow)
    logs = np.log(slow / fast)
    low, high = stats.t.interval(0.95, 5, logs.mean(), stats.sem(logs))
    assert found == pytest.approx(
        {"ratio": math.exp(logs.mean()), "ratio_low": math.exp(low), "ratio_high": math.exp(high)}
    )
    rate = measure.rate(slow, 1)
    assert found["ratio_high"] / found["ratio_low"] < 1.05 < rate["high"] / rate["low"]
    assert measure.rate([2.0, 2.0, 2.0], 1000)["tokens_per_s"] == 500
    assert math.isnan(measure.ratio([1.0], [1.0])["ratio_low"])


def test_seconds_per_call_is_the_time_of_one_and_leaves_the_collector_on():
    assert 0.0199 < measure.seconds_per_call(lambda: time.sleep(0.02), CPU, 3) < 0.05  # of one of the three
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_TNT", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "matrix products"),
        ("aten::mm", "matrix products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop", "attention"),
        ("pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::_fused_adamw_", "optimizer"),
        ("multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("triton_red_fused__log_softmax_nll_loss_forward_0", "loss"),
        ("triton_poi_fused_mul_silu_0", "pointwise"),
        ("aten::mul", "pointwise"),
    ],
)
def test_kernels_are_classed_by_name(name, kind):
    assert kernel_class(name) == kind


def test_shares_of_time_add_up_and_see_the_matrix_products():
    a = torch.randn(400, 400)
    shares = kernel_shares(lambda: a @ a, CPU)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["matrix products"] > 0.5


def test_what_is_measured_is_what_a_run_does(project, monkeypatch):
    """The bench's own steps, on a run's batches, give that run's losses to the last bit."""
    monkeypatch.chdir(project)
    recipe = load_base(find_file("base", "micro"))[1]
    rows = carried_out(recipe).rows()[0]
    losses = [row["metrics"]["train/loss"] for row in rows[:2]]  # at a rate that warm-up changes
    assert recipe.train.schedule.warmup_steps > 2
    monkeypatch.setattr(contenders, "build_model", lambda config, seed, device: build_model(config, seed=SEED))
    split = prepare(recipe.data, Path("cache")).train
    rate = recipe.train.lr * SCHEDULE["wsd"](recipe.train.schedule, recipe.train.num_steps)(0)
    _, step = contenders.ours(replace(recipe, train=changed(recipe.train, lr=rate)), CPU, recipe.train.batch_size)
    batches = [torch.from_numpy(split.batch(i, seed=SEED, batch_size=4, seq_len=32)) for i in range(2)]
    assert [float(step(batch)) for batch in batches] == losses


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA H20", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_a_card_s_peak_is_that_of_its_whole_name(monkeypatch, name, tflops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda:0")) == (tflops and tflops * 1e12)
    assert peak_flops(CPU) is None


def test_deterministic_steps_are_a_contender(project, monkeypatch):
    """With the kernels of `deterministic: true`, in a process of its own; on a CPU it gives the same losses."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(contenders, "compile_model", lambda model: None)
    recipe = load_base(find_file("base", "micro"))[1]
    make = {c.name: c.make for c in CONTENDERS}
    assert [c.compiles for c in CONTENDERS if c.name == "ours-deterministic"] == [True]
    batch = torch.randint(300, (4, 32), generator=torch.Generator().manual_seed(0))
    found = []
    try:
        for name in ("ours-compiled", "ours-deterministic"):
            _, step = make[name](recipe, CPU, 2)
            assert torch.are_deterministic_algorithms_enabled() == (name == "ours-deterministic")
            found.append([float(step(batch)) for _ in range(3)])
    finally:
        make_deterministic(False)
    assert found[0] == found[1]


def test_the_reference_trains_the_same_model(project, monkeypatch):
    """From the same values: the same loss, and without weight decay (which it applies to gains too) the same update."""
    monkeypatch.chdir(project)
    recipe = load_base(find_file("base", "micro"))[1]
    recipe = replace(recipe, train=changed(recipe.train, weight_decay=0.0, eps=1e-4))
    own, own_step = contenders.ours(recipe, CPU, 2)
    make = next(c.make for c in CONTENDERS if c.name == REFERENCE)
    model, step = make(recipe, CPU, 2)
    model.load_state_dict(own.state_dict())
    batch = torch.randint(300, (4, 32), generator=torch.Generator().manual_seed(0))
    assert float(step(batch)) == pytest.approx(float(own_step(batch)), abs=1e-5)
    for name, value in own.state_dict().items():
        assert torch.allclose(model.state_dict()[name], value, atol=1e-4), name


def test_variants_are_every_other_block_of_the_registry():
    found = dict(variants(TINY))
    assert next(iter(found)) == AGAIN
    assert {"attention=mqa", "rotary=nope", "mlp=geglu", "norm=layer", "head=untied", "residual=post"} <= found.keys()
    assert all(model != TINY for name, model in found.items() if name != AGAIN)


HEAD = {"base": "tiny", "device": "cpu", "tokens_per_step": 256, "seq_len": 64, "precision": "float32", "rounds": 3}
SPEED = {"tokens_per_s": 100.0, "low": 90.0, "high": 110.0, "ratio": 1.1, "ratio_low": 1.0, "ratio_high": 1.2}


def points_of(axes) -> dict[float, tuple[float, ...]]:
    """Low end, value and high end of each row of points with bars, by its height."""
    (drawn,) = axes.containers
    points, _, (bars,) = drawn
    ends = [segment[:, 0].tolist() for segment in bars.get_segments()]
    return {y: (low, x, high) for (x, y), (low, high) in zip(points.get_xydata().tolist(), ends, strict=True)}


@pytest.mark.parametrize("peak", [{"mfu_palm": 0.4}, {}])
def test_figures_show_every_row(peak):
    rows = [{"name": "ours", **SPEED, **peak}, {"name": "transformers", **SPEED, **peak, "tokens_per_s": 95.0}]
    drawn = figure({"what": "peers", "rows": rows, **HEAD})
    assert [label.get_text() for label in drawn.axes[0].get_yticklabels()] == ["ours", "transformers"]
    assert points_of(drawn.axes[0]) == {1.0: (90.0, 100.0, 110.0), 0.0: (90.0, 95.0, 110.0)}
    drawn.draw_without_rendering()
    shares = [above.get_xlim() for above in drawn.axes[0].child_axes]  # in % of the card's peak
    assert shares == [pytest.approx([0.4 * end for end in drawn.axes[0].get_xlim()])] * bool(peak)
    drawn = figure({"what": "blocks", "rows": rows, **HEAD})
    assert "control's" in drawn.axes[0].get_xlabel()
    rows = [{"axis": a, "point": n, "peak_memory_bytes": 1e9, **SPEED} for a in ("layers", "window") for n in (1, 2, 4)]
    drawn = figure({"what": "scaling", "rows": rows, **HEAD})
    assert [axes.get_xlabel() for axes in drawn.axes[2:]] == ["layers", "window"]
    for speed, memory in zip(drawn.axes[:2], drawn.axes[2:], strict=True):
        assert speed.lines[0].get_xydata().tolist() == [[1, 100], [2, 100], [4, 100]]
        assert memory.lines[0].get_xydata().tolist() == [[n, 1e9 / 2**30] for n in (1, 2, 4)]
    assert figure({"what": "paths", **HEAD}) is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["peers", "--only", "litgtp"], "did you mean 'litgpt'"),
        (["blocks", "--only", "attention=mqq"], "attention=mqa"),
        (["peers", "--base", "tinny"], "tiny"),
        (["peers", "--seq-len", "128"], "at most 64"),
        (["peers", "--tokens", "100"], "a multiple of seq_len (64)"),
        (["jobs", "--device", "tpu"], "auto"),
        (["paths", "--rounds", "1"], "2 or more"),
        (["decode", "--context", "32,128"], "2 to 64"),
        (["decode", "--context", "1"], "2 to 64"),
        (["decode", "--only", "attention=mqq"], "attention=mqa"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, says, capsys, monkeypatch, root):
    monkeypatch.chdir(root)
    assert main(["bench", *arguments]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("what", WHAT)
def test_every_bench_prints_a_table_and_keeps_a_record(cli, project, what):
    only = {"peers": f"ours,{REFERENCE}", "blocks": "attention=mqa,rotary=nope"}.get(what, "")
    only = {"decode": "attention=mqa,attention=mha"}.get(what, only)
    more = ("--only", only) if only else ()
    more += ("--batch", "1,2", "--context", "8,32") if what == "decode" else ()
    done = cli("bench", what, "--base", "micro", "--rounds", 2, "--seconds", 0, "--steps", 30, *more, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout, parse_constant=pytest.fail)  # no NaN: others read it too
    (file,) = (project / "reports/bench").glob("*.json")
    assert json.loads(file.read_text()) == record
    assert record["what"] == what
    assert record["environment"]["torch"] == torch.__version__
    names = [row.get("name") for row in record.get("rows", [])]
    if what == "peers":
        assert names == ["ours", REFERENCE]
        assert sum(record["kernels"]["ours"].values()) == pytest.approx(1)
        assert all(row["num_params"] == record["rows"][0]["num_params"] for row in record["rows"])
    elif what == "blocks":
        assert names == [AGAIN, "rotary=nope", "attention=mqa"]
    elif what == "scaling":
        assert {row["axis"] for row in record["rows"]} == {"micro-batch (windows)", "window (tokens)", "layers"}
    elif what == "decode":
        assert names == ["control", AGAIN, "attention=mqa", "attention=mha"] * 4
        assert all(row["kv_bytes"] == row["kv_bytes_by_formula"] for row in record["rows"])
    elif what == "paths":
        assert record["data"]["tokens_per_s"] > 1e5
        assert min(record["checkpoint"]["restore_s"]) > 0
    else:
        assert record["ratio_low"] <= record["ratio"] <= record["ratio_high"]
    assert file.with_suffix(".png").exists() == ("rows" in record)


@pytest.mark.slow
def test_a_contender_that_dies_says_what_of(cli, project, monkeypatch):
    base = project / "experiments/base/micro.yaml"
    base.write_text(base.read_text().replace("rotary: {type: rope, theta: 10000.0}", "rotary: {type: nope}"))
    done = cli("bench", "peers", "--base", "micro", "--only", REFERENCE)
    assert done.returncode == 1
    assert "transformers" in done.stderr
    assert "no stock Llama" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "terabytes"),
    [
        ("NVIDIA H100 80GB HBM3", 3.35),
        ("NVIDIA H100 PCIe", 2.0),
        ("NVIDIA H200", 4.8),
        ("NVIDIA A100-SXM4-80GB", 2.039),
        ("NVIDIA A100 80GB PCIe", 1.935),
    ],
)
def test_a_cards_bandwidth_is_that_of_the_longest_name_that_fits(name, terabytes):
    assert measure.bandwidth(name) == pytest.approx(terabytes * 1e12)
    assert measure.bandwidth("cpu") is None
