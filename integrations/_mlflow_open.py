"""How an MLflow run is opened: one that is named, a new one, or the one of a training that is resumed."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from mlflow import MlflowClient

_log = logging.getLogger("scale_callbacks")

GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # what a store says that has no such run


class Opened(NamedTuple):
    """A run that can be written to.

    Attributes:
        client: of the run's store.
        run_id: the run.
        own: the sink started it, and is to end it.
    """

    client: MlflowClient
    run_id: str
    own: bool = True


class Earlier(NamedTuple):
    """The run that a resumed training had before."""

    run_id: str
    own: bool


def resumable(state: Mapping[str, Any] | None) -> Earlier | None:
    """Read a sink's `state_dict()`, as a checkpoint gave it back; None where it names no run."""
    run_id = state.get("run_id") if isinstance(state, Mapping) else None
    if state is None or not isinstance(run_id, str) or not re.fullmatch(r"[\w-]{1,64}", run_id):
        return None
    return Earlier(run_id, state.get("own") is True)


def find_run(uri: str, run_id: str) -> Opened:
    """Open a run that somebody else started."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    return Opened(client, client.get_run(run_id).info.run_id, own=False)


def start_run(uri: str, experiment: str, experiment_id: str | None) -> Opened:
    """Start a run, and its experiment where there is none of that name."""
    from mlflow import MlflowClient
    from mlflow.tracking.context.registry import resolve_tags

    client = MlflowClient(tracking_uri=uri)
    if experiment_id is None:
        experiment_id = _experiment(client, experiment)
    return Opened(client, client.create_run(experiment_id, tags=resolve_tags()).info.run_id)


def go_on(uri: str, earlier: Earlier, start: Callable[[], Opened]) -> Opened:
    """Open the run that a resumed training had before; start one where the store no longer has it."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=uri)
    try:
        info = client.get_run(earlier.run_id).info
    except MlflowException as fault:
        if fault.error_code not in GONE:
            raise
        info = None
    if info is None or info.lifecycle_stage != "active":
        _log.warning(
            "MLflow: run %s of the checkpoint is not in this store; a new one is started", earlier.run_id
        )
        return start()
    if earlier.own and info.status != "RUNNING":
        client.update_run(earlier.run_id, status="RUNNING")
    return Opened(client, earlier.run_id, earlier.own)


def _experiment(client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name))
    except MlflowException:
        found = client.get_experiment_by_name(name)  # another process was faster
        if found is None:
            raise
        return str(found.experiment_id)
