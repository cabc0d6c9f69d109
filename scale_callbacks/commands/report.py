"""`scale-callbacks report`: the report and the picture of a run, from its forecasts or from its log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from scale_callbacks.commands import replay as r
from scale_callbacks.commands._common import LateProgress, Metric, TrackingUri, one_line_errors, say
from scale_callbacks.sinks import Summary

Run = Annotated[str, typer.Argument(help="The file of a JsonlSink, or anything that replay takes.")]


def report(
    run: Run,
    metric: Metric = None,
    step: r.Step = None,
    lr: r.Rate = None,
    schedule: r.Plan = None,
    horizon: r.Horizon = None,
    level: r.Level = 0.9,
    reward: r.Reward = False,
    lower_is_better: r.Lower = False,
    tracking_uri: TrackingUri = None,
    out: Annotated[Path, typer.Option(help="Folder for report.html and forecast.png.")] = Path("report"),
) -> None:
    """Write the report of a run: of the forecasts it made, or, from a log, of those it would have made."""
    from scale_callbacks.commands._runs import is_forecasts

    console = Console()
    with one_line_errors(), LateProgress(console) as progress:
        if is_forecasts(Path(run)):
            summary = _told(Path(run))
        else:
            summary = r.replayed(
                run, progress, metric=metric, step=step, lr=lr, schedule=schedule, horizon=horizon,
                level=level, reward=reward, lower_is_better=lower_is_better, tracking_uri=tracking_uri,
            )  # fmt: skip
        out.mkdir(parents=True, exist_ok=True)
        progress.stage("drawing")(0.0)
        for path in r.write(summary, out):
            say(console, f"wrote {path}")


def _told(path: Path) -> Summary:
    from scale_callbacks.forecast_lines import Lines

    lines = Lines()
    with path.open(encoding="utf-8", errors="replace") as file:
        lines.take(file)
    return lines.summary()
