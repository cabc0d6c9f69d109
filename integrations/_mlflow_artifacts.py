"""The files that a run's page has of a forecast: the picture and the report, and when they are made anew."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from scale_callbacks.report import save_forecast_png

if TYPE_CHECKING:
    from scale_callbacks.integrations._mlflow_run import RunWriter
    from scale_callbacks.sinks import Summary

DRAWING = 0.004  # share of the run's time that the files before the last may take
FIRST_DRAWING = 1.0  # seconds expected of the first ones, imports included


class Pictures:
    """Makes `<prefix>.png` and the report at a few marks of the plan and at the end.

    Args:
        prefix: First part of the files' names; the report of the first is `report.html`.
        marks: Shares of the plan.
    """

    def __init__(self, prefix: str, marks: Sequence[float]) -> None:
        self._marks = sorted(marks)
        self._picture = f"{prefix}.png"
        self._report = "report.html" if prefix == "forecast" else f"{prefix}.report.html"
        self._born, self._spent, self._last = time.monotonic(), 0.0, FIRST_DRAWING

    def due(self, summary: Summary) -> bool:
        """Tell whether a mark has been passed, and the run is long enough for what the files cost."""
        share = summary.last_step / summary.horizon
        affordable = self._spent + self._last <= DRAWING * (time.monotonic() - self._born)
        if summary.forecast is None or not affordable or not self._marks or share < self._marks[0]:
            return False
        self._marks = [mark for mark in self._marks if mark > share]
        return True

    def send(self, writer: RunWriter, summary: Summary) -> None:
        """Make the files and log them; a fault in one does not keep the other back."""
        saving = {self._picture: save_forecast_png, self._report: _report_writer()}
        self._last, faults = 0.0, []
        for name, save in saving.items():
            if save is None:
                continue
            try:
                self._last += writer.send_file(name, partial(save, summary))
            except Exception as fault:
                faults.append(fault)
        self._spent += self._last
        if faults:
            raise faults[0]


def _report_writer() -> Callable[[Summary, str], Any] | None:
    try:
        module: Any = importlib.import_module("scale_callbacks.report_html")
    except ImportError:  # the report's templates are an extra
        return None
    return module.save_report  # type: ignore[no-any-return]
