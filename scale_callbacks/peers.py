"""What people do today, to be compared with: the last value, and each law fitted by plain least squares.

The fits are the common offline recipe: soft-L1 loss on the log of the loss, two starts, a hundred bins, the
first 2% of the plan left out; no prior, no noise model, no interval.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scale_callbacks.schedule import Schedule

Floats = NDArray[np.float64]
Law = Callable[[Floats, Floats], Any]
BINS = 100
SKIPPED = 0.02
GRID = 120  # points at which a plan's falls of the rate are taken
WIDTH = 6.0  # how far, in log, a parameter may move from its start


@dataclass(frozen=True)
class Plan:
    """A schedule in scale-free units: rate over its peak, areas over the planned total."""

    schedule: Schedule
    decay: float = 0.999

    def area(self, steps: Floats) -> Floats:
        """S1 over the planned total."""
        return self.schedule.area(steps) / self.schedule.area(self.schedule.horizon)

    def annealing(self, steps: Floats) -> Floats:
        """S2 over the planned total (0 where nothing anneals)."""
        total = self.schedule.annealing_area(self.schedule.horizon, self.decay)
        return self.schedule.annealing_area(steps, self.decay) / (total if abs(total) > 1e-12 else 1.0)

    def falls(self) -> tuple[Floats, Floats, Floats]:
        """Falls of the rate after the warm-up: how much, the rate after it, the area at it."""
        start, end = self.schedule.warmup, self.schedule.horizon
        knots = self.schedule.steps[:: max(len(self.schedule.steps) // GRID, 1)]
        grid = np.unique(np.concatenate((np.linspace(start, end, GRID), knots[knots >= start])))
        rate = self.schedule.lr(grid) / self.schedule.peak
        fall = rate[:-1] - rate[1:]
        kept = np.abs(fall) > 1e-9
        return fall[kept], np.maximum(rate[1:][kept], 1e-3), self.area(grid[1:][kept])


def last_value(plan: Schedule, steps: Floats, losses: Floats) -> float:
    """The last binned loss stays."""
    return float(_bins(plan, steps, losses)[1][-1])


def power_law(plan: Schedule, steps: Floats, losses: Floats) -> float:
    """L = L0 + A t^-alpha (Kaplan et al. 2020, arXiv 2001.08361; Hoffmann 2022, arXiv 2203.15556)."""
    t, y = _bins(plan, steps, losses)
    horizon = float(plan.horizon)

    def law(p: Floats, x: Floats) -> Any:
        return np.exp(p[0]) + np.exp(p[1]) * (x / horizon) ** -np.exp(p[2])

    starts = [np.log([0.8 * y[-1], 0.2 * y[-1], a]) for a in (0.3, 0.7)]
    return _fit(law, starts, t, y, horizon)


def annealing_law(plan: Schedule, steps: Floats, losses: Floats) -> float:
    """L = L0 + A S1^-alpha - C S2 (Tissue et al. 2024, arXiv 2408.11029, equation 1)."""
    t, y = _bins(plan, steps, losses)
    units = Plan(plan)

    def law(p: Floats, x: Floats) -> Any:
        fall = np.exp(p[3]) * units.annealing(x)
        return np.exp(p[0]) + np.exp(p[1]) * np.maximum(units.area(x), 1e-9) ** -np.exp(p[2]) - fall

    starts = [np.log([0.8 * y[-1], 0.2 * y[-1], a, c * y[-1]]) for a, c in ((0.3, 0.02), (0.7, 0.1))]
    return _fit(law, starts, t, y, float(plan.horizon))


def multi_power_law(plan: Schedule, steps: Floats, losses: Floats) -> float:
    """L = L0 + A S1^-alpha - LD (Luo et al. 2025, arXiv 2503.12811, equation 2)."""
    t, y = _bins(plan, steps, losses)
    units = Plan(plan)
    fall, rate, at = units.falls()

    def law(p: Floats, x: Floats) -> Any:
        low, a, alpha, b, c, beta, gamma = np.exp(p)
        area = units.area(x)
        since = np.maximum(area[:, None] - at, 0.0)
        drop = (1.0 - (1.0 + c * rate**-gamma * since) ** -beta) @ fall if len(fall) else 0.0
        return low + a * np.maximum(area, 1e-9) ** -alpha - b * drop

    starts = [
        np.log([0.85 * y[-1], 0.1 * y[-1], alpha, 0.05 * y[-1], c, 0.6, 0.6])
        for alpha, c in ((0.3, 300.0), (0.5, 2000.0))
    ]
    return _fit(law, starts, t, y, float(plan.horizon))


PEERS: Mapping[str, Callable[[Schedule, Floats, Floats], float]] = {
    "last value": last_value,
    "power law": power_law,
    "annealing law": annealing_law,
    "multi-power law": multi_power_law,
}


def _bins(plan: Schedule, steps: Floats, losses: Floats) -> tuple[Floats, Floats]:
    """Mean step and loss of a hundred equal shares of what was seen, the first 2% of the plan left out."""
    kept = steps > SKIPPED * plan.horizon
    if kept.sum() < 8:
        kept = steps > 0
    t, y = steps[kept], losses[kept]
    parts = np.array_split(np.arange(len(t)), min(BINS, len(t)))
    return np.array([t[p].mean() for p in parts]), np.array([y[p].mean() for p in parts])


def _fit(law: Law, starts: list[Floats], t: Floats, y: Floats, end: float) -> float:
    from scipy.optimize import least_squares

    log_y = np.log(np.maximum(y, 1e-9))

    def residuals(p: Floats) -> Floats:
        off = np.log(np.maximum(law(p, t), 1e-9)) - log_y
        return np.asarray(np.nan_to_num(off, nan=1e3, posinf=1e3, neginf=-1e3))

    fits = []
    with np.errstate(all="ignore"):
        for p in starts:
            box = (p - WIDTH, p + WIDTH)
            fits.append(least_squares(residuals, p, bounds=box, loss="soft_l1", f_scale=0.01, max_nfev=150))
        best = min(fits, key=lambda fit: float(fit.cost))
        return float(law(best.x, np.array([end]))[0])
