"""The words of a report: a forecast in one line, numbers to the digits they are worth, strings made safe."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scale_callbacks.sinks import ForecastPoint, Summary


def headline(summary: Summary) -> str:
    """Say the forecast in one line: `train_loss at step 24,000: 1.83 (1.79-1.88, 90%)`."""
    name, forecast = plain(summary.name), summary.forecast
    if forecast is None:
        return f"{name}: no forecast yet"
    value, low, high = rounded(forecast.value, forecast.low, forecast.high)
    dash = " to " if forecast.low < 0 else "-"
    return f"{name} at step {forecast.horizon:,}: {value} ({low}{dash}{high}, {forecast.level:.0%})"


def horizon_of(summary: Summary) -> int:
    """The last step to be drawn."""
    return max(int(summary.horizon), int(summary.last_step), 1)


def halfway(summary: Summary) -> ForecastPoint | None:
    """The last forecast made before half of the run was seen."""
    early = [point for point in summary.history if 2 * point.step <= horizon_of(summary)]
    return early[-1] if early else None


def rounded(value: float, low: float, high: float) -> tuple[str, str, str]:
    """Write three numbers with as many decimals as the interval's width gives sense to."""
    half, size = (high - low) / 2, max(abs(value), abs(low), abs(high))
    decimals = math.ceil(0.6 - math.log10(half)) if 0 < half < math.inf else 7
    if decimals > 6 or size >= 1e6:
        return f"{value:.4g}", f"{low:.4g}", f"{high:.4g}"
    decimals = max(decimals, 0)
    return f"{value:,.{decimals}f}", f"{low:,.{decimals}f}", f"{high:,.{decimals}f}"


def plain(text: str, limit: int = 36) -> str:
    """Keep a string from outside to what a built-in font can draw on one line."""
    clean = "".join(c if c.isprintable() and ord(c) < 0x500 else "?" for c in text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "\u2026"


def printable(text: str, limit: int = 200) -> str:
    r"""Keep a string from outside readable: no control characters, no direction marks, not too long.

    >>> ascii(printable("train" + chr(0) + chr(10) + "loss", limit=8))
    "'train\\ufffd \\u2026'"
    """
    clean = "".join(c if c.isprintable() else " " if c in "\n\t" else "\ufffd" for c in text[: limit + 1])
    return clean if len(clean) <= limit else clean[: limit - 1] + "\u2026"
