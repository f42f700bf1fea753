"""Decode: the bench's loop is what generate does, its cache is as large as it says, and the verdict table shows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from analysis.report.bench_figure import figure
from analysis.report.decode import Decode
from llama_variants import ModelConfig
from runners.bench import decode as bench
from runners.bench.blocks import variants
from runners.bench.decode import Generation
from tests.llama_variants.models import TINY
from tests.runners.children import call

CPU = torch.device("cpu")
NAMES = ["attention=mqa", "attention=mha", "attention=sliding_window", "rotary=nope", "head=untied"]


def made(model: ModelConfig, *, batch: int = 2, context: int = 32, dtype=torch.float32, compiled=False) -> Generation:
    return Generation(model, batch=batch, context=context, device=CPU, dtype=dtype, compiled=compiled)


def generated(one: Generation, cache: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What transformers generates from the same prompt, as many tokens as the cache has room for and one more.

    Tokens (b, n), and their logits (n, b, v).
    """
    prompt, count = one.prompt, one.new + 1
    given = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": count, "min_new_tokens": count}
    given |= {"return_dict_in_generate": True, "output_logits": True, "cache_implementation": cache}
    out = one.model.generate(prompt, do_sample=False, pad_token_id=0, **given)
    return out.sequences[:, prompt.shape[1] :], torch.stack(out.logits)


@pytest.mark.parametrize("cache", ["static", "dynamic"])
@pytest.mark.parametrize("name", ["control", *NAMES])
def test_what_is_measured_is_what_generate_does(name, cache):
    """Token for token, with the same logits; and a second measurement begins where the first one did."""
    one = made({"control": TINY, **dict(variants(TINY))}[name])
    tokens, logits = generated(one, cache)
    seen: list[torch.Tensor] = []
    one.model.register_forward_hook(lambda module, given, out: seen.append(out.logits[:, -1]))
    for _ in range(2):
        seen.clear()
        assert torch.equal(torch.cat([one.prefill(), one.decode()], dim=1), tokens)
        assert torch.allclose(torch.stack(seen), logits, atol=1e-5)  # tokens alone hardly show what the cache holds


def generate_both(file: Path) -> None:
    """In a child: the checks that pytest wraps every forward in cannot be compiled."""
    torch.set_num_threads(1)
    tokens = [made(TINY, compiled=compiled) for compiled in (False, True)]
    file.write_text(json.dumps([one.decode().tolist() for one in (*tokens, tokens[1])]))


@pytest.mark.slow
def test_the_compiled_step_generates_the_same(tmp_path):
    assert call(generate_both, tmp_path / "tokens.json") == 0
    plain, compiled, again = json.loads((tmp_path / "tokens.json").read_text())
    assert plain == compiled == again


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["control", *NAMES])
def test_the_cache_is_as_large_as_the_formula_says(name, dtype):
    model = {"control": TINY, **dict(variants(TINY))}[name]
    one = made(model, batch=3, context=24, dtype=dtype)
    one.decode()
    assert one.kv_bytes == 3 * 24 * model.kv_cache_values_per_token * dtype.itemsize
    assert [int(layer.get_seq_length()) for layer in one.cache.layers] == [24] * model.num_hidden_layers
    weights = model.num_params - (0 if model.head.tied else model.vocab_size * model.hidden_size)
    assert one.bytes_read == weights * dtype.itemsize + one.kv_bytes


def test_a_share_of_the_bandwidth_is_that_of_the_bytes_read(recipe, monkeypatch):
    """Where a step reads enough; the micro model's come out of a cache, so it has none."""
    settings = {"rounds": 2, "least_s": 0.0, "compiled": False, "say": lambda text: None}
    monkeypatch.setattr(bench, "triad", lambda device: 1e9)
    (row,) = bench.decode(recipe, {}, CPU, [(2, 16)], **settings)["rows"]
    assert "of_bandwidth" not in row
    monkeypatch.setattr(bench, "TRIAD_BYTES", 1)
    record = bench.decode(recipe, {}, CPU, [(2, 16)], **settings)
    (row,) = record["rows"]
    assert row["of_bandwidth"] == pytest.approx(row["bytes_read"] * row["tokens_per_s"] / 2 / 1e9)
    assert record["bandwidth_bytes_per_s"] == 1e9
    assert row["ratio"] == row["ratio_low"] == row["ratio_high"] == 1  # the control over itself


def test_what_does_not_fit_is_left_out_and_said(recipe, monkeypatch):
    said: list[str] = []
    real = Generation.decode

    def small(self: Generation) -> torch.Tensor:
        if len(self.prompt) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return real(self)

    monkeypatch.setattr(bench, "triad", lambda device: 1e9)
    monkeypatch.setattr(Generation, "decode", small)
    points = [(2, 16), (1, 16)]
    record = bench.decode(recipe, {}, CPU, points, rounds=2, least_s=0.0, compiled=False, say=said.append)
    assert [row["batch"] for row in record["rows"]] == [1]
    assert "batch 2, context 16: out of memory, left out" in said


