"""What was measured of finished weights, beside them: one file a measurement, named by all that bears on it."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from analysis.store.schema import PROBE_PREFIX
from runners.data.atomic import write_atomically
from runners.runs.records import damaged, read_record

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One probe on one text, or one of lm_eval's tasks."""

    text: str  # its name: that of the data, of a file, "own" for the validation text of the run itself, or of the task
    probe: str
    identity: Mapping[str, Any]  # what bears on the numbers, besides the weights
    metrics: Mapping[str, float]
    made: float = field(default_factory=lambda: round(time.time(), 3))  # seconds since the epoch
    device: str = ""
    prefix: str = PROBE_PREFIX  # of its keys in the tracking store
    items: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # metric -> on each window or item

    def mirrored(self) -> dict[str, float]:
        """The metrics under the keys of the tracking store; a standard error of one window is none."""
        finite = {key: value for key, value in self.metrics.items() if math.isfinite(value)}
        return self._keyed(finite)

    def by_item(self) -> dict[str, tuple[float, ...]]:
        """The values on each window or item, under the same keys."""
        return self._keyed(self.items)

    def _keyed(self, values: Mapping[str, T]) -> dict[str, T]:
        return {f"{self.prefix}{self.text}/{key.removeprefix('val/')}": value for key, value in values.items()}


_MEASUREMENT = TypeAdapter(Measurement)


class Evaluations:
    """The measurements of one set of weights, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, probe: str, identity: Mapping[str, Any]) -> Measurement | None:
        """The measurement of this identity, where it was made. Raises ConfigError for a damaged file."""
        return self._read(self._file(probe, identity))

    def keep(self, made: Measurement) -> Measurement:
        """Write a measurement, whole or not at all; returns it as it will be read."""
        file = self._file(made.probe, made.identity)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(asdict(made), indent=1))
        kept = self._read(file)
        assert kept is not None
        return kept

    def all(self) -> list[Measurement]:
        """Every measurement, the oldest first. Raises ConfigError for a damaged file."""
        found = [self._read(file) for file in self.folder.glob("*.json")]
        return sorted((one for one in found if one), key=lambda one: (one.made, one.probe, one.text))

    def _file(self, probe: str, identity: Mapping[str, Any]) -> Path:
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        return self.folder / f"{probe}-{key}.json"

    def _read(self, file: Path) -> Measurement | None:
        remedy = f"the file as it was; or delete {file}, and it is measured again"
        try:
            return _MEASUREMENT.validate_python(read_record(file, remedy))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise damaged(file, f"{'.'.join(map(str, first['loc']))}: {first['msg']}", remedy) from None
