"""A run drawn in a terminal: the headline, how far it is, the forecasts over time, the decision."""

from __future__ import annotations

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from scale_callbacks.commands._common import forecast_table
from scale_callbacks.report_data import truth_text
from scale_callbacks.report_text import headline, horizon_of, printable
from scale_callbacks.sinks import Summary

HEIGHT = 10  # lines of the chart
SHADE, POINT, TRUTH = "\u2591", "\u25cf", "\u2500"


def screen(summary: Summary, *, width: int = 80, height: int = 40, state: str = "") -> RenderableType:
    """Draw a run.

    Args:
        summary: the run so far.
        width: columns of the terminal.
        height: its lines; a low one shows fewer of the forecasts.
        state: what is going on, for the last line.
    """
    horizon = horizon_of(summary)
    reach = Table.grid(padding=(0, 1))
    reach.add_row(
        ProgressBar(total=horizon, completed=min(summary.last_step, horizon), width=max(width // 3, 10)),
        Text(f"{summary.last_step:,} of {horizon:,} steps ({summary.last_step / horizon:.0%})"),
    )
    parts: list[RenderableType] = [Text(headline(summary), style="bold"), reach, Text()]
    if summary.history:
        parts += [*chart(summary, width=width - 4), Text(), forecast_table(summary, rows=max(height - 25, 3))]
    if summary.measured is not None:
        parts.append(Text(f"measured at the end: {truth_text(summary)}", style="bold"))
    verdict = "stop: " if summary.decision.stop else "decision: go on, " if summary.decision.reason else ""
    if verdict:
        parts.append(Text(verdict + printable(summary.decision.reason, 500)))
    parts += [
        Text(f"{n} x {printable(what)}", style="yellow") for what, n in list(summary.warnings.items())[:5]
    ]
    return Panel(Group(*parts), subtitle=Text(state, style="dim") if state else None, subtitle_align="left")


def chart(summary: Summary, *, width: int, height: int = HEIGHT) -> list[Text]:
    """The forecasts over time as lines of text: a point each, its interval shaded, the truth as a line."""
    points, horizon, truth = summary.history, horizon_of(summary), summary.measured
    steps = np.array([point.step for point in points], dtype=float)
    value, low, high = (np.array([getattr(p, name) for p in points]) for name in ("value", "low", "high"))
    late = steps >= 0.1 * steps[-1]
    usual = late & (high - low <= 4.0 * np.median((high - low)[late]))
    shown = np.concatenate([low[usual], high[usual], value[late], [] if truth is None else [truth]])
    bottom, top = float(shown.min()), float(shown.max())
    size = (top - bottom) or abs(top) or 1.0
    labels = [f"{top - size * row / (height - 1):.4g}" for row in range(height)]
    gutter = max(map(len, labels)) + 1
    columns = max(width - gutter - 2, 10)

    def line_of(number: float) -> int:
        return round((height - 1) * (top - number) / size)

    grid = [[" "] * columns for _ in range(height)]
    if truth is not None:
        grid[line_of(truth)] = [TRUTH] * columns
    for column in range(columns):
        near = int(np.argmin(np.abs(steps - (column + 0.5) / columns * horizon)))
        if abs(steps[near] - (column + 0.5) / columns * horizon) > horizon / columns + horizon / 100:
            continue
        for row in range(max(line_of(high[near]), 0), min(line_of(low[near]), height - 1) + 1):
            grid[row][column] = SHADE
        if 0 <= line_of(value[near]) < height:
            grid[line_of(value[near])][column] = POINT
    ticked = [label if row % 3 == 0 else "" for row, label in enumerate(labels)]
    return [
        Text.assemble((f"{label:>{gutter}} ", "dim"), ("".join(cells), "blue"))
        for label, cells in zip(ticked, grid, strict=True)
    ]
