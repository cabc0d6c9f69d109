"""Where forecasts go: the record of one forecast, the summary of a run, and the sinks that take them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, runtime_checkable

from scale_callbacks.curve import Bins
from scale_callbacks.deviation import Deviation
from scale_callbacks.forecast import Forecast
from scale_callbacks.forecast_lines import last_line_of, line_of
from scale_callbacks.schedule import Schedule
from scale_callbacks.stopping import Decision

if TYPE_CHECKING:
    from rich.console import Console

Setting = str | float | int | bool
_ENCODER = json.JSONEncoder(allow_nan=False)


@dataclass(frozen=True)
class ForecastPoint:
    """One forecast of the final loss, as it was made at `step`."""

    step: int
    value: float
    low: float
    high: float
    status: str


@dataclass(frozen=True)
class Record:
    """What a sink is handed when a forecast was due.

    Attributes:
        name: the monitored metric, for instance "train_loss".
        step: the optimizer step of the last observation.
        forecast: the forecast, or None while there are too few observations.
        decision: what the rules say at this step.
        metrics: numbers ready to be logged at `step`, all of them finite.
    """

    name: str
    step: int
    forecast: Forecast | None
    decision: Decision
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Summary:
    """A run so far, for pictures and tables: immutable, so another thread may read it.

    Attributes:
        name: the monitored metric.
        horizon: last optimizer step of the plan.
        schedule: the learning-rate plan; None where none is known (rewards).
        bins: the curve seen.
        last_step: the last step observed, 0 before the first.
        history: every forecast so far, some fifty a run.
        forecast: the latest one, with its path to the horizon.
        decision: the latest decision.
        settings: what the forecaster was set to.
        warnings: what went wrong, and how often.
        finished: the run has reached its horizon.
        measured: what was to be forecast, once the run is finished.
        deviation: how far the loss is from what was forecast for it; None before that can be said.
    """

    name: str
    horizon: int
    schedule: Schedule | None
    bins: Bins
    last_step: int
    history: tuple[ForecastPoint, ...]
    forecast: Forecast | None
    decision: Decision
    settings: Mapping[str, Setting]
    warnings: Mapping[str, int]
    finished: bool
    measured: float | None = None
    deviation: Deviation | None = None


@runtime_checkable
class Sink(Protocol):
    """Takes records while the run goes on; the monitor guards the run against all that goes wrong in it.

    A sink is called on a thread of its own, always the same one, one call after the other. Training waits for
    it, but 50 ms at most: what is slower goes on beside the training. A sink that only puts the record
    somewhere may set the attribute `inline = True`, to be called on the training thread.
    """

    def write(self, record: Record, summary: Summary) -> None:
        """Take one forecast."""
        ...

    def close(self, summary: Summary) -> None:
        """Take the end of the run. Called once."""
        ...


class MemorySink:
    """Keeps all records in memory: for notebooks and tests.

    Attributes:
        records: one a forecast, oldest first.
        summary: of the closed run; None while it goes on.
    """

    inline = True

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.summary: Summary | None = None

    def write(self, record: Record, summary: Summary) -> None:
        """Keep the record."""
        self.records.append(record)

    def close(self, summary: Summary) -> None:
        """Keep the summary."""
        self.summary = summary


class JsonlSink:
    """Appends one JSON line a forecast to a file, flushed at once, so that a killed run loses none.

    The first line also tells the settings and the plan, each the part of the curve seen since the one before,
    the last how the run ended: `scale-callbacks report FILE` and `watch FILE` read them. Some 200 kB a run.

    Args:
        path: the file; its folder is made when missing.

    Raises:
        OSError: the folder cannot be made (at once, before training).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] | None = None
        self._told = -1.0  # the step up to which the file tells what was seen

    def write(self, record: Record, summary: Summary) -> None:
        """Append the record."""
        if record.step <= self._told:  # the run went back to a checkpoint: the curve is told anew
            self._told = 0.0
        self._append(line_of(record, summary, self._told))
        self._told = float(summary.last_step)

    def close(self, summary: Summary) -> None:
        """Write how the run ended, and close the file."""
        if self._told >= 0.0:
            self._append(last_line_of(summary, self._told))
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, line: dict[str, Any]) -> None:
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(_ENCODER.encode(line) + "\n")
        self._file.flush()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}


class ConsoleSink:
    """Prints a line when a tenth of the plan has passed since the last one.

    Args:
        console: where to print; by default rich's console on the standard output.
        parts: into how many parts the plan is cut.
    """

    def __init__(self, console: Console | None = None, *, parts: int = 10) -> None:
        if parts < 1:
            raise ValueError(f"parts={parts} must be 1 or more")
        self.console = console
        self.parts = parts
        self._part = 0
        self._said: Forecast | None = None

    def write(self, record: Record, summary: Summary) -> None:
        """Print the forecast when its part of the plan is new, and always a decision to stop."""
        part = record.step * self.parts // summary.horizon
        if record.forecast is not None and (part != self._part or record.decision.stop):
            self._part, self._said = part, record.forecast
            self._say(sentence(record.name, record.forecast))
        if record.decision.stop:
            self._say(f"stop at step {record.step:,}: {record.decision.reason}")

    def close(self, summary: Summary) -> None:
        """Print how the run ended, and what went wrong on the way."""
        if summary.forecast is not None and summary.forecast != self._said:
            self._say(sentence(summary.name, summary.forecast))
        for warning, count in summary.warnings.items():
            self._say(f"{count} x {warning}")

    def _say(self, text: str) -> None:
        from rich.console import Console  # a tenth of a second, for those who print

        (self.console or Console()).print(text, markup=False, highlight=False, soft_wrap=True)


def sentence(name: str, forecast: Forecast) -> str:
    """Say a forecast in one line, to as many digits as its interval is worth.

    For instance "train_loss at step 1,000: 2.500 (90% interval 2.400 to 2.600), seen to step 100".
    """
    digits = _digits(forecast.high - forecast.low)
    value, low, high = (f"{x:.{digits}f}" for x in (forecast.value, forecast.low, forecast.high))
    tail = "" if forecast.status == "ok" else f" [{forecast.status}]"
    return (
        f"{name} at step {forecast.horizon:,}: {value} ({forecast.level:.0%} interval {low} to {high}), "
        f"seen to step {forecast.step:,}{tail}"
    )


def _digits(width: float) -> int:
    """Decimals that show a number of this uncertainty to about two of its digits."""
    decimals = 2
    while decimals < 12 and width < 10.0 ** (1 - decimals):
        decimals += 1
    return decimals + 1
