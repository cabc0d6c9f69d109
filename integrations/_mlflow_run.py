"""One MLflow run, spoken to one call at a time: what of a forecast is sent there, and how."""

from __future__ import annotations

import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scale_callbacks.integrations._mlflow_open import Opened
from scale_callbacks.report import save_forecast_png

if TYPE_CHECKING:
    from scale_callbacks.sinks import Record, Summary

BATCH = 1000  # metrics that MLflow takes in one call
TEXT = 500  # characters of a param or tag that every MLflow server takes


@dataclass(frozen=True)
class Entry:
    """What is to be sent of one forecast, as plain data: with its own time, so that it may be sent late.

    It may be sent twice, too: a metric that the run has at that step already is left out.

    Attributes:
        milliseconds: since 1970, when the forecast was made.
        step: optimizer step.
        metrics: finite numbers under names that MLflow takes.
        tags: the run's state at this step.
    """

    milliseconds: int
    step: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def entry_of(record: Record, summary: Summary, prefix: str) -> Entry:
    """Write down what a forecast gives to send: its metrics, the weights of the laws, the run's state."""
    metrics = dict(record.metrics)
    if record.forecast is not None:
        metrics[f"{prefix}/final"] = record.forecast.value
        metrics |= {f"{prefix}/weight/{law}": share for law, share in record.forecast.weights.items()}
    return _entry(record.step, metrics, summary, prefix)


def last_entry_of(summary: Summary, prefix: str) -> Entry:
    """Write down how the run ended: its state, and what was to be forecast where that is known."""
    metrics = {} if summary.measured is None else {f"{prefix}/measured": summary.measured}
    return _entry(summary.last_step, metrics, summary, prefix)


class RunWriter:
    """Writes entries, settings and figures to a run; every method may block, and raise what MLflow raises.

    Args:
        opening: Opens the store and the run; called at first use, again after it failed.
        prefix: First part of the names of params, tags and files.

    Attributes:
        run_id: The run; None before it is open.
        own: The run was started here, and is to be ended here.
        answering: The last call succeeded.
        asked_at: Monotonic time when the call under way began; None between calls.
        given_up: Set from outside: make no further call.
    """

    def __init__(self, opening: Callable[[], Opened], *, prefix: str) -> None:
        self.run_id: str | None = None
        self.own = False
        self.answering = False
        self.asked_at: float | None = None
        self.given_up = False
        self._opening = opening
        self._prefix = prefix
        self._opened: Opened | None = None
        self._settled = False
        self._present: set[str] | None = None  # metrics that the run had when it was asked
        self._steps: dict[str, set[int]] = {}  # and what steps of them it has by now
        self._tags: dict[str, str] = {}

    def open(self) -> None:
        """Open the run, unless it is open."""
        with self._asking():
            pass

    def send_settings(self, summary: Summary) -> None:
        """Log the settings as params, once."""
        from mlflow.entities import Param

        if self._settled:
            return
        settings: dict[str, Any] = {"monitor": summary.name, "horizon": summary.horizon}
        if summary.schedule is not None:
            settings |= {"peak_rate": summary.schedule.peak, "warmup": summary.schedule.warmup}
        settings |= summary.settings
        params = [Param(_key(f"{self._prefix}.{name}"), str(v)[:TEXT]) for name, v in settings.items()]
        try:
            self._log_batch(params=params[:100])
        except Exception as fault:
            # Params never change: a run resumed with other settings keeps the first ones.
            self._settled = getattr(fault, "error_code", "") == "INVALID_PARAMETER_VALUE"
            raise
        self._settled = True

    def send(self, entries: Sequence[Entry]) -> None:
        """Log the metrics of all entries, and those of the latest tags that have changed.

        A metric that the run has at a step is not logged there again: MLflow would keep both points for good.
        """
        from mlflow.entities import Metric, RunTag

        self._learn({key for entry in entries for key in entry.metrics})
        metrics = [Metric(k, v, e.milliseconds, e.step) for e in entries for k, v in self._news_of(e)]
        latest = {key: text for entry in entries for key, text in entry.tags.items()}
        changed = {key: text for key, text in latest.items() if self._tags.get(key) != text}
        tags = [RunTag(key, text) for key, text in changed.items()]
        for i in range(0, max(len(metrics), 1 if tags else 0), BATCH):
            self._log_batch(metrics=metrics[i : i + BATCH], tags=tags[:100] if i == 0 else [])
        self._tags |= changed

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

    def send_figure(self, summary: Summary) -> float:
        """Draw the run and log the picture.

        Returns:
            Processor time that the drawing took, in seconds.
        """
        with tempfile.TemporaryDirectory(prefix="scale-callbacks-") as folder:
            path = os.path.join(folder, f"{self._prefix}.png")
            begun = time.thread_time()
            save_forecast_png(summary, path)
            took = time.thread_time() - begun
            with self._asking() as (client, run_id, _):
                client.log_artifact(run_id, path)
        return took

    def end(self, status: str) -> None:
        """End the run as "FINISHED", "FAILED" or "KILLED"."""
        with self._asking() as (client, run_id, _):
            client.set_terminated(run_id, status)

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


def fault_text(fault: Exception) -> str:
    """Say what went wrong in one line that is fit for a log."""
    return f"{type(fault).__name__}: {without_secrets(str(fault)).partition(chr(10))[0][:300]}"


def without_secrets(text: str) -> str:
    """Leave user names and passwords out of addresses, and tokens out of their queries.

    >>> without_secrets("no answer from https://ann:pa@ss@host:5000/api?token=x&a=1")
    'no answer from https://***@host:5000/api?token=***&a=1'
    """
    text = re.sub(r"(?<=://)\S*@", "***@", text)
    named = r"((?:token|password|secret|key|signature)[^=\s&]*=)[^&\s'\")]+"
    return re.sub(named, r"\1***", text, flags=re.IGNORECASE)


def _entry(step: int, metrics: Mapping[str, float], summary: Summary, prefix: str) -> Entry:
    finite = {_key(name): float(value) for name, value in metrics.items() if math.isfinite(value)}
    tags = {_key(f"{prefix}.{name}"): text[:TEXT] for name, text in _state_of(summary).items()}
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
    if summary.forecast is not None:
        state["status"] = str(summary.forecast.status)
        state |= {f"weight.{law}": f"{share:.3f}" for law, share in summary.forecast.weights.items()}
    return {name: text for name, text in state.items() if text}


def _key(text: str) -> str:
    """Write a name in the characters that MLflow takes, and not as a path that leads anywhere else."""
    clean = re.sub(r"[^\w. :/-]", "_", text, flags=re.ASCII)
    parts = [part for part in clean.split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[:250] or "_"
