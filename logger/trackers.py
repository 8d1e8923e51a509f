"""Trackers that a config can name. docs/trackers.md shows how others are written."""

import hashlib
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from logger.base_tracker import BaseTracker, Values
from logger.files import flat

if TYPE_CHECKING:
    from mlflow import MlflowClient

IDENTITY = "run.folder"  # the tag by which a run's folder is found again
STATES = {"finished": "FINISHED", "stopped": "KILLED"}
LONGEST = 500  # characters of a parameter
UNWELCOME = re.compile(r"[^\w./: -]")  # in MLflow's names


class MlflowTracker(BaseTracker):
    """MLflow (`pip install mlflow`). A run that starts from another's weights is shown below
    that one; what scripts find out about a finished run is added to it.

    Args:
        uri: the server, "http://localhost:5000", or a file, "sqlite:///mlflow.db"
        experiment: the name under which runs are kept
    """

    def __init__(self, uri: str, experiment: str = "Default"):
        self.uri, self.experiment = uri, experiment
        self._opened: MlflowClient | None = None
        self._id = ""

    @property
    def client(self) -> "MlflowClient":
        """Raises what MLflow raises if there is no server."""
        if self._opened is None:
            # else it would try for minutes while the training waits
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
            os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
            from mlflow import MlflowClient

            self._opened = MlflowClient(self.uri, self.uri)
        return self._opened

    def begin(self, run: Path, config: dict, parent: Path | None) -> None:
        self._id = self._find(run)
        if self._id:
            self.client.update_run(self._id, status="RUNNING")
            return
        tags = {IDENTITY: _identity(run), "mlflow.runName": f"{run.parent.name}/{run.name}"}
        if parent is not None and (found := self._find(parent)):
            tags["mlflow.parentRunId"] = found
        self._id = self.client.create_run(self._experiment(), tags=tags).info.run_id
        for key, value in flat(config).items():
            self.client.log_param(self._id, UNWELCOME.sub("_", key), str(value)[:LONGEST])

    def log(self, values: Values, step: int) -> None:
        self._log(self._id, values, step)

    def end(self, state: str) -> None:
        self.client.set_terminated(self._id, STATES[state])

    def result(self, run: Path, name: str, values: Values, files: list[Path]) -> None:
        if found := self._find(run):
            self._log(found, {f"{name}.{key}": value for key, value in values.items()}, 0)
            for file in files:
                self.client.log_artifact(found, str(file), name)

    def _log(self, run_id: str, values: Values, step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        rows = [
            Metric(UNWELCOME.sub("_", key), float(value), now, step)
            for key, value in values.items()
        ]
        self.client.log_batch(run_id, metrics=rows)

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.experiment)
        return found.experiment_id if found else self.client.create_experiment(self.experiment)

    def _find(self, run: Path) -> str:
        """The id of a run's folder; "" if it was not tracked."""
        wanted = f"tags.`{IDENTITY}` = '{_identity(run)}'"
        found = self.client.search_runs([self._experiment()], wanted, max_results=1)
        return found[0].info.run_id if found else ""


def _identity(run: Path) -> str:
    return hashlib.blake2b(str(run.resolve()).encode(), digest_size=16).hexdigest()
