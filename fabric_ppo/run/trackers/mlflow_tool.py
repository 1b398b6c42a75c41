"""MLflow, of its own packages `mlflow` or `mlflow-skinny`; see `tool.py`."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fabric_ppo.process.errors import first_line
from fabric_ppo.run.trackers.mlflow_names import mlflow_name
from fabric_ppo.run.trackers.tool import (
    METRICS_FILE,
    MetricsReader,
    Opened,
    Row,
    TrackedRun,
    test_score,
    without_passwords,
)

_PARAMS, _PARAM_LENGTH, _METRICS = 100, 6000, 1000
"""Parameters in one request, characters of one, and metrics: MLflow takes no more."""
_OF_EACH_ROW = "Time/step_per_second"
_KEY = "fabric_ppo_run"


class Mlflow:
    """Tool that keeps a run on the server of `MLFLOW_TRACKING_URI`, or in `mlflow.db` in the log dir.

    MLflow cannot delete numbers. If it has some that will be logged again, as after most kills, the run
    is deleted and a new one gets all its rows. Else, as after a signal, the run continues.
    """

    def address(self, run: TrackedRun) -> str:
        """See `Tool`."""
        return without_passwords(os.environ.get("MLFLOW_TRACKING_URI") or _database(run))

    def open(self, run: TrackedRun, warn: Callable[[str], None]) -> Opened:
        """See `Tool`; the project is an experiment."""
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        from mlflow.tracking import MlflowClient

        known = run.remembered("mlflow")
        database = "" if os.environ.get("MLFLOW_TRACKING_URI") else _database(run)
        with _making(database):
            self._client = MlflowClient(f"sqlite:///{database}" if database else os.environ["MLFLOW_TRACKING_URI"])
            experiment = self._experiment(run.project, database)
        # by a tag of ours its runs are found again, wherever a kill has come
        key, before = known.get("key") or secrets.token_hex(8), known.get("experiment", experiment)
        run.remember("mlflow", key=key, experiment=experiment, **({"database": database} if database else {}))
        held = self._go_on(run, key, [*dict.fromkeys((experiment, before))], warn)
        if held < 0:
            self._begin(experiment, run, key)
        self._warn, self._refused = warn, set[str]()
        for tag, value in {**dict.fromkeys(map(mlflow_name, run.tags), "true"), "group": run.group}.items():
            self._client.set_tag(self._id, tag, value)
        return Opened(held, self._place(database, experiment))

    def _experiment(self, name: str, database: str) -> str:
        """Return the id of the experiment with a name; make it if there is none."""
        from mlflow.exceptions import MlflowException

        # else artifacts would be in the working directory
        place = Path(database).with_name("mlartifacts").as_uri() if database else None
        if (found := self._client.get_experiment_by_name(name)) is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=place))
            except MlflowException:  # another run has made it meanwhile
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _go_on(self, run: TrackedRun, key: str, experiments: list[str], warn: Callable[[str], None]) -> int:
        """Continue the run of an earlier process; return its last step, or -1 if a new one is needed."""
        held = -1
        for old in self._client.search_runs(experiments, f"tags.{_KEY} = '{key}'"):
            steps = self._clean_steps(old, run)
            if held < 0 and steps and old.info.experiment_id == experiments[0]:
                held, self._id = steps[-1], old.info.run_id
                self._client.update_run(self._id, status="RUNNING")
            else:
                if old.data.metrics:
                    warn(f"the run {old.info.run_id} has what it cannot take back: a new one replaces it")
                self._client.delete_run(old.info.run_id)
        return held

    def _clean_steps(self, old: Any, run: TrackedRun) -> list[int]:
        """Return the steps of a run; empty if it has other rows than those in the file."""
        if old.data.params != _params(run) or any(tag.startswith("Test/") for tag in old.data.metrics):
            return []
        points = self._client.get_metric_history(old.info.run_id, _OF_EACH_ROW)
        logged = sorted((int(point.step), float(point.value)) for point in points)
        # no two times are alike: equal ones are those of the same rows
        reader = MetricsReader(run.dir / METRICS_FILE, -1)
        rows = [(row.step, row.metrics[_OF_EACH_ROW]) for some in reader.rows_until(run.step) for row in some]
        return [step for step, _ in logged] if logged == rows[: len(logged)] else []

    def _begin(self, experiment: str, run: TrackedRun, key: str) -> None:
        from mlflow.entities import Param

        self._id = str(self._client.create_run(experiment, run_name=run.dir.name, tags={_KEY: key}).info.run_id)
        values = [Param(name, value) for name, value in _params(run).items()]
        for first in range(0, len(values), _PARAMS):
            self._client.log_batch(self._id, params=values[first : first + _PARAMS])

    def _place(self, database: str, experiment: str) -> str:
        if database:
            return f"mlflow ui --backend-store-uri {shlex.quote(f'sqlite:///{database}')} shows it"
        return f"{without_passwords(os.environ['MLFLOW_TRACKING_URI'])}/#/experiments/{experiment}/runs/{self._id}"

    def log(self, rows: Sequence[Row]) -> None:
        """See `Tool`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points: list[Metric] = []
        for step, metrics in rows:
            # last comes the one by which it is seen that a row is there, should a kill cut it in two
            named = {mlflow_name(tag): metrics[tag] for tag in sorted(metrics, key=_OF_EACH_ROW.__eq__)}
            row = [Metric(name, value, now, step) for name, value in named.items() if name not in self._refused]
            if len(points) + len(row) > _METRICS:  # a row is added as a whole where that can be
                self._send(points)
                points = []
            points += row
        self._send(points)

    def _send(self, points: Sequence[Any]) -> None:
        """Add points; those of a metric that the server refuses are left out, with a line.

        Raises:
            MlflowException: it is not the metrics that are wrong.
        """
        from mlflow.exceptions import MlflowException

        for first in range(0, len(points), _METRICS):
            some = points[first : first + _METRICS]
            try:
                self._client.log_batch(self._id, metrics=some)
            except MlflowException as error:
                if error.error_code != "INVALID_PARAMETER_VALUE":
                    raise
                self._send_each(some)

    def _send_each(self, points: Sequence[Any]) -> None:
        """Add the points of each metric by itself: nothing of them has been added together."""
        from mlflow.exceptions import MlflowException

        errors = {}
        names = dict.fromkeys(point.key for point in points)
        for name in names:
            try:
                self._client.log_batch(self._id, metrics=[point for point in points if point.key == name])
            except MlflowException as error:
                errors[name] = error
        if len(errors) == len(names):
            raise next(iter(errors.values()))
        for name, refusal in errors.items():
            self._warn(f"the metric {name} is left out ({first_line(refusal)})")
        self._refused |= errors.keys()

    def artifact(self, path: Path, kind: str) -> None:
        """See `Tool`; an artifact is in the folder `kind`."""
        log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        log(self._id, str(path), kind)

    def close(self, summary: dict[str, Any] | None) -> None:
        """See `Tool`; the summary is the file `summary.json`."""
        if summary is not None:
            self.log(test_score(summary))
            self._client.log_dict(self._id, summary, "summary.json")
        self._client.set_terminated(self._id, "FINISHED" if summary is not None else "KILLED")


def _database(run: TrackedRun) -> str:
    """Return the path of the database that is used without a server."""
    # the one that it began with: the working directory may be another one by now
    return run.remembered("mlflow").get("database") or str(run.log_dir / "mlflow.db")


def _params(run: TrackedRun) -> dict[str, str]:
    return {name: str(value)[:_PARAM_LENGTH] for name, value in run.config.items()}


@contextlib.contextmanager
def _making(database: str) -> Iterator[None]:
    """Lock the making of a database within the block: MLflow does not expect two runs to make one."""
    if not database:
        yield
        return
    import fcntl

    folder = Path(database).parent
    folder.mkdir(parents=True, exist_ok=True)
    with open(f"{database}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
