"""Pictures of a run: the loss and where it is heading, the plan under it, and the forecasts made so far.

Drawn with matplotlib's object interface (a `Figure` on an Agg canvas), never with pyplot: sinks draw in
threads of their own, beside whatever the user's program plots.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from scale_callbacks.report_text import headline, horizon_of, plain, rounded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scale_callbacks.forecast import Forecast
    from scale_callbacks.sinks import Summary

# Okabe and Ito's colours, told apart with every common kind of colour blindness.
_SEEN, _FORECAST, _RATE, _AREA, _TRUTH = "#555555", "#0072B2", "#009E73", "#B0770A", "#D55E00"
_INK, _FAINT, _GRID = "#222222", "#6B6B6B", "#E4E4E4"

Floats = NDArray[np.float64]

__all__ = ["forecast_figure", "headline", "save_forecast_png"]


def forecast_figure(summary: Summary) -> Figure:
    """Draw a run in three panels over one step axis.

    From the top: the loss seen (mean and standard deviation of each bin) with the median forecast path and
    its interval; the learning rate, its area and its annealing area, the part still planned paler; every
    forecast at the step it was made, with the measured final loss once the run is finished.

    Args:
        summary: A snapshot of the run; with no forecast, or nothing seen, the panels say so.

    Returns:
        A figure of 1200 by 900 pixels, attached to an Agg canvas and to nothing else.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.0, 9.0), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        3, 1, height_ratios=(5.0, 1.7, 2.8), left=0.08, right=0.86, top=0.9, bottom=0.065, hspace=0.13
    )
    loss = figure.add_subplot(grid[0])
    rate = figure.add_subplot(grid[1], sharex=loss)
    past = figure.add_subplot(grid[2], sharex=loss)
    for axes in (loss, rate, past):
        _dress(axes, labelled=axes is past)
    loss.set_xlim(0.0, horizon_of(summary))
    _draw_loss(loss, summary)
    _draw_rate(rate, summary)
    _draw_past(past, summary)
    _say(figure, 0.08, 0.952, headline(summary), size=17, weight="bold")
    _say(figure, 0.08, 0.922, _subtitle(summary), size=11, color=_FAINT)
    return figure


def save_forecast_png(summary: Summary, path: str | PathLike[str]) -> None:
    """Write `forecast_figure` as a PNG of 1200 by 900 pixels.

    Args:
        summary: A snapshot of the run.
        path: The file to write; an existing one is replaced.
    """
    forecast_figure(summary).savefig(path, format="png", dpi=100)


def _draw_loss(axes: Axes, summary: Summary) -> None:
    axes.set_ylabel(plain(summary.name), color=_INK, parse_math=False)
    axes.set_ylim(_loss_limits(summary))
    steps, mean, spread = _columns(summary)
    if len(steps) == 0:
        _empty(axes, "no loss seen yet")
    axes.fill_between(steps, mean - spread, mean + spread, color=_SEEN, alpha=0.16, lw=0)
    marker = "o" if len(steps) <= 30 else ""
    axes.plot(
        steps, mean, color=_SEEN, lw=1.1, marker=marker, ms=3.5, label="seen: mean and spread of each bin"
    )
    if summary.forecast is not None:
        _draw_path(axes, summary.forecast, summary.last_step)
        _draw_final(axes, summary.forecast)
    truth = summary.measured
    if truth is not None:
        axes.axhline(truth, color=_TRUTH, lw=1.2, ls=(0, (6, 3)), zorder=1, label="measured at the end")
    if len(steps):
        end = float(mean[-1]) if summary.forecast is None else summary.forecast.value
        high_end = end > sum(axes.get_ylim()) / 2 and len(steps) > 8
        corner: Literal["lower right", "upper right"] = "lower right" if high_end else "upper right"
        axes.legend(loc=corner, frameon=False, fontsize=10, labelcolor=_INK)


