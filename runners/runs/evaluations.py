"""What probes measured of finished weights, beside them: one file a measurement, named by all that bears on it."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from analysis.store.schema import PROBE_PREFIX
from runners.data.atomic import write_atomically
from runners.runs.records import damaged, read_record


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One probe on one text."""

    text: str  # its name: that of the data, of a file, or "own" for the validation text of the run itself
    probe: str
    identity: Mapping[str, Any]  # what bears on the numbers, besides the weights
    metrics: Mapping[str, float]
    made: float  # seconds since the epoch
    device: str = ""

    def mirrored(self) -> dict[str, float]:
        """The metrics under the keys of the tracking store; a standard error of one window is none."""
        finite = {key: value for key, value in self.metrics.items() if math.isfinite(value)}
        return {f"{PROBE_PREFIX}{self.text}/{key.removeprefix('val/')}": value for key, value in finite.items()}


_MEASUREMENT = TypeAdapter(Measurement)


class Evaluations:
    """The measurements of one set of weights, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, probe: str, identity: Mapping[str, Any]) -> Measurement | None:
        """The measurement of this identity, where it was made. Raises ConfigError for a damaged file."""
        return self._read(self._file(probe, identity))

    def keep(
        self, text: str, probe: str, identity: Mapping[str, Any], metrics: Mapping[str, float], device: str
    ) -> None:
        """Write a measurement, whole or not at all."""
        made = Measurement(
            text=text, probe=probe, identity=identity, metrics=metrics, made=round(time.time(), 3), device=device
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._file(probe, identity), json.dumps(asdict(made), indent=1))

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
