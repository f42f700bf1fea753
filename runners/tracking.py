"""The mirror of run folders in MLflow. The only module that writes there; it can be run again at any time.

One MLflow experiment for each of ours, one flat run for each (arm, seed). A control run that several experiments share
is mirrored into each of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.store import address, schema
from analysis.store.stratum import Stratum
from llama_variants.config import flatten
from llama_variants.errors import ConfigError, Problem
from runners.planning.arms import PlannedRun
from runners.planning.plan import Plan
from runners.runs import ledger
from runners.runs.evaluations import Evaluations
from runners.runs.folder import RunFolder, Status
from runners.runs.proofs import proven
from runners.stores import alone, artifacts, checked, connect, move_artifacts

if TYPE_CHECKING:
    from mlflow.entities import Run

_MLFLOW_STATES = {"FINISHED": "FINISHED", "KILLED": "KILLED", "FAILED": "FAILED", "INVALID": "FAILED"}
_BATCH = 1000  # metrics MLflow takes in one call
_NAMED_BY = (schema.TAG_ARM, schema.TAG_RUN_KEY)  # and by when it began: no two attempts of a run begin at once
_OTHERS = (schema.TAG_ATTEMPT, schema.TAG_INVALID, schema.TAG_REASON, schema.TAG_DETERMINISTIC)
_REPAIRED = (*schema.RUN_TAGS, *_NAMED_BY, *_OTHERS)


@dataclass(kw_only=True)
class _Copy:
    """A run as the store has it. Times are in ms."""

    run_id: str
    started: int
    state: str = "RUNNING"
    ended: int = 0
    tags: dict[str, str]
    whole: bool  # with its parameters, which come after it
    measured: dict[str, float]  # by probes, after it was done

    @classmethod
    def of(cls, run: Run) -> _Copy:
        info = run.info
        return cls(
            run_id=info.run_id,
            started=info.start_time,
            state=info.status,
            ended=info.end_time or 0,
            tags=dict(run.data.tags),
            whole=schema.PARAM_DATA in run.data.params,
            measured={key: value for key, value in run.data.metrics.items() if key.startswith(schema.MEASURED)},
        )

    def carries(self, tags: Mapping[str, str]) -> int:
        """How many of ``tags`` it has; -1 where it has another value of one. Tags can be deleted in the UI."""
        if any(self.tags.get(key, value) != value for key, value in tags.items()):
            return -1
        return sum(key in self.tags for key in tags)


class Mirror:
    """Copies the run folders of one plan into the tracking store."""

    def __init__(self, plan: Plan, root: Path, uri: str | None = None) -> None:
        self.plan = plan
        self.root = root
        self.uri = checked(uri or address.tracking_uri())
        self.client = connect(self.uri)
        with alone(self.uri):  # another process may be creating it
            self.experiment_id = self.declare()
        self._stored = self._read()
        self._mine: dict[tuple[str, str, str], _Copy] = {}  # by arm, run key and attempt
        self._offsets: dict[str, int] = {}

    def declare(self) -> str:
        """Have the store hold what the plan declares, and what the ledger says of it; the experiment's id.

        Done when the mirror is made, and once more before a report: another process may have reported meanwhile.
        Raises ConfigError where the store has another experiment of that name.
        """
        design = ledger.seen(self.plan, self.root)
        found = self.client.get_experiment_by_name(design.experiment)
        if found is None:
            experiment_id = self.client.create_experiment(design.experiment, artifact_location=artifacts(self.uri))
            tags: Mapping[str, str] = {}
        else:
            experiment_id, tags = found.experiment_id, found.tags
            _refuse_another(design, tags)
            if found.lifecycle_stage == "deleted":  # in the UI, say; its runs come back with it
                self.client.restore_experiment(experiment_id)
            move_artifacts(self.uri, experiment_id, found.artifact_location)
        # The kind has the UI open on runs and charts rather than on the traces of agents.
        wanted = design.to_tags() | {"mlflow.experimentKind": "custom_model_development"}
        for key, value in wanted.items():
            if tags.get(key) != value:
                self.client.set_experiment_tag(experiment_id, key, value)
        return str(experiment_id)

    def _read(self) -> list[_Copy]:
        """All runs of the experiment."""
        copies = []
        token = None
        while True:
            page = self.client.search_runs([self.experiment_id], max_results=1000, page_token=token)
            for run in page:
                self._follow_proofs(run)
                copies.append(_Copy.of(run))
            token = page.token
            if not token:
                return copies

    def _follow_proofs(self, run: Run) -> None:
        """A proof that came later than a run's tags makes its stratum that of the newer code."""
        try:
            made = Stratum.parse(run.data.tags[schema.TAG_STRATUM])
        except (KeyError, ValueError):  # deleted or edited in the UI
            return
        newest = proven(made)
        if newest != made:
            self.client.set_tag(run.info.run_id, schema.TAG_STRATUM, newest.to_json())

    def sync(self, run: PlannedRun) -> None:
        """Bring MLflow's copy of one run up to its folder; does nothing for a run that was never started.

        Rows that MLflow has already are sent again after a restart of this program: it keeps one copy of equal points.
        """
        folder = RunFolder(self.root, run.key)
        status = folder.status
        if status.state == "NEW":
            return
        place = (run.arm, run.key, status.attempt)
        if place not in self._mine:
            self._mine[place] = self._find(run, status) or self._find_or_create(run, status)
        copy = self._mine[place]
        if status.state == "FINISHED":
            self._measured(copy, folder)
        ended = int(status.ended * 1000)
        if copy.state != "RUNNING":
            if copy.ended == ended:
                return
            self._reopen(copy.run_id)  # it was stopped, and the same attempt goes on
            copy.state, copy.ended = "RUNNING", 0
        rows, end = folder.rows(self._offsets.get(copy.run_id, 0))
        for batch in _batches(_metrics(rows)):
            self.client.log_batch(copy.run_id, metrics=batch)
        self._offsets[copy.run_id] = end  # only now: what was not taken is sent again
        if status.state == "FINISHED":
            folder.final_metrics()  # a verdict would miss them
        if status.state in _MLFLOW_STATES:
            for key, value in _why(status).items():
                self.client.set_tag(copy.run_id, key, value)
            state = _MLFLOW_STATES[status.state]
            self.client.set_terminated(copy.run_id, state, end_time=ended)
            copy.state, copy.ended = state, ended

    def _measured(self, copy: _Copy, folder: RunFolder) -> None:
        """Log what probes measured of the run after it was done, as far as the store lacks it."""
        try:
            found = Evaluations(folder.evaluations).all()
        except ConfigError as error:  # the rest is mirrored all the same
            print(f"note: not mirrored: {error}", file=sys.stderr)
            return
        values = {key: value for one in found for key, value in one.mirrored().items()}
        new = {key: value for key, value in values.items() if copy.measured.get(key) != value}
        rows = [{"time": found[-1].made, "step": 0, "metrics": new}] if new else []
        for batch in _batches(_metrics(rows)):
            self.client.log_batch(copy.run_id, metrics=batch)
        copy.measured.update(new)

    def _find(self, run: PlannedRun, status: Status) -> _Copy | None:
        """The store's copy of an attempt, by when it began and by the tags that it has left; these are made whole.

        An experiment that is restored brings deleted runs back. Of two copies of an attempt one goes, to MLflow's bin.
        """
        wanted = _tags(run, status)
        named = {key: wanted[key] for key in _NAMED_BY}
        same = [copy for copy in self._stored if copy.started == int(status.started * 1000)]
        same = sorted(
            (copy for copy in same if copy.carries(named) >= 0 and schema.TAG_REPORT not in copy.tags),
            key=lambda copy: (-copy.carries(named), copy.state == "RUNNING"),
        )
        if not same:
            return None
        found, *others = same
        for other in others:
            if other.carries(named) == len(named):
                self.client.delete_run(other.run_id)
                self._stored.remove(other)
        for key, value in (wanted | _why(status)).items():
            if key in _REPAIRED and found.tags.get(key) != value:
                self.client.set_tag(found.run_id, key, value)
                found.tags[key] = value
        self._complete(found, run, status)
        return found

    def _find_or_create(self, run: PlannedRun, status: Status) -> _Copy:
        with alone(self.uri):  # another process may be mirroring the same run
            self._stored = self._read()
            if found := self._find(run, status):
                return found
            self._close_others(run)
            created = self._create(run, status)
            self._stored.append(created)
            return created

    def _reopen(self, run_id: str) -> None:
        self.client.update_run(run_id, status="RUNNING")
        for tag in {schema.TAG_INVALID, schema.TAG_REASON} & self.client.get_run(run_id).data.tags.keys():
            self.client.delete_tag(run_id, tag)

    def _close_others(self, run: PlannedRun) -> None:
        """An attempt whose process was killed outright never said that it ended."""
        for copy in self._stored:
            mine = copy.tags.get(schema.TAG_ARM), copy.tags.get(schema.TAG_RUN_KEY)
            if mine == (run.arm, run.key) and copy.state == "RUNNING":
                self.client.set_terminated(copy.run_id, "KILLED")
                copy.state = "KILLED"

    def _create(self, run: PlannedRun, status: Status) -> _Copy:
        tags = _tags(run, status)
        created = self.client.create_run(self.experiment_id, start_time=int(status.started * 1000), tags=tags)
        copy = _Copy.of(created)
        self._complete(copy, run, status)
        return copy

    def _complete(self, copy: _Copy, run: PlannedRun, status: Status) -> None:
        """Log the parameters, where the store went away before it had them."""
        from mlflow.entities import Param

        if copy.whole:
            return
        params = {
            **flatten(run.recipe.resolved()["model"], ("model",)),
            **flatten(run.recipe.resolved()["train"], ("train",)),
            schema.PARAM_DATA: status.data_fingerprint,
            "num_params": run.recipe.num_params,
            "flops_per_token": run.recipe.flops_per_token,
        }
        self.client.log_batch(copy.run_id, params=[Param(key, str(value)) for key, value in params.items()])
        copy.whole = True

    @property
    def page(self) -> str:
        """The experiment's runs and charts in the UI; a bare link to it may open on the traces of agents."""
        local = "http://127.0.0.1:5000"  # where `make ui` serves
        server = address.shown(self.uri) if self.uri.startswith("http") else local
        return f"{server.rstrip('/')}/#/experiments/{self.experiment_id}/runs?workflowType=machine_learning"

    def publish(self, markdown: str, files: Iterable[Path]) -> None:
        """Show ``markdown`` (the verdict table) as the experiment's description in the UI, and keep the report's files.

        They are the artifacts of one run of the experiment, which has the same description and is no run of an arm.
        """
        note = {"mlflow.note.content": markdown[:5000]}
        with alone(self.uri):
            query = f"tags.`{schema.TAG_REPORT}` = 'verdicts'"
            found = self.client.search_runs([self.experiment_id], query, max_results=1)
            tags = {"mlflow.runName": "report", schema.TAG_REPORT: "verdicts"}
            run = found[0] if found else self.client.create_run(self.experiment_id, tags=tags)
        for key, value in note.items():
            self.client.set_experiment_tag(self.experiment_id, key, value)
            self.client.set_tag(run.info.run_id, key, value)
        for file in files:
            self.client.log_artifact(run.info.run_id, str(file))
        self.client.set_terminated(run.info.run_id)


