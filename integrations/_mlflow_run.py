"""One MLflow run, spoken to one call at a time: what of a forecast is sent there, and how."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from scale_callbacks.integrations._mlflow_journal import Entry
from scale_callbacks.integrations._mlflow_open import Opened
from scale_callbacks.integrations._mlflow_text import is_local, mlflow_key, public_address

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from scale_callbacks.sinks import Record, Summary

BATCH = 1000  # metrics that MLflow takes in one call
QUIET = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"
TEXT = 500  # characters of a param or tag that every MLflow server takes


def entry_of(record: Record, summary: Summary, prefix: str) -> Entry:
    """Write down what a forecast gives to send: its metrics, the weights of the laws, the run's state."""
    metrics = dict(record.metrics)
    if prefix != "forecast":  # a second metric in one run: the areas are the first one's to tell
        own = f"forecast/{record.name}"
        away = metrics.get("forecast/deviation")
        metrics = {name: value for name, value in metrics.items() if name.startswith(own)}
        metrics |= {} if away is None else {f"{prefix}/deviation": away}
    if record.forecast is not None:
        metrics[f"{prefix}/final"] = record.forecast.value
        metrics |= {f"{prefix}/weight/{law}": share for law, share in record.forecast.weights.items()}
    return _entry(record.step, metrics, summary, prefix)


def last_entry_of(summary: Summary, prefix: str) -> Entry:
    """Write down how the run ended: its state, and what was to be forecast where that is known."""
    metrics = {} if summary.measured is None else {f"{prefix}/measured": summary.measured}
    return _entry(summary.last_step, metrics, summary, prefix)


def settings_of(summary: Summary, prefix: str) -> dict[str, str]:
    """Write down what the run was set to, as params."""
    settings: dict[str, Any] = {"monitor": summary.name, "horizon": summary.horizon}
    if summary.schedule is not None:
        settings |= {"peak_rate": summary.schedule.peak, "warmup": summary.schedule.warmup}
    settings |= summary.settings
    return {mlflow_key(f"{prefix}.{name}"): str(value)[:TEXT] for name, value in settings.items()}


