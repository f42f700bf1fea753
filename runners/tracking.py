"""The mirror of run folders in MLflow. The only module that writes there; it can be run again at any time.

One MLflow experiment for each of ours, one flat run for each (arm, seed). A control run that several experiments share
is mirrored into each of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from analysis.store import schema
from analysis.store.stratum import Stratum
from llama_variants.config import flatten
from runners.planning.arms import PlannedRun
from runners.planning.plan import Plan
from runners.runs import looks
from runners.runs.folder import RunFolder, Status
from runners.runs.proofs import proven

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_MLFLOW_STATES = {"FINISHED": "FINISHED", "KILLED": "KILLED", "FAILED": "FAILED", "INVALID": "FAILED"}
_BATCH = 1000  # metrics MLflow takes in one call


class Mirror:
    """Copies the run folders of one plan into the tracking store."""

    def __init__(self, plan: Plan, root: Path, uri: str | None = None) -> None:
        self.plan = plan
        self.root = root
        self.uri = uri or schema.tracking_uri()
        self.client = connect(self.uri)
        with _alone(self.uri):  # another process may be creating it
            self.experiment_id = self.declare()
        self._known = self._find_runs()
        self._offsets: dict[str, int] = {}

    def declare(self) -> str:
        """Have the store hold what the plan declares, and what was declared at the first look; the experiment's id.

        Done when the mirror is made, and once more before a report: another process may have reported meanwhile.
        """
        design = looks.seen(self.plan, self.root)
        found = self.client.get_experiment_by_name(design.experiment)
        if found is None:
            experiment_id = self.client.create_experiment(design.experiment, artifact_location=_artifacts(self.uri))
            tags: Mapping[str, str] = {}
        else:
            experiment_id, tags = found.experiment_id, found.tags
            if found.lifecycle_stage == "deleted":  # in the UI, say; its runs come back with it
                self.client.restore_experiment(experiment_id)
        # The kind has the UI open on runs and charts rather than on the traces of agents.
        wanted = design.to_tags() | {"mlflow.experimentKind": "custom_model_development"}
        for key, value in wanted.items():
            if tags.get(key) != value:
                self.client.set_experiment_tag(experiment_id, key, value)
        return str(experiment_id)

    def _find_runs(self) -> dict[tuple[str, str, str], tuple[str, str, int]]:
        """(arm, run key, attempt) -> (MLflow's run id, its status, when it ended in ms)."""
        known = {}
        token = None
        while True:
            page = self.client.search_runs([self.experiment_id], max_results=1000, page_token=token)
            for run in page:
                tags = run.data.tags
                place = (
                    tags.get(schema.TAG_ARM, ""),
                    tags.get(schema.TAG_RUN_KEY, ""),
                    tags.get(schema.TAG_ATTEMPT, ""),
                )
                known[place] = (run.info.run_id, run.info.status, run.info.end_time or 0)
                self._follow_proofs(run)
            token = page.token
            if not token:
                return known

    def _follow_proofs(self, run: Run) -> None:
        """A proof that came later than a run's tags makes its stratum that of the newer code."""
        if text := run.data.tags.get(schema.TAG_STRATUM):
            newest = proven(made := Stratum.parse(text))
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
        if place not in self._known:
            with _alone(self.uri):  # another process may be mirroring the same run
                self._known |= self._find_runs()
                if place not in self._known:
                    self._close_others(run)
                    self._known[place] = self._create(run, status), "RUNNING", 0
        run_id, state, ended = self._known[place]
        if state != "RUNNING":
            if ended == int(status.ended * 1000):
                return
            self._reopen(run_id)  # it was stopped, and the same attempt goes on
        rows, end = folder.rows(self._offsets.get(run_id, 0))
        for batch in _batches(_metrics(rows)):
            self.client.log_batch(run_id, metrics=batch)
        self._offsets[run_id] = end  # only now: what was not taken is sent again
        state, ended = "RUNNING", 0
        if status.state in _MLFLOW_STATES:
            state, ended = _MLFLOW_STATES[status.state], int(status.ended * 1000)
            if status.reason:
                self.client.set_tag(
                    run_id,
                    schema.TAG_INVALID if status.state == "INVALID" else schema.TAG_REASON,
                    status.reason,
                )
            self.client.set_terminated(run_id, state, end_time=ended)
        self._known[place] = run_id, state, ended

    def _reopen(self, run_id: str) -> None:
        self.client.update_run(run_id, status="RUNNING")
        for tag in {schema.TAG_INVALID, schema.TAG_REASON} & self.client.get_run(run_id).data.tags.keys():
            self.client.delete_tag(run_id, tag)

    def _close_others(self, run: PlannedRun) -> None:
        """An attempt whose process was killed outright never said that it ended."""
        for place, (run_id, state, _) in self._known.items():
            if place[:2] == (run.arm, run.key) and state == "RUNNING":
                self.client.set_terminated(run_id, "KILLED")
                self._known[place] = run_id, "KILLED", 0

    def _create(self, run: PlannedRun, status: Status) -> str:
        from mlflow.entities import Param

        tags = {
            "mlflow.runName": f"{run.arm} seed {run.seed}",
            schema.TAG_RUN_KEY: run.key,
            schema.TAG_ARM: run.arm,
            schema.TAG_ROLE: run.role,
            schema.TAG_SEED: str(run.seed),
            schema.TAG_STRATUM: proven(status.stratum or Stratum()).to_json(),
            schema.TAG_ATTEMPT: status.attempt,
            **{f"env.{key}": value for key, value in status.environment.items()},
        }
        created = self.client.create_run(self.experiment_id, start_time=int(status.started * 1000), tags=tags)
        params = {
            **flatten(run.recipe.resolved()["model"], ("model",)),
            **flatten(run.recipe.resolved()["train"], ("train",)),
            schema.PARAM_DATA: status.data_fingerprint,
            "num_params": run.recipe.num_params,
            "flops_per_token": run.recipe.flops_per_token,
        }
        self.client.log_batch(created.info.run_id, params=[Param(key, str(value)) for key, value in params.items()])
        return str(created.info.run_id)

    @property
    def page(self) -> str:
        """The experiment's runs and charts in the UI; a bare link to it may open on the traces of agents."""
        server = self.uri if self.uri.startswith("http") else "http://127.0.0.1:5000"  # where `make ui` serves
        return f"{server.rstrip('/')}/#/experiments/{self.experiment_id}/runs?workflowType=machine_learning"

    def publish(self, markdown: str, files: Iterable[Path]) -> None:
        """Show ``markdown`` (the verdict table) as the experiment's description in the UI, and keep the report's files.

        They are the artifacts of one run of the experiment, which has the same description and is no run of an arm.
        """
        note = {"mlflow.note.content": markdown[:5000]}
        with _alone(self.uri):
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


class Mirrors:
    """The mirrors of one command: one for each stage of its plan, made when it is first asked for.

    Making one takes a dozen questions to the store, and a command both runs a plan and reports on it.
    """

    def __init__(self, root: Path, uri: str | None = None) -> None:
        self.root = root
        self.uri = uri
        self._made: dict[str, Mirror] = {}

    def of(self, plan: Plan) -> Mirror:
        """The mirror of one stage."""
        name = plan.design().experiment
        if name not in self._made:
            self._made[name] = Mirror(plan, self.root, self.uri)
        return self._made[name]


def connect(uri: str) -> MlflowClient:
    """A client of the store at ``uri``; the first contact with a new database is one process's alone."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    from mlflow import MlflowClient

    with _alone(uri):  # several at once would each try to create the schema, some versions as soon as there is a client
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    return client


def _artifacts(uri: str) -> str | None:
    """Where a local store's files go: beside the database. A server has its own place, and so has whoever names one.

    Not MLflow's ./mlruns, which would have it take that folder for the store where none is named.
    """
    if not uri.startswith("sqlite:///"):
        return None
    database = Path(uri.removeprefix("sqlite:///").partition("?")[0]).absolute()
    return (database.parent / "mlartifacts").as_uri()


def _alone(uri: str) -> AbstractContextManager[Any]:
    """Keeps other processes of this program out of a local database; a server minds itself."""
    local = uri.startswith("sqlite:///")
    return FileLock(uri.removeprefix("sqlite:///") + ".lock") if local else nullcontext()


def _metrics(rows: Iterable[Mapping[str, Any]]) -> list[Any]:
    from mlflow.entities import Metric

    return [
        Metric(key, float(value), int(row["time"] * 1000), row["step"])
        for row in rows
        for key, value in row["metrics"].items()
    ]


def _batches(metrics: list[Any]) -> Iterable[list[Any]]:
    return (metrics[i : i + _BATCH] for i in range(0, len(metrics), _BATCH))
