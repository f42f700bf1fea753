"""What the arms of an experiment cost at inference, out of a record of `python -m runners bench decode`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

CONTROL = "control"
_NEEDED = ("name", "batch", "context", "tokens_per_s", "ratio", "ratio_low", "ratio_high", "model")


@dataclass(frozen=True)
class Decode:
    """Rows of a record by arm, at the largest batch of the longest context: where the cache weighs most."""

    rows: Mapping[str, Mapping[str, Any]]

    @property
    def point(self) -> str:
        """Batch and context, as the title of a column."""
        row = self.rows[CONTROL]
        return f"{row['batch']} x {row['context']:,}"

    @classmethod
    def of(cls, file: Path, models: Mapping[str, Any]) -> Decode | None:
        """Of the record in ``file``, what it measured of ``models``; None where it has another control or no variant.

        Args:
            file: as `bench decode` keeps it.
            models: each arm's model as plain data; an arm is found by what its model is, whatever it is called.

        Raises:
            ValueError: for a file that is no such record.
        """
        rows = {
            arm: row
            for arm, model in models.items()
            for row in _last_point(file)
            if row["model"] == model and (row["name"] == CONTROL) == (arm == CONTROL)
        }
        priced = CONTROL in rows and any(models[arm] != models[CONTROL] for arm in rows)
        return cls(rows) if priced else None

    def beside(self, table: pd.DataFrame) -> pd.DataFrame:
        """``table`` with ``decode_at``, ``decode_per_s`` (tokens/s) and ``decode_delta, decode_low, decode_high``.

        The last three are the change over the control as a fraction, and its 95 % interval. NaN where an arm was not
        measured.
        """
        rows = [self.rows.get(arm, {}) for arm in table["arm"]]
        new = {"decode_per_s": [row.get("tokens_per_s", math.nan) for row in rows]}
        for end, key in (("delta", "ratio"), ("low", "ratio_low"), ("high", "ratio_high")):
            new[f"decode_{end}"] = [row.get(key, math.nan) - 1 for row in rows]
        return table.assign(decode_at=self.point, **new)


def _last_point(file: Path) -> Sequence[Mapping[str, Any]]:
    try:
        rows = json.loads(file.read_text())["rows"]
        point = max((row["context"], row["batch"]) for row in rows)
        return [{key: row[key] for key in _NEEDED} for row in rows if (row["context"], row["batch"]) == point]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{file} holds no decode measurement: {type(error).__name__}: {error}") from None
