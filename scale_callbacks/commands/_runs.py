"""Runs as they tell of themselves: forecasts in a JSONL file, or among the metrics of an MLflow run."""

from __future__ import annotations

import json
import os
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from scale_callbacks.curve import Bins
from scale_callbacks.forecast import Forecast, Status
from scale_callbacks.forecast_lines import Lines
from scale_callbacks.logs.log import Series
from scale_callbacks.logs.mlflow_run import PREFIX, MlflowRun
from scale_callbacks.logs.names import listed
from scale_callbacks.sinks import ForecastPoint, Summary
from scale_callbacks.stopping import Decision

FIRST = 5  # lines looked at to tell a file of forecasts


class Watched(Protocol):
    """A run that can be looked at again and again."""

    def look(self) -> Summary | None:
        """The run as it stands; None while it tells of no forecast."""
        ...

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        ...


def is_forecasts(path: Path) -> bool:
    """Tell a file that `JsonlSink` wrote, or begins to write, from other logs."""
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in islice(file, FIRST):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and {"name", "step", "decision"} <= set(row):
                return True
    return False


def watched(source: str, tracking_uri: str | None, metric: str | None) -> Watched:
    """Open a run to be looked at.

    Raises:
        ValueError: not a file of forecasts; no such MLflow run, or one without forecasts.
        OSError: nothing there.
    """
    if source.startswith(PREFIX):
        return MlflowForecasts(source.removeprefix(PREFIX), tracking_uri, metric)
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}: give the file of a JsonlSink, or mlflow:RUN_ID")
    if path.is_dir() or (path.stat().st_size and not is_forecasts(path)):
        raise ValueError(f"{path} holds no forecasts: a JsonlSink writes them; for a log there is replay")
    return JsonlForecasts(path)


class JsonlForecasts:
    """A file of forecasts that may still grow; only what is new is read, and only whole lines."""

    def __init__(self, path: Path) -> None:
        self._path, self._read, self._rest = path, 0, b""
        self._lines = Lines()

    @property
    def ended(self) -> bool:
        """Whether the last line tells the end."""
        return self._lines.ended

    def look(self) -> Summary | None:
        """The run as it stands."""
        if os.path.getsize(self._path) < self._read:  # written anew
            self._read, self._rest, self._lines = 0, b"", Lines()
        with self._path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        self._read += len(new)
        *whole, self._rest = (self._rest + new).split(b"\n")
        self._lines.take(line.decode("utf-8", "replace") for line in whole)
        try:
            return self._lines.summary()
        except ValueError:
            return None


class MlflowForecasts:
    """The forecasts among an MLflow run's metrics."""

    def __init__(self, run_id: str, tracking_uri: str | None, metric: str | None) -> None:
        self._place = run_id, tracking_uri
        self._metric = metric
        self._run = MlflowRun(run_id, tracking_uri)

    @property
    def ended(self) -> bool:
        """Whether MLflow says that the run is over."""
        return self._run.ended

    def look(self) -> Summary | None:
        """The run as MLflow has it."""
        self._run = run = MlflowRun(*self._place)
        name = self._name(run)
        if name is None:
            return None
        keys = [f"forecast/{name}", f"forecast/{name}_low", f"forecast/{name}_high"]
        history = _history(run.read(keys), keys)
        if not history:
            return None
        last, tags = history[-1], run.tags
        finished = tags.get("forecast.finished") == "true"
        measured = run.latest.get("forecast/measured") if finished else None
        seen = _whole(tags.get("forecast.step")) or last.step
        horizon = max(run.planned or 0, seen)
        decision = Decision(tags.get("forecast.decision") == "stop", tags.get("forecast.reason", ""))
        empty = np.empty(0)
        return Summary(
            name=name,
            horizon=horizon,
            schedule=None,
            bins=Bins(empty, empty, empty, empty, empty),
            last_step=max(seen, last.step),
            history=tuple(history),
            forecast=_as_forecast(last, horizon, tags, run.params),
            decision=decision,
            settings={key: value for key, value in run.params.items() if key.startswith("forecast.")},
            warnings={tags["forecast.warnings"]: 1} if tags.get("forecast.warnings") else {},
            finished=finished,
            measured=measured,
        )

    def _name(self, run: MlflowRun) -> str | None:
        """The metric that is forecast: all three of its metrics are there."""
        names = [name.removeprefix("forecast/") for name in run.names if name.startswith("forecast/")]
        whole = [name for name in names if {f"{name}_low", f"{name}_high"} <= set(names)]
        if self._metric is not None and self._metric not in whole:
            raise ValueError(f"{run.label} has no forecasts of {self._metric!r}; it has: {listed(whole)}")
        return self._metric or (whole[0] if whole else None)


def _history(series: dict[str, Series], keys: list[str]) -> list[ForecastPoint]:
    """One forecast a step, where all three numbers came; the last sent counts."""
    values, lows, highs = (dict(zip(*(c.tolist() for c in series[key]), strict=True)) for key in keys)
    return [
        ForecastPoint(int(step), values[step], lows[step], highs[step], "ok")
        for step in sorted(values)
        if step in lows and step in highs
    ]


def _as_forecast(last: ForecastPoint, horizon: int, tags: Any, params: Any) -> Forecast:
    status = tags.get("forecast.status", "ok")
    weights = {key[16:]: value for key, value in tags.items() if key.startswith("forecast.weight.")}
    return Forecast(
        value=last.value,
        low=last.low,
        high=last.high,
        level=_number(params.get("forecast.level")) or 0.9,
        step=last.step,
        horizon=horizon,
        status=Status(status) if status in set(Status) else Status.OK,
        path_steps=(),
        path_value=(),
        path_low=(),
        path_high=(),
        weights={law: _number(share) or 0.0 for law, share in weights.items()},
    )


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _whole(text: str | None) -> int:
    number = _number(text)
    return int(number) if number is not None and 0 <= number < 2**53 else 0