def _draw_path(axes: Axes, forecast: Forecast, last_step: int) -> None:
    path = (forecast.path_steps, forecast.path_value, forecast.path_low, forecast.path_high)
    steps, value, low, high = (np.asarray(column, dtype=float) for column in path)
    if len(steps) == 0:
        return
    ahead = steps >= steps[max(int(np.searchsorted(steps, last_step, side="right")) - 1, 0)]
    axes.fill_between(steps[ahead], low[ahead], high[ahead], color=_FORECAST, alpha=0.2, lw=0)
    axes.plot(steps, value, color=_FORECAST, lw=1.2, ls=(0, (4, 3)))
    axes.plot(steps[ahead], value[ahead], color=_FORECAST, lw=2.2, label="forecast: median path and interval")


def _draw_final(axes: Axes, forecast: Forecast) -> None:
    """Mark the forecast at the horizon and spell it out in the margin."""
    value, low, high = rounded(forecast.value, forecast.low, forecast.high)
    arms = [[max(forecast.value - forecast.low, 0.0)], [max(forecast.high - forecast.value, 0.0)]]
    mark: dict[str, Any] = {"color": _FORECAST, "clip_on": False, "zorder": 5}
    axes.errorbar(
        [forecast.horizon], [forecast.value], arms, marker="o", ms=8, lw=2.4, capsize=5, capthick=2.0, **mark
    )
    between = " " if len(low + high) <= 14 else "\n"
    under = f"{low} to{between}{high}\n{forecast.level:.0%} interval"
    _value_beside(axes, forecast.value, value, under, color=_FORECAST, size=17 if len(value) <= 7 else 12)


def _value_beside(axes: Axes, y: float, value: str, under: str, *, color: str, size: int) -> None:
    note: dict[str, Any] = {
        "xycoords": ("axes fraction", "data"),
        "textcoords": "offset points",
        "color": color,
    }
    note |= {"annotation_clip": False}
    axes.annotate(value, (1.0, y), xytext=(16, 1), size=size, weight="bold", va="bottom", **note)
    axes.annotate(under, (1.0, y), xytext=(16, -2), size=10, va="top", **note)


def _draw_rate(axes: Axes, summary: Summary) -> None:
    axes.set_ylabel("learning rate", color=_INK)
    schedule, seen = summary.schedule, float(summary.last_step)
    if schedule is None:
        _empty(axes, "no learning-rate plan given")
        return
    grid = np.unique(np.concatenate([np.linspace(0.0, horizon_of(summary), 500), schedule.steps, [seen]]))
    rate, area, annealing = (
        np.asarray(f(grid)) for f in (schedule.lr, schedule.area, schedule.annealing_area)
    )
    past, plan = grid <= seen, grid >= seen
    axes.fill_between(grid[past], rate[past], color=_RATE, alpha=0.28, lw=0)
    axes.fill_between(grid[plan], rate[plan], color=_RATE, alpha=0.09, lw=0)
    axes.plot(grid[past], rate[past], color=_RATE, lw=2.0)
    axes.plot(grid[plan], rate[plan], color=_RATE, lw=1.6, ls=(0, (4, 2)))
    top = float(rate.max()) or 1.0
    axes.set_ylim(0.0, 1.12 * top)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4), useMathText=True)
    row = 0.95
    for curve, label, style in (
        (area, "\u2014 area S1", "-"),
        (annealing, "\u00b7\u00b7\u00b7 annealing area", ":"),
    ):
        if curve[-1] > 0:
            axes.plot(grid, curve / curve[-1] * top, color=_AREA, lw=1.2, ls=style)
            _margin(axes, row, label, color=_AREA, size=10)
            _margin(
                axes, row - 0.17, f"{np.interp(seen, grid, curve) / curve[-1]:.0%} seen", color=_AREA, size=10
            )
            row -= 0.45


