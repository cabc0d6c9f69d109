"""Contact sheets: each replayed run's forecasts over time against the truth, many to a page."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scale_callbacks.backtest import Replayed

ROWS, COLUMNS = 6, 4


def draw_contact_sheets(replayed: Sequence[Replayed], folder: Path) -> list[Path]:
    """Draw pages of small pictures, the run with the worst error at half-way first.

    Returns:
        The PNG files written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ordered = sorted(replayed, key=_worst_first)
    pages = []
    for number, start in enumerate(range(0, len(ordered), ROWS * COLUMNS), start=1):
        figure = Figure(figsize=(4 * COLUMNS, 2.6 * ROWS), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(ROWS, COLUMNS, squeeze=False).ravel()
        for one, axis in zip(ordered[start : start + ROWS * COLUMNS], axes, strict=False):
            _draw(one, axis)
        for axis in axes[len(ordered) - start :]:
            axis.set_axis_off()
        pages.append(folder / f"forecasts_{number}.png")
        figure.savefig(pages[-1], dpi=80)
    return pages


def _worst_first(one: Replayed) -> float:
    errors = [abs(row.error) for row in one.rows if row.share >= 0.5]
    return -max(errors, default=0.0)


def _draw(one: Replayed, axis) -> None:  # type: ignore[no-untyped-def]
    run, horizon = one.run, one.run.schedule.horizon
    share = np.array([p.step for p in one.history]) / horizon
    value, low, high = (np.array([getattr(p, k) for p in one.history]) for k in ("value", "low", "high"))
    seen = run.steps / horizon
    axis.plot(seen, run.losses, color="0.8", lw=0.7, zorder=1)
    axis.fill_between(share, low, high, color="#0072B2", alpha=0.2, lw=0, zorder=2)
    axis.plot(share, value, color="#0072B2", lw=1.2, zorder=3)
    axis.axhline(run.final, color="#D55E00", lw=1, zorder=2)
    late = run.losses[seen > 0.3]
    shown = np.concatenate((late, value[share > 0.2], [run.final]))
    if len(shown) > 1:
        bottom, top = np.quantile(shown, (0.005, 0.995))
        margin = 0.15 * (top - bottom) + 1e-3 * abs(run.final)
        axis.set_ylim(min(bottom, run.final) - margin, top + margin)
    axis.set_xlim(0, 1)
    half = [row for row in one.rows if row.share == 0.5]
    note = f", {half[0].error:+.1f}% at half-way" if half else ""
    axis.set_title(f"{run.name}{note}", fontsize=7)
    axis.tick_params(labelsize=6)
