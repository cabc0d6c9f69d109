"""`scale-callbacks replay`: a logged run, replayed as if it were live."""

from __future__ import annotations

from dataclasses import replace as changed
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from scale_callbacks.commands._common import (
    LateProgress,
    Metric,
    TrackingUri,
    forecast_table,
    give_up_soon,
    one_line_errors,
    say,
)

if TYPE_CHECKING:
    from scale_callbacks.logs import Log
    from scale_callbacks.monitor import Forecaster
    from scale_callbacks.sinks import Record, Summary
    from scale_callbacks.stopping import Decision

Source = Annotated[
    str,
    typer.Argument(
        help="mlflow:RUN_ID, trainer_state.json, metrics.csv, event file or folder, CSV, JSON or JSONL."
    ),
]
Step = Annotated[str | None, typer.Option(help='The column of optimizer steps, or "row" to number the rows.')]
Rate = Annotated[str | None, typer.Option(help="The column of learning rates.")]
Plan = Annotated[
    str | None,
    typer.Option(help="constant, linear, cosine or wsd, as wsd:warmup=500,cooldown=20%,rate=3e-4."),
]
Horizon = Annotated[int | None, typer.Option(min=1, help="Optimizer steps of the whole run.")]
Level = Annotated[float, typer.Option(help="Level of the intervals.")]
Reward = Annotated[bool, typer.Option("--reward", help="The metric is a reward: watch its saturation.")]
Lower = Annotated[bool, typer.Option("--lower-is-better", help="With --reward: a score that should fall.")]


def replay(
    source: Source,
    metric: Metric = None,
    step: Step = None,
    lr: Rate = None,
    schedule: Plan = None,
    horizon: Horizon = None,
    level: Level = 0.9,
    reward: Reward = False,
    lower_is_better: Lower = False,
    tracking_uri: TrackingUri = None,
    out: Annotated[Path, typer.Option(help="Folder for report.html and forecast.png.")] = Path("replay"),
) -> None:
    """Replay a logged run as if it were live: its forecasts over time, a report and a picture."""
    console = Console()
    with one_line_errors(), LateProgress(console) as progress:
        summary = replayed(
            source, progress, metric=metric, step=step, lr=lr, schedule=schedule, horizon=horizon,
            level=level, reward=reward, lower_is_better=lower_is_better, tracking_uri=tracking_uri,
        )  # fmt: skip
        out.mkdir(parents=True, exist_ok=True)
        progress.stage("drawing")(0.0)
        written = write(summary, out)
    tell(console, summary)
    for path in written:
        say(console, f"wrote {path}")


def replayed(source: str, progress: LateProgress, **options: Any) -> Summary:
    """Read a log and replay it; `options` are those of the command.

    Raises:
        ValueError: nothing to be read or replayed, with the remedy.
        OSError: nothing there.
    """
    from scale_callbacks.logs import read_log
    from scale_callbacks.monitor import Monitor
    from scale_callbacks.replay import replay as play
    from scale_callbacks.saturation import SaturationRule
    from scale_callbacks.sinks import MemorySink

    give_up_soon()
    reward = bool(options["reward"])
    log = read_log(
        source,
        metric=options["metric"],
        step=options["step"],
        rate=options["lr"],
        reward=reward,
        tracking_uri=options["tracking_uri"],
        told=progress.stage("reading"),
    )
    forecaster, guessed = _forecaster(log, options)
    kept = MemorySink()
    monitor = Monitor(forecaster, name=log.name, rules=[SaturationRule()] if reward else [], sinks=[kept])
    play(log, monitor, told=progress.stage("replaying"))
    summary = changed(monitor.summary(), decision=_first_stop(kept.records) or monitor.decision)
    origin = {"replayed from": log.label, "plan from": options["schedule"] or "the logged learning rates"}
    if summary.schedule is None:
        del origin["plan from"]
    notes = {**log.notes, **({guessed: 1} if guessed else {})}
    return changed(summary, settings={**summary.settings, **origin}, warnings={**summary.warnings, **notes})


def write(summary: Summary, out: Path) -> list[Path]:
    """Write the report and the picture into a folder."""
    from scale_callbacks.report import save_forecast_png
    from scale_callbacks.report_html import save_report

    page, picture = out / "report.html", out / "forecast.png"
    save_report(summary, page)
    save_forecast_png(summary, picture)
    return [page, picture]


def tell(console: Console, summary: Summary) -> None:
    """Print the forecasts over time, what came, the decision and the warnings."""
    from scale_callbacks.report_data import truth_text
    from scale_callbacks.report_text import headline

    if summary.history:
        console.print(forecast_table(summary))
    say(console, headline(summary))
    if summary.measured is not None:
        say(console, f"measured at the end: {truth_text(summary)}")
    if summary.decision.reason:
        say(console, f"decision: {'stop, ' if summary.decision.stop else ''}{summary.decision.reason}")
    for what, count in summary.warnings.items():
        say(console, f"{count} x {what}")


def _first_stop(records: list[Record]) -> Decision | None:
    """Where the run would have been stopped; what the rules say after that no live run would hear."""
    from scale_callbacks.stopping import Decision

    for record in records:
        if record.decision.stop:
            told = record.decision
            return Decision(True, f"at step {record.step:,}: {told.reason}", told.evidence)
    return None


def _forecaster(log: Log, options: dict[str, Any]) -> tuple[Forecaster, str]:
    """The forecaster for a log, and what had to be guessed of its plan."""
    from scale_callbacks.forecaster import LossForecaster
    from scale_callbacks.logs.plan import parse_schedule, plan_of
    from scale_callbacks.measure import measure_of
    from scale_callbacks.reward import RewardForecaster

    reward, level = bool(options["reward"]), float(options["level"])
    horizon = _horizon(log, options["horizon"], known=not reward)
    end = horizon or max(int(log.steps[-1]), 1)
    plan, guessed = (
        plan_of(log, end) if options["schedule"] is None else (parse_schedule(options["schedule"], end), "")
    )
    if reward:
        direction = "min" if options["lower_is_better"] else "max"
        plan = plan if horizon is not None else None
        return RewardForecaster(horizon, level=level, direction=direction, schedule=plan), guessed  # type: ignore[arg-type]
    if plan is None:
        raise ValueError(
            f"{log.label} has no learning rate: name its column with --lr, or give the plan, for instance "
            "--schedule cosine:warmup=1% or --schedule wsd:warmup=500,cooldown=20%"
        )
    epoch, measure = log.steps_per_epoch, measure_of(log.name)
    return LossForecaster(plan, level=level, steps_per_epoch=epoch, measure=measure), guessed


def _horizon(log: Log, given: int | None, *, known: bool) -> int | None:
    """The length of the run: as given, as it was when it ended, or as the log says it will be."""
    last = max(int(log.steps[-1]), 1)
    if given is not None:
        return given
    if log.ended or (log.ended is None and log.planned is None):
        return last
    if log.planned is not None:
        return max(log.planned, last)
    if known:
        raise ValueError(f"{log.label} is under way and does not say how long it will be: give --horizon")
    return None