def test_the_triad_counts_two_reads_and_a_write(monkeypatch):
    monkeypatch.setattr(bench, "seconds_per_call", lambda call, device, calls: call().new_tensor(0.5).item())
    monkeypatch.setattr(bench, "TRIAD_BYTES", 1 << 10)
    assert bench.triad(CPU) == 3 * 1024 / 0.5


SPEED = {"tokens_per_s": 100.0, "low": 90.0, "high": 110.0}


def test_the_figure_shows_every_variant_at_every_context_and_batch():
    rows = [
        {"name": name, "batch": batch, "context": context, **SPEED}
        for context in (32, 64)
        for batch in (1, 8)
        for name in ("control", "attention=mqa")
    ]
    drawn = figure({"what": "decode", "rows": rows, "base": "b", "device": "d", "precision": "float32", "rounds": 3})
    assert [axes.get_title() for axes in drawn.axes] == ["batch 1", "batch 8"]
    for axes in drawn.axes:
        assert [line.get_label() for line in axes.containers] == ["control", "attention=mqa"]
        for points, _, (bars,) in axes.containers:
            assert points.get_xdata() == pytest.approx([32, 64], rel=0.1)
            assert points.get_ydata().tolist() == [100, 100]
            assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[90, 110]] * 2
    drawn.draw_without_rendering()


@pytest.fixture
def priced(recipe, tmp_path):
    """Writes a record of the micro base's control and of theta 100; and what an experiment's arms are."""
    variant = recipe.model.override({"rotary": {"theta": 100.0}})
    models = {
        arm: json.loads(json.dumps(model.identity(), default=str))
        for arm, model in {"control": recipe.model, "twin": recipe.model, "theta_100": variant}.items()
    }

    def write(*, control=models["control"], theta=models["theta_100"], name="record.json"):
        rows = [
            {"batch": batch, "context": context, "name": name, "model": model, "tokens_per_s": 10.0 * batch}
            | {"ratio": ratio * context, "ratio_low": 0.5 * context, "ratio_high": 2.0 * context}
            for context in (2, 1)
            for batch in (1, 8)
            for name, model, ratio in (("control", control, 1.0), ("again", control, 1.1), ("any name", theta, 1.5))
        ]
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"rows": rows}))
        return file

    return write, models


def test_an_arm_is_found_by_its_model_at_the_longest_context_and_largest_batch(priced):
    write, models = priced
    found = Decode.of(write(), models)
    assert found.point == "8 x 2"
    assert {arm: row["ratio"] for arm, row in found.rows.items()} == {"control": 2.0, "twin": 2.2, "theta_100": 3.0}
    assert Decode.of(write(control={}), models) is None  # of a base that was another
    assert Decode.of(write(theta={}), models) is None  # of none of these variants


@pytest.mark.parametrize("text", ["", "{}", '{"rows": []}', '{"rows": [{"batch": 1, "context": 2}]}', "[]"])
def test_what_is_no_record_is_named(text, tmp_path, priced):
    file = tmp_path / "record.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="record.json holds no decode measurement"):
        Decode.of(file, priced[1])


@pytest.mark.slow
def test_a_report_shows_decode_where_it_was_measured_and_no_empty_column(cli, project, recipe, priced):
    assert cli("run", "experiments/micro_theta.yaml", "--seeds", 2, "--device", "cpu").returncode == 0
    report = ("report", "experiments/micro_theta.yaml", "--seeds", 2)
    assert "decode" not in cli(*report).stdout
    name = f"decode-micro-{bench.device_name(CPU)}.json"
    priced[0](name=f"reports/bench/{name}")
    said = cli(*report)
    assert said.returncode == 0, said.stderr
    head, *lines = [line for line in said.stdout.splitlines() if line.startswith(("arm", "control", "twin", "theta"))]
    assert "decode 8 x 2" in head
    place = head.index("decode 8 x 2")
    cells = {line.split()[0]: line[place : head.index("why")].strip() for line in lines}
    assert cells == {
        "control": "80",
        "twin": "+120.0 [+0.0, +300.0] %",
        "theta_100": "+200.0 [+0.0, +300.0] %",
    }
    table = json.loads((project / "reports/micro-theta-micro/table.json").read_text())
    assert [row["decode_delta"] for row in table] == pytest.approx([1.0, 1.2, 2.0])
    assert "WHAT=decode" in (project / "reports/micro-theta-micro/report.md").read_text()
    (project / f"reports/bench/{name}").write_text("{}")
    said = cli(*report)
    assert said.returncode == 1  # and the verdicts stand
    assert f"reports/bench/{name} holds no decode measurement" in said.stderr
    assert "decode" not in said.stdout
    assert "theta_100" in said.stdout