def _draw_past(axes: Axes, summary: Summary) -> None:
    axes.set_ylabel("forecasts made", color=_INK)
    axes.set_xlabel("step", color=_INK)
    points = summary.history
    if not points:
        _empty(axes, "no forecast yet")
        return
    steps, value, low, high = (
        np.array([getattr(p, f) for p in points]) for f in ("step", "value", "low", "high")
    )
    axes.fill_between(steps, low, high, color=_FORECAST, alpha=0.2, lw=0)
    size = 12.0 if len(points) > 15 else 28.0
    axes.plot(steps, value, color=_FORECAST, lw=1.4)
    sure = np.array([str(p.status) == "ok" for p in points])
    faces = np.where(sure, _FORECAST, "white")
    axes.scatter(steps, value, s=size, facecolors=list(faces), edgecolors=_FORECAST, linewidths=1.1, zorder=3)
    if not sure.all():
        states = sorted({plain(str(p.status), 14) for p in points} - {"ok"})
        legend = states[0] if len(states) == 1 else "not ok"
        _margin(axes, 0.06, f"\u25cb {legend}", color=_FORECAST, size=10)
    if len(points) == 1:
        axes.vlines(steps, low, high, color=_FORECAST, lw=2.0)
    truth = summary.measured
    if truth is not None:
        axes.axhline(truth, color=_TRUTH, lw=1.6, ls=(0, (6, 3)))
        digits = rounded(truth, low[-1], high[-1])[0]
        _value_beside(axes, truth, digits, "measured\nat the end", color=_TRUTH, size=13)
    axes.set_ylim(_past_limits(steps, low, high, value, truth))


def _loss_limits(summary: Summary) -> tuple[float, float]:
    """Show what is of interest: from a tenth of the steps seen on, and the whole fan ahead."""
    steps, mean, spread = _columns(summary)
    late = steps >= 0.1 * summary.last_step
    shown = [mean[late] - spread[late], mean[late] + spread[late]]
    forecast = summary.forecast
    if forecast is not None:
        ahead = np.asarray(forecast.path_steps) >= summary.last_step
        shown += [np.asarray(forecast.path_low)[ahead], np.asarray(forecast.path_high)[ahead]]
        shown += [np.array([forecast.low, forecast.high])]
    return _padded(np.concatenate(shown))


def _past_limits(
    steps: Floats, low: Floats, high: Floats, value: Floats, truth: float | None
) -> tuple[float, float]:
    """Fit the forecasts, but neither those of the first steps nor an interval far wider than the others."""
    late = steps >= 0.1 * steps[-1]
    width = (high - low)[late]
    usual = width <= 4.0 * np.median(width)
    shown = [low[late][usual], high[late][usual], value[late], [] if truth is None else [truth]]
    return _padded(np.concatenate(shown))


def _padded(values: Floats) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - pad, high + pad


def _columns(summary: Summary) -> tuple[Floats, Floats, Floats]:
    bins = summary.bins
    spread = np.nan_to_num(np.asarray(bins.spread, dtype=float))
    return np.asarray(bins.steps, dtype=float), np.asarray(bins.mean, dtype=float), spread


def _subtitle(summary: Summary) -> str:
    seen, horizon = summary.last_step, horizon_of(summary)
    parts = [f"{seen:,} of {horizon:,} steps seen ({seen / horizon:.0%})"]
    if summary.forecast is not None:
        parts.append(f"status {plain(str(summary.forecast.status))}")
        laws = sorted(summary.forecast.weights.items(), key=lambda item: -item[1])
        shares = [f"{plain(law)} {weight:.0%}" for law, weight in laws[:4] if weight >= 0.005]
        parts += [", ".join(shares)] if shares else []
    truth = summary.measured
    if truth is not None and summary.forecast is not None:
        parts.append(f"measured {rounded(truth, summary.forecast.low, summary.forecast.high)[0]}")
    if summary.decision.stop:
        parts.append(f"stopped: {plain(summary.decision.reason)}")
    return plain("  \u00b7  ".join(parts), 135)


def _say(figure: Figure, x: float, y: float, text: str, **style: Any) -> None:
    figure.text(x, y, text, **{"color": _INK, "parse_math": False, **style})


def _margin(axes: Axes, y: float, text: str, **style: Any) -> None:
    axes.text(1.012, y, text, transform=axes.transAxes, va="center", parse_math=False, **style)


def _empty(axes: Axes, text: str) -> None:
    axes.tick_params(axis="y", labelleft=False)
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=_FAINT, size=13)


def _dress(axes: Axes, *, labelled: bool) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.set_facecolor("white")
    axes.grid(True, color=_GRID, lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#9A9A9A")
    axes.tick_params(colors=_INK, labelsize=10, labelbottom=labelled)
    axes.yaxis.set_label_coords(-0.06, 0.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x < 1e6 else f"{x / 1e6:g}M"))
