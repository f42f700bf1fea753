"""Probes that look inside a window: by position, past the training length, and at what repeats."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812

from llama_variants import build_model
from runners.data import prepare
from runners.evaluation.induction import Induction
from runners.evaluation.loss_by_position import LossByPosition, doubling
from runners.evaluation.loss_past_window import LossPastWindow
from runners.evaluation.subject import Subject
from runners.evaluation.tokens import token_losses
from tests.runners.helpers import changed


@pytest.fixture
def subject(recipe):
    corpus = prepare(recipe.data, Path("cache"))
    return Subject(build_model(recipe.model, seed=1), recipe, corpus, 3)


def test_token_losses_average_to_the_judged_loss(subject):
    windows = subject.corpus.validation.windows(subject.num_windows, subject.recipe.train.seq_len)
    losses = token_losses(subject, windows).double()
    assert losses.shape == (len(windows), windows.shape[1] - 1)
    torch.testing.assert_close(losses.mean(dim=1), subject.evaluation.windows, rtol=1e-6, atol=1e-6)


@given(st.integers(2, 5000))
def test_positions_are_each_in_one_range(seq_len):
    ranges = list(doubling(seq_len))
    assert [place for low, high in ranges for place in range(low, high + 1)] == list(range(1, seq_len))
    assert [low for low, _ in ranges] == [2**i for i in range(len(ranges))]


def test_losses_by_position_average_to_the_judged_loss(subject):
    found = LossByPosition(LossByPosition.Config())(subject)
    seq_len = subject.recipe.train.seq_len
    counts = [high - low + 1 for low, high in doubling(seq_len)]
    assert len(found) == len(counts)
    mean = sum(n * loss for n, loss in zip(counts, found.values(), strict=True)) / (seq_len - 1)
    assert mean == pytest.approx(subject.evaluation.loss_nats, abs=1e-6)


def test_past_the_window_each_stretch_is_its_own_tokens(subject):
    """Against one window at a time, written out."""
    seq_len, model = subject.recipe.train.seq_len, subject.model
    found = LossPastWindow(LossPastWindow.Config(factors=(2, 4)))(subject)
    count = max(1, subject.num_windows // 4)
    stretches = {"1x": [], "2x": [], "4x": []}
    for window in subject.corpus.validation.windows(count, 4 * seq_len):
        ids = torch.from_numpy(window)[None]
        with torch.no_grad():
            logits = model(ids).logits[0]
        for place in range(1, 4 * seq_len):
            name = "1x" if place < seq_len else "2x" if place < 2 * seq_len else "4x"
            stretches[name].append(F.cross_entropy(logits[place - 1], ids[0, place]).item())
    for name, losses in stretches.items():
        assert found[f"val/loss_past_window/{name}"] == pytest.approx(np.mean(losses), abs=1e-5)


class Copier(nn.Module):
    """Repeats what stands ``back`` tokens before the next one, certain of it."""

    def __init__(self, back: int, vocab_size: int) -> None:
        super().__init__()
        self.back, self.vocab_size, self.device = back, vocab_size, torch.device("cpu")

    def forward(self, ids, use_cache=False):
        said = torch.zeros(*ids.shape, self.vocab_size)
        said[:, self.back - 1 :] = 30.0 * F.one_hot(ids[:, : ids.shape[1] - self.back + 1], self.vocab_size)
        return SimpleNamespace(logits=said)


def test_what_copies_has_no_loss_on_a_repetition_and_what_guesses_all_of_it(subject):
    vocab_size, half = subject.corpus.manifest["vocab_size"], subject.recipe.train.seq_len // 2
    probe = Induction(Induction.Config(num_strings=20))
    guess = math.log(vocab_size)
    copies = Subject(Copier(half, vocab_size), subject.recipe, subject.corpus, 3)
    found = probe(copies)
    assert found["val/induction_loss"] < 1e-6
    assert found["val/induction_first_loss"] == pytest.approx(guess)
    other = probe(Subject(Copier(half - 1, vocab_size), subject.recipe, subject.corpus, 3))
    assert other["val/induction_loss"] > guess
    untrained = probe(subject)
    assert untrained["val/induction_loss"] == pytest.approx(math.log(subject.recipe.model.vocab_size), abs=0.7)


def test_no_string_to_copy_holds_the_end_of_a_document_that_hides_it(subject):
    recipe = replace(subject.recipe, train=changed(subject.recipe.train, mask_documents=True))
    seen: list[torch.Tensor] = []
    subject.model.model.embed_tokens.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    for asked in (recipe, subject.recipe):
        Induction(Induction.Config(num_strings=200))(Subject(subject.model, asked, subject.corpus, 200))
    masked, plain = seen
    assert not (masked == subject.corpus.manifest["end_id"]).any()
    assert ((masked == plain) | (plain == subject.corpus.manifest["end_id"])).all()
    assert (masked != plain).any()


def test_no_micro_batch_changes_what_is_measured(subject):
    probes = (LossByPosition, LossPastWindow, Induction)
    for probe in probes:
        made = probe(probe.Config())
        one = made(Subject(subject.model, subject.recipe, subject.corpus, 1))
        other = made(Subject(subject.model, subject.recipe, subject.corpus, 7))
        assert one == pytest.approx(other, abs=1e-6)


def test_a_short_text_gives_the_windows_that_it_has(subject):
    few = replace(subject.recipe, eval=subject.recipe.eval.model_copy(update={"num_windows": 10**6}))
    most = len(subject.corpus.validation.tokens) // (2 * subject.recipe.train.seq_len)
    probe = LossPastWindow(LossPastWindow.Config(factors=(2,)))
    assert most
    assert set(probe(Subject(subject.model, few, subject.corpus, 3))) == {
        "val/loss_past_window/1x",
        "val/loss_past_window/2x",
    }
