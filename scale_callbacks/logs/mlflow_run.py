"""MLflow: the metrics of a run, from any tracking address."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from scale_callbacks.logs.log import Series
from scale_callbacks.logs.names import OWN

PREFIX = "mlflow:"
PLANNED = ("forecast.horizon", "max_steps", "trainer/max_steps", "args/max_steps", "total_steps")
LATEST = 5  # runs named where one is not found


class MlflowRun:
    """The metrics of one MLflow run.

    Args:
        run_id: the run.
        tracking_uri: where it is kept; by default where MLflow itself would look.

    Raises:
        ValueError: no such run, with the latest ones named; a run without metrics.
        OSError: the store does not answer or is not there.
    """

    def __init__(self, run_id: str, tracking_uri: str | None = None) -> None:
        self.label = f"MLflow run {run_id}"
        self.notes: Counter[str] = Counter()
        self._id = run_id
        self._client = client_of(tracking_uri)
        run = self._asked(self._client.get_run, run_id)
        self.status = str(run.info.status)
        self.ended = self.status not in ("RUNNING", "SCHEDULED")
        self.names: Sequence[str] = sorted(run.data.metrics, key=lambda name: (name.startswith(OWN), name))
        if not self.names:
            raise ValueError(f"{self.label} has logged no metric")
        self.params, self.tags = dict(run.data.params), dict(run.data.tags)
        self.latest = dict(run.data.metrics)
        self.planned = _planned(self.params)

    def is_mean(self, name: str) -> bool:
        """Nothing is known of how a metric came about."""
        return False

    def read(self, names: Sequence[str]) -> dict[str, Series]:
        """Steps and values of metrics, in the order of logging."""
        found = {}
        for name in names:
            points = self._asked(self._client.get_metric_history, self._id, name)
            points = sorted(points, key=lambda point: point.timestamp)
            steps = np.array([point.step for point in points], dtype=float)
            found[name] = steps, np.array([point.value for point in points], dtype=float)
        return found

    def _asked(self, call: Any, *arguments: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return call(*arguments)
        except MlflowException as fault:
            if getattr(fault, "error_code", "") in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise ValueError(f"there is no run {self._id!r}{_latest(self._client)}") from None
            raise OSError(f"MLflow: {_plain(fault)}") from None


def client_of(tracking_uri: str | None) -> Any:
    """A client for the store.

    Raises:
        OSError: a local store that is not there; MLflow itself would make a new one.
        ValueError: no address MLflow knows.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    uri = tracking_uri or mlflow.get_tracking_uri()
    parts = urlsplit(uri)
    if parts.scheme == "sqlite" and parts.path.lstrip("/") and not Path(unquote(parts.path[1:])).is_file():
        raise FileNotFoundError(
            f"there is no MLflow database {parts.path[1:]}: give its place with --tracking-uri"
        )
    try:
        return mlflow.MlflowClient(tracking_uri=uri)
    except MlflowException as fault:
        raise ValueError(f"MLflow: {_plain(fault)}") from None


def _latest(client: Any) -> str:
    """The latest runs there, for a message; nothing where they cannot be had."""
    try:
        experiments = [experiment.experiment_id for experiment in client.search_experiments(max_results=100)]
        runs = client.search_runs(experiments, max_results=LATEST, order_by=["attributes.start_time DESC"])
    except Exception:
        return ""
    named = ", ".join(f"{run.info.run_id} ({run.info.run_name})" for run in runs)
    return f"; the latest are {named}" if named else "; there are no runs at all"


def _planned(params: Any) -> int | None:
    for name in PLANNED:
        try:
            count = int(float(params.get(name, "")))
        except (ValueError, OverflowError):
            continue
        if 0 < count < 2**53:
            return count
    return None


def _plain(fault: Exception) -> str:
    from scale_callbacks.integrations._mlflow_text import without_secrets

    return without_secrets(str(fault)).splitlines()[0][:300] if str(fault) else type(fault).__name__
