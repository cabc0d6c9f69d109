"""MLflow: which run forecasts belong to, and the sink that writes them there."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from scale_callbacks.integrations._mlflow_open import Target
from scale_callbacks.integrations._mlflow_sink import MlflowSink, is_mlflow_logger
from scale_callbacks.integrations._mlflow_text import fault_text, is_local

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["MlflowSink", "resolve_sink", "run_page"]

_log = logging.getLogger("scale_callbacks")

OWN_STORE = "mlflow.db"  # where a run goes that has no other place: MLflow's own default
OWN_EXPERIMENT = "scale-callbacks"
SET_UP = 30.0  # seconds that setting up waits for a local database; a new one takes about five


def resolve_sink(
    loggers: Iterable[object] = (),
    *,
    mode: bool | None = None,
    prefix: str = "forecast",
    environ: Mapping[str, str] | None = None,
    resume: Mapping[str, Any] | None = None,
) -> MlflowSink | None:
    """Find the MLflow run that forecasts belong to, and a sink that writes to it.

    The first that applies: the run of Lightning's `MLFlowLogger` among `loggers`; the active run
    (`mlflow.active_run()`), or the one that `MLFLOW_RUN_ID` names; a run of its own in the store and the
    experiment that `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` name; with `mode=True` only, a run of
    its own on `sqlite:///mlflow.db`. A run that the sink started it also ends, at `close`; others it leaves
    open.

    Call it once a fit, when the loggers have their runs (Lightning: `setup` or later), in the thread that
    trains. It opens a local database here and now, a few seconds when it is new, so that no training step
    pays for that; a tracking server is first spoken to in the sink's thread. It raises nothing about the
    store: what fails there is counted by the sink and logged once.

    The sink sends `record.metrics` itself. A caller that also hands forecasts to its framework's loggers
    leaves those out for which `sink.covers(logger)` is true: MLflow would keep both points. A caller that
    knows that the run ended badly sets `sink.outcome` to `"FAILED"` or `"KILLED"` before closing. A caller
    that writes checkpoints keeps `sink.state_dict()` in them and hands it back as `resume`: instead of a
    second run of its own the sink then goes on with the first one.

    Args:
        loggers: The trainer's loggers (`trainer.loggers`); others than `MLFlowLogger` are passed over.
        mode: None uses the run that is there, True makes one where there is none, False never logs to MLflow.
        prefix: As in `MlflowSink`: another one for a second metric's forecasts in the same run.
        environ: The environment to read; the process's own by default.
        resume: `state_dict()` of the sink that a resumed training had before; anything else is passed over.

    Returns:
        The sink; None when there is no run to write to, on ranks other than 0, and with `mode=False`.
    """
    environ = os.environ if environ is None else environ
    if mode is False or _rank(environ) != 0:
        return None
    try:
        return (
            _sink_of_logger(loggers, prefix)
            or _sink_of_active_run(environ, prefix)
            or _sink_of_own_run(environ, prefix, resume, asked_for=bool(mode))
        )
    except Exception as fault:
        _log.warning("MLflow: no run to log to: %s (training goes on)", fault_text(fault))
        return None


def run_page(client: MlflowClient, run_id: str) -> str:
    """Return where the run's metrics are shown, to be put behind the address of an MLflow server and a slash.

    Args:
        client: A client of the run's store.
        run_id: The run.

    Returns:
        `#/experiments/<experiment>/runs/<run>/model-metrics`.
    """
    return f"#/experiments/{client.get_run(run_id).info.experiment_id}/runs/{run_id}/model-metrics"


def _sink_of_logger(loggers: Iterable[object], prefix: str) -> MlflowSink | None:
    for logger in loggers:
        if is_mlflow_logger(logger):
            return MlflowSink(logger.experiment, logger.run_id, prefix=prefix)  # type: ignore[attr-defined]
    return None


def _sink_of_active_run(environ: Mapping[str, str], prefix: str) -> MlflowSink | None:
    mlflow: Any = sys.modules.get("mlflow")  # not imported: no run can be active
    active = mlflow.active_run() if mlflow is not None else None
    if active is not None:
        return MlflowSink(mlflow.MlflowClient(), active.info.run_id, prefix=prefix)
    if run_id := environ.get("MLFLOW_RUN_ID"):
        uri = environ.get("MLFLOW_TRACKING_URI") or _own_store()
        return _opened(Target(uri, run_id, own=False), prefix)
    return None


def _sink_of_own_run(
    environ: Mapping[str, str], prefix: str, resume: Mapping[str, Any] | None, *, asked_for: bool
) -> MlflowSink | None:
    uri, experiment = environ.get("MLFLOW_TRACKING_URI"), environ.get("MLFLOW_EXPERIMENT_NAME")
    if not (uri or experiment or asked_for):
        return None
    # In a store that somebody named, MLflow's own default; in one that only we chose, ours.
    name = experiment or ("Default" if uri else OWN_EXPERIMENT)
    store = uri or _own_store()
    target = Target(store, experiment=name, experiment_id=environ.get("MLFLOW_EXPERIMENT_ID"))
    return _opened(target.resuming(resume), prefix)


def _own_store() -> str:
    # In full: the program may change its folder, and MLflow keeps one connection for each text of an address.
    return f"sqlite:///{os.path.abspath(OWN_STORE)}"


def _opened(target: Target, prefix: str) -> MlflowSink:
    import mlflow  # noqa: F401  takes seconds: now, rather than in the thread beside the first training steps

    sink = MlflowSink.starting(target, prefix=prefix)
    sink.open(wait=SET_UP if is_local(target.uri) else 0.0)
    return sink


def _rank(environ: Mapping[str, str]) -> int:
    """Return this process's rank among those that train together; 0 where there is one."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_rank())
    lightning: Any = sys.modules.get("lightning_utilities.core.rank_zero")
    rank = getattr(getattr(lightning, "rank_zero_only", None), "rank", None)
    return int(environ.get("RANK", "0") if rank is None else rank)
