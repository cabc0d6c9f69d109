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

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from scale_callbacks.laws.annealing import AnnealingArea, stirred
from scale_callbacks.laws.base import Floats, Plan, Shapes
from scale_callbacks.laws.epochs import EpochBorders
from scale_callbacks.laws.multi_power import MultiPower
from scale_callbacks.laws.power import PowerOfArea, PowerOfSteps
from scale_callbacks.mixture import Mixture, Outlook, gathered
from scale_callbacks.prior import ABSOLUTE, Prior, Regime
from scale_callbacks.regression import Grid, Indices, Regression
from scale_callbacks.tables import Evidence, Tables

MEMBERS = 6000  # most that the forecast is mixed from; reached only where a curve tells nothing
KEPT = 96  # members the path is mixed from
_CELLS = 64  # Gaussians the forecast at the end is gathered into
_BETA = 0.6  # multi-power's β, the paper's: hardly told apart from its speed
MARGIN = 10.0  # log-evidence below the best at which a member is given up
_SCOUTED = slice(1, None, 3)  # depths under which decays are scouted


@dataclass(frozen=True)
class Lesson:
    """What one curve says about the members of a bank.

    Attributes:
        decays: index of each decay shape, by law and parameters.
        drops: index of each drop shape.
        log: (drops, depths, decays, slopes) log likelihood, at most 0.
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
        self._stirred = stirred(plan, prior.stir[1])
        self.slopes = np.array(prior.slopes)
        self._shape = (len(self.drop), len(prior.drops), len(self.decay), len(prior.slopes))
        self._scouts = np.arange(0, len(self.drop), 3)
        borders = np.array([law == "epochs" for law in self.law_of_drop()])[:, None]
        falls = np.where(borders, prior.border_drops, prior.drops)
        widths = np.where(borders, prior.border_width, prior.drop_width)
        self.grid = Grid(self.slopes, prior.slope_width, falls, widths)

    @cached_property
    def _by_regime(self) -> Floats:
        """(regimes, drops, depths, decays, slopes): prior of every member within each kind of run."""
        return np.stack(
            [
                np.exp(self._drop_prior(regime)[:, :, None, None] + self._decay_prior(regime))
                for regime in self.prior.regimes
            ]
        )

    def _kinds(self, noise: float) -> Floats:
        """Probability of each kind of run before its curve is seen."""
        plan = self.plan
        kinds = np.array([r.weigh(plan.horizon, noise, plan.peak) for r in self.prior.regimes])
        if self.told:
            kinds *= [self.prior.told if r.name == "finetuning" else 1.0 for r in self.prior.regimes]
        return np.asarray(kinds / kinds.sum(), dtype=np.float64)

    def _kinds_given(self, found: _Found, noise: float) -> dict[str, float]:
        """Probability of each kind of run, given the members found."""
        members = self._by_regime.reshape(len(self.prior.regimes), -1)
        joint = self._kinds(noise)[:, None] * members.take(found.member, axis=1)
        kinds = (joint / np.maximum(joint.sum(axis=0), 1e-300)) @ found.weights
        return dict(zip((regime.name for regime in self.prior.regimes), kinds.tolist(), strict=True))

    def log_prior(self, noise: float) -> Floats:
        """(drops, depths, decays, slopes): log prior of every member, given the curve's noise.

        Args:
            noise: sd of one observation over the loss.
        """
        mixed = np.tensordot(self._kinds(noise), self._by_regime, axes=1)
        return np.asarray(np.log(np.maximum(mixed, 1e-30)), dtype=np.float64)

    def law_of_drop(self) -> list[str]:
        """Which law each drop shape belongs to."""
        return [shapes.law for shapes in self._drops for _ in range(len(shapes))]

    def _decay_prior(self, regime: Regime) -> Floats:
        exponent, offset, clock = (np.concatenate(parts) for parts in self._decay_parameters())
        mean, sd = regime.slope_for(self.plan.horizon)
        slope = (np.log(self.slopes) - mean) / sd
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
        told = self._regression(evidence, np.zeros(0))
        rows, drops = np.arange(self.decay.shape[0] * len(self.slopes)), np.arange(len(self.drop))
        walks, weights = np.arange(len(self.prior.wander)), np.log(self.prior.wander_weights)
        scouts = told.evidence(walks, rows, self._scouts).max(axis=(1, 2, 3)) + weights
        likely = np.flatnonzero(scouts > scouts.max() - MARGIN)
        logs = [
            told.evidence(likely[i : i + 1], rows, drops)[0] + weights[likely[i]] for i in range(len(likely))
        ]
        log = np.logaddexp.reduce(logs, axis=0).reshape(*self._shape)
        return Lesson(self._keys(self._decays), self._keys(self._drops), log - log.max())

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
        return np.asarray(lesson.log[columns][:, :, rows], dtype=np.float64)

    @staticmethod
    def _keys(tables: list[Shapes]) -> dict[tuple[str | float, ...], int]:
        keys: list[tuple[str | float, ...]] = [
            (shapes.law, *(float(column[i]) for column in shapes.parameters.values()))
            for shapes in tables
            for i in range(len(shapes))
        ]
        return {key: i for i, key in enumerate(keys)}

    def predict(self, evidence: Evidence, points: Floats, lessons: Floats | float = 0.0) -> Outlook:
        """What the members expect the loss (in units of its present level) to be.

        Args:
            evidence: the binned curve.
            points: optimizer steps; the mean over the last 1% of the plan is added as a last point.
            lessons: log weights to add to the prior's, from `taught`.
        """
        regression = self._regression(evidence, points)
        found = self._heavy(regression, self.log_prior(evidence.noise) + lessons)
        ends, spread = regression.predict(*found.indices, slice(-1, None))
        heavy = found.heaviest(KEPT)
        path = Mixture(heavy.weights, *regression.predict(*heavy.indices, slice(None)))
        end = gathered(found.weights, ends[:, 0], spread[:, 0], _CELLS)
        laws, kinds = self._law_weights(found), self._kinds_given(found, evidence.noise)
        return Outlook(end, *path.moments(), laws, kinds)

    def _regression(self, evidence: Evidence, points: Floats) -> Regression:
        clock = self.prior.clock
        tables = Tables.of(self.plan, self.decay, self.drop, self._stirred, clock, evidence, points)
        wander = np.square(self.prior.wander)
        return Regression(self.grid.priors(tables), tables, evidence, wander, self.prior.stir[0] ** 2)

    def _heavy(self, regression: Regression, prior: Floats) -> _Found:
        """All members that carry weight: decays are scouted under a few drops first."""
        drops, depths, decays, slopes = self._shape
        prior = prior.reshape(drops, depths, -1)
        walks, rows, every = np.arange(len(self.prior.wander)), np.arange(decays * slopes), np.arange(drops)
        weights = np.log(self.prior.wander_weights)
        scouted = regression.evidence(walks, rows, self._scouts, _SCOUTED)
        scouted += prior[self._scouts, _SCOUTED]
        best = scouted.max(axis=(1, 2)) + weights[:, None]
        least = best.max() - MARGIN - 1e-9 * abs(best.max())  # wild data make log-evidences that round
        logs, spots, rows_of = [], [], [np.flatnonzero(row > least) for row in best]
        for i, likely in enumerate(rows_of):
            log = regression.evidence(walks[i : i + 1], likely, every)[0]
            log += prior[:, :, likely]
            log += weights[i]
            spots.append(np.flatnonzero(log > least))
            logs.append(log.ravel()[spots[-1]])
        log = np.concatenate(logs)
        kept = np.flatnonzero(log > log.max() - MARGIN)
        kept = kept[_heaviest(log[kept], MEMBERS)]
        heavy = np.exp(log[kept] - log.max())
        walk = np.searchsorted(np.cumsum([len(log) for log in logs]), kept, side="right")
        ends = np.cumsum([0, *(len(likely) for likely in rows_of)])
        cell, place = np.divmod(np.concatenate(spots)[kept], np.diff(ends)[walk])
        member = cell * len(rows) + np.concatenate(rows_of)[ends[walk] + place]
        return _Found(heavy / heavy.sum(), walk, member, (depths, len(rows)))

    def _law_weights(self, found: _Found) -> dict[str, float]:
        by_drop = np.bincount(found.indices[2], found.weights, len(self.drop))
        laws = dict.fromkeys(("power", "annealing", "multi_power", "epochs"), 0.0)
        for law, weight in zip(self.law_of_drop(), by_drop.tolist(), strict=True):
            laws[law] += weight
        return laws


@dataclass(frozen=True)
class _Found:
    """Members that carry weight.

    Attributes:
        weights: posterior weights.
        walk: index of the variance of the random walk.
        member: flat index into (drops, depths, decays and slopes).
        shape: how many depths, decays and slopes there are.
    """

    weights: Floats
    walk: Indices
    member: Indices
    shape: tuple[int, int]

    @cached_property
    def indices(self) -> tuple[Indices, Indices, Indices, Indices]:
        """Indices of walk, decay and slope, drop, depth."""
        cell, row = np.divmod(self.member, self.shape[1])
        drop, depth = np.divmod(cell, self.shape[0])
        return self.walk, row, drop, depth

    def heaviest(self, most: int) -> _Found:
        """The `most` that carry the largest weights, as if there were no others."""
        kept = _heaviest(self.weights, most)
        weights = self.weights[kept]
        return _Found(weights / weights.sum(), self.walk[kept], self.member[kept], self.shape)


def _heaviest(weights: Floats, most: int) -> Indices:
    """Indices, in order, of the `most` largest weights."""
    if len(weights) <= most:
        return np.arange(len(weights))
    return np.sort(np.argpartition(-weights, most)[:most])


def _log_peak(peak: float) -> float:
    """Log of the absolute peak rate over 5e-4, kept to the range known; 0 for relative units."""
    return float(np.log(np.clip(peak, 2e-4, 4e-3) / 5e-4)) if peak < ABSOLUTE else 0.0


def _normalised(log: Floats) -> Floats:
    top = log.max()
    return np.asarray(log - top - np.log(np.exp(log - top).sum()), dtype=np.float64)
