"""What a report shows of a run, as plain data: columns for its charts, rows for its tables."""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scale_callbacks.report_text import horizon_of, printable, rounded

if TYPE_CHECKING:
    from scale_callbacks.sinks import Summary

Floats = NDArray[np.float64]
Column = list[float | None]

MOST = 2000  # points of a column: more than a screen is wide
ROWS = 200  # of a table
PACKAGES = ("scale-callbacks", "numpy", "scipy", "torch", "lightning", "transformers", "trl", "mlflow")


def charts(summary: Summary) -> dict[str, Any]:
    """Everything the page draws.

    Returns:
        "name", "horizon", "last", "measured", "forecast" (value, low, high and their texts) and the columns
        of four charts: "loss", "rate", "past", "residual"; a chart without data is None. None stands for
        what is missing or not finite.
    """
    forecast = summary.forecast
    told = None
    if forecast is not None:
        ends = forecast.value, forecast.low, forecast.high
        told = {"ends": _column(ends), "texts": rounded(*ends), "level": f"{forecast.level:.0%}"}
    truth = _finite(summary.measured)
    return {
        "name": printable(summary.name),
        "horizon": horizon_of(summary),
        "last": int(summary.last_step),
        "measured": truth,
        "measured_text": truth_text(summary),
        "forecast": told,
        "loss": _loss(summary),
        "rate": _rate(summary),
        "past": _past(summary),
        "residual": _residual(summary),
    }


def truth_text(summary: Summary) -> str:
    """What was measured at the end, to the digits of the last interval; empty before the end."""
    truth, forecast = _finite(summary.measured), summary.forecast
    if truth is None:
        return ""
    return rounded(truth, *((truth, truth) if forecast is None else (forecast.low, forecast.high)))[0]


def settings_rows(summary: Summary) -> list[tuple[str, str]]:
    """What the forecaster was set to, and the plan."""
    plan = summary.schedule
    rows: list[tuple[str, object]] = [("metric", summary.name), *sorted(summary.settings.items())]
    if plan is not None:
        rows += [("fingerprint of the plan", plan.fingerprint)]
    return [(printable(str(name)), _shown(value)) for name, value in rows[:ROWS]]


def data_rows(summary: Summary) -> list[tuple[str, str]]:
    """What was seen of the run."""
    bins = summary.bins
    horizon = horizon_of(summary)
    rows = [("steps seen", f"{summary.last_step:,} of {horizon:,} ({summary.last_step / horizon:.0%})")]
    if len(bins):
        rows += [
            ("observations", f"{int(bins.count.sum()):,}"),
            ("kept in", f"{len(bins)} bins, from step {bins.steps[0]:,.0f} to {bins.steps[-1]:,.0f}"),
            ("first and last bin", f"{bins.mean[0]:.5g} and {bins.mean[-1]:.5g}"),
        ]
    return [*rows, ("forecasts made", f"{len(summary.history):,}")]


def version_rows() -> list[tuple[str, str]]:
    """Versions of what made the forecasts; frameworks only where they are in use."""
    rows = [("Python", platform.python_version())]
    for name in PACKAGES:
        if name.replace("-", "_") in sys.modules:
            try:
                rows.append((name, version(name)))
            except PackageNotFoundError:  # run from a checkout
                rows.append((name, str(getattr(sys.modules[name.replace("-", "_")], "__version__", "?"))))
    return rows


def history_rows(summary: Summary) -> list[dict[str, str]]:
    """The forecasts over time, with their error once the truth is known."""
    rows, truth, horizon = [], _finite(summary.measured), horizon_of(summary)
    for point in summary.history[-MOST:]:
        value, low, high = rounded(point.value, point.low, point.high)
        row = {"step": f"{point.step:,}", "seen": f"{point.step / horizon:.0%}", "value": value}
        row |= {"low": low, "high": high, "status": printable(str(point.status), 40)}
        if truth is not None:
            row["error"] = f"{(point.value - truth) / abs(truth):+.1%}" if truth else "\u2013"
            row["held"] = "yes" if point.low <= truth <= point.high else "no"
        rows.append(row)
    return rows


def law_rows(weights: Mapping[str, float]) -> list[tuple[str, float]]:
    """The families of laws by weight, the lightest left out."""
    laws = sorted(weights.items(), key=lambda item: -item[1])[:12]
    return [
        (printable(str(law), 60).replace("_", " "), float(share)) for law, share in laws if share >= 0.0005
    ]


