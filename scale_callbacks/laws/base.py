"""What every law of the loss is made of: terms, linear in one coefficient once their shape is fixed.

All laws here have the form

    loss(t) = F + A * decay(t) + B * drop(t)

with `F` the loss at the horizon. `decay` is what training on brings, `drop` what annealing has in store;
both are zero at the horizon, so `F` is the forecast itself. The features are scale-free: they see the plan
as rate over peak and area over total area, never the unit of the rate or the length of the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from scale_callbacks.schedule import Schedule

Floats = NDArray[np.float64]

GRID = 224  # plan points at which terms are tabulated; more changes no forecast by 1e-4
EVENTS = 80  # pieces that the falls of the rate are gathered in
_GROWTH = 1.5


@dataclass(frozen=True)
class Plan:
    """A schedule in scale-free units, on the points where the terms are tabulated.

    Attributes:
        steps: plan points in optimizer steps, from the first step to the horizon.
        time: steps over horizon.
        area: S1 over its total, 1 at the horizon.
        rate: learning rate over its peak.
        falls: (from, to, level, area, start) of each gathered piece of the plan in which the rate changes
            after the warm-up: rate over peak before and after the piece, its mean just after the single
            changes, shares of area and of steps at which it changes.
        horizon: the last step.
        warmup: share of the steps at which the leading warm-up ends.
        peak: highest rate, in the unit that was given.
    """

    steps: Floats
    time: Floats
    area: Floats
    rate: Floats
    falls: Floats
    horizon: float
    warmup: float
    peak: float

    def fall_to_come(self, time: float) -> float:
        """How far the rate still falls after a share of the plan, over its peak: no curve can tell it yet."""
        before, after, _, _, start = self.falls.T
        return float(np.maximum(before - after, 0.0)[start > time].sum())


@dataclass(frozen=True)
class Shapes:
    """Tabulated members of one term.

    Attributes:
        law: name of the law the members belong to.
        features: (members, plan points), zero at the horizon.
        parameters: shape parameters by name, one value a member.
    """

    law: str
    features: Floats
    parameters: dict[str, Floats]

    def __len__(self) -> int:
        return len(self.features)


class Term(Protocol):
    """One term of a law: tabulates its members over a plan."""

    def __call__(self, plan: Plan) -> Shapes:
        """Tabulate the members over a plan."""
        ...


def plan_of(schedule: Schedule, horizon: float | None = None) -> Plan:
    """Bring a schedule to scale-free units, up to `horizon` if that is another than its own.

    Args:
        schedule: the whole plan.
        horizon: the step to forecast at, in optimizer steps; past the plan the last rate is held.
    """
    last = float(schedule.horizon if horizon is None else horizon)
    steps = np.unique(np.concatenate((last * (np.arange(1, GRID + 1) / GRID) ** _GROWTH, [0.0, last])))
    total = schedule.area(last)
    total = total if total > 0 else 1.0
    area = np.asarray(schedule.area(steps), dtype=np.float64) / total
    rate = np.asarray(schedule.lr(steps), dtype=np.float64)
    fine = np.linspace(0.0, last, 1 + int(min(2000, max(last, 8))))
    fine_rate = np.asarray(schedule.lr(fine), dtype=np.float64)
    peak = float(fine_rate.max()) or 1.0
    start = min(float(schedule.warmup), last)
    falls = _falls(fine, fine_rate / peak, np.asarray(schedule.area(fine)) / total, start)
    return Plan(steps, steps / last, area, rate / peak, falls, last, start / last, schedule.peak)


def to_come(lowered: Floats) -> Floats:
    """What a lowering still has in store: its value at the horizon less its value so far."""
    return np.asarray(lowered[:, -1:] - lowered, dtype=np.float64)


def cost(rate: Floats, slope: float) -> Floats:
    """What a rate costs: η / (κ + (1 − κ)·η), of slope κ at the peak and 1/κ at zero.

    Args:
        rate: η, over its peak.
        slope: κ in (0, 1]; 1 is a cost in proportion to the rate.
    """
    return np.asarray(rate / (slope + (1.0 - slope) * rate), dtype=np.float64)


def _falls(steps: Floats, rate: Floats, area: Floats, start: float) -> Floats:
    """Gather the changes of the rate after the warm-up into at most about `EVENTS` pieces."""
    change = np.abs(np.diff(rate))
    change[steps[1:] <= start] = 0.0
    moved = np.concatenate(([0.0], np.cumsum(change)))
    if moved[-1] <= 1e-6:
        return np.zeros((0, 5))
    spread = moved / moved[-1] + 0.5 * steps / steps[-1]  # pieces equal in change, and none too long
    cuts = np.searchsorted(spread, np.linspace(spread[0], spread[-1], EVENTS))
    first = int(np.searchsorted(steps, start))
    cuts = np.unique(np.concatenate(([first], cuts[cuts > first], [len(steps) - 1])))
    before, after = cuts[:-1], cuts[1:]

    def centre(column: Floats) -> Floats:
        """Where, within each piece, the rate changes on average."""
        weighted = np.concatenate(([0.0], np.cumsum(change * column[:-1])))
        return np.asarray(np.diff(weighted[cuts]) / np.maximum(np.diff(moved[cuts]), 1e-12), dtype=np.float64)

    lowered = centre(np.append(rate[1:], rate[-1]))
    table = np.column_stack((rate[before], rate[after], lowered, centre(area), centre(steps / steps[-1])))
    return np.asarray(table[np.abs(table[:, 0] - table[:, 1]) > 1e-7], dtype=np.float64)
