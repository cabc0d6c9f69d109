"""Where the forecasts of a Lightning training go: sinks, loggers, callback metrics, the progress bar."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl

from scale_callbacks._text import fault_text
from scale_callbacks.integrations import _trainer
from scale_callbacks.monitor import Monitor
from scale_callbacks.schedule import Schedule
from scale_callbacks.sinks import Record, Sink, Summary

_log = logging.getLogger("scale_callbacks")

MakeMonitor = Callable[[Schedule, Sequence[Sink]], Monitor]


class Notes:
    """Counts what went wrong, and says each thing once."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __call__(self, what: str, fault: Exception | None = None, *, times: int = 1) -> None:
        """Count a fault; log its first occurrence (logging, since a warning may be turned into an error)."""
        self.counts[what] += times
        if self.counts[what] == times:
            tail = "" if fault is None else f": {fault_text(fault)}"
            _log.warning("LossForecast: %s%s (further ones are counted, training goes on)", what, tail)


class Latest:
    """Sink that keeps the last record, so that it can be shown on every rank."""

    inline = True

    def __init__(self) -> None:
        self.record: Record | None = None

    def write(self, record: Record, summary: Summary) -> None:
        """Keep the record."""
        self.record = record

    def close(self, summary: Summary) -> None:
        """Do nothing."""

    def taken(self) -> Record | None:
        """The record that was not taken yet."""
        record, self.record = self.record, None
        return record


class Outlet:
    """Shows forecasts on every rank and writes them on rank 0.

    Args:
        trainer: the trainer.
        make_monitor: builds the monitor for a plan, around the sinks it is given.
        sinks: the user's sinks.
        mlflow: the sink of the MLflow run, where there is one.
        progress_bar: show the forecast there.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        make_monitor: MakeMonitor,
        *,
        sinks: Sequence[Sink] = (),
        mlflow: Any = None,
        progress_bar: bool = True,
    ) -> None:
        self.mlflow = mlflow
        self._trainer = trainer
        self._make_monitor = make_monitor
        self._latest = Latest()
        self._sinks: list[Any] = [self._latest, *([] if mlflow is None else [mlflow]), *sinks]
        self._progress_bar = progress_bar

    def monitor(self, schedule: Schedule) -> Monitor:
        """A monitor that writes here."""
        return self._make_monitor(schedule, self._sinks)

    def publish(self, note: Notes) -> bool:
        """Hand on the forecast that was made since the last call; tell whether there was one."""
        record = self._latest.taken()
        if record is None:
            return False
        _trainer.show(self._trainer, record, progress_bar=self._progress_bar)
        if not self._trainer.is_global_zero:
            return True
        for logger in self._trainer.loggers:
            if self.mlflow is not None and self.mlflow.covers(logger):
                continue
            try:
                logger.log_metrics(dict(record.metrics), step=_trainer.logger_step(self._trainer))
            except Exception as fault:
                note(f"{type(logger).__name__} failed to log", fault)
        return True

    def show_again(self, monitor: Monitor, step: int) -> None:
        """Show the forecast that a checkpoint has brought back."""
        f, key = monitor.forecast, f"forecast/{monitor.name}"
        if f is not None:
            metrics = {key: f.value, f"{key}_low": f.low, f"{key}_high": f.high}
            record = Record(monitor.name, step, f, monitor.decision, metrics)
            _trainer.show(self._trainer, record, progress_bar=self._progress_bar)

    def state(self) -> dict[str, Any] | None:
        """Which MLflow run it is."""
        return None if self.mlflow is None else dict(self.mlflow.state_dict())
