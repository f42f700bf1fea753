"""Muon against torch's own, against the formula in float64, and through a real run."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from llama_variants import build_model
from runners.planning.bases import load_base
from runners.planning.delta import merge
from runners.planning.files import Delta
from runners.training.optimizers.muon import NEWTON_SCHULZ, Muon, orthogonalised
from tests.runners.helpers import optimizer_of


@pytest.fixture
def config(project, monkeypatch):
    """Of the micro base with Muon in AdamW's place, as an experiment's variant has it."""
    monkeypatch.chdir(project)
    _, base = load_base(Path("experiments/base/micro.yaml"))
    recipe, problems = merge(base, Delta(train={"optimizer": {"type": "muon"}}))
    assert recipe
    assert not problems
    return recipe


def exact(g: Tensor, steps: int) -> Tensor:
    """The iteration of Keller Jordan's post, one matrix, in float64."""
    a, b, c = NEWTON_SCHULZ
    x = g.double().T if g.shape[0] > g.shape[1] else g.double()
    x = x / x.norm()
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if g.shape[0] > g.shape[1] else x


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)])
def test_the_update_is_nearly_orthogonal_and_that_of_the_formula(shape):
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape)
    found = orthogonalised(matrices, 5)
    for matrix, one in zip(matrices, found, strict=True):
        assert torch.allclose(one.double(), exact(matrix, 5), atol=1e-5)
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        assert torch.linalg.svdvals(one).min() > 0.6
        assert torch.linalg.svdvals(one).max() < 1.3
        assert torch.cosine_similarity(one.flatten(), (left @ right).flatten(), dim=0) > 0.95  # the polar factor


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has its own from 2.9 on")
@pytest.mark.parametrize("nesterov", [True, False])
def test_steps_are_those_of_torch_s_own(config, nesterov):
    """Which computes in bfloat16: equal to its precision."""
    model = nn.ModuleDict({"a": nn.Linear(24, 16, bias=False), "b": nn.Linear(16, 24, bias=False)})
    twin = nn.ModuleDict({"a": nn.Linear(24, 16, bias=False), "b": nn.Linear(16, 24, bias=False)})
    twin.load_state_dict(model.state_dict())
    settings = config.train.optimizer.model_copy(update={"nesterov": nesterov, "weight_decay": 0.1})
    ours = Muon(settings, model)
    theirs = torch.optim.Muon(
        twin.parameters(), lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=nesterov, adjust_lr_fn="match_rms_adamw"
    )
    ours.set_lr(0.02)
    ours.found_inf = torch.tensor(0.0)
    torch.manual_seed(1)
    for _ in range(5):
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    moved = 0.02 * 0.2 * math.sqrt(24)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert (p - q).abs().max() < 0.05 * moved * 5


def test_what_is_not_inside_the_layers_keeps_adamw(config):
    """Embedding, head and gains move as with AdamW alone."""
    for head in ("tied", "untied"):
        model_config = config.model.override({"head": {"type": head}})
        model, twin = build_model(model_config, seed=1), build_model(model_config, seed=1)
        ours = optimizer_of(model, config.train)
        plain = {name for name, p in model.named_parameters() if "layers" not in name or p.dim() == 1}
        settings = config.train.optimizer
        matrices = [p for name, p in twin.named_parameters() if name in plain and p.dim() == 2]
        vectors = [p for name, p in twin.named_parameters() if name in plain and p.dim() == 1]
        theirs = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=config.train.lr,
            betas=settings.betas,
            eps=settings.eps,
            fused=True,
        )
        ours.found_inf = torch.tensor(0.0)
        torch.manual_seed(2)
        for _ in range(3):
            for p, q in zip(model.parameters(), twin.parameters(), strict=True):
                p.grad = torch.randn_like(p)
                q.grad = p.grad.clone()
            ours.step()
            theirs.step()
        after = dict(twin.named_parameters())
        moved = {name for name, p in model.named_parameters() if torch.equal(p, after[name])}
        assert moved == plain


def test_an_ablation_of_it_is_planned_run_and_judged(cli, project):
    (project / "experiments/muon.yaml").write_text(
        "name: muon\nversion: 1\nquestion: Does Muon help?\nbase: micro\n"
        "variants: {muon: {train: {optimizer: {type: muon}}}}\n"
    )
    done = cli("plan", "experiments/muon.yaml")
    assert done.returncode == 0, done.stderr
    assert "train.optimizer.type adamw → muon" in done.stdout
    done = cli("run", "experiments/muon.yaml", "--jobs", 2)
    assert done.returncode == 0, done.stderr
    (row,) = re.findall(r"^muon +3 .*$", done.stdout, flags=re.MULTILINE)
    assert any(word in row for word in ("better", "worse", "equivalent", "undecided"))
