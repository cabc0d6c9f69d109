"""LawBank: a Bayesian mixture over the shapes of all laws; conjugate algebra only, no optimiser.

A member is one decay shape, one drop shape, and one cell of the grid of their coefficients. Given the member,
the binned loss (over its present level) is

    y = F + A * decay + B * drop + w + e

with Gaussian priors on F, A and B, white noise e, and a random walk w in -1/area: the law's own error,
which fades the early part, ties the forecast to the latest residuals and widens with the distance ahead. All
members share the noise model, so one Cholesky factor whitens everything, and the three coefficients are
eliminated one after the other in closed form, for all members at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from scale_callbacks.laws.annealing import AnnealingArea
from scale_callbacks.laws.base import Floats, Plan, Shapes
from scale_callbacks.laws.epochs import EpochBorders
from scale_callbacks.laws.multi_power import MultiPower
from scale_callbacks.laws.power import PowerOfArea, PowerOfSteps
from scale_callbacks.mixture import Mixture
from scale_callbacks.prior import Prior, Regime

LEVEL_SD = 0.5  # prior sd of F about the present level
KEPT = 160  # members that a forecast is mixed from
_BETA = 0.6  # multi-power's β: hardly told apart from its speed
_FORBIDDEN = 50.0  # log-evidence against a negative coefficient


@dataclass(frozen=True)
class Evidence:
    """A binned curve in the bank's units.

    Attributes:
        steps: mean step of each bin.
        values: loss over its present level.
        variance: white-noise variance of each bin's mean.
        noise: sd of one observation, over the loss.
    """

    steps: Floats
    values: Floats
    variance: Floats
    noise: float


@dataclass(frozen=True)
class Lesson:
    """What one curve says about the members of a bank.

    Attributes:
        decays: index of each decay shape, by law and parameters.
        drops: index of each drop shape.
        log: (decays, slopes, drops, depths) log likelihood, at most 0.
    """

    decays: dict[tuple[str | float, ...], int]
    drops: dict[tuple[str | float, ...], int]
    log: Floats


class LawBank:
    """All members of all laws, tabulated over one plan.

    Args:
        plan: the whole plan in scale-free units.
        prior: grids and population prior.
        steps_per_epoch: optimizer steps an epoch of a fine-tuning run takes.
    """

    def __init__(self, plan: Plan, prior: Prior, steps_per_epoch: float | None = None) -> None:
        self.plan, self.prior = plan, prior
        self.told = steps_per_epoch is not None
        area = PowerOfArea(prior.exponents, prior.offsets)(plan)
        steps = PowerOfSteps(prior.exponents)(plan)
        self._decays = [area, steps] if np.abs(plan.area - plan.time).max() > 1e-3 else [area]
        forms = tuple((gamma, power) for gamma, power, _ in prior.forms)
        drops = [
            MultiPower(prior.speeds, forms, _BETA)(plan),
            AnnealingArea(tuple(memory for memory, _ in prior.memories))(plan),
            EpochBorders(steps_per_epoch, prior.borders)(plan),
        ]
        self._drops = [shapes for shapes in drops if len(shapes)]
        none = Shapes("power", np.zeros((1, len(plan.steps))), {})
        self._drops.append(none)
        self.decay = np.concatenate([shapes.features for shapes in self._decays])
        self.drop = np.concatenate([shapes.features for shapes in self._drops])
        self.slopes = np.array(prior.slopes)
        borders = np.array([law == "epochs" for law in self.law_of_drop()])[:, None]
        self.falls = np.where(borders, prior.border_drops, prior.drops)  # (drops, depths)
        self.fall_width = np.where(borders, prior.border_width, prior.drop_width)

    @cached_property
    def _by_regime(self) -> Floats:
        """(regimes, decays, slopes, drops, depths): prior of every member within each kind of run."""
        return np.stack(
            [
                np.exp(self._decay_prior(regime)[:, :, None, None] + self._drop_prior(regime))
                for regime in self.prior.regimes
            ]
        )

    def log_prior(self, noise: float) -> Floats:
        """(decays, slopes, drops, depths): log prior of every member, given the curve's noise.

        Args:
            noise: sd of one observation over the loss.
        """
        kinds = np.array([regime.weigh(self.plan.horizon, noise) for regime in self.prior.regimes])
        if self.told:
            kinds *= [self.prior.told if r.name == "finetuning" else 1.0 for r in self.prior.regimes]
        mixed = np.tensordot(kinds / kinds.sum(), self._by_regime, axes=1)
        return np.asarray(np.log(np.maximum(mixed, 1e-30)), dtype=np.float64)

    def law_of_drop(self) -> list[str]:
        """Which law each drop shape belongs to."""
        return [shapes.law for shapes in self._drops for _ in range(len(shapes))]

    def _decay_prior(self, regime: Regime) -> Floats:
        exponent, offset, clock = (np.concatenate(parts) for parts in self._decay_parameters())
        slope = (np.log(self.slopes) - regime.slope[0]) / regime.slope[1]
        bend = (exponent[:, None] - regime.exponent[0]) / regime.exponent[1] - regime.tie * slope
        log = -0.5 * bend**2 / (1.0 - regime.tie**2) - 0.5 * slope**2
        log = log - 0.5 * (offset[:, None] / self.prior.offset_sd) ** 2 + np.log(clock[:, None])
        return _normalised(log)

    def _decay_parameters(self) -> tuple[list[Floats], list[Floats], list[Floats]]:
        share = {"area": 1.0 - self.prior.steps, "steps": self.prior.steps}
        exponents = [shapes.parameters["exponent"] for shapes in self._decays]
        offsets = [shapes.parameters["offset"] for shapes in self._decays]
        clocks = [np.full(len(s), share[s.law] * len(self.prior.exponents) / len(s)) for s in self._decays]
        return exponents, offsets, clocks

    def _drop_prior(self, regime: Regime) -> Floats:
        """(drops, depths): log prior within a kind of run."""
        scale = self.prior.peak * _log_peak(self.plan.peak)
        several = any(shapes.law == "epochs" for shapes in self._drops)
        parts = []
        for shapes in self._drops:
            log, (mean, sd) = np.zeros(len(shapes)), (regime.drop[0] + scale, regime.drop[1])
            share, depths = 1.0 - self.prior.annealing, self.prior.drops
            if shapes.law == "multi_power":
                log = -0.5 * ((np.log(shapes.parameters["speed"]) - regime.speed[0]) / regime.speed[1]) ** 2
                log += np.log([weight for _, _, weight in self.prior.forms] * len(self.prior.speeds))
            elif shapes.law == "annealing":
                log += np.log([weight for _, weight in self.prior.memories])
                share = self.prior.annealing
            elif shapes.law == "epochs":
                share, depths, (mean, sd) = 4.0, self.prior.border_drops, self.prior.border
            else:
                share = 0.5 if several else self.prior.plain
            depth = _normalised(-0.5 * ((np.log(depths) - mean) / sd) ** 2)
            parts.append((_normalised(log) + np.log(share))[:, None] + depth)
        return _normalised(np.concatenate(parts))

    def lesson(self, evidence: Evidence) -> Lesson:
        """What a curve says about the members: its log marginal likelihood under each, up to a constant."""
        tables = Tables.of(self, evidence, np.zeros(0))
        pairs = zip(self.prior.wander, self.prior.wander_weights, strict=True)
        logs = [Regression(self, tables, evidence, sd**2).evidence() + math.log(w) for sd, w in pairs]
        told = np.logaddexp.reduce(logs, axis=0)
        return Lesson(self._keys(self._decays), self._keys(self._drops), told - told.max())

    def taught(self, lesson: Lesson) -> Floats:
        """A lesson from another bank of the same prior, brought to this bank's members.

        A power law in steps it lacked is read as one in area, a drop it could not see as none.
        """
        area, none = "area", lesson.drops[("power",)]
        rows = [
            lesson.decays[key if key in lesson.decays else (area, *key[1:])]
            for key in self._keys(self._decays)
        ]
        columns = [lesson.drops.get(key, none) for key in self._keys(self._drops)]
        return np.asarray(lesson.log[rows][:, :, columns], dtype=np.float64)

    @staticmethod
    def _keys(tables: list[Shapes]) -> dict[tuple[str | float, ...], int]:
        keys: list[tuple[str | float, ...]] = [
            (shapes.law, *(float(column[i]) for column in shapes.parameters.values()))
            for shapes in tables
            for i in range(len(shapes))
        ]
        return {key: i for i, key in enumerate(keys)}

    def predict(self, evidence: Evidence, points: Floats, lessons: Floats | float = 0.0) -> Mixture:
        """Mixture over the loss (in units of its present level) at some steps and, last, at the end.

        Args:
            evidence: the binned curve.
            points: optimizer steps; the mean over the last 1% of the plan is added as a last point.
            lessons: log weights to add to the prior's, from `taught`.
        """
        tables = Tables.of(self, evidence, points)
        walks = [Regression(self, tables, evidence, sd**2) for sd in self.prior.wander]
        prior = self.log_prior(evidence.noise) + lessons
        log = np.stack(
            [
                walk.evidence() + prior + np.log(w)
                for walk, w in zip(walks, self.prior.wander_weights, strict=True)
            ]
        )
        flat = log.reshape(len(walks), -1)
        top = flat.max()
        weights = np.exp(flat - top)
        laws = self._law_weights(weights.reshape(log.shape))
        kept = _heaviest(weights.ravel(), KEPT)
        which, member = np.divmod(kept, flat.shape[1])
        means, variances = np.empty((len(kept), len(points) + 1)), np.empty((len(kept), len(points) + 1))
        for i, walk in enumerate(walks):
            chosen = which == i
            means[chosen], variances[chosen] = walk.predict(member[chosen])
        heavy = weights.ravel()[kept]
        return Mixture(heavy / heavy.sum(), means, variances, laws)

    def _law_weights(self, weights: Floats) -> dict[str, float]:
        by_drop = weights.sum(axis=(0, 1, 2, 4))
        by_drop /= by_drop.sum()
        laws = dict.fromkeys(("power", "annealing", "multi_power", "epochs"), 0.0)
        for law, weight in zip(self.law_of_drop(), by_drop.tolist(), strict=True):
            laws[law] += weight
        return laws


@dataclass(frozen=True)
class Tables:
    """The members' features at the bins and at the points to forecast.

    Attributes:
        decay: (decays, bins).
        drop: (drops, bins).
        walk: (bins) the random walk's clock -area^-p / p, 0 at the first bin.
        decay_at: (decays, points), the last point being the end.
        drop_at: (drops, points).
        walk_at: (points).
        fade: (bins) area at the last bin over area at each.
    """

    decay: Floats
    drop: Floats
    walk: Floats
    decay_at: Floats
    drop_at: Floats
    walk_at: Floats
    fade: Floats

    @classmethod
    def of(cls, bank: LawBank, evidence: Evidence, points: Floats) -> Tables:
        """Read a bank's tables off at bins and points."""
        plan = bank.plan
        end = np.linspace(0.99 * plan.horizon, plan.horizon, 9)
        here = _reader(plan.steps, evidence.steps)
        there = _reader(plan.steps, np.concatenate((points, end)))
        area = np.maximum(here(plan.area), 1e-4)
        area_at = np.maximum(there(plan.area), 1e-4)
        count, power = len(points), bank.prior.clock
        start = -(area[0] ** -power) / power
        return cls(
            here(bank.decay),
            here(bank.drop),
            -(area**-power) / power - start,
            _ended(there(bank.decay), count),
            _ended(there(bank.drop), count),
            np.maximum(_ended(-(area_at**-power) / power - start, count), 0.0),
            area[-1] / area,
        )


