"""MlflowSink: a journal, a queue and a thread between the training and an MLflow run."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scale_callbacks.integrations._mlflow_artifacts import Pictures
from scale_callbacks.integrations._mlflow_open import Opened, RunOpener, Target
from scale_callbacks.integrations._mlflow_outbox import Outbox
from scale_callbacks.integrations._mlflow_run import RunWriter, entry_of, last_entry_of, settings_of
from scale_callbacks.integrations._mlflow_server import is_web, reachable
from scale_callbacks.integrations._mlflow_shelf import journal_folder, journals_of, written_elsewhere
from scale_callbacks.integrations._mlflow_sync import deliver
from scale_callbacks.integrations._mlflow_text import fault_text, public_address

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from scale_callbacks.sinks import Record, Summary

_log = logging.getLogger("scale_callbacks")

STUCK = 4.0  # seconds after which `close` no longer waits for a store that is not there
TRIES, PAUSE = 10, 0.2  # of the last batch, and seconds between them: the store may be back before the end
LONGEST_PAUSE = 60.0  # seconds between tries while the store does not answer


class MlflowSink:
    """Writes forecasts to one MLflow run, and never holds training up.

    `write` appends plain data to a journal on disk and to a bounded queue; a daemon thread sends it in
    batches. What fails there is logged once, counted, and tried again. What a process that was killed has
    journalled is sent by the next sink of the same run, or by `scale-callbacks sync`.

    Sent are: `record.metrics`, the forecast under one name whatever the metric (`forecast/final`) and the law
    weights (`forecast/weight/<law>`) as metrics with steps; the settings, once, as params
    (`forecast.<setting>`); the state as tags (`forecast.status`, `forecast.weight.<law>`, ...); the picture
    of the run as `forecast.png` and the report as `report.html`; at the end of the plan what was to be
    forecast (`forecast/measured`). Numbers that are not finite are left out, and so are metrics at steps
    where the run has them already: MLflow would keep both points for good.

    Args:
        client: An `mlflow.MlflowClient`.
        run_id: The run to write to. It is left open: whoever started it ends it (but see `starting`).
        prefix: Instead of "forecast" in these names, for a second metric's forecasts in the same run.
        figures: Shares of the plan after which the figure is drawn before the end; left out where drawing
            would take more than a few thousandths of the run's time so far.
        batch_seconds: Least time between two batches.
        flush_seconds: How long `close` waits at most; for a server that is not there, five seconds.
        journal: Folder of the journal; by default what the environment's `SCALE_CALLBACKS_JOURNAL` says,
            which may be "off", else a folder in `~/.local/state`.

    Attributes:
        outcome: How the run ended if badly, "FAILED" or "KILLED"; to be set before `close`, which ends
            a run that the sink started.
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
        journal: str | os.PathLike[str] | None = None,
    ) -> None:
        self.outcome: str | None = None
        self._left = 0
        self._prefix = prefix
        self._batch_seconds, self._flush_seconds = batch_seconds, flush_seconds
        self._pictures = Pictures(prefix, figures)
        self._faults: Counter[str] = Counter()
        self._folder = self._journal_folder(journal)
        target = Target(str(getattr(client, "tracking_uri", None) or ""), run_id, own=False)
        self._aim(target, lambda: Opened(client, run_id, own=False))
        self._summary: Summary | None = None
        self._changed = threading.Condition()
        self._tried_to_open = threading.Event()
        self._thread: threading.Thread | None = None
        self._news = self._closing = self._introduced = self._caught_up = self._behind = False

    @classmethod
    def starting(cls, target: Target, **options: Any) -> MlflowSink:
        """Make a sink that opens its run itself, on its thread, and ends it if it is its own.

        Args:
            target: The run.
            **options: The constructor's.
        """
        sink = cls(None, target.run_id or "", **options)  # type: ignore[arg-type]
        sink._aim(target, RunOpener(target, taken=sink._taken))
        return sink

    @property
    def faults(self) -> int:
        """How many calls have failed."""
        return self._faults.total()

    @property
    def dropped(self) -> int:
        """How many forecasts this process gave up: memory was full, or `close` over. The journal has them."""
        return self._outbox.dropped + self._left

    @property
    def run_id(self) -> str | None:
        """The run's id; None before the sink has opened it."""
        return self._writer.run_id or (
            None if self._target.own or self._target.resumed else self._target.run_id
        )

    def state_dict(self) -> dict[str, Any]:
        """Which run it is, for `resolve_sink(resume=...)` after a restart: plain data without secrets."""
        writer, target = self._writer, self._target
        run_id, own = (writer.run_id, writer.own) if writer.run_id else (target.run_id, target.own)
        return {"run_id": run_id, "own": own, "token": target.token, "created": target.created}

    def open(self, *, wait: float = 0.0) -> None:
        """Start the thread, and wait at most `wait` seconds until it has tried to open the run."""
        self._wake()
        self._tried_to_open.wait(wait)

    def covers(self, logger: object) -> bool:
        """Tell whether `logger` writes to this sink's run, so that a caller need not log a forecast twice."""
        return is_mlflow_logger(logger) and getattr(logger, "run_id", None) == self.run_id is not None

    def write(self, record: Record, summary: Summary) -> None:
        """Journal and queue a forecast; returns at once and never raises."""
        if self._closing:
            return
        self._attempt("a forecast was left out", lambda: self._take(record, summary))
        self._summary = summary
        self._wake()

    def close(self, summary: Summary) -> None:
        """Send what is queued and the last figure, end the run if the sink started it; bounded in time."""
        with self._changed:
            if self._closing:
                return
            self._attempt("the end was left out", lambda: self._take_end(summary))
            self._closing, self._summary = True, summary
        thread = self._wake()
        begun = time.monotonic()
        while thread.is_alive() and (waited := time.monotonic() - begun) < self._flush_seconds:
            if waited > STUCK and not self._responsive() and not self._worth_waiting():
                break
            thread.join(0.05)
        self._writer.given_up = self._writer.given_up or thread.is_alive()
        self._let_go(done=not thread.is_alive() and not self._behind)

    def _aim(self, target: Target, opening: Callable[[], Opened]) -> None:
        self._target = target
        self._writer = RunWriter(opening, reachable=lambda: reachable(target.uri))
        head = {name: getattr(target, name) for name in _IN_THE_HEAD}
        head["store"] = public_address(target.uri) if target.uri else None
        self._outbox = Outbox(self._folder, head, self._count)

    def _journal_folder(self, wanted: str | os.PathLike[str] | None) -> Path | None:
        try:
            return journal_folder(os.environ) if wanted is None else Path(wanted).expanduser().absolute()
        except (OSError, RuntimeError) as fault:  # no home
            self._count("the journal has no folder", fault)
            return None

    def _taken(self, run_id: str) -> bool:
        return self._folder is not None and written_elsewhere(self._folder, run_id)

    def _take(self, record: Record, summary: Summary) -> None:
        entry = entry_of(record, summary, self._prefix)
        if not self._introduced:
            self._introduced = True
            self._outbox.say(settings=settings_of(summary, self._prefix))
        self._outbox.put(entry)

    def _take_end(self, summary: Summary) -> None:
        self._outbox.put(last_entry_of(summary, self._prefix))
        self._outbox.say(end=self.outcome or "FINISHED")

    def _let_go(self, *, done: bool) -> None:
        """Remove the journal, or say where it is."""
        self._left = len(self._outbox)
        path = self._outbox.close(done=done)
        if self._left:
            later = "" if path is None else f"; `scale-callbacks sync {path}` sends them"
            _log.warning("MLflow: %d forecasts were not logged in time%s", self._left, later)

    def _responsive(self) -> bool:
        asked = self._writer.asked_at
        return self._writer.answering and (asked is None or time.monotonic() - asked < STUCK)

    def _worth_waiting(self) -> bool:
        """Tell a server that is slow, and worth the whole time, from one that is not there."""
        return is_web(self._target.uri) and reachable(self._target.uri, patience=1.0)

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
        closing, pause = False, self._batch_seconds
        while not closing:
            with self._changed:
                # While the store does not answer there need be no news to try again.
                self._changed.wait_for(lambda: self._news, max(pause, 0.05) if self._behind else None)
                self._news, closing = False, self._closing
            self._behind = not self._deliver(closing)
            pause = min(2 * max(pause, 0.5), LONGEST_PAUSE) if self._behind else self._batch_seconds
            with self._changed:
                self._changed.wait_for(lambda: self._closing, 0.0 if closing else self._batch_seconds)

    def _deliver(self, closing: bool) -> bool:
        """Send what waits; tell whether nothing is left."""
        for again in range(TRIES if closing else 1):
            time.sleep(PAUSE if again else 0.0)
            if self._send():
                break
        else:
            return False
        summary = self._summary
        if summary is not None and (closing or self._pictures.due(summary)):
            self._attempt("the figure was not logged", lambda: self._pictures.send(self._writer, summary))
        if closing and self._writer.own:
            return self._attempt(
                "the run was not ended", lambda: self._writer.end(self.outcome or "FINISHED")
            )
        return True

    def _send(self) -> bool:
        was_open = self._writer.run_id is not None
        opened = self._attempt("the run could not be opened", self._writer.open)
        self._tried_to_open.set()
        if not opened:
            return False
        if not was_open:
            self._outbox.say(run_id=self._writer.run_id, own=self._writer.own)
        if not self._caught_up and not self._attempt("what was journalled was not logged", self._catch_up):
            return False
        if (summary := self._summary) is not None:
            settings = settings_of(summary, self._prefix)
            self._attempt("the settings were not logged", lambda: self._writer.send_settings(settings))
        return self._attempt("forecasts were not logged", self._send_waiting)

    def _catch_up(self) -> None:
        """Send what earlier starts of this run have journalled, and no longer could send."""
        writer, folder = self._writer, self._folder
        for path in [] if folder is None else journals_of(folder, str(writer.run_id), self._target.token):
            try:
                deliver(path, lambda contents: writer)
            except Exception as fault:
                if isinstance(fault, FileNotFoundError) and not path.exists():
                    continue  # whoever wrote it has sent it since it was found
                if not writer.answering:
                    raise
                self._count("a journal was left where it is", fault)
        self._caught_up = True

    def _send_waiting(self) -> None:
        if entries := self._outbox.waiting():
            self._writer.send(entries)
            self._outbox.sent(entries)

    def _attempt(self, what: str, call: Callable[[], object]) -> bool:
        try:
            call()
        except Exception as fault:
            if not self._writer.given_up:
                self._count(what, fault)
            return False
        return True

    def _count(self, what: str, fault: Exception) -> None:
        self._faults[what] += 1
        if self._faults[what] == 1:  # logging, since a warning may be turned into an error
            _log.warning(
                "MLflow: %s: %s (further ones are counted, training goes on)", what, fault_text(fault)
            )


_IN_THE_HEAD = ("run_id", "own", "experiment", "experiment_id", "token", "created")


def is_mlflow_logger(logger: object) -> bool:
    """Tell Lightning's `MLFlowLogger`, of either of its packages, by name: importing them takes seconds."""
    return any(cls.__name__ == "MLFlowLogger" for cls in type(logger).__mro__)