def _refuse_another(design: schema.Design, tags: Mapping[str, str]) -> None:
    """Two pairs of names can make one: experiment a on base b-c, and a-b on c."""
    try:
        held = json.loads(tags[schema.TAG_DESIGN])  # no more of it: another version's has these three too
        names = held["name"], held["base"], held["confirms"]
    except (KeyError, TypeError, ValueError):  # edited in the UI: it is written anew
        return
    if names != (design.name, design.base, design.confirms):
        received = f"{design.name} on {design.base}, called {design.experiment} in the tracking store"
        allowed = f"another name: {names[0]} on {names[1]} is called that there"
        raise ConfigError([Problem(path=("name",), received=received, allowed=allowed)])


def _tags(run: PlannedRun, status: Status) -> dict[str, str]:
    """What the store holds of an attempt from its beginning."""
    return {
        "mlflow.runName": f"{run.arm} seed {run.seed}",
        schema.TAG_RUN_KEY: run.key,
        schema.TAG_ARM: run.arm,
        schema.TAG_ROLE: run.role,
        schema.TAG_SEED: str(run.seed),
        schema.TAG_STRATUM: proven(status.stratum or Stratum()).to_json(),
        schema.TAG_ATTEMPT: status.attempt,
        **{f"env.{key}": value for key, value in status.environment.items()},
    }


def _why(status: Status) -> dict[str, str]:
    """The tag that says why an attempt ended as it did, where there is a reason."""
    if status.state not in _MLFLOW_STATES or not status.reason:
        return {}
    return {schema.TAG_INVALID if status.state == "INVALID" else schema.TAG_REASON: status.reason}


def _metrics(rows: Iterable[Mapping[str, Any]]) -> list[Any]:
    from mlflow.entities import Metric

    return [
        Metric(key, float(value), int(row["time"] * 1000), row["step"])
        for row in rows
        for key, value in row["metrics"].items()
    ]


def _batches(metrics: list[Any]) -> Iterable[list[Any]]:
    return (metrics[i : i + _BATCH] for i in range(0, len(metrics), _BATCH))
