"""RewardBank: a Bayesian mixture over the shapes of reward laws, told at several moments of a run at once.

A member is one shape, or a pair of stages; given the shape the reward is linear in its coefficients,

    y = R0 + sum(a_k * feature_k(t)) + e,

with a flat prior on R0 and a Gaussian one on each a, so that everything is conjugate. All moments ("looks")
share one set of cumulative sums over the bins: what a rule would have been told earlier in the run costs next
to nothing, and repeated looks need no memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from scale_callbacks.laws.saturation import exponential, line, overdamped
from scale_callbacks.laws.sigmoid import sigmoid, stage
from scale_callbacks.mixture import normal_cdf

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

FAMILIES = ("exponential", "overdamped", "sigmoid", "linear", "constant", "two stages")
PAIRS = 0.4  # prior weight of two stages
CONSTANT = 0.06  # of no learning at all
LINEAR = 0.15  # of a rise that goes on as it is
WIDE = 3.0  # prior sd of a coefficient, in standard deviations of the curve
BEST = 1.3  # the best of many laws leaves less than the noise: its residuals are taken for so much more
UPWARD = 0.8  # prior probability that what is still to come is a gain: training follows the reward
MOST_INFLATED = 12.0  # bound on what autocorrelation may do to the noise
_TINY = 1e-12  # of a variance, in units of the curve's own range

_TAU, _DELAY = (g.ravel() for g in np.meshgrid(np.geomspace(0.02, 2.5, 10), [0.0, 0.07, 0.2, 0.4]))
_SLOW = np.geomspace(0.05, 1.5, 8)
_MIDDLE, _POWER = (g.ravel() for g in np.meshgrid(np.geomspace(0.03, 1.3, 12), [1.0, 2.0, 4.0, 8.0]))
_SINGLES = len(_TAU) + len(_SLOW) + len(_MIDDLE) + 1
_STAGE = np.repeat(np.geomspace(0.04, 1.0, 9), 2)
_WIDTH = _STAGE * np.tile([0.12, 0.3], 9)
_FIRST, _SECOND = np.array(
    [(2 * i + w, 2 * j + w) for i in range(9) for j in range(i + 1, 9) for w in (0, 1)]
).T
_FAMILY = np.repeat(np.arange(6), [len(_TAU), len(_SLOW), len(_MIDDLE), 1, 1, len(_FIRST)])
_LOG_PRIOR = np.log(
    np.concatenate(
        [
            np.full(_SINGLES - 1, (1.0 - PAIRS - CONSTANT - LINEAR) / (_SINGLES - 1)),
            [LINEAR, CONSTANT],
            np.full(len(_FIRST), PAIRS / len(_FIRST)),
        ]
    )
)


@dataclass(frozen=True)
class Seen:
    """Binned rewards.

    Attributes:
        clock: (bins) share of the budget at each bin, increasing.
        reward: (bins) mean reward, in units of the curve's own range.
        count: (bins) observations.
        weight: (bins) the same, weighed by how noisy they are.
    """

    clock: Floats
    reward: Floats
    count: Floats
    weight: Floats


@dataclass(frozen=True)
class Looks:
    """What the bank says at each of some moments of a run, in the units it was given.

    Attributes:
        clock: (looks) share of the budget seen.
        weights: (looks, members) posterior weights, summing to 1.
        rest, rest_var: (looks, members) gain still to come by the end, mean and variance.
        past, past_var: (looks, members) gain since the first observation.
        level: (looks, members) reward expected now.
        noise: (looks) standard deviation of one observation, autocorrelation included.
        local: (looks) the same from differences of neighbours alone, blind to any trend.
    """

    clock: Floats
    weights: Floats
    rest: Floats
    rest_var: Floats
    past: Floats
    past_var: Floats
    level: Floats
    noise: Floats
    local: Floats

    def gain(self) -> tuple[Floats, Floats]:
        """(mean, sd) of the gain so far at each look."""
        return self._gain

    @cached_property
    def _gain(self) -> tuple[Floats, Floats]:
        return _moments(self.weights, self.past, self.past_var)

    def exceeds(self, threshold: Floats) -> Floats:
        """Probability at each look that the laws bring more than a threshold by the end."""
        spread = np.sqrt(self.rest_var + 1e-300)
        above = UPWARD * normal_cdf((self.rest - threshold[:, None]) / spread)
        return np.asarray((self.weights * above / _sign(self.rest, spread)).sum(axis=1), dtype=np.float64)

    def families(self) -> dict[str, float]:
        """Posterior weight of each family of laws at the last look."""
        weights = np.bincount(_FAMILY, self.weights[-1], len(FAMILIES))
        return dict(zip(FAMILIES, weights.tolist(), strict=True))


def look(seen: Seen, ends: Ints, finish: Floats) -> Looks:
    """Tell the bank of the first bins of a curve, up to each of several ends.

    Args:
        seen: the binned curve, three bins or more.
        ends: (looks) index of the last bin of each look, increasing, 2 or more.
        finish: (looks) clock at which the final reward is measured.
    """
    features, stages = _features(seen.clock)
    sums = _Sums.of(seen, features, stages, ends)
    local, noise = _noise(seen, sums, ends)
    there, there_stages = _features(finish)
    none = np.zeros((len(ends), 1))
    parts = [
        _singles(sums, noise, features[ends], features[0], there),
        (none, none, none, none, none, none),
        _pairs(sums, noise, stages[ends], stages[0], there_stages),
    ]
    logs, rest, rest_var, past, past_var, fit = (np.concatenate(p, axis=1) for p in zip(*parts, strict=True))
    logs = logs + _LOG_PRIOR + np.log(_sign(rest, np.sqrt(rest_var + 1e-300)))
    weights = np.exp(logs - logs.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    level = (seen.reward[0] + sums.mean)[:, None] + fit
    return Looks(
        seen.clock[ends], weights, rest, rest_var, past, past_var, level, np.sqrt(noise), np.sqrt(local)
    )


def path(seen: Seen, points: Floats) -> tuple[Floats, Floats]:
    """(points, members) change from the last bin to each of some points of the clock: mean and variance."""
    end = np.array([len(seen.clock) - 1])
    features, stages = _features(seen.clock)
    sums = _Sums.of(seen, features, stages, end)
    noise = _noise(seen, sums, end)[1]
    there, there_stages = _features(points)
    none = np.zeros((len(points), 1))
    single = _singles(sums, noise, features[end], features[0], there)
    pairs = _pairs(sums, noise, stages[end], stages[0], there_stages)
    mean, variance = (np.concatenate((single[i], none, pairs[i]), axis=1) for i in (1, 2))
    return mean, variance


@dataclass(frozen=True)
class _Sums:
    """Centred sums over the bins up to each look; rewards are counted from the first bin's."""

    count: Floats
    mean: Floats
    spread: Floats  # variance of the bin means
    centre: Floats
    square: Floats
    cross: Floats
    stage_centre: Floats
    stage_square: Floats
    stage_cross: Floats

    @classmethod
    def of(cls, seen: Seen, features: Floats, stages: Floats, ends: Ints) -> _Sums:
        """Sum over the bins up to each look."""
        starts = np.concatenate(([0], ends[:-1] + 1))
        weight, value = seen.weight, seen.reward - seen.reward[0]

        def upto(columns: Floats) -> Floats:
            return np.cumsum(np.add.reduceat(columns, starts, axis=0)[: len(ends)], axis=0)

        last = ends[-1] + 1
        weight, value, features, stages = weight[:last], value[:last], features[:last], stages[:last]
        w = weight[:, None]
        n = upto(weight)
        mean = upto(weight * value) / n
        spread = np.maximum(upto(weight * value**2) / n - mean**2, 0.0)
        m = n[:, None]
        centre, stage_centre = upto(w * features) / m, upto(w * stages) / m
        square = np.maximum(upto(w * features**2) - m * centre**2, 1e-12)
        cross = upto(w * features * value[:, None]) - m * centre * mean[:, None]
        one, two = stages[:, _FIRST], stages[:, _SECOND]
        both = upto(w * one * two) - m * stage_centre[:, _FIRST] * stage_centre[:, _SECOND]
        alone = np.maximum(upto(w * stages**2) - m * stage_centre**2, 1e-12)
        stage_square = np.stack((alone[:, _FIRST], alone[:, _SECOND], both))
        stage_cross = upto(w * stages * value[:, None]) - m * stage_centre * mean[:, None]
        return cls(n, mean, spread, centre, square, cross, stage_centre, stage_square, stage_cross)


