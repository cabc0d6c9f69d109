"""Replaying a log as if the run were live: the forecasts are those of a monitor that saw point by point."""

from __future__ import annotations

import bisect
from collections.abc import Callable

import numpy as np

from scale_callbacks.logs.log import Log
from scale_callbacks.monitor import Monitor

PATIENCE = 200_000  # points handed over at once at most, so that progress can be told


def replay(log: Log, monitor: Monitor, *, told: Callable[[float], object] = lambda share: None) -> None:
    """Feed a log to a monitor, whole batches where no forecast is due.

    The forecaster takes a batch as it takes its points one by one, and only a point that a forecast is due at
    goes through the monitor: forecasts, decisions and what the sinks get are those of the live run.

    Args:
        log: the run.
        monitor: a fresh one; it is left open.
        told: told the share of the points that is replayed.
    """
    spans = log.spans
    at = log.steps - (spans - 1.0) / 2.0  # a mean over some steps belongs to their middle
    steps = log.steps.tolist()
    done = 0
    while done < len(steps):
        due = bisect.bisect_left(steps, True, done, key=monitor.due)
        last = min(due, len(steps) - 1)
        while done < last:
            end = min(last, done + PATIENCE)
            extra = {name: column[done:end] for name, column in log.extra.items()}
            monitor.forecaster.observe(at[done:end], log.values[done:end], extra=extra or None)
            done = end
            told(done / len(steps))
        here = {name: float(column[last]) for name, column in log.extra.items() if np.isfinite(column[last])}
        monitor.observe(steps[last], float(log.values[last]), extra=here or None, span=int(spans[last]))
        done = last + 1
    told(1.0)
