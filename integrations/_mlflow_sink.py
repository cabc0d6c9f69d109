"""MlflowSink: a queue and a thread between the training and an MLflow run."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from scale_callbacks.integrations._mlflow_open import Opened
from scale_callbacks.integrations._mlflow_run import (
    Entry,
    RunWriter,
    entry_of,
    fault_text,
    last_entry_of,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from scale_callbacks.sinks import Record, Summary

_log = logging.getLogger("scale_callbacks")

BACKLOG = 1000  # entries kept while the store does not answer: several runs' worth
STUCK = 4.0  # seconds after which `close` no longer waits for a store that is not there
TRIES, PAUSE = 10, 0.2  # of the last batch, and seconds between them: the store may be back before the end
DRAWING = 0.004  # share of the run's time that the figures before the last may take
FIRST_DRAWING = 1.0  # seconds expected of the first one, matplotlib's import included


class MlflowSink:
    """Writes forecasts to one MLflow run, and never holds training up.

    `write` only puts plain data in a bounded queue; a daemon thread sends it in batches. What fails there is
    logged once, counted, and tried again with the next batch.

    Sent are: `record.metrics`, the forecast under one name whatever the metric (`forecast/final`) and the law
    weights (`forecast/weight/<law>`) as metrics with steps; the settings, once, as params
    (`forecast.<setting>`); the state as tags (`forecast.status`, `forecast.weight.<law>`, ...); the picture
    of the run as `forecast.png`; at the end of the plan what was to be forecast (`forecast/measured`).
    Numbers that are not finite are left out.

    Args:
        client: An `mlflow.MlflowClient`.
        run_id: The run to write to. It is left open: whoever started it ends it (but see `starting`).
        prefix: Instead of "forecast" in these names, for a second metric's forecasts in the same run.
        figures: Shares of the plan after which the figure is drawn before the end; left out where drawing
            would take more than a few thousandths of the run's time so far.
        batch_seconds: Least time between two batches.
        flush_seconds: How long `close` waits at most; for a server that is not there, five seconds.

    Attributes:
        outcome: How the run ended if badly, "FAILED" or "KILLED"; to be set before `close`, which ends
            a run that the sink started.
        faults: How many calls have failed.
        dropped: How many forecasts were given up, the queue being full or the time at `close` over.
    """

    inline = True  # it has a thread itself

    def __init__(
        self,
        client: MlflowClient,
        run_id: str,
        *,
        prefix: str = "forecast",
        figures: Sequence[float] = (0.25, 0.5, 0.75),
        batch_seconds: float = 5.0,
        flush_seconds: float = 15.0,
    ) -> None:
        self.outcome: str | None = None
        self.faults = 0
        self.dropped = 0
        self._writer = RunWriter(lambda: Opened(client, run_id, own=False), prefix=prefix)
        self._run_id: str | None = run_id
        self._address: str | None = getattr(client, "tracking_uri", None)
        self._prefix = prefix
        self._marks = sorted(figures)
        self._batch_seconds, self._flush_seconds = batch_seconds, flush_seconds
        self._born, self._drawing, self._last_drawing = time.monotonic(), 0.0, FIRST_DRAWING
        self._pending: deque[Entry] = deque()
        self._summary: Summary | None = None
        self._changed = threading.Condition()
        self._tried_to_open = threading.Event()
        self._thread: threading.Thread | None = None
        self._news = self._closing = False

    @classmethod
    def starting(cls, opening: Callable[[], Opened], *, address: str = "", **options: Any) -> MlflowSink:
        """Make a sink that opens its run itself.

        Args:
            opening: Opens the run and tells whether it is the sink's own, to be ended at `close`; called on
                the sink's thread, again after it failed.
            address: The store's, for `close` to see whether a server is there.
            **options: The constructor's.
        """
        sink = cls(None, "", **options)  # type: ignore[arg-type]
        sink._writer = RunWriter(opening, prefix=sink._prefix)
        sink._run_id, sink._address = None, address
        return sink

    @property
    def run_id(self) -> str | None:
        """The run's id; None before the sink has opened it."""
        return self._run_id or self._writer.run_id

    def state_dict(self) -> dict[str, Any]:
        """Which run it is, for `resolve_sink(resume=...)` after a restart: plain data without secrets."""
        return {"run_id": self.run_id, "own": self._writer.own}

    def open(self, *, wait: float = 0.0) -> None:
        """Start the thread, and wait at most `wait` seconds until it has tried to open the run."""
        self._wake()
        self._tried_to_open.wait(wait)

    def covers(self, logger: object) -> bool:
        """Tell whether `logger` writes to this sink's run, so that a caller need not log a forecast twice."""
        return is_mlflow_logger(logger) and getattr(logger, "run_id", None) == self.run_id is not None

    def write(self, record: Record, summary: Summary) -> None:
        """Queue a forecast; returns at once and never raises."""
        try:
            entry = entry_of(record, summary, self._prefix)
        except Exception as fault:
            self._count("a forecast was left out", fault)
            return
        with self._changed:
            if self._closing:
                return
            if len(self._pending) >= BACKLOG:
                self._pending.popleft()
                self.dropped += 1
            self._pending.append(entry)
            self._summary = summary
        self._wake()

    def close(self, summary: Summary) -> None:
        """Send what is queued and the last figure, end the run if the sink started it; bounded in time."""
        with self._changed:
            if self._closing:
                return
            self._closing, self._summary = True, summary
        thread = self._wake()
        begun = time.monotonic()
        while thread.is_alive() and (waited := time.monotonic() - begun) < self._flush_seconds:
            if waited > STUCK and not self._responsive() and not self._reachable():
                break
            thread.join(0.05)
        if thread.is_alive():
            self._writer.given_up = True
            self.dropped += len(self._pending)
            _log.warning("MLflow did not answer in time: %d forecasts were not logged there", self.dropped)

    def _responsive(self) -> bool:
        asked = self._writer.asked_at
        return self._writer.answering and (asked is None or time.monotonic() - asked < STUCK)

    def _reachable(self) -> bool:
        """Tell a server that is slow, and worth the whole time, from one that is not there."""
        parts = urlsplit(self._address or "")
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            return False
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            socket.create_connection((parts.hostname, port), timeout=1.0).close()
        except (OSError, ValueError):
            return False
        return True

    def _wake(self) -> threading.Thread:
        with self._changed:
            self._news = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="scale-callbacks-mlflow", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            return self._thread

    def _work(self) -> None:
        """Send what there is, batch by batch, until the sink is closed: the thread's body."""
        closing = False
        while not closing:
            with self._changed:
                self._changed.wait_for(lambda: self._news)
                self._news, closing = False, self._closing
            self._deliver(closing)
            with self._changed:
                self._changed.wait_for(lambda: self._closing, 0.0 if closing else self._batch_seconds)

    def _deliver(self, closing: bool) -> None:
        opened = self._attempt("the run could not be opened", self._writer.open)
        self._tried_to_open.set()
        summary = self._summary
        if not opened or summary is None:
            return
        self._attempt("the settings were not logged", lambda: self._writer.send_settings(summary))
        for again in range(TRIES if closing else 1):
            time.sleep(PAUSE if again else 0.0)
            if self._attempt("forecasts were not logged", lambda: self._send_pending(summary, last=closing)):
                break
        if closing or self._figure_due(summary):
            self._attempt("the figure was not logged", lambda: self._draw(summary))
        if closing and self._writer.own:
            self._attempt("the run was not ended", lambda: self._writer.end(self.outcome or "FINISHED"))

    def _send_pending(self, summary: Summary, *, last: bool) -> None:
        entries = list(self._pending)
        self._writer.send(entries + ([last_entry_of(summary, self._prefix)] if last else []))
        with self._changed:
            for entry in entries:
                # Else it was dropped meanwhile, the queue being full.
                if self._pending and self._pending[0] is entry:
                    self._pending.popleft()

    def _figure_due(self, summary: Summary) -> bool:
        share = summary.last_step / summary.horizon
        affordable = self._drawing + self._last_drawing <= DRAWING * (time.monotonic() - self._born)
        if summary.forecast is None or not affordable or not self._marks or share < self._marks[0]:
            return False
        self._marks = [mark for mark in self._marks if mark > share]
        return True

    def _draw(self, summary: Summary) -> None:
        self._last_drawing = self._writer.send_figure(summary)
        self._drawing += self._last_drawing

    def _attempt(self, what: str, call: Callable[[], None]) -> bool:
        try:
            call()
        except Exception as fault:
            if not self._writer.given_up:
                self._count(what, fault)
            return False
        return True

    def _count(self, what: str, fault: Exception) -> None:
        self.faults += 1
        if self.faults == 1:  # logging, since a warning may be turned into an error
            _log.warning(
                "MLflow: %s: %s (further faults are counted, training goes on)", what, fault_text(fault)
            )


def is_mlflow_logger(logger: object) -> bool:
    """Tell Lightning's `MLFlowLogger`, of either of its packages, by name: importing them takes seconds."""
    return any(cls.__name__ == "MLFlowLogger" for cls in type(logger).__mro__)