def _features(clock: Floats) -> tuple[Floats, Floats]:
    singles = (
        exponential(clock, _TAU, _DELAY),
        overdamped(clock, _SLOW, 0.25 * _SLOW),
        sigmoid(clock, _MIDDLE, _POWER),
        line(clock),
    )
    return np.concatenate(singles, axis=1), stage(clock, _STAGE, _WIDTH)


def _noise(seen: Seen, sums: _Sums, ends: Ints) -> tuple[Floats, Floats]:
    """(looks) variance of one observation: from neighbours alone, and with autocorrelation."""
    inverse = 1.0 / seen.weight
    steps = np.diff(seen.reward) ** 2 / (inverse[1:] + inverse[:-1])
    local = np.maximum(np.cumsum(steps)[ends - 1] / ends, _TINY)
    left = sums.count * sums.spread - (sums.cross**2 / sums.square).max(axis=1)
    residual = np.maximum(left / np.maximum(ends - 1.0, 1.0), _TINY)
    # An AR(1) of correlation ρ has D = (1 - ρ)·σ²: the variance of its mean is (2σ²/D - 1)·σ² over n.
    inflation = np.clip(2.0 * np.clip(BEST * residual / local, 1.0, 4.0) - 1.0, 1.0, MOST_INFLATED)
    return local, np.maximum(residual, local) * inflation


