"""The only reader of the tracking store: designs, runs and curves as tidy frames."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.store import address, schema
from analysis.store.schema import Design
from analysis.store.stratum import Stratum

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Metric, Run

RUN_COLUMNS = (
    *("mlflow_run_id", "run_key", "arm", "role", "seed", "status", "stratum", "data", "reproducible"),
    *("started", "ended", "invalid", "reason", "finished"),
)
CURVE_COLUMNS = ("run_key", "arm", "seed", "metric", "step", "tokens", "value")
FINAL_METRICS = tuple(key for key in schema.METRICS if key.startswith("final/") and not key.endswith("*"))

_KEPT = ("final/", *schema.MEASURED)
_PAGE = 1000
_REQUESTS_AT_ONCE = 8  # a server's round trips overlap; a local database neither gains nor loses
_STORED_INFINITY = 1.797e308  # MLflow stores infinities as the largest float64


def list_experiments(tracking_uri: str | None = None) -> list[str]:
    """Names of the experiments that hold a design, the one written to last first.

    Raises:
        LookupError: when the store is absent.
    """
    found = [e for e in _pages(_connect(tracking_uri).search_experiments) if schema.TAG_DESIGN in e.tags]
    return [str(e.name) for e in sorted(found, key=lambda e: e.last_update_time or 0, reverse=True)]


def load_design(experiment: str, tracking_uri: str | None = None) -> Design:
    """The design that an experiment of the tracking store declares.

    Args:
        experiment: the experiment's name in the store, :attr:`Design.experiment`.
        tracking_uri: the store; ``None`` is :func:`analysis.store.address.tracking_uri`.

    Raises:
        LookupError: when the store, the experiment or its design is absent, with the experiments that hold one; and
            when the design cannot be read, with what writes it anew.
    """
    tags = _experiment(_connect(tracking_uri), experiment).tags
    try:
        return Design.from_tags(tags)
    except ValueError as error:
        raise LookupError(f"{experiment}: {error}; `python -m runners report EXPERIMENT` writes it anew") from None


def load_runs(design: Design, tracking_uri: str | None = None) -> pd.DataFrame:
    """One row for each declared run that the store has, in the order of the design.

    Runs whose key the design does not declare (stale recipes) are left out. Where a run was started several times,
    the newest attempt counts, whatever became of it.

    Returns:
        A frame with ``RUN_COLUMNS`` and one float column for each ``final/...``, ``probe/...`` and ``lm_eval/...``
        metric under its own key, in the units of :func:`analysis.store.schema.unit_of`, NaN where absent. ``data`` is
        the fingerprint of the tokens ("" where not recorded); ``reproducible`` says whether nothing but recipe, seed,
        data and stratum bears on the bits (so on a CPU, and with deterministic kernels); ``started`` and ``ended`` are
        UTC, NaT while it runs; ``invalid`` is why a validity gate failed, ``reason`` why the run failed or was stopped,
        or None; ``finished`` counts the attempts that came to their end.

    Raises:
        LookupError: when the store or the experiment is absent.
        ValueError: when a run lacks one of the tags that the writer promises.
    """
    client = _connect(tracking_uri)
    experiment = _experiment(client, design.experiment)
    arms = {(key, arm.name): arm for arm in design.arms for key in arm.run_keys}
    attempts: dict[tuple[str, str], Run] = {}
    finished: defaultdict[tuple[str, str], set[int]] = defaultdict(set)  # by start: one may be there twice
    for run in sorted(_pages(client.search_runs, [experiment.experiment_id]), key=lambda run: run.info.start_time):
        tags = run.data.tags
        place = tags.get(schema.TAG_RUN_KEY, ""), tags.get(schema.TAG_ARM, "")
        if place in arms:
            attempts[place] = run
            if run.info.status == "FINISHED":
                finished[place].add(run.info.start_time)
    records = [
        _record(attempts[place], arm.role) | {"finished": len(finished[place])}
        for place, arm in arms.items()
        if place in attempts
    ]
    found = {key for record in records for key in record if key.startswith(_KEPT)}
    metrics = [*FINAL_METRICS, *sorted(found.difference(FINAL_METRICS))]
    frame = pd.DataFrame(records, columns=[*RUN_COLUMNS, *metrics], dtype=object)  # keeps None in text columns
    text = dict.fromkeys(("mlflow_run_id", "run_key", "arm", "role", "status", "stratum", "data"), str)
    times = dict.fromkeys(("started", "ended"), "datetime64[ns, UTC]")
    numbers = {"seed": int, "finished": int, **dict.fromkeys(metrics, float)}
    return frame.astype({**text, **times, "reproducible": bool, **numbers})


def load_curves(
    runs: pd.DataFrame, metrics: Iterable[str] = ("train/loss", "val/loss"), tracking_uri: str | None = None
) -> pd.DataFrame:
    """What the given runs logged along the way.

    Args:
        runs: rows of :func:`load_runs`.
        metrics: keys of :data:`analysis.store.schema.METRICS`.
        tracking_uri: the store; ``None`` is :func:`analysis.store.address.tracking_uri`.

    Returns:
        A tidy frame with ``CURVE_COLUMNS``: one row for each run, metric and step, sorted by step within a metric.
        ``tokens`` is what the run logged at the step, else step times its tokens per step; NaN where it logged none.

    Raises:
        LookupError: when the store is absent.
        ValueError: when ``runs`` lacks a column.
    """
    require(runs, ("mlflow_run_id", "run_key", "arm", "seed"))
    client = _connect(tracking_uri)
    keys = list(metrics)
    wanted = [(run_id, key) for run_id in runs["mlflow_run_id"] for key in ("tokens", *keys)]
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        histories = dict(zip(wanted, pool.map(lambda place: client.get_metric_history(*place), wanted), strict=True))
    parts = []
    for run in runs.to_dict("records"):
        tokens = _by_step(histories[run["mlflow_run_id"], "tokens"])
        per_step = next((value / step for step, value in tokens.items() if step), math.nan)
        for key in keys:
            values = _by_step(histories[run["mlflow_run_id"], key])
            parts.append(
                {
                    **{name: [run[name]] * len(values) for name in ("run_key", "arm", "seed")},
                    "metric": [key] * len(values),
                    "step": list(values),
                    "tokens": [tokens.get(step, step * per_step) for step in values],
                    "value": list(values.values()),
                }
            )
    columns = {name: [item for part in parts for item in part[name]] for name in CURVE_COLUMNS}
    return pd.DataFrame(columns).astype(
        {"run_key": str, "arm": str, "metric": str, "seed": int, "step": int, "tokens": float, "value": float}
    )


def require(frame: pd.DataFrame, columns: Iterable[str]) -> None:
    """Raise ValueError naming the ``columns`` that ``frame`` lacks."""
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise ValueError(f"the frame lacks the columns {missing}; it has {list(frame.columns)}")


def _connect(uri: str | None) -> MlflowClient:
    uri = uri or address.tracking_uri()
    if allowed := address.wrong(uri):
        raise LookupError(f"{address.VARIABLE}: received {address.shown(uri)!r}; allowed: {allowed}")
    database = address.database(uri)
    if database and not database.exists():  # MLflow would create it, which is the writer's to do
        raise LookupError(f"no tracking store {uri!r}: run an experiment first")
    address.set_defaults()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _experiment(client: MlflowClient, name: str) -> Experiment:
    """The experiment of that name, which is there, not deleted, and holds a design."""
    with_design = {e.name: e for e in _pages(client.search_experiments) if schema.TAG_DESIGN in e.tags}
    if name not in with_design:
        known = ", ".join(sorted(with_design)) or "none"
        raise LookupError(f"no experiment {name!r} with a design; those that have one: {known}")
    return with_design[name]


def _pages(search: Any, *args: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(*args, max_results=_PAGE, page_token=token)
        yield from page
        if not (token := page.token):
            return


def _record(run: Run, role: schema.Role) -> dict[str, Any]:
    tags: Mapping[str, str] = run.data.tags
    missing = [tag for tag in schema.RUN_TAGS if tag not in tags]
    if missing:
        raise ValueError(
            f"MLflow run {run.info.run_id} ({run.info.run_name}) lacks the tags {', '.join(missing)}; "
            "`python -m runners report EXPERIMENT` writes them again"
        )
    return {
        "mlflow_run_id": run.info.run_id,
        "run_key": tags[schema.TAG_RUN_KEY],
        "arm": tags[schema.TAG_ARM],
        "role": role,
        "seed": int(tags[schema.TAG_SEED]),
        "status": run.info.status,
        "stratum": tags[schema.TAG_STRATUM],
        "data": run.data.params.get(schema.PARAM_DATA, ""),
        "reproducible": Stratum.parse(tags[schema.TAG_STRATUM]).on_cpu or tags.get(schema.TAG_DETERMINISTIC) == "true",
        "started": pd.Timestamp(run.info.start_time, unit="ms", tz="UTC"),
        "ended": pd.Timestamp(run.info.end_time, unit="ms", tz="UTC") if run.info.end_time else pd.NaT,
        "invalid": tags.get(schema.TAG_INVALID),
        "reason": tags.get(schema.TAG_REASON),
        **{key: _value(value) for key, value in run.data.metrics.items() if key.startswith(_KEPT)},
    }


def _by_step(history: Iterable[Metric]) -> dict[int, float]:
    """Step -> value; a run that was resumed logged some steps twice, and the later one counts."""
    ordered = sorted(history, key=lambda point: (point.step, point.timestamp))
    return {point.step: _value(point.value) for point in ordered}


def _value(stored: float) -> float:
    return float(np.copysign(np.inf, stored)) if abs(stored) > _STORED_INFINITY else stored