class RunWriter:
    """Writes entries, settings and files to a run; every method may block, and raise what MLflow raises.

    Args:
        opening: Opens the store and the run; called at first use, again after it failed.
        reachable: Asked before a call after one that failed, so that MLflow's own long retries are spared.

    Attributes:
        run_id: The run; None before it is open.
        own: The run was started here, and is to be ended here.
        answering: The last call succeeded.
        asked_at: Monotonic time when the call under way began; None between calls.
        given_up: Set from outside: make no further call.
    """

    def __init__(
        self, opening: Callable[[], Opened], *, reachable: Callable[[], bool] = lambda: True
    ) -> None:
        self.run_id: str | None = None
        self.own = False
        self.answering = False
        self.asked_at: float | None = None
        self.given_up = False
        self._opening = opening
        self._reachable = reachable
        self._opened: Opened | None = None
        self._settled = False
        self._present: set[str] | None = None  # metrics that the run had when it was asked
        self._steps: dict[str, set[int]] = {}  # and what steps of them it has by now
        self._tags: dict[str, str] = {}

    def open(self) -> None:
        """Open the run, unless it is open."""
        with self._asking():
            pass

    def send_settings(self, settings: Mapping[str, str]) -> None:
        """Log the settings as params, once."""
        from mlflow.entities import Param

        if self._settled or not settings:
            return
        try:
            self._log_batch(params=[Param(name, text) for name, text in settings.items()][:100])
        except Exception as fault:
            # Params never change: a run resumed with other settings keeps the first ones.
            self._settled = getattr(fault, "error_code", "") == "INVALID_PARAMETER_VALUE"
            raise
        self._settled = True

    def send(self, entries: Sequence[Entry]) -> int:
        """Log the metrics of all entries, and those of the latest tags that have changed.

        A metric that the run has at a step is not logged there again: MLflow would keep both points for good.

        Returns:
            How many of the entries had anything that was not there.
        """
        from mlflow.entities import Metric, RunTag

        self._learn({key for entry in entries for key in entry.metrics})
        metrics, fresh = [], 0
        for entry in entries:
            news = [Metric(k, v, entry.milliseconds, entry.step) for k, v in self._news_of(entry)]
            metrics += news
            fresh += bool(news)
        latest = {key: text for entry in entries for key, text in entry.tags.items()}
        changed = {key: text for key, text in latest.items() if self._tags.get(key) != text}
        tags = [RunTag(key, text) for key, text in changed.items()]
        for i in range(0, max(len(metrics), 1 if tags else 0), BATCH):
            self._log_batch(metrics=metrics[i : i + BATCH], tags=tags[:100] if i == 0 else [])
        self._tags |= changed
        return fresh

    def send_file(self, name: str, save: Callable[[str], None]) -> float:
        """Make a file and log it as an artifact.

        Args:
            name: The file's, without a folder.
            save: Writes it to the path it is given.

        Returns:
            Processor time that making it took, in seconds.
        """
        with tempfile.TemporaryDirectory(prefix="scale-callbacks-") as folder:
            path = os.path.join(folder, name)
            begun = time.thread_time()
            save(path)
            took = time.thread_time() - begun
            with self._asking() as (client, run_id, _):
                client.log_artifact(run_id, path)
        return took

    def end(self, status: str) -> None:
        """End the run as "FINISHED", "FAILED" or "KILLED"."""
        with self._asking() as (client, run_id, _), _no_password_printed(client):
            client.set_terminated(run_id, status)

    def _learn(self, keys: set[str]) -> None:
        """Ask which steps of these metrics the run has, once: it may be resumed, or an answer was lost."""
        missing = keys - self._steps.keys()
        if not missing:
            return
        with self._asking() as (client, run_id, _):
            if self._present is None:
                self._present = set(client.get_run(run_id).data.metrics)
            for key in missing:
                known = client.get_metric_history(run_id, key) if key in self._present else ()
                self._steps[key] = {metric.step for metric in known}

    def _news_of(self, entry: Entry) -> Iterator[tuple[str, float]]:
        for key, value in entry.metrics.items():
            if entry.step not in self._steps[key]:
                self._steps[key].add(entry.step)
                yield key, value

    def _log_batch(self, **what: Any) -> None:
        with self._asking() as (client, run_id, _):
            # Said outright, or MLflow's own queue, which tells of no faults, may take it.
            client.log_batch(run_id, **what, synchronous=True)

    @contextmanager
    def _asking(self) -> Iterator[Opened]:
        """Hand out the open run, and note how long the store is asked and whether it answers."""
        if self.given_up:
            raise TimeoutError("given up")
        self.asked_at = time.monotonic()
        try:
            if not self.answering and not self._reachable():
                raise ConnectionError("no server answers at this address")
            if self._opened is None:
                self._opened = self._opening()
                _, self.run_id, self.own = self._opened
            yield self._opened
        except Exception:
            self.answering = False
            self._present, self._steps = None, {}  # it may have been done all the same
            raise
        else:
            self.answering = True
        finally:
            self.asked_at = None


@contextmanager
def _no_password_printed(client: MlflowClient) -> Iterator[None]:
    """Keep MLflow from printing the run's page with the password that the store's address holds."""
    address = str(getattr(client, "tracking_uri", None))
    if is_local(address) or public_address(address) == address:
        yield
        return
    before = os.environ.get(QUIET)
    os.environ[QUIET] = "true"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(QUIET, None)
        else:
            os.environ[QUIET] = before


def _entry(step: int, metrics: Mapping[str, float], summary: Summary, prefix: str) -> Entry:
    finite = {mlflow_key(name): float(value) for name, value in metrics.items() if math.isfinite(value)}
    tags = {mlflow_key(f"{prefix}.{name}"): text[:TEXT] for name, text in _state_of(summary).items()}
    return Entry(time.time_ns() // 1_000_000, int(step), finite, tags)


def _state_of(summary: Summary) -> dict[str, str]:
    """Say the run's state in words: what changes, and what a search may filter by."""
    state = {
        "step": str(summary.last_step),
        "finished": str(summary.finished).lower(),
        "decision": "stop" if summary.decision.stop else "continue",
        "reason": summary.decision.reason,
        "warnings": "; ".join(f"{count} x {what}" for what, count in summary.warnings.items()),
    }
    if summary.deviation is not None:
        away = summary.deviation.outside
        state["deviation"] = ("above" if summary.deviation.score > 0 else "below") if away else "none"
    if summary.forecast is not None:
        state["status"] = str(summary.forecast.status)
        state |= {f"weight.{law}": f"{share:.3f}" for law, share in summary.forecast.weights.items()}
    return {name: text for name, text in state.items() if text}
