"""Forecasts as JSON lines: what `JsonlSink` writes while a run goes on, and the run as they tell it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from scale_callbacks.curve import Bins
from scale_callbacks.forecast import Forecast, Status
from scale_callbacks.schedule import Schedule
from scale_callbacks.stopping import Decision

if TYPE_CHECKING:
    from scale_callbacks.sinks import ForecastPoint, Record, Summary

KNOTS = 1000  # of a plan written down; a longer one is sampled
UNREADABLE = "line of the forecasts cut short or no JSON, left out"


def line_of(record: Record, summary: Summary, since: float = -1.0) -> dict[str, Any]:
    """One forecast as plain data.

    Args:
        record: the forecast.
        summary: the run at this moment.
        since: the step up to which bins were written before; negative for the first line, which also tells
            the settings and the plan.
    """
    forecast = record.forecast
    line: dict[str, Any] = {"name": record.name, "step": record.step}
    if forecast is not None:
        line |= {key: getattr(forecast, key) for key in ("value", "low", "high", "level", "horizon")}
        line |= {"status": str(forecast.status), "weights": dict(forecast.weights)}
        paths = ("path_steps", "path_value", "path_low", "path_high")
        line |= {key: [_short(x) for x in getattr(forecast, key)] for key in paths}
    line |= {"decision": record.decision.to_dict(), "metrics": dict(record.metrics)}
    if since < 0.0:
        line["run"] = {"settings": dict(summary.settings), "plan": _plan(summary.schedule)}
    return line | _seen(summary, since)


def last_line_of(summary: Summary, since: float = -1.0) -> dict[str, Any]:
    """How the run ended, as plain data."""
    line = {"name": summary.name, "step": summary.last_step, "end": True, "horizon": summary.horizon}
    line |= {"finished": summary.finished, "measured": summary.measured}
    return line | {"decision": summary.decision.to_dict()} | _seen(summary, since)


class Lines:
    """A run put together from its lines, as they come.

    Attributes:
        ended: the last line tells the end of the run.
        notes: lines that could not be read.
    """

    def __init__(self) -> None:
        self.ended = False
        self.notes: Counter[str] = Counter()
        self._last: dict[str, Any] = {}
        self._forecast: Forecast | None = None
        self._history: list[ForecastPoint] = []
        self._bins: list[tuple[float, float, float, float]] = []
        self._run: Mapping[str, Any] = {}

    def take(self, lines: Iterable[str]) -> None:
        """Take further lines; those that are no forecast are counted."""
        for line in lines:
            if not line.strip():
                continue
            try:
                self._take(json.loads(line))
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                self.notes[UNREADABLE] += 1

    def summary(self) -> Summary:
        """The run so far.

        Raises:
            ValueError: no line tells of a forecast.
        """
        from scale_callbacks.sinks import Summary

        if not self._last:
            raise ValueError("no line tells of a forecast: is this a file that JsonlSink wrote?")
        last = self._last
        table = np.array(self._bins, dtype=np.float64).reshape(-1, 4)
        steps, mean, spread, count = table.T.copy()
        warnings = {str(what): int(n) for what, n in dict(last.get("warnings") or {}).items()}
        measured = last.get("measured") if last.get("finished") else None
        return Summary(
            name=str(last["name"]),
            horizon=int(last.get("horizon") or (self._forecast.horizon if self._forecast else last["step"])),
            schedule=_as_plan(self._run.get("plan")),
            bins=Bins(steps, mean, mean, spread, count),
            last_step=int(last["step"]),
            history=tuple(self._history),
            forecast=self._forecast,
            decision=Decision.from_dict(last["decision"]),
            settings=dict(self._run.get("settings") or {}),
            warnings=warnings | self.notes,
            finished=bool(last.get("finished")),
            measured=None if measured is None else float(measured),
        )

    def _take(self, line: Mapping[str, Any]) -> None:
        from scale_callbacks.sinks import ForecastPoint

        step = int(line["step"])
        Decision.from_dict(line["decision"])
        str(line["name"])
        forecast = _as_forecast(line) if "value" in line else None
        bins = [(float(s), float(m), float(d), float(n)) for s, m, d, n in line.get("bins", ())]
        # All of the line can be read: take it over.
        self.ended, self._last = bool(line.get("end")), dict(line)
        self._run = line.get("run") or self._run
        if bins:
            self._bins = [kept for kept in self._bins if kept[0] < float(line["bins_from"])] + bins
        if forecast is not None:
            self._forecast = forecast
            self._history = [point for point in self._history if point.step < step]
            told = forecast.value, forecast.low, forecast.high, str(forecast.status)
            self._history.append(ForecastPoint(step, *told))


def _seen(summary: Summary, since: float) -> dict[str, Any]:
    """What was seen after a step, and what went wrong."""
    bins = summary.bins
    # The bin that was the last one before has grown since; all from there on are written anew.
    first = max(int(bins.steps.searchsorted(since, side="right")) - 2, 0) if since >= 0.0 else 0
    start = float(bins.steps[first]) if since >= 0.0 and len(bins) else -1.0
    columns = (bins.steps[first:], bins.mean[first:], bins.spread[first:], bins.count[first:])
    rows = [[_short(x) for x in row] for row in zip(*(c.tolist() for c in columns), strict=True)]
    return {"bins": rows, "bins_from": start, "warnings": dict(summary.warnings)}


def _plan(schedule: Schedule | None) -> dict[str, list[float]] | None:
    if schedule is None:
        return None
    if len(schedule.steps) <= KNOTS:
        return schedule.to_dict()
    steps = np.unique(np.linspace(0, schedule.horizon, KNOTS).round())
    return {"steps": steps.tolist(), "rates": np.asarray(schedule.lr(steps)).tolist()}


def _as_plan(plan: Any) -> Schedule | None:
    try:
        return Schedule.from_dict(plan) if plan else None
    except (ValueError, TypeError, KeyError):
        return None


def _as_forecast(line: Mapping[str, Any]) -> Forecast:
    ends = [float(line[key]) for key in ("value", "low", "high")]
    if not all(map(math.isfinite, ends)):
        raise ValueError("not finite")
    paths = [
        tuple(map(float, line.get(key, ()))) for key in ("path_steps", "path_value", "path_low", "path_high")
    ]
    if len({len(path) for path in paths}) != 1:
        raise ValueError("paths of several lengths")
    return Forecast(
        value=ends[0],
        low=ends[1],
        high=ends[2],
        level=float(line["level"]),
        step=int(line["step"]),
        horizon=int(line["horizon"]),
        status=Status(line["status"]),
        path_steps=paths[0],
        path_value=paths[1],
        path_low=paths[2],
        path_high=paths[3],
        weights={str(law): float(share) for law, share in dict(line.get("weights") or {}).items()},
    )


def _short(value: float) -> float:
    return float(f"{value:.7g}")