class Regression:
    """Conjugate regression of all members under one variance of the random walk.

    Args:
        bank: the members.
        tables: their features at bins and points.
        evidence: the binned curve.
        wander: variance of the random walk per unit of its clock.
    """

    def __init__(self, bank: LawBank, tables: Tables, evidence: Evidence, wander: float) -> None:
        noise = evidence.variance * evidence.values**2 * tables.fade
        walk = wander * np.minimum(tables.walk[:, None], tables.walk)
        root = np.linalg.cholesky(walk + np.diag(noise))
        ahead = wander * np.minimum(tables.walk[:, None], tables.walk_at)
        columns = (np.ones((len(noise), 1)), tables.decay.T, tables.drop.T, evidence.values[:, None], ahead)
        white = np.linalg.solve(root, np.concatenate(columns, axis=1))
        n_decay, n_drop = len(tables.decay), len(tables.drop)
        cuts = np.cumsum([1, n_decay, n_drop, 1])
        one, decay, drop, y, self._ahead = np.split(white, cuts, axis=1)
        self._walk_var = wander * tables.walk_at - np.einsum("ij,ij->j", self._ahead, self._ahead)
        self._eliminate_level(one[:, 0], decay, drop, y[:, 0])
        self._const = -0.5 * float(y[:, 0] @ y[:, 0]) - float(np.log(np.diag(root)).sum())
        self._const += 0.5 * self._h0**2 / self._d0 - 0.5 * float(np.log(self._d0))
        self._add_priors(bank, tables)
        ahead_t = self._ahead.T
        self._at = (1.0 - ahead_t @ one[:, 0], tables.decay_at - (ahead_t @ decay).T)
        self._drop_at = tables.drop_at - (ahead_t @ drop).T
        self._base = ahead_t @ y[:, 0]

    def _eliminate_level(self, one: Floats, decay: Floats, drop: Floats, y: Floats) -> None:
        precision = LEVEL_SD**-2
        self._d0 = float(one @ one) + precision
        self._h0 = float(one @ y) + precision
        self._l1, self._l2 = decay.T @ one / self._d0, drop.T @ one / self._d0
        self._a11 = np.einsum("ij,ij->j", decay, decay) - self._l1**2 * self._d0
        self._a22 = np.einsum("ij,ij->j", drop, drop) - self._l2**2 * self._d0
        self._a12 = decay.T @ drop - np.outer(self._l1, self._l2) * self._d0
        self._b1 = decay.T @ y - self._l1 * self._h0
        self._b2 = drop.T @ y - self._l2 * self._h0

    def _add_priors(self, bank: LawBank, tables: Tables) -> None:
        now_decay = np.maximum(tables.decay[:, -1:], 0.0)
        now_drop = np.maximum(tables.drop[:, -1:], 0.0)
        slope = bank.slopes / (1.0 + bank.slopes * now_decay)  # over the final loss the member expects
        fall = bank.falls / (1.0 + bank.falls * now_drop)
        p1, p2 = (bank.prior.slope_width * slope) ** -2, (bank.fall_width * fall) ** -2
        self._d1, self._h1 = self._a11[:, None] + p1, self._b1[:, None] + p1 * slope
        self._d2, self._h2 = self._a22[:, None] + p2, self._b2[:, None] + p2 * fall
        self._log1 = 0.5 * (self._h1**2 / self._d1 - np.log(self._d1 / p1) - p1 * slope**2)
        self._log2 = 0.5 * (np.log(p2) - p2 * fall**2)

    def evidence(self) -> Floats:
        """(decays, slopes, drops, depths): log marginal likelihood; a negative coefficient is forbidden."""
        d1, cross = self._d1[:, :, None], self._a12[:, None, :]
        ratio = cross / d1
        h2 = self._h2 - (ratio * self._h1[:, :, None])[..., None]
        d2 = self._d2 - (ratio * cross)[..., None]
        fall = h2 / d2
        slope = (self._h1 / self._d1)[:, :, None, None] - ratio[..., None] * fall
        allowed = (fall >= 0.0) & (slope >= 0.0)
        log = h2 * fall
        log -= np.log(d2)
        log *= 0.5
        log += (self._log1 + self._const)[:, :, None, None]
        log += self._log2
        log[~allowed] -= _FORBIDDEN
        return np.asarray(log, dtype=np.float64)

    def predict(self, members: NDArray[np.intp]) -> tuple[Floats, Floats]:
        """(members, points): mean and variance of the loss at the points to forecast."""
        shape = (*self._d1.shape, *self._d2.shape)
        j, s, k, m = np.unravel_index(members, shape)
        d1, cross = self._d1[j, s], self._a12[j, k]
        d2 = self._d2[k, m] - cross**2 / d1
        fall = (self._h2[k, m] - cross / d1 * self._h1[j, s]) / d2
        slope = (self._h1[j, s] - cross * fall) / d1
        level = self._h0 / self._d0 - self._l1[j] * slope - self._l2[k] * fall
        f0, f1, f2 = self._at[0], self._at[1][j], self._drop_at[k]
        mean = self._base + f0 * level[:, None] + f1 * slope[:, None] + f2 * fall[:, None]
        g1 = f1 - f0 * self._l1[j, None]
        g2 = f2 - f0 * self._l2[k, None] - g1 * (cross / d1)[:, None]
        variance = f0**2 / self._d0 + g1**2 / d1[:, None] + g2**2 / d2[:, None] + self._walk_var
        return mean, np.maximum(variance, 0.0)


def _heaviest(weights: Floats, most: int) -> NDArray[np.intp]:
    """Indices, in order, of the weights above 1e-5 of the largest (1), `most` of them at most."""
    kept = np.flatnonzero(weights > 1e-5)
    if len(kept) > most:
        kept = np.sort(kept[np.argpartition(-weights[kept], most)[:most]])
    return kept


def _log_peak(peak: float) -> float:
    """Log of the absolute peak rate over 5e-4, kept to the range known; 0 for a rate in relative units."""
    return float(np.log(np.clip(peak, 1e-4, 4e-3) / 5e-4)) if peak < 0.05 else 0.0


def _normalised(log: Floats) -> Floats:
    top = log.max()
    return np.asarray(log - top - np.log(np.exp(log - top).sum()), dtype=np.float64)


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
