"""How an MLflow run is opened: one that is named, a new one, or the one of a training that is resumed."""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from mlflow import MlflowClient

_log = logging.getLogger("scale_callbacks")

GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # what a store says that has no such run
JOURNAL_TAG = "forecast.journal"  # tag of a run that was started here


# Two sinks of one process may ask for the same run, which is not there yet.
_starting: dict[str, threading.Lock] = {}
_tried_here: set[str] = set()


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


@dataclass(frozen=True)
class Target:
    """The run that is to be opened.

    Attributes:
        uri: the store's address, with its secrets.
        run_id: the run; None: one is to be started.
        own: the sink started it, or is to.
        experiment: where to start one.
        experiment_id: the same, known by its id.
        token: tells a run that was started here, before its id is known here.
        created: milliseconds since 1970 when it is said to have started.
        tried: starting it may have been tried before, with an answer that was lost.
        resumed: named by a checkpoint: where it is gone, another is started.
    """

    uri: str
    run_id: str | None = None
    own: bool = True
    experiment: str = "Default"
    experiment_id: str | None = None
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    created: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    tried: bool = False
    resumed: bool = False

    def resuming(self, state: Mapping[str, Any] | None) -> Target:
        """Read a sink's `state_dict()`, as a checkpoint gave it back; anything else is passed over."""
        if not isinstance(state, Mapping):
            return self
        run_id, token, created = state.get("run_id"), state.get("token"), state.get("created")
        if isinstance(run_id, str) and re.fullmatch(r"[\w-]{1,64}", run_id):
            return replace(self, run_id=run_id, own=state.get("own") is True, resumed=True)
        if isinstance(token, str) and re.fullmatch(r"[0-9a-f]{16}", token):
            since = created if isinstance(created, int) else self.created
            return replace(self, token=token, created=since, own=state.get("own") is not False, tried=True)
        return self


class RunOpener:
    """Opens the run of a target; to be called again where that failed.

    Args:
        target: The run.
        taken: Tells of a run's id that another process writes to it: then a resumed training starts its own.
    """

    def __init__(self, target: Target, taken: Callable[[str], bool] = lambda run_id: False) -> None:
        self._target = target
        self._taken = taken
        self._tried = target.tried

    def __call__(self) -> Opened:
        """Open the run; raises what MLflow raises."""
        from mlflow import MlflowClient

        target, client = self._target, MlflowClient(tracking_uri=self._target.uri)
        if target.run_id is None:
            return self._start(client)
        if not target.resumed:
            return Opened(client, client.get_run(target.run_id).info.run_id, target.own)
        info = _info_of(client, target.run_id)
        if info is None or self._taken(target.run_id):
            why = "is not in this store" if info is None else "is being written by another process"
            _log.warning("MLflow: run %s of the checkpoint %s; a new one is started", target.run_id, why)
            self._target = replace(target, run_id=None, own=True)
            return self._start(client)
        if target.own and info.status != "RUNNING":
            client.update_run(target.run_id, status="RUNNING")
        return Opened(client, target.run_id, target.own)

    def _start(self, client: MlflowClient) -> Opened:
        from mlflow.tracking.context.registry import resolve_tags

        target = self._target
        place = target.experiment_id or _experiment(client, target.experiment)
        with _starting.setdefault(target.token, threading.Lock()):
            return self._find_or_create(client, place, {**resolve_tags(), JOURNAL_TAG: target.token})

    def _find_or_create(self, client: MlflowClient, place: str, tags: dict[str, str]) -> Opened:
        target = self._target
        if self._tried or target.token in _tried_here:
            for run in client.search_runs([place], f"tags.`{JOURNAL_TAG}` = '{target.token}'", max_results=1):
                return Opened(client, run.info.run_id, target.own)
        self._tried = True
        _tried_here.add(target.token)
        return Opened(client, client.create_run(place, start_time=target.created, tags=tags).info.run_id)


def _info_of(client: MlflowClient, run_id: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        info = client.get_run(run_id).info
    except MlflowException as fault:
        if fault.error_code not in GONE:
            raise
        return None
    return info if info.lifecycle_stage == "active" else None


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
