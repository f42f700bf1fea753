"""Tasks whose entropy is known: against what an optimal predictor, written out here, measures on their documents."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_variants.errors import check
from runners.data import DataConfig, prepare
from runners.data.synthetic import BracketsTask, CopyTask, RecallTask, SyntheticSource, floor_nats

TASKS = {
    "recall": RecallTask(type="recall", num_keys=12, num_values=7, num_pairs=4, num_queries=5),
    "copy": CopyTask(type="copy", alphabet=9, distance=5, length=16),
    "brackets": BracketsTask(type="brackets", num_types=3, max_depth=4, length=20, open=0.6),
}


def surprisal_of_recall(task: RecallTask, row: list[int]) -> list[float]:
    """Minus the logarithm of each token's chance, by whoever knows the task and remembers."""
    value_of: dict[int, int] = {}
    found = []
    for place, token in enumerate(row):
        if place % 2:
            found.append(math.log(task.num_values) if place < 2 * task.num_pairs else 0.0)
            assert value_of.setdefault(row[place - 1], token) == token
            assert task.num_keys < token <= task.num_symbols
        elif place < 2 * task.num_pairs:
            found.append(math.log(task.num_keys - len(value_of)))
            assert token not in value_of
            assert 1 <= token <= task.num_keys
        else:
            found.append(math.log(task.num_pairs))
            assert token in value_of
    return found


def surprisal_of_copy(task: CopyTask, row: list[int]) -> list[float]:
    copied = [place >= task.distance for place in range(len(row))]
    assert all(row[i] == row[i - task.distance] for i in range(len(row)) if copied[i])
    return [0.0 if one else math.log(task.alphabet) for one in copied]


def surprisal_of_brackets(task: BracketsTask, row: list[int]) -> list[float]:
    stack: list[int] = []
    found = []
    for token in row:
        opens = token <= task.num_types
        chance = 1.0 if not stack else 0.0 if len(stack) == task.max_depth else task.open
        assert (chance if opens else 1 - chance) > 0
        found.append(-math.log(chance / task.num_types if opens else 1 - chance))
        if opens:
            stack.append(token)
        else:
            assert stack.pop() == token - task.num_types
    return found


SURPRISAL = {"recall": surprisal_of_recall, "copy": surprisal_of_copy, "brackets": surprisal_of_brackets}


@pytest.mark.parametrize("name", TASKS)
def test_the_entropy_of_the_formula_is_that_of_the_documents_to_a_hundredth(name):
    task = TASKS[name]
    documents = task.documents(np.random.Generator(np.random.Philox(3)), 20_000)
    assert documents.shape == (20_000, task.length)
    measured = np.array([SURPRISAL[name](task, row) for row in documents.tolist()])  # (n, length)
    assert measured.mean() == pytest.approx(task.entropy().mean(), rel=0.01)
    assert measured.mean(axis=0) == pytest.approx(task.entropy(), abs=0.05)
    assert floor_nats(task) == pytest.approx(measured[:, 1:].sum(axis=1).mean() / task.length, rel=0.01)
    certain = task.answers()
    assert (measured[:, certain] == 0).all()


@given(types=st.integers(1, 5), depth=st.integers(1, 6), length=st.integers(1, 30), chance=st.floats(0.05, 0.95))
@settings(max_examples=50, deadline=None)
def test_brackets_of_any_shape_are_nested_within_their_depth(types, depth, length, chance):
    task = BracketsTask(type="brackets", num_types=types, max_depth=depth, length=length, open=chance)
    for row in task.documents(np.random.default_rng(0), 20).tolist():
        assert len(surprisal_of_brackets(task, row)) == length
    assert np.isfinite(task.entropy()).all()
    assert (task.entropy() >= -1e-12).all()


@pytest.mark.parametrize("name", TASKS)
def test_documents_come_of_the_seed_alone_and_splits_differ(name):
    def source(**changes) -> SyntheticSource:
        return SyntheticSource(type="synthetic", task=TASKS[name], **{"train": 1500, "validation": 50, **changes})

    train = list(source().documents("train"))
    assert len(train) == 1500
    assert list(source().documents("train")) == train
    assert list(source(train=1100).documents("train")) == train[:1100]  # more of it changes none
    assert list(source(seed=1).documents("train"))[:20] != train[:20]
    assert not set(source().documents("validation")) & set(train[:200])


def config(**changes):
    task = {"type": "copy", "alphabet": 9, "distance": 5, "length": 16}
    source = {"type": "synthetic", "task": task, "train": 40, "validation": 20}
    return {"source": source, "tokenizer": {"type": "numbers", "vocab_size": 10}, **changes}


def test_each_document_and_its_end_are_one_window(tmp_path):
    data, problems = check(DataConfig, config())
    assert data is not None
    assert not problems
    corpus = prepare(data, tmp_path / "cache")
    documents = list(data.source.documents("validation"))
    windows = corpus.validation.windows(len(documents), 17)
    assert windows[:, -1].tolist() == [0] * len(documents)
    assert [" ".join(map(str, row)) for row in windows[:, :-1].tolist()] == documents
    assert corpus.manifest["vocab_size"] == 10


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tokenizer": {"type": "numbers", "vocab_size": 9}}, "vocab_size 10 or more"),
        ({"tokenizer": {"type": "bpe", "vocab_size": 300}}, "synthetic with a tokenizer of type numbers"),
        ({"source": {"type": "files", "train": ["a"], "validation": ["b"]}}, "type numbers, or neither"),
        (
            {"source": {**config()["source"], "task": {"type": "copy", "alphabet": 9, "distance": 5, "length": 5}}},
            "above",
        ),
        ({"source": {**config()["source"], "task": {"type": "sort"}}}, "recall"),
    ],
)
def test_what_does_not_fit_is_said(changes, says):
    _, problems = check(DataConfig, config(**changes))
    assert any(says in str(problem) for problem in problems), problems


def test_keys_for_all_pairs():
    task = {"type": "recall", "num_keys": 3, "num_values": 2, "num_pairs": 4, "num_queries": 1}
    _, problems = check(RecallTask, task)
    assert "at most num_keys (3)" in str(problems[0])
