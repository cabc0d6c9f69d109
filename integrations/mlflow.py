"""Forecasts in an MLflow run: metrics, tags, params and the forecast figure, sent from a thread of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


class MlflowSink:
    """Writes forecasts to one MLflow run, and never holds training up."""

    outcome: str | None = None

    def covers(self, logger: object) -> bool:
        """Tell whether `logger` writes to this sink's run, so that a caller does not log a forecast there twice."""
        raise NotImplementedError

    def write(self, record: Any, summary: Any) -> None:
        """Queue a forecast; returns at once and never raises."""
        raise NotImplementedError

    def close(self, summary: Any) -> None:
        """Send what is queued and the last figure, end the run if the sink started it; bounded in time."""
        raise NotImplementedError


def resolve_sink(
    loggers: Iterable[object] = (), *, mode: bool | None = None, environ: Mapping[str, str] | None = None
) -> MlflowSink | None:
    """Find the MLflow run that forecasts belong to, and a sink that writes to it.

    The first that applies: the run of Lightning's `MLFlowLogger` among `loggers`; the run of `MLFLOW_RUN_ID` or
    the active run (`mlflow.active_run()`); a run of its own in the store and experiment that `MLFLOW_TRACKING_URI`
    and `MLFLOW_EXPERIMENT_NAME` name; with `mode=True` only, a run of its own on `sqlite:///mlflow.db`. A run the
    sink started it also ends, at `close`; it leaves every other run open.

    Call it once a fit, when the loggers have their runs (Lightning: `setup` or later), in the thread that trains.
    It opens a local database here and now, a few seconds when it is new, so that no training step pays for that;
    a tracking server is first spoken to in the sink's thread. It raises nothing about the store: what fails there
    is counted by the sink and logged once.

    The sink sends `record.metrics` itself. A caller that also hands forecasts to its framework's loggers leaves
    those out for which `sink.covers(logger)` is true: MLflow would keep both points. A caller that knows how the
    run ended badly sets `sink.outcome` to `"FAILED"` or `"KILLED"` before closing.

    Args:
        loggers: The trainer's loggers (`trainer.loggers`); others than `MLFlowLogger` are passed over.
        mode: None uses the run that is there, True makes one where there is none, False never logs to MLflow.
        environ: The environment to read; the process's own by default.

    Returns:
        The sink; None when there is no run to write to, on ranks other than 0, and with `mode=False`.
    """
    raise NotImplementedError
