"""The report: one HTML file that holds a run, its forecasts and the code that draws them, and loads nothing.

Every string from outside goes through Jinja's escaping or, inside the page's JSON, is written with `<`, `>`
and `&` as escapes; a content security policy lets run only the two scripts written here, by their hashes, and
lets the page load nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scale_callbacks import report_data
from scale_callbacks.report_text import halfway, headline, horizon_of, printable, rounded

if TYPE_CHECKING:
    from jinja2 import Template

    from scale_callbacks.sinks import Summary

STATUS = {
    "ok": "nothing unusual",
    "early": "less than a tenth of the plan is seen: expect this forecast to move",
    "past_horizon": "the run went on after its plan, and the forecast's end with it",
    "unfamiliar": "unlike the runs the prior was learned from: believe the width, not the middle",
}


def report_html(summary: Summary) -> str:
    """Write a run's report as one self-contained HTML page.

    Args:
        summary: A snapshot of the run: under way or finished, of a loss or of a reward.

    Returns:
        The page, some 150 kB whatever the run's length.
    """
    chart_library = _asset("uPlot.iife.min.js")
    script = "(() => {\n" + _asset("charts.js") + _asset("report.js") + "})();\n"
    weights = {} if summary.forecast is None else summary.forecast.weights
    return _template().render(
        data=_json(report_data.charts(summary)),
        title=headline(summary),
        sentence=_sentence(summary),
        summary=summary,
        name=printable(summary.name),
        status=_status(summary),
        reason=printable(summary.decision.reason, 2000),
        evidence=_evidence(summary),
        laws=report_data.law_rows(weights),
        warnings=[(printable(str(what), 500), n) for what, n in list(summary.warnings.items())[:100]],
        seen=f"{summary.last_step / horizon_of(summary):.0%}",
        tables={
            "Data seen": report_data.data_rows(summary),
            "Versions": report_data.version_rows(),
            "Settings": report_data.settings_rows(summary),
        },
        history=report_data.history_rows(summary),
        doubtful=any(str(point.status) != "ok" for point in summary.history),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        styles=_asset("uPlot.min.css") + _asset("report.css"),
        licence=_asset("uPlot.LICENSE"),
        scripts=(chart_library, script),
        hashes=" ".join(f"'sha256-{_hash(code)}'" for code in (chart_library, script)),
    )


def save_report(summary: Summary, path: str | os.PathLike[str]) -> None:
    """Write `report_html` to a file.

    Args:
        summary: A snapshot of the run.
        path: The file; an existing one is replaced in one go, so that nobody reads half a report.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(report_html(summary))
        os.chmod(draft, 0o644)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def _sentence(summary: Summary) -> dict[str, str]:
    """The page's headline in parts: before the number, the number, and the line under it."""
    forecast, truth, seen = summary.forecast, summary.measured, summary.last_step
    horizon = horizon_of(summary)
    if forecast is None:
        count = int(summary.bins.count.sum()) if len(summary.bins) else 0
        return {"before": "no forecast yet", "under": f"{count} observations seen; 8 are needed"}
    value, low, high = rounded(forecast.value, forecast.low, forecast.high)
    interval = f"{forecast.level:.0%} interval {low} to {high}"
    if truth is None:
        share = f"{seen / horizon:.0%} of the run seen"
        under = f"{interval} \u00b7 at step {forecast.horizon:,} \u00b7 {share}"
        return {"before": "is heading for", "number": value, "under": under}
    middle = halfway(summary)
    under = f"measured at the end of its {horizon:,} steps"
    if middle is not None:
        early = rounded(middle.value, middle.low, middle.high)
        under += f" \u00b7 forecast at {middle.step / horizon:.0%}: {early[0]} ({early[1]} to {early[2]})"
    return {"before": "ended at", "number": report_data.truth_text(summary), "under": under}


def _status(summary: Summary) -> tuple[str, str]:
    if summary.forecast is None:
        return "waiting", "a forecast needs 8 observations"
    status = printable(str(summary.forecast.status), 40)
    return status.replace("_", " "), STATUS.get(status, "")


def _evidence(summary: Summary) -> list[tuple[str, str]]:
    items = list(summary.decision.evidence.items())[: report_data.ROWS]
    return [(printable(str(name), 80).replace("_", " "), f"{float(value):.5g}") for name, value in items]


def _json(data: Any) -> str:
    """JSON that is harmless inside a script element, whatever its strings hold."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


@cache
def _asset(name: str) -> str:
    return files("scale_callbacks").joinpath("page", name).read_text(encoding="utf-8")


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return page.from_string(_asset("report.html"))


def _hash(code: str) -> str:
    return base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
