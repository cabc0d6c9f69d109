"""The conjugate regression behind the bank: three coefficients eliminated in closed form for all members."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scale_callbacks.laws.base import Floats, Plan

LEVEL_SD = 0.5  # prior sd of F about the present level
_FORBIDDEN = 50.0  # log-evidence against a negative coefficient
_LEFT = 1e-12  # least share of a precision that is left when another coefficient is eliminated: rounding
_LEAST_SQUARE = 1e-4  # of a value, to which its noise is taken to be proportional
Indices = NDArray[np.intp]


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
class Grid:
    """The coefficients' grid: prior means over the final loss, and relative sds within a cell.

    Attributes:
        slopes: (slopes) of the decay.
        slope_width: of all of them.
        falls: (drops, depths) of the drop.
        fall_width: (drops, 1).
    """

    slopes: Floats
    slope_width: float
    falls: Floats
    fall_width: Floats

    def priors(self, tables: Tables) -> Priors:
        """Priors of the coefficients over the present loss, given the features at the last bin."""
        now_decay = np.maximum(tables.decay[:, -1:], 0.0)
        now_drop = np.maximum(tables.drop[:, -1:], 0.0)
        slope = self.slopes / (1.0 + self.slopes * now_decay)  # over the final loss the member expects
        fall = self.falls / (1.0 + self.falls * now_drop)
        return Priors(slope, fall, (self.slope_width * slope) ** -2, (self.fall_width * fall) ** -2)


class Priors(NamedTuple):
    """Gaussian priors of all members' coefficients: means and precisions.

    Attributes:
        slope: (decays, slopes).
        fall: (drops, depths).
        slope_precision: (decays, slopes).
        fall_precision: (drops, depths).
    """

    slope: Floats
    fall: Floats
    slope_precision: Floats
    fall_precision: Floats


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
        steps: Floats,
        points: Floats,
        spacing: float = 0.0,
    ) -> Tables:
        """Read tables off at bins and points.

        Args:
            plan: where the features are tabulated.
            decay: (decays, plan points).
            drop: (drops, plan points).
            stirred: (plan points) how much the changes of the rate have stirred the loss.
            power: p of the random walk's clock.
            steps: of the bins.
            points: steps to forecast at; the mean over the last 1% of the plan is added as a last one.
            spacing: steps between observations: where few fall in the last 1%, those few are the mean.
        """
        since = 0.01 * plan.horizon
        since -= since % spacing if 0.0 < spacing < since else 0.0
        end = plan.horizon - np.linspace(since if spacing < 0.01 * plan.horizon else 0.0, 0.0, 9)
        here = _reader(plan.steps, steps)
        there = _reader(plan.steps, np.concatenate((points, end)))
        area = np.maximum(here(plan.area), 1e-4)
        area_at = np.maximum(there(plan.area), 1e-4)
        count = len(points)
        start = -(area[0] ** -power) / power
        stir = here(stirred)
        return cls(
            here(decay),
            here(drop),
            -(area**-power) / power - start,
            stir - stir[0],
            _ended(there(decay), count),
            _ended(there(drop), count),
            np.maximum(_ended(-(area_at**-power) / power - start, count), 0.0),
            np.maximum(_ended(there(stirred), count) - stir[0], 0.0),
            area[-1] / area,
        )


class _Ahead(NamedTuple):
    """The features at the points to forecast, less what the residuals so far already tell.

    Attributes:
        level: (points) of F.
        decay: (decays, points).
        drop: (drops, points).
        mean: (points) what the residuals alone tell.
        walk: (points) variance of the random walk that they leave.
    """

    level: Floats
    decay: Floats
    drop: Floats
    mean: Floats
    walk: Floats


class Regression:
    """Conjugate regression of all members under one variance of the random walk.

    Args:
        priors: of the members' coefficients, from `Grid.priors`.
        tables: their features at bins and points.
        evidence: the binned curve.
        wander: variance of the random walk per unit of its clock.
        stir: variance that a sudden change of the rate by its peak adds to the walk.
    """

    def __init__(
        self, priors: Priors, tables: Tables, evidence: Evidence, wander: float, stir: float
    ) -> None:
        noise = evidence.variance * np.maximum(evidence.values**2, _LEAST_SQUARE) * tables.fade
        self._clock = wander * tables.walk + stir * tables.stir
        self._clock_at = wander * tables.walk_at + stir * tables.stir_at
        walk = np.minimum(self._clock[:, None], self._clock)
        # Values next to zero have no noise to speak of: without a least one the matrix may have no root.
        root = np.linalg.cholesky(walk + np.diag(np.maximum(noise, _LEFT * walk.max() + _LEFT**2)))
        columns = (np.ones((len(noise), 1)), tables.decay.T, tables.drop.T, evidence.values[:, None])
        white = np.linalg.solve(root, np.concatenate(columns, axis=1))
        one, decay, drop, y = np.split(white, np.cumsum([1, len(tables.decay), len(tables.drop)]), axis=1)
        self._root, self._tables = root, tables
        self._white = one[:, 0], decay, drop, y[:, 0]
        self._eliminate_level(*self._white)
        self._const = -0.5 * float(y[:, 0] @ y[:, 0]) - float(np.log(np.diag(root)).sum())
        self._const += 0.5 * self._h0**2 / self._d0 - 0.5 * float(np.log(self._d0))
        self._add_priors(priors)

    @cached_property
    def _ahead(self) -> _Ahead:
        """What the residuals so far say about the points to forecast; only a walk that matters is asked."""
        tables, (one, decay, drop, y) = self._tables, self._white
        shared = np.minimum(self._clock[:, None], self._clock_at)
        white = np.linalg.solve(self._root, shared)
        back = white.T
        return _Ahead(
            1.0 - back @ one,
            tables.decay_at - (back @ decay).T,
            tables.drop_at - (back @ drop).T,
            back @ y,
            self._clock_at - np.einsum("ij,ij->j", white, white),
        )

    def _eliminate_level(self, one: Floats, decay: Floats, drop: Floats, y: Floats) -> None:
        precision = LEVEL_SD**-2
        self._d0 = float(one @ one) + precision
        self._h0 = float(one @ y) + precision
        self._l1, self._l2 = decay.T @ one / self._d0, drop.T @ one / self._d0
        # Never below zero but for rounding, which in wild data may exceed the prior's part.
        self._a11 = np.maximum(np.einsum("ij,ij->j", decay, decay) - self._l1**2 * self._d0, 0.0)
        self._a22 = np.maximum(np.einsum("ij,ij->j", drop, drop) - self._l2**2 * self._d0, 0.0)
        self._a12 = decay.T @ drop - np.outer(self._l1, self._l2) * self._d0
        self._b1 = decay.T @ y - self._l1 * self._h0
        self._b2 = drop.T @ y - self._l2 * self._h0

    def _add_priors(self, priors: Priors) -> None:
        slope, fall, p1, p2 = priors
        self._d1, self._h1 = self._a11[:, None] + p1, self._b1[:, None] + p1 * slope
        self._d2, self._h2 = self._a22[:, None] + p2, self._b2[:, None] + p2 * fall
        self._log1 = 0.5 * (self._h1**2 / self._d1 - np.log(self._d1 / p1) - p1 * slope**2)
        self._log2 = 0.5 * (np.log(p2) - p2 * fall**2)

    def evidence(self, rows: Indices, drops: Indices, depths: slice = slice(None)) -> Floats:
        """(rows, drops, depths): log marginal likelihood; a negative coefficient is forbidden.

        Args:
            rows: members of the decay, as flat indices into (decays, slopes).
            drops: drop shapes.
            depths: which of their depths.
        """
        j, d1, h1 = rows // self._d1.shape[1], self._d1.ravel()[rows], self._h1.ravel()[rows]
        cross = self._a12[j][:, drops]
        ratio = cross / d1[:, None]
        h2 = self._h2[drops, depths] - (ratio * h1[:, None])[..., None]
        d2 = self._d2[drops, depths]
        d2 = np.maximum(d2 - (ratio * cross)[..., None], _LEFT * d2)
        fall = h2 / d2
        forbidden = fall < 0.0
        forbidden |= ratio[..., None] * fall > (h1 / d1)[:, None, None]
        h2 *= fall
        h2 -= np.log(d2)
        h2 *= 0.5
        h2 += self._log1.ravel()[rows, None, None] + self._const
        h2 += self._log2[drops, depths]
        h2[forbidden] -= _FORBIDDEN
        return np.asarray(h2, dtype=np.float64)

    def predict(self, rows: Indices, k: Indices, m: Indices, points: slice) -> tuple[Floats, Floats]:
        """(members, points): mean and variance of the loss at some of the points to forecast.

        Args:
            rows: the members' decays, as flat indices into (decays, slopes).
            k: their drop shapes.
            m: their depths.
            points: which points; the end is the last.
        """
        j, d1, cross = (
            rows // self._d1.shape[1],
            self._d1.ravel()[rows],
            self._a12[rows // self._d1.shape[1], k],
        )
        d2 = np.maximum(self._d2[k, m] - cross**2 / d1, _LEFT * self._d2[k, m])
        h1 = self._h1.ravel()[rows]
        fall = (self._h2[k, m] - cross / d1 * h1) / d2
        slope = (h1 - cross * fall) / d1
        level = self._h0 / self._d0 - self._l1[j] * slope - self._l2[k] * fall
        ahead = self._ahead
        f0, f1, f2 = ahead.level[points], ahead.decay[j, points], ahead.drop[k, points]
        mean = ahead.mean[points] + f0 * level[:, None] + f1 * slope[:, None] + f2 * fall[:, None]
        f2 = f2 - f0 * self._l2[k, None]
        f1 = f1 - f0 * self._l1[j, None]
        f2 = f2 - f1 * (cross / d1)[:, None]
        variance = f0**2 / self._d0 + f1**2 / d1[:, None] + f2**2 / d2[:, None] + ahead.walk[points]
        return mean, np.maximum(variance, 0.0)


def _reader(grid: Floats, steps: Floats) -> Callable[[Floats], Floats]:
    """Linear interpolation of tables at fixed steps."""
    left = np.clip(np.searchsorted(grid, steps) - 1, 0, len(grid) - 2)
    part = np.clip((steps - grid[left]) / (grid[left + 1] - grid[left]), 0.0, 1.0)

    def read(table: Floats) -> Floats:
        return np.asarray(table[..., left] * (1.0 - part) + table[..., left + 1] * part, dtype=np.float64)

    return read


def _ended(table: Floats, count: int) -> Floats:
    """The first `count` columns, and the mean of the others as a last one."""
    return np.concatenate((table[..., :count], table[..., count:].mean(axis=-1, keepdims=True)), axis=-1)