_Parts = tuple[
    Floats, Floats, Floats, Floats, Floats, Floats
]  # log evidence, rest, its var, past, its var, fit


def _singles(sums: _Sums, noise: Floats, now: Floats, first: Floats, there: Floats) -> _Parts:
    q = noise[:, None]
    precision = 1.0 / (WIDE**2 * sums.spread[:, None] + _TINY)
    variance = 1.0 / (sums.square / q + precision)
    mean = variance * sums.cross / q
    log = 0.5 * mean**2 / variance + 0.5 * np.log(variance * precision)
    rest, past = there - now, now - first
    fit = mean * (now - sums.centre)
    return log, mean * rest, variance * rest**2, mean * past, variance * past**2, fit


def _pairs(sums: _Sums, noise: Floats, now: Floats, first: Floats, there: Floats) -> _Parts:
    q = noise[:, None]
    precision = 1.0 / (WIDE**2 * sums.spread[:, None] + _TINY)
    a, b, c = sums.stage_square / q
    a, b = a + precision, b + precision
    det = a * b - c**2
    one, two = sums.stage_cross[:, _FIRST] / q, sums.stage_cross[:, _SECOND] / q
    m1, m2 = (b * one - c * two) / det, (a * two - c * one) / det
    log = 0.5 * (one * m1 + two * m2) - 0.5 * np.log(det) + np.log(precision)

    def told(change: Floats) -> tuple[Floats, Floats]:
        u, v = change[:, _FIRST], change[:, _SECOND]
        return m1 * u + m2 * v, (b * u**2 + a * v**2 - 2.0 * c * u * v) / det

    fit = told(now - sums.stage_centre)[0]
    return log, *told(there - now), *told(now - first), fit


def _sign(rest: Floats, spread: Floats) -> Floats:
    """What the prior on the sign of the gain to come makes of a member (a half where it says nothing)."""
    up = normal_cdf(rest / spread)
    return np.asarray(UPWARD * up + (1.0 - UPWARD) * (1.0 - up), dtype=np.float64)


def _moments(weights: Floats, mean: Floats, variance: Floats) -> tuple[Floats, Floats]:
    centre = (weights * mean).sum(axis=1)
    spread = (weights * (variance + (mean - centre[:, None]) ** 2)).sum(axis=1)
    return centre, np.sqrt(spread)
