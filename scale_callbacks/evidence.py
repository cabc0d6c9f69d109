"""Evidence: the part of a curve that the laws are asked to explain, in units free of scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from scale_callbacks.curve import Bins
from scale_callbacks.measure import PLAIN, AsLoss

Floats = NDArray[np.float64]

MOST = 80  # bins of a whole plan handed to the bank: more make no forecast better
LAST = 0.01  # share of the plan whose mean loss is forecast
_TINY = 1e-12
_LOUD = 0.01  # noise of one observation over the loss, about which what is seen early counts for more
_PLENTY = 24  # bins: fewer are not thinned by their share of what was seen
_ENOUGH = 5  # bins that tell their noise
_FORGOTTEN = 300  # observations after which the stream's figure has forgotten the first ones


@dataclass(frozen=True)
class Units:
    """Loss over its present level; shifted first where that level is not clearly positive.

    Attributes:
        level: the present loss, which becomes 1.
        scale: what one unit is worth.
        ratio: whether values are logs of ratios: runs of many epochs fall by shares of what is left.
        as_loss: turns what is watched into the loss.
    """

    level: float
    scale: float
    ratio: bool = False
    as_loss: AsLoss = PLAIN

    @classmethod
    def of(cls, used: Bins, *, ratio: bool = False, as_loss: AsLoss = PLAIN) -> Self:
        """Take the median of the last three bins (of the loss) for the present level."""
        level = middle(used.robust[-3:])
        span = float(used.robust.max() - used.robust.min())
        scale = level if level > 1e-3 * span else max(abs(level), span)
        return cls(level, scale if scale > 0.0 else _TINY, ratio and scale == level > 0.0, as_loss)

    @property
    def positive(self) -> bool:
        """Whether the loss is one that stays above zero."""
        return self.scale == self.level

    def watched(self, values: Floats) -> Floats:
        """From the units of what is watched."""
        return self.inward(self.as_loss.inward(values))

    def inward(self, losses: Floats) -> Floats:
        """From the loss's own units."""
        values = (losses - self.level) / self.scale + 1.0
        return np.asarray(1.0 + np.log(np.maximum(values, 1e-3)) if self.ratio else values, dtype=np.float64)

    def outward(self, values: Floats) -> Floats:
        """Back to what is watched; a positive loss stays positive, bent only below half its level."""
        if self.ratio:
            values = np.exp(np.minimum(np.maximum(values - 1.0, -600.0), 600.0))
        elif self.positive:
            bent = 0.5 * np.exp(np.minimum(np.maximum(2.0 * values - 1.0, -600.0), 0.0))
            values = np.where(values > 0.5, values, bent)
        return self.as_loss.outward(np.asarray((values - 1.0) * self.scale + self.level, dtype=np.float64))


def usable(bins: Bins, horizon: float, warmup: float, skip: tuple[float, float, float], noise: float) -> Bins:
    """The bins that follow a law: not the first steps, not the warm-up, and of many only the later ones.

    Args:
        bins: all occupied bins.
        horizon: last step of the plan.
        warmup: last step of the leading warm-up.
        skip: left out are bins before these shares of the plan, of what was seen (half of it where the
            curve is noisy and needs them more; and as long as 24 later ones remain) and of the warm-up (but
            of the warm-up never more than half of what was seen). The last four are never left out.
        noise: sd of one observation.
    """
    seen, level = float(bins.steps[-1]), abs(middle(bins.robust[-3:]))
    loud = min(noise / level, 1.0) / _LOUD if level > 0.0 else 1.0 / _LOUD

    def after(step: float) -> int:
        return int(bins.steps.searchsorted(step, side="right"))

    first = min(after(0.5 * skip[1] * (1.0 + 1.0 / (1.0 + loud**2)) * seen), len(bins) - _PLENTY)
    first = max(first, after(max(skip[0] * horizon, min(skip[2] * warmup, 0.5 * seen))))
    return gathered(_from(bins, min(first, max(len(bins) - 4, 0))), horizon)


def quieter(used: Bins, noise: float) -> float:
    """The noise of one observation: as the stream has it, or less where the bins bend as little as that.

    The stream's figure remembers how the first steps bent; where observations are few it is mostly that.
    Third differences along the log of the steps are blind to it: there a power law is nearly a parabola.

    Args:
        used: the bins that follow a law.
        noise: sd of one observation by the stream's second differences.
    """
    if len(used) < _ENOUGH or used.count.sum() > _FORGOTTEN:
        return noise
    log = np.log(used.steps + 0.5)
    if not np.diff(log).all():  # steps too large to be told apart
        return noise
    place = np.arange(len(used) - 3)[:, None] + np.arange(4)
    at = log[place]
    apart = at[:, :, None] - at[:, None, :] + np.eye(4)
    weight = 1.0 / apart.prod(axis=2)  # of a divided difference
    off = (weight * used.robust[place]).sum(axis=1) / np.sqrt((weight**2 / used.count[place]).sum(axis=1))
    typical = 1.4826 * middle(np.abs(off))  # of a normal distribution
    return min(noise, typical * (1.0 + 4.0 / len(off)))


def gathered(bins: Bins, horizon: float) -> Bins:
    """Merge neighbours into at most `MOST` bins, finer where the curve bends."""
    if len(bins) <= MOST:
        return bins
    place = (MOST * np.minimum(bins.steps / horizon, 1.0) ** (2.0 / 3.0)).astype(np.intp)
    place = np.minimum(place, MOST - 1)
    starts = np.concatenate(([0], (place[1:] > place[:-1]).nonzero()[0] + 1))
    columns = np.array((bins.steps, bins.mean, bins.robust, bins.spread**2, np.ones(len(bins)))) * bins.count
    *sums, count = np.add.reduceat(columns, starts, axis=1)
    steps, mean, robust, squares = (column / count for column in sums)
    return Bins(steps, mean, robust, np.sqrt(squares), count)


def _from(bins: Bins, first: int) -> Bins:
    columns = (bins.steps, bins.mean, bins.robust, bins.spread, bins.count)
    return Bins(*(column[first:] for column in columns))


def middle(values: Floats) -> float:
    """The median; numpy's own takes a forecast's twentieth when its code is not in the caches."""
    ordered: list[float] = sorted(values.tolist())
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else 0.5 * (ordered[half - 1] + ordered[half])
