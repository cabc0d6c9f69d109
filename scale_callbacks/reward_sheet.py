"""What a backtest of rewards shows: a table for the terminal, and a contact sheet with every stop marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from scale_callbacks.reward_backtest import Stop, smoothed
from scale_callbacks.reward_runs import KINDS, RewardRun

ROWS, COLUMNS = 7, 4
_WHATS = ("saved", "harmed", "rescued")


def score_table(title: str, scores: Mapping[str, Mapping[str, Any]]) -> Table:
    """Saved, harmed and rescued by kind of curve and rule, each with its 90% interval over sources."""
    table = Table(title=f"{title}: shares, with 90% intervals over sources")
    table.add_column("rule")
    for what in _WHATS:
        table.add_column(what, justify="right")
    for kind, ours in next(iter(scores.values())).items():
        table.add_section()
        every = kind == "stops"
        table.add_row("of their stops" if every else f"{ours['runs']} runs: {KINDS.get(kind, kind)}")
        for rule, by_kind in scores.items():
            row = by_kind[kind]
            cells = [_share(row[what]) if what in row else "" for what in _WHATS]
            table.add_row(f"  {rule}" + (f" ({row['runs']})" if every else ""), *cells)
    return table


def draw_sheet(runs: Sequence[RewardRun], stops: Sequence[Stop], path: Path) -> Path:
    """Draw each run with the stop of `SaturationRule` marked: red where it harmed, blue where it rescued."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ours = {stop.run: stop for stop in stops if stop.rule == "SaturationRule"}
    rows = min(ROWS, -(-len(runs) // COLUMNS))
    figure = Figure(figsize=(4 * COLUMNS, 2.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axis in axes[len(runs) :]:
        axis.set_axis_off()
    for run, axis in zip(runs, axes, strict=False):
        _draw(run, ours[run.name], axis)
    figure.savefig(path, dpi=80)
    return path


def _share(told: Mapping[str, float]) -> str:
    return f"{told['mean']:.2f} ({told['low']:.2f}-{told['high']:.2f})"


def _draw(run: RewardRun, stop: Stop, axis: Any) -> None:
    every = max(1, len(run.steps) // 600)
    axis.plot(run.steps[::every], run.rewards[::every], color="0.8", lw=0.7)
    clean = run.truth if run.truth is not None else smoothed(run.steps, run.rewards)
    axis.plot(run.steps, np.asarray(clean), color="0.2", lw=1.2)
    if stop.outcome.stopped:
        colour = "#D55E00" if stop.outcome.harmed else "#0072B2" if stop.outcome.rescued else "#009E73"
        axis.axvline(stop.step, color=colour, lw=1.5)
    verdict = (
        "harmed"
        if stop.outcome.harmed
        else "rescued"
        if stop.outcome.rescued
        else stop.reason or "not stopped"
    )
    axis.set_title(
        f"{run.name[-44:]}\n{KINDS.get(run.kind, run.kind)}: {verdict}, saved {stop.outcome.saved:.0%}",
        fontsize=7,
    )
    axis.tick_params(labelsize=6)