def _loss(summary: Summary) -> dict[str, Column] | None:
    bins = summary.bins
    if len(bins) == 0:
        return None
    steps, mean = np.asarray(bins.steps, dtype=float), np.asarray(bins.mean, dtype=float)
    spread = np.nan_to_num(np.asarray(bins.spread, dtype=float))
    last, horizon = float(summary.last_step), float(horizon_of(summary))
    path = np.empty(0) if summary.forecast is None else np.asarray(summary.forecast.path_steps, dtype=float)
    at = np.unique(np.concatenate((_thinned(steps), path, [0.0, last, horizon])))
    seen = (at >= steps[0]) & (at <= steps[-1])
    columns = {"steps": at, "single": np.where(np.isin(at, steps), np.interp(at, steps, mean), np.nan)}
    for name, values in (("mean", mean), ("under", mean - spread), ("over", mean + spread)):
        columns[name] = np.where(seen, np.interp(at, steps, values), np.nan)
    if len(path):
        assert summary.forecast is not None
        value, low, high = summary.forecast.at(at)
        ahead, known = at >= last, at >= path[0]
        columns |= {"fitted": np.where(known & (at <= last), value, np.nan)}
        columns |= {
            name: np.where(ahead & known, y, np.nan)
            for name, y in (("value", value), ("low", low), ("high", high))
        }
    return _columns(columns)


def _rate(summary: Summary) -> dict[str, Column] | None:
    plan = summary.schedule
    if plan is None:
        return None
    horizon, last = float(horizon_of(summary)), float(summary.last_step)
    knots = plan.steps if len(plan.steps) <= MOST // 4 else np.empty(0)
    at = np.unique(np.concatenate((np.linspace(0.0, horizon, 400), knots[knots <= horizon], [last])))
    rate, area, annealing = (np.asarray(f(at)) for f in (plan.lr, plan.area, plan.annealing_area))
    if plan.rates[0] > 0.0:
        rate[at == 0.0] = plan.rates[0]
    columns = {
        "steps": at,
        "past": np.where(at <= last, rate, np.nan),
        "plan": np.where(at >= last, rate, np.nan),
    }
    for name, curve in (("area", area), ("annealing", annealing)):
        if curve[-1] > 0:
            columns[name] = 100.0 * curve / curve[-1]
    return _columns(columns)


def _past(summary: Summary) -> dict[str, Column] | None:
    points = summary.history[-MOST:]
    if not points:
        return None
    steps = np.array([float(point.step) for point in points])
    at = np.unique(np.concatenate((steps, [0.0, float(horizon_of(summary))])))
    index = np.clip(np.searchsorted(steps, at), 0, len(points) - 1)
    made = steps[index] == at
    columns: dict[str, Floats] = {"steps": at}
    for name in ("value", "low", "high"):
        values = np.array([float(getattr(point, name)) for point in points])
        columns[name] = np.where(made, values[index], np.nan)
    sure = np.array([str(point.status) == "ok" for point in points])[index]
    columns["doubtful"] = np.where(made & ~sure, columns["value"], np.nan)
    return _columns(columns)


def _residual(summary: Summary) -> dict[str, Column] | None:
    """Bins seen less the median path of the latest forecast, and one standard error of each bin."""
    bins, forecast = summary.bins, summary.forecast
    if len(bins) == 0 or forecast is None or len(forecast.path_steps) == 0:
        return None
    index = np.unique(np.linspace(0, len(bins) - 1, min(len(bins), MOST)).astype(int))
    steps, mean, count = (np.asarray(x, dtype=float)[index] for x in (bins.steps, bins.mean, bins.count))
    error = np.asarray(bins.spread, dtype=float)[index] / np.sqrt(np.maximum(count, 1.0))
    at = np.unique(np.concatenate((steps, [0.0, float(horizon_of(summary))])))
    found = np.isin(at, steps)
    columns = {"steps": at}
    for name, values in (("off", mean - forecast.at(steps)[0]), ("over", error), ("under", -error)):
        columns[name] = np.full(len(at), np.nan)
        columns[name][found] = values
    return _columns(columns)


def _thinned(steps: Floats) -> Floats:
    kept: Floats = steps[np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MOST)).astype(int))]
    return kept


def _columns(columns: Mapping[str, Floats]) -> dict[str, Column]:
    return {name: _column(values) for name, values in columns.items()}


def _column(values: Any) -> Column:
    return [float(f"{x:.7g}") if math.isfinite(x) else None for x in map(float, values)]


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else printable(str(value), 500)
