"""Tables: a binned curve, and the members' features at its bins and at the points to forecast."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scale_callbacks.breaks import breaks, broken_until
from scale_callbacks.laws.base import Floats, Plan

_LEAST_SQUARE = 1e-4  # of a value, to which its noise is taken to be proportional
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

    @property
    def white(self) -> Floats:
        """White-noise variance of each value, to which it is proportional."""
        return np.asarray(self.variance * np.maximum(self.values**2, _LEAST_SQUARE), dtype=np.float64)


@dataclass(frozen=True)
class Features:
    """What is tabulated once over a whole plan.

    Attributes:
        plan: where it is tabulated.
        decay: (decays, plan points).
        drop: (drops, plan points).
        stirred: (plan points) how much the changes of the rate have stirred the loss.
        turned: (plan points) how far the rate has moved so far, up and down, over its peak.
        clock: p of the random walk's clock.
        steps_per_epoch: after which the data start again; None where they never do.
    """

    plan: Plan
    decay: Floats
    drop: Floats
    stirred: Floats
    turned: Floats
    clock: float
    steps_per_epoch: float | None = None


@dataclass(frozen=True)
class Tables:
    """The members' features at the bins and at the points to forecast.

    Attributes:
        decay: (decays, bins).
        drop: (drops, bins).
        clocks: (3, bins) what the random walk goes by, 0 at the first bin: its clock -area^-p / p, how much
            changes of the rate have stirred, and the breaks.
        decay_at: (decays, points), the last point being the end.
        drop_at: (drops, points).
        clocks_at: (3, points).
        fade: (bins) area at the last bin over area at each.
    """

    decay: Floats
    drop: Floats
    clocks: Floats
    decay_at: Floats
    drop_at: Floats
    clocks_at: Floats
    fade: Floats

    @classmethod
    def of(cls, features: Features, evidence: Evidence, points: Floats) -> Tables:
        """Read tables off at bins and points.

        Args:
            features: of the whole plan.
            evidence: the binned curve.
            points: steps to forecast at; the mean over the last 1% of the plan is added as a last one.
        """
        plan, power, length = features.plan, features.clock, features.steps_per_epoch or math.inf
        end = _end(plan.horizon, evidence.spacing)
        bins, count = len(evidence.steps), len(points)
        steps = np.concatenate((evidence.steps, points, end))
        tables = features.decay, features.drop, features.stirred, features.turned, plan.area
        decay, drop, stir, turned, area = map(_reader(plan.steps, steps), tables)
        np.maximum(area, 1e-4, out=area)
        walk = -(area**-power) / power
        seen = evidence.steps, evidence.values, evidence.white
        broken = breaks(*seen, walk[:bins], turned[:bins], evidence.steps // length)
        clocks = np.array((walk, stir, broken_until(steps, evidence.steps, broken)))
        clocks -= clocks[:, :1].copy()
        return cls(
            decay[:, :bins],
            drop[:, :bins],
            clocks[:, :bins],
            _ended(decay[:, bins:], count),
            _ended(drop[:, bins:], count),
            np.maximum(_ended(clocks[:, bins:], count), 0.0),
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
