"""Tables: a binned curve, and the members' features at its bins and at the points to forecast."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scale_callbacks.laws.base import Floats, Plan

_DOWN = np.linspace(1.0, 0.0, 9)


@dataclass(frozen=True)
class Evidence:
    """A binned curve in the bank's units.

    Attributes:
        steps: mean step of each bin.
        values: loss over its present level.
        variance: white-noise variance of each bin's mean.
        noise: sd of one observation, over the loss.
        spacing: steps from one observation to the next; 0 for every step.
    """

    steps: Floats
    values: Floats
    variance: Floats
    noise: float
    spacing: float = 0.0


@dataclass(frozen=True)
class Tables:
    """The members' features at the bins and at the points to forecast.

    Attributes:
        decay: (decays, bins).
        drop: (drops, bins).
        walk: (bins) the random walk's clock -area^-p / p, 0 at the first bin.
        stir: (bins) its second clock: how much changes of the rate have stirred since the first bin.
        decay_at: (decays, points), the last point being the end.
        drop_at: (drops, points).
        walk_at: (points).
        stir_at: (points).
        fade: (bins) area at the last bin over area at each.
    """

    decay: Floats
    drop: Floats
    walk: Floats
    stir: Floats
    decay_at: Floats
    drop_at: Floats
    walk_at: Floats
    stir_at: Floats
    fade: Floats

    @classmethod
    def of(
        cls,
        plan: Plan,
        decay: Floats,
        drop: Floats,
        stirred: Floats,
        power: float,
        evidence: Evidence,
        points: Floats,
    ) -> Tables:
        """Read tables off at bins and points.

        Args:
            plan: where the features are tabulated.
            decay: (decays, plan points).
            drop: (drops, plan points).
            stirred: (plan points) how much the changes of the rate have stirred the loss.
            power: p of the random walk's clock.
            evidence: the binned curve.
            points: steps to forecast at; the mean over the last 1% of the plan is added as a last one.
        """
        end = _end(plan.horizon, evidence.spacing)
        bins, count = len(evidence.steps), len(points)
        read = _reader(plan.steps, np.concatenate((evidence.steps, points, end)))
        decay, drop, stir, area = (read(table) for table in (decay, drop, stirred, plan.area))
        np.maximum(area, 1e-4, out=area)
        start = -(area[0] ** -power) / power
        return cls(
            decay[:, :bins],
            drop[:, :bins],
            -(area[:bins] ** -power) / power - start,
            stir[:bins] - stir[0],
            _ended(decay[:, bins:], count),
            _ended(drop[:, bins:], count),
            np.maximum(_ended(-(area[bins:] ** -power) / power - start, count), 0.0),
            np.maximum(_ended(stir[bins:], count) - stir[0], 0.0),
            area[bins - 1] / area[:bins],
        )


def _end(horizon: float, spacing: float) -> Floats:
    """Steps whose mean is forecast: those of the last 1% with a loss, at least the last."""
    span = 0.01 * horizon
    if spacing > 0.0:
        span = spacing * (math.ceil(span / spacing) - 1)  # the bound itself is not among them
    return np.asarray(horizon - span * _DOWN, dtype=np.float64)


def _reader(grid: Floats, steps: Floats) -> Callable[[Floats], Floats]:
    """Linear interpolation of tables at fixed steps."""
    left = np.minimum(np.maximum(grid.searchsorted(steps) - 1, 0), len(grid) - 2)
    right = left + 1
    part = np.minimum(np.maximum((steps - grid[left]) / (grid[right] - grid[left]), 0.0), 1.0)
    rest = 1.0 - part

    def read(table: Floats) -> Floats:
        values = table[..., left]
        values *= rest
        values += table[..., right] * part
        return np.asarray(values, dtype=np.float64)

    return read


def _ended(table: Floats, count: int) -> Floats:
    """The first `count` columns, and the mean of the others as a last one."""
    mean = table[..., count:].sum(axis=-1, keepdims=True) / (table.shape[-1] - count)
    return np.concatenate((table[..., :count], mean), axis=-1)
