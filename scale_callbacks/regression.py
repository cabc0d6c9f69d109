"""The conjugate regression behind the bank: three coefficients eliminated in closed form for all members."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scale_callbacks.laws.base import Floats
from scale_callbacks.tables import Evidence, Tables

LEVEL_SD = 0.5  # prior sd of F about the present level
_FORBIDDEN = 50.0  # log-evidence against a negative coefficient
_LEFT = 1e-12  # least share of a precision that is left when another coefficient is eliminated: rounding
_SMALL = 16  # bins whose triangle is inverted as it is
Indices = NDArray[np.intp]


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


class _Ahead(NamedTuple):
    """The loss at the points to forecast under each walk, given the residuals so far and the level F.

    Attributes:
        mean: (walks, points) without decay and drop.
        variance: (walks, points) of F and of the random walk.
        decay: (walks and decays, points) what one more unit of the coefficient adds.
        drop: (walks and drops, points) as `decay`.
    """

    mean: Floats
    variance: Floats
    decay: Floats
    drop: Floats


class Regression:
    """Conjugate regression of all members under every variance of the random walk.

    Args:
        priors: of the members' coefficients, from `Grid.priors`.
        tables: their features at bins and points.
        evidence: the binned curve.
        walks: (walks, 3) variance of the random walk per unit of each of its clocks.
    """

    def __init__(self, priors: Priors, tables: Tables, evidence: Evidence, walks: Floats) -> None:
        noise = evidence.white * tables.fade
        self._clock = walks @ tables.clocks
        self._clock_at = walks @ tables.clocks_at
        self._tables, (self._decays, self._slopes) = tables, priors.slope.shape
        self._rows = self._decays * self._slopes
        covariance = np.minimum(self._clock[:, :, None], self._clock[:, None, :])
        # Values next to zero have no noise to speak of: without a least one the matrix may have no root.
        least = _LEFT * self._clock.max(axis=1, keepdims=True) + _LEFT**2
        bins = np.arange(len(noise))
        covariance[:, bins, bins] += np.maximum(noise, least)
        root = np.linalg.cholesky(covariance)
        self._whiten = _inverse(root)
        columns = (np.ones((len(noise), 1)), tables.decay.T, tables.drop.T, evidence.values[:, None])
        white = self._whiten @ np.concatenate(columns, axis=1)
        end, y = 1 + len(tables.decay), white[..., -1]
        self._white = white[..., 0], white[..., 1:end], white[..., end:-1], y
        self._eliminate_level(*self._white)
        self._const = -0.5 * _dot(y, y) - np.log(root[:, bins, bins]).sum(axis=1)
        self._const += 0.5 * self._h0**2 / self._d0 - 0.5 * np.log(self._d0)
        self._add_priors(priors)

    @cached_property
    def _ahead(self) -> _Ahead:
        """What the residuals so far say about the points to forecast."""
        tables, (one, decay, drop, y) = self._tables, self._white
        shared = np.minimum(self._clock[:, :, None], self._clock_at[:, None, :])
        white = self._whiten @ shared
        back, d0 = white.transpose(0, 2, 1), self._d0[:, None]
        level = 1.0 - (back @ one[..., None])[..., 0]
        left = self._clock_at - np.einsum("wij,wij->wj", white, white)
        # What a coefficient adds once the level has taken over its part.
        decay = tables.decay_at - (back @ decay).transpose(0, 2, 1) - level[:, None] * self._l1[..., None]
        drop = tables.drop_at - (back @ drop).transpose(0, 2, 1) - level[:, None] * self._l2[..., None]
        return _Ahead(
            (back @ y[..., None])[..., 0] + level * (self._h0[:, None] / d0),
            level**2 / d0 + left,
            decay.reshape(-1, level.shape[1]),
            drop.reshape(-1, level.shape[1]),
        )

    def _eliminate_level(self, one: Floats, decay: Floats, drop: Floats, y: Floats) -> None:
        precision = LEVEL_SD**-2
        self._d0 = _dot(one, one) + precision
        self._h0 = _dot(one, y) + precision
        known = np.concatenate((one[..., None], y[..., None]), axis=2)
        told1, told2 = decay.transpose(0, 2, 1) @ known, drop.transpose(0, 2, 1) @ known
        d0, h0 = self._d0[:, None], self._h0[:, None]
        self._l1, self._l2 = told1[..., 0] / d0, told2[..., 0] / d0
        # Never below zero but for rounding, which in wild data may exceed the prior's part.
        self._a11 = np.maximum(np.einsum("wij,wij->wj", decay, decay) - self._l1**2 * d0, 0.0)
        self._a22 = np.maximum(np.einsum("wij,wij->wj", drop, drop) - self._l2**2 * d0, 0.0)
        a12 = drop.transpose(0, 2, 1) @ decay - self._l2[:, :, None] * (self._l1 * d0)[:, None, :]
        self._a12 = a12.transpose(1, 0, 2).reshape(len(a12[0]), -1)
        self._b1, self._b2 = told1[..., 1] - self._l1 * h0, told2[..., 1] - self._l2 * h0

    def _add_priors(self, priors: Priors) -> None:
        """Flat tables: of (walks, decays, slopes), and (drops, depths, walks)."""
        slope, fall, p1, p2 = priors
        d1, h1 = self._a11[:, :, None] + p1, self._b1[:, :, None] + p1 * slope
        self._log2 = 0.5 * (np.log(p2) - p2 * fall**2)
        self._d2 = self._a22.T[:, None] + p2[:, :, None]
        self._h2 = self._b2.T[:, None] + (p2 * fall)[:, :, None]
        log1 = 0.5 * (h1**2 / d1 - np.log(d1 / p1) - p1 * slope**2) + self._const[:, None, None]
        self._d1, self._h1, self._log1 = d1.ravel(), h1.ravel(), log1.ravel()

    def evidence(
        self, walks: Indices, rows: Indices, drops: slice = slice(None), depths: slice = slice(None)
    ) -> Floats:
        """(drops, depths, pairs): log marginal likelihood; a negative coefficient is forbidden.

        Args:
            walks: (pairs) variances of the random walk; with `rows` any two tables that go together.
            rows: (pairs) members of the decay, as flat indices into (decays, slopes).
            drops: which drop shapes.
            depths: which of their depths.
        """
        # Pairs come last: numpy is quick only along a long last axis.
        at, decay = walks * self._rows + rows, walks * self._decays + rows // self._slopes
        d1, h1, cross = self._d1.take(at), self._h1.take(at), self._a12[drops].take(decay, axis=1)
        ratio = cross / d1
        d2, h2 = (part[drops, depths].take(walks, axis=2) for part in (self._d2, self._h2))
        left = d2 - (ratio * cross)[:, None]
        np.maximum(left, _LEFT * d2, out=left)
        log = h2 - (ratio * h1)[:, None]
        fall = log / left
        forbidden = log < 0.0
        log *= fall
        fall *= ratio[:, None]
        forbidden |= fall > h1 / d1
        log -= np.log(left, out=left)
        log *= 0.5
        log += self._log1.take(at)
        log += self._log2[drops, depths].reshape(log.shape[:2] + (1,) * at.ndim)
        np.subtract(log, _FORBIDDEN, out=log, where=forbidden)
        return np.asarray(log, dtype=np.float64)

    def predict(
        self, walk: Indices, rows: Indices, k: Indices, m: Indices, points: slice
    ) -> tuple[Floats, Floats]:
        """(members, points): mean and variance of the loss at some of the points to forecast.

        Args:
            walk: the members' variances of the random walk.
            rows: their decays, as flat indices into (decays, slopes).
            k: their drop shapes.
            m: their depths.
            points: which points; the end is the last.
        """
        ahead, count, drops = self._ahead, len(self._clock), len(self._a12)
        decay, drop = walk * self._decays + rows // self._slopes, walk * drops + k
        row, depth = walk * self._rows + rows, (k * self._d2.shape[1] + m) * count + walk
        d1, h1 = self._d1.take(row), self._h1.take(row)
        cross = self._a12.take(k * (count * self._decays) + decay)
        ratio, d2 = cross / d1, self._d2.take(depth)
        d2 = np.maximum(d2 - ratio * cross, _LEFT * d2)
        fall = (self._h2.take(depth) - ratio * h1) / d2
        # What a coefficient adds once those before it have taken over their part.
        f1 = ahead.decay[:, points].take(decay, axis=0)
        f2 = ahead.drop[:, points].take(drop, axis=0) - f1 * ratio[:, None]
        mean = ahead.mean[:, points].take(walk, axis=0) + f1 * (h1 / d1)[:, None] + f2 * fall[:, None]
        variance = ahead.variance[:, points].take(walk, axis=0) + f1**2 / d1[:, None] + f2**2 / d2[:, None]
        return mean, np.maximum(variance, 0.0)


def _dot(a: Floats, b: Floats) -> Floats:
    """(walks): products of the rows of two tables."""
    return np.asarray(np.einsum("wi,wi->w", a, b), dtype=np.float64)


def _inverse(root: Floats) -> Floats:
    """Inverses of lower triangular matrices by halves: numpy's own would not make use of the zeros."""
    size = root.shape[-1]
    if size <= _SMALL:
        return np.asarray(np.linalg.inv(root), dtype=np.float64)
    half = size // 2
    inverse = np.zeros(root.shape)
    inverse[:, :half, :half] = first = _inverse(root[:, :half, :half])
    inverse[:, half:, half:] = second = _inverse(root[:, half:, half:])
    inverse[:, half:, :half] = -(second @ root[:, half:, :half] @ first)
    return inverse
