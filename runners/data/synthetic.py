"""Texts made of a seed whose entropy is known exactly: what a model could reach at best, and where it must copy.

A document is a row of numbers, each one token; all of a task are equally long, so that with the token that ends them
they fill a training window. Entropies are in nats and of the token at each place, given all tokens before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from llama_variants.errors import StrictModel

if TYPE_CHECKING:  # a declaration is read without it
    import numpy as np

Probability = Annotated[float, Field(gt=0, lt=1)]


class RecallTask(StrictModel):
    """Multi-query associative recall: pairs of a key and its value, then queries, each a key and again its value.

    Keys of a document differ; queries draw from them with replacement. The value behind a query's key is certain for
    whoever remembers the pair. Source: arXiv:2312.04927. Departs from it: keys of queries are learned too, since the
    loss is that of all tokens.
    """

    type: Literal["recall"]
    num_keys: PositiveInt
    num_values: PositiveInt
    num_pairs: PositiveInt
    num_queries: PositiveInt

    @model_validator(mode="after")
    def _keys_for_all_pairs(self) -> RecallTask:
        if self.num_pairs > self.num_keys:
            raise ValueError(f"num_pairs of at most num_keys ({self.num_keys})")
        return self

    @property
    def length(self) -> int:
        """Tokens of a document."""
        return 2 * (self.num_pairs + self.num_queries)

    @property
    def num_symbols(self) -> int:
        """Different tokens: 1 … this."""
        return self.num_keys + self.num_values

    def documents(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """Tokens (count, length)."""
        import numpy as np

        keys = generator.permuted(np.tile(np.arange(self.num_keys), (count, 1)), axis=1)[:, : self.num_pairs]
        values = self.num_keys + generator.integers(self.num_values, size=keys.shape)
        pairs = np.stack([keys, values], axis=2)  # (count, pairs, 2)
        asked = generator.integers(self.num_pairs, size=(count, self.num_queries, 1))
        queries = np.take_along_axis(pairs, asked, axis=1)  # (count, queries, 2)
        return np.asarray(1 + np.concatenate([pairs, queries], axis=1).reshape(count, self.length))

    def entropy(self) -> np.ndarray:
        """(length,)."""
        import numpy as np

        pairs = [(math.log(self.num_keys - i), math.log(self.num_values)) for i in range(self.num_pairs)]
        queries = [(math.log(self.num_pairs), 0.0)] * self.num_queries
        return np.asarray([nats for pair in (*pairs, *queries) for nats in pair])

    def answers(self) -> np.ndarray:
        """Whether the token at each place is certain for whoever remembers: (length,)."""
        import numpy as np

        places = np.arange(self.length)
        return (places >= 2 * self.num_pairs) & (places % 2 == 1)


class CopyTask(StrictModel):
    """A random string, repeated to the end: each token from ``distance`` on is the one that far back.

    A model of L layers that see windows of w tokens each cannot do it where L (w - 1) < distance: its loss on the
    copies is the logarithm of the alphabet.
    """

    type: Literal["copy"]
    alphabet: Annotated[int, Field(ge=2)]
    distance: PositiveInt
    length: PositiveInt

    @model_validator(mode="after")
    def _something_to_copy(self) -> CopyTask:
        if self.length <= self.distance:
            raise ValueError(f"a length above the distance ({self.distance})")
        return self

    @property
    def num_symbols(self) -> int:
        """Different tokens: 1 … this."""
        return self.alphabet

    def documents(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """Tokens (count, length)."""
        import numpy as np

        strings = generator.integers(self.alphabet, size=(count, self.distance))
        times = -(-self.length // self.distance)
        return np.asarray(1 + np.tile(strings, (1, times))[:, : self.length])

    def entropy(self) -> np.ndarray:
        """(length,)."""
        import numpy as np

        return np.where(self.answers(), 0.0, math.log(self.alphabet))

    def answers(self) -> np.ndarray:
        """Whether the token at each place is a copy: (length,)."""
        import numpy as np

        return np.arange(self.length) >= self.distance


class BracketsTask(StrictModel):
    """Brackets of several types, nested to a bounded depth: open one (of a random type), or close the last one.

    At depth 0 one opens, at the greatest depth it closes, between it opens with chance ``open``. Which bracket closes
    is certain for whoever keeps the stack. Source: Dyck-(k, m), arXiv:2010.07515.
    """

    type: Literal["brackets"]
    num_types: PositiveInt
    max_depth: PositiveInt
    length: PositiveInt
    open: Probability = 0.5

    @property
    def num_symbols(self) -> int:
        """Different tokens: openers 1 … ``num_types``, then their closers."""
        return 2 * self.num_types

    def documents(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """Tokens (count, length)."""
        import numpy as np

        chance = generator.random((count, self.length))
        types = generator.integers(self.num_types, size=(count, self.length))
        tokens = np.empty((count, self.length), np.int64)
        stack = np.zeros((count, self.max_depth + 1), np.int64)
        depth, rows = np.zeros(count, np.int64), np.arange(count)
        for place in range(self.length):
            opens = (depth == 0) | ((depth < self.max_depth) & (chance[:, place] < self.open))
            last = stack[rows, np.maximum(depth - 1, 0)]
            tokens[:, place] = np.where(opens, 1 + types[:, place], 1 + self.num_types + last)
            stack[rows[opens], depth[opens]] = types[opens, place]
            depth += np.where(opens, 1, -1)
        return tokens

    def entropy(self) -> np.ndarray:
        """(length,), from the distribution of the depth."""
        import numpy as np

        at = np.zeros(self.max_depth + 1)
        at[0] = 1.0
        opens = np.full(self.max_depth + 1, self.open)
        opens[0], opens[-1] = 1.0, 0.0
        choice = sum(-p * np.log(np.where(p > 0, p, 1.0)) for p in (opens, 1 - opens))
        nats = choice + opens * math.log(self.num_types)  # at each depth
        found = []
        for _ in range(self.length):
            found.append(float(at @ nats))
            moved = np.zeros_like(at)
            moved[1:] += (at * opens)[:-1]
            moved[:-1] += (at * (1 - opens))[1:]
            at = moved
        return np.asarray(found)

    def answers(self) -> np.ndarray:
        """No place is certain beforehand: (length,), all false."""
        import numpy as np

        return np.zeros(self.length, bool)


Task = Annotated[RecallTask | CopyTask | BracketsTask, Field(discriminator="type")]


class SyntheticSource(StrictModel):
    """Documents of a task, drawn from a seed: ``train`` and ``validation`` say how many."""

    type: Literal["synthetic"]
    task: Task
    train: PositiveInt
    validation: PositiveInt
    seed: Annotated[int, Field(ge=0)] = 0

    def identity(self) -> dict[str, Any]:
        """The declaration: it gives the same documents everywhere."""
        return self.model_dump(mode="json")

    def documents(self, split: Literal["train", "validation"]) -> Iterator[str]:
        """The texts of a split. Chunks have generators of their own, so that a part is never drawn to reach another."""
        import numpy as np

        count = getattr(self, split)
        for chunk, start in enumerate(range(0, count, _CHUNK)):
            key = [self.seed, chunk] if split == "train" else [self.seed, chunk, 1]
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
            for row in self.task.documents(generator, _CHUNK)[: count - start]:
                yield " ".join(map(str, row.tolist()))


_CHUNK = 1024


def floor_nats(task: RecallTask | CopyTask | BracketsTask) -> float:
    """The least mean loss of a window of one document and its end; its first token is not predicted."""
    return float(task.entropy()[1:].sum() / task.length)
