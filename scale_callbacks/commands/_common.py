"""What several commands share: how errors are shown, a progress bar that comes late, tables of forecasts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Annotated, Any, NoReturn, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from scale_callbacks.report_text import horizon_of, printable, rounded
from scale_callbacks.sinks import ForecastPoint, Summary

LATE = 1.0  # seconds before a progress bar is worth showing
ROWS = 14  # of a table of forecasts

Metric = Annotated[str | None, typer.Option(help="The metric; found by its name where there is one.")]
TrackingUri = Annotated[str | None, typer.Option(help="Where MLflow keeps the run.")]


def fail(text: str, *, code: int = 2) -> NoReturn:
    """End the command with one line on the standard error."""
    line = " ".join(printable(text, 2000).split())
    Console(stderr=True).print(f"error: {line}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def give_up_soon() -> None:
    """Let MLflow ask a server that does not answer for some seconds, not for minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what readers raise into one line and exit code 2."""
    try:
        yield
    except OSError as fault:
        fail(f"{fault.filename}: {fault.strerror}" if fault.filename and fault.strerror else str(fault))
    except (ValueError, ImportError) as fault:
        fail(str(fault) or type(fault).__name__)


class LateProgress:
    """A progress bar that appears once the work has taken longer than a second.

    >>> with LateProgress(Console()) as progress:
    ...     progress.stage("reading")(0.5)
    """

    def __init__(self, console: Console) -> None:
        self._console, self._begun = console, time.monotonic()
        self._bar: Progress | None = None
        self._task: Any = None
        self._words = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def stage(self, words: str) -> Any:
        """Begin a part of the work; returns what is to be told the share of it that is done."""
        self._words = words

        def told(share: float) -> None:
            if self._bar is None and time.monotonic() - self._begun > LATE:
                columns = (
                    TextColumn("{task.description}"),
                    BarColumn(),
                    TaskProgressColumn(),
                    TimeRemainingColumn(),
                )
                self._bar = Progress(*columns, console=self._console, transient=True)
                self._bar.start()
                self._task = self._bar.add_task(words, total=1.0)
            if self._bar is not None:
                self._bar.update(self._task, completed=share, description=words)

        return told


def forecast_table(summary: Summary, *, rows: int = ROWS) -> Table:
    """The forecasts over time, the last `rows` of them, beside the truth where it is known."""
    truth, horizon = summary.measured, horizon_of(summary)
    level = "interval" if summary.forecast is None else f"{summary.forecast.level:.0%} interval"
    table = Table(title=f"{printable(summary.name, 60)}: forecasts over time", title_justify="left")
    for heading in ("seen", "step", "forecast", level, *(("error", "held") if truth is not None else ())):
        table.add_column(heading, justify="right")
    table.add_column("status")
    for point in _spread(summary.history, horizon)[-rows:]:
        value, low, high = rounded(point.value, point.low, point.high)
        cells = [f"{point.step / horizon:.0%}", f"{point.step:,}", value, f"{low} to {high}"]
        if truth is not None:
            cells.append(f"{(point.value - truth) / abs(truth):+.1%}" if truth else "-")
            cells.append("yes" if point.low <= truth <= point.high else "no")
        table.add_row(*cells, printable(point.status, 20))
    return table


def say(console: Console, text: str) -> None:
    """Print a line as it is, whatever it holds."""
    console.print(printable(text, 1000), markup=False, highlight=False, soft_wrap=True)


def _spread(history: tuple[ForecastPoint, ...], horizon: int) -> list[ForecastPoint]:
    """A forecast for each tenth of the plan and some before the first."""
    chosen: dict[int, ForecastPoint] = {}
    for mark in (0.02, 0.05, *(0.1 * i for i in range(1, 11))):
        before = [point for point in history if point.step <= mark * horizon * (1 + 1e-9)]
        if before:
            chosen[before[-1].step] = before[-1]
    if history:
        chosen[history[-1].step] = history[-1]
    return [chosen[step] for step in sorted(chosen)]
