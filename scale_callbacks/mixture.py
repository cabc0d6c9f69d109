"""Gaussian mixtures: their quantiles, to the last bit the same on every call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_STEPS = 30


@dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture at each of some points.

    Attributes:
        weights: (members), summing to 1.
        mean: (members, points), or (members) for a single point.
        variance: as `mean`.
    """

    weights: Floats
    mean: Floats
    variance: Floats

    def moments(self) -> tuple[Floats, Floats]:
        """Mean and standard deviation at every point."""
        mean = self.weights @ self.mean
        spread = self.weights @ (self.variance + (self.mean - mean) ** 2)
        return mean, np.sqrt(spread)


@dataclass(frozen=True)
class Outlook:
    """What a bank expects, in the units of its evidence.

    Attributes:
        end: mixture over the mean loss at the end of the plan.
        path: mean at each point of the path and, last, at the end.
        spread: standard deviation there.
        laws: posterior weight of each law.
        kinds: posterior probability of each kind of run.
        astray: posterior probability that the run breaks with every law, as where its data change.
    """

    end: Mixture
    path: Floats
    spread: Floats
    laws: dict[str, float]
    kinds: dict[str, float]
    astray: float


def gathered(weights: Floats, mean: Floats, variance: Floats, cells: int) -> Mixture:
    """A mixture of many members as one of at most `cells`: neighbours pooled, their moments kept."""
    low = float(mean.min())
    span = float(mean.max()) - low
    if len(weights) <= cells or span <= 0.0:
        return Mixture(weights, mean, variance)
    place = np.minimum(((mean - low) / span * cells).astype(np.intp), cells - 1)
    weight: Floats = np.bincount(place, weights, cells).astype(np.float64)
    used = weight > 0.0
    weight = np.where(used, weight, 1.0)
    centre = np.bincount(place, weights * (mean - low), cells) / weight
    square = np.bincount(place, weights * (variance + (mean - low - centre[place]) ** 2), cells) / weight
    return Mixture(weight[used], (low + centre)[used], square[used])


def normal_cdf(z: Floats) -> Floats:
    """Standard normal distribution function, to 1e-7 (Abramowitz and Stegun, equation 7.1.26)."""
    return _below(z, np.exp(-0.5 * z * z))


def _below(z: Floats, bell: Floats) -> Floats:
    """`normal_cdf`, given exp(-z**2 / 2)."""
    t = 1.0 / (1.0 + 0.3275911 * math.sqrt(0.5) * np.abs(z))
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = 0.5 * poly * bell
    return np.asarray(np.where(z > 0.0, 1.0 - tail, tail), dtype=np.float64)


def quantiles(weights: Floats, mean: Floats, sd: Floats, probabilities: Sequence[float]) -> Floats:
    """Quantiles of a one-dimensional Gaussian mixture, by Halley's steps kept inside a shrinking bracket.

    Args:
        weights: (members), summing to 1.
        mean: (members).
        sd: (members), positive.
        probabilities: each in (0, 1).
    """
    wanted = np.array(probabilities, dtype=np.float64)
    low, high = (mean - 9.0 * sd).min(), (mean + 9.0 * sd).max()
    centre = float(weights @ mean)
    spread = math.sqrt(float(weights @ (sd**2 + (mean - centre) ** 2)))
    # From where a normal distribution has them, by way of the logistic one that resembles it.
    at = np.minimum(np.maximum(centre + spread / 1.702 * np.log(wanted / (1.0 - wanted)), low), high)
    enough = 1e-9 * float(high - low)  # finer than the distribution function is known
    heights = weights / sd / math.sqrt(2.0 * math.pi)
    falls = heights / sd
    for _ in range(_STEPS):
        z = (at[:, None] - mean) / sd
        bell = np.exp(-0.5 * z * z)
        off, density = _below(z, bell) @ weights - wanted, np.maximum(bell @ heights, 1e-300)
        low, high = np.where(off < 0.0, at, low), np.where(off < 0.0, high, at)
        newton = off / density
        bend = (z * bell) @ falls / density  # how fast the density falls, over the density
        step = newton / np.maximum(1.0 + 0.5 * newton * bend, 0.5)
        found = np.abs(step) <= enough  # stays: a step from the root itself would leave the bracket
        if found.all():
            break
        after = at - step
        inside = (after > low) & (after < high)
        at = np.where(found, at, np.where(inside, after, 0.5 * (low + high)))
    return np.asarray(at, dtype=np.float64)


def normal_quantile(probability: float) -> float:
    """Quantile of the standard normal distribution, to 1e-6."""
    one = np.ones(1)
    return float(quantiles(one, 0.0 * one, one, [probability])[0])
