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

from scale_callbacks.found import Found, heaviest
from scale_callbacks.laws.annealing import AnnealingArea, stirred
from scale_callbacks.laws.base import Floats, Plan, Shapes
from scale_callbacks.laws.epochs import EpochBorders
from scale_callbacks.laws.multi_power import MultiPower
from scale_callbacks.laws.overfitting import Overfitting
from scale_callbacks.laws.power import PowerOfArea, PowerOfSteps
from scale_callbacks.mixture import Mixture, Outlook, gathered
from scale_callbacks.prior import Prior, Regime, log_peak
from scale_callbacks.regression import Grid, Regression
from scale_callbacks.tables import Evidence, Features, Tables

MEMBERS = 6000  # most that the forecast is mixed from; reached only where a curve tells nothing
KEPT = 96  # members the path is mixed from
_CELLS = 64  # Gaussians the forecast at the end is gathered into
_BETA = 0.6  # multi-power's β, the paper's: hardly told apart from its speed
MARGIN = 7.0  # log-evidence below the best at which a member is given up
_ASTRAY = 0.1  # sd of the walk per unit of its clock from which on a run is taken to follow no law
_SCOUTS = slice(None, None, 3)  # drops under which decays are scouted,
_SCOUTED = slice(1, None, 3)  # and their depths


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
        steps_per_epoch: optimizer steps after which the data start again; None where they never do.
    """

    def __init__(self, plan: Plan, prior: Prior, steps_per_epoch: float | None = None) -> None:
        self.plan, self.prior = plan, prior
        self.epochs = plan.horizon / steps_per_epoch if steps_per_epoch else 1.0
        area = PowerOfArea(prior.exponents, prior.offsets)(plan)
        steps = PowerOfSteps(prior.exponents)(plan)
        self._decays = [area, steps] if np.abs(plan.area - plan.time).max() > 1e-3 else [area]
        several = self.epochs > 1.0
        self._forms = prior.forms + (prior.late_forms if several else ())
        self._memories = prior.memories + (prior.late_memories if several else ())
        drops = [
            MultiPower(prior.speeds, tuple(form[:2] for form in self._forms), _BETA)(plan),
            AnnealingArea(tuple(memory[:2] for memory in self._memories))(plan),
            EpochBorders(steps_per_epoch, prior.borders)(plan),
            Overfitting(prior.onsets if several else ())(plan),
        ]
        self._drops = [shapes for shapes in drops if len(shapes)]
        none = Shapes("power", np.zeros((1, len(plan.steps))), {})
        self._drops.append(none)
        self.decay = np.concatenate([shapes.features for shapes in self._decays])
        self.drop = np.concatenate([shapes.features for shapes in self._drops])
        turned = np.concatenate((np.zeros(1), np.cumsum(np.abs(np.diff(plan.rate)))))
        stirs = stirred(plan, prior.stir[1])
        self._features = Features(plan, self.decay, self.drop, stirs, turned, prior.clock, steps_per_epoch)
        self.slopes = np.array(prior.slopes)
        self._shape = (len(self.drop), len(prior.drops), len(self.decay), len(prior.slopes))
        wander = [*zip(prior.wander, prior.wander_weights, strict=True), *[prior.late_wander] * several]
        self._walks = np.array([(sd**2, prior.stir[0] ** 2, 1.0) for sd, _ in wander])
        self._walk_weights = np.log([weight for _, weight in wander])
        self._laws = self.law_of_drop()
        borders = np.array([law in ("epochs", "overfitting") for law in self._laws])[:, None]
        falls = np.where(borders, prior.border_drops, prior.drops)
        widths = np.where(borders, prior.border_width, prior.drop_width)
        self.grid = Grid(self.slopes, prior.slope_width, falls, widths)

    @cached_property
    def _by_regime(self) -> tuple[Floats, Floats]:
        """(regimes, drops and depths) and (regimes, decays and slopes).

        Their product is the prior of a member within each kind of run.
        """
        drops = [np.exp(self._drop_prior(regime)).ravel() for regime in self.prior.regimes]
        decays = [np.exp(self._decay_prior(regime)).ravel() for regime in self.prior.regimes]
        return np.array(drops), np.array(decays)

    def _kinds(self, noise: float) -> Floats:
        """Probability of each kind of run before its curve is seen."""
        plan = self.plan
        kinds = np.array([r.weigh(plan.horizon, noise, plan.peak, self.epochs) for r in self.prior.regimes])
        return np.asarray(kinds / kinds.sum(), dtype=np.float64)

    def _kinds_given(self, found: Found, kinds: Floats) -> dict[str, float]:
        """Probability of each kind of run, given the members found."""
        drops, decays = self._by_regime
        _, row, drop, depth = found.indices
        joint = decays.take(row, axis=1)
        joint *= (kinds[:, None] * drops).take(drop * found.shape[0] + depth, axis=1)
        joint *= found.weights / np.maximum(joint.sum(axis=0), 1e-300)
        names = (regime.name for regime in self.prior.regimes)
        return dict(zip(names, joint.sum(axis=1).tolist(), strict=True))

    def _log_prior(self, kinds: Floats) -> Floats:
        """(drops, depths, decays, slopes): log prior of every member, given the kinds of run."""
        drops, decays = self._by_regime
        mixed = (kinds[:, None] * drops).T @ decays
        np.log(np.maximum(mixed, 1e-30, out=mixed), out=mixed)
        return mixed.reshape(self._shape)

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
        scale = self.prior.peak * log_peak(self.plan.peak)
        parts = []
        for shapes in self._drops:
            log, (mean, sd) = np.zeros(len(shapes)), (regime.drop[0] + scale, regime.drop[1])
            share, depths = 1.0 - self.prior.annealing, self.prior.drops
            if shapes.law == "multi_power":
                log = -0.5 * ((np.log(shapes.parameters["speed"]) - regime.speed[0]) / regime.speed[1]) ** 2
                likely = regime.forms or (1.0,) * len(self._forms)
                forms = [form[2] * factor for form, factor in zip(self._forms, likely, strict=False)]
                log += np.log(forms * len(self.prior.speeds))
            elif shapes.law == "annealing":
                log += np.log([memory[2] for memory in self._memories])
                share = self.prior.annealing
            elif shapes.law == "epochs":
                share, depths, (mean, sd) = 4.0 * regime.borders, self.prior.border_drops, self.prior.border
            elif shapes.law == "overfitting":
                share, depths, (mean, sd) = self.prior.overfitting, self.prior.border_drops, self.prior.border
            else:
                share = 0.5 * regime.borders if self.epochs > 1.0 else self.prior.plain * regime.flat
            depth = _normalised(-0.5 * ((np.log(depths) - mean) / sd) ** 2)
            parts.append((_normalised(log) + np.log(share))[:, None] + depth)
        return _normalised(np.concatenate(parts))

    def lesson(self, evidence: Evidence) -> Lesson:
        """What a curve says about the members: its log marginal likelihood under each, up to a constant."""
        told = self._regression(evidence, np.zeros(0))
        scouts = self._scouted(told, slice(None), 0.0).max(axis=1)
        likely = np.flatnonzero(scouts > scouts.max() - MARGIN)
        every = np.arange(self.decay.shape[0] * len(self.slopes))
        logs = [told.evidence(np.full(len(every), i), every) + self._walk_weights[i] for i in likely]
        log = np.logaddexp.reduce(logs, axis=0).reshape(*self._shape)
        rising = np.array([law == "overfitting" for law in self._laws])
        log[rising] = log[~rising].max(axis=(0, 1))  # a train loss cannot tell that a validation loss rises
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
        regression, kinds = self._regression(evidence, points), self._kinds(evidence.noise)
        found = self._heavy(regression, self._log_prior(kinds) + lessons)
        ends, spread = regression.predict(*found.indices, slice(-1, None))
        heavy = found.heaviest(KEPT)
        path = Mixture(heavy.weights, *regression.predict(*heavy.indices, slice(None)))
        end = gathered(found.weights, ends[:, 0], spread[:, 0], _CELLS)
        astray = float(found.weights @ (self._walks[found.walk, 0] > _ASTRAY**2))
        laws, kinds_now = self._law_weights(found), self._kinds_given(found, kinds)
        return Outlook(end, *path.moments(), laws, kinds_now, astray)

    def _regression(self, evidence: Evidence, points: Floats) -> Regression:
        tables = Tables.of(self._features, evidence, points)
        return Regression(self.grid.priors(tables), tables, evidence, self._walks)

    def _scouted(self, regression: Regression, depths: slice, prior: Floats | float) -> Floats:
        """(walks, decays and slopes): the highest log weight of each under a few drops and some depths."""
        walks, rows = np.arange(len(self._walks))[:, None], np.arange(self.decay.shape[0] * len(self.slopes))
        log = regression.evidence(walks, rows, _SCOUTS, depths) + prior
        return np.asarray(log.max(axis=(0, 1)) + self._walk_weights[:, None], dtype=np.float64)

    def _heavy(self, regression: Regression, prior: Floats) -> Found:
        """All members that carry weight: decays are scouted under a few drops first."""
        prior = prior.reshape(*prior.shape[:2], -1)
        best = self._scouted(regression, _SCOUTED, prior[_SCOUTS, _SCOUTED, None])
        least = best.max() - MARGIN - 1e-9 * abs(best.max())  # wild data make log-evidences that round
        walks, rows = (best > least).nonzero()
        log = regression.evidence(walks, rows)
        log += prior.take(rows, axis=2)
        log += self._walk_weights.take(walks)
        spots = (log > log.max() - MARGIN).ravel().nonzero()[0]
        cell = spots // len(rows)  # numpy's divmod takes four times as long
        pair = spots - cell * len(rows)
        member, walk, log = cell * prior.shape[2] + rows.take(pair), walks.take(pair), log.take(spots)
        if len(log) > MEMBERS:  # many are equal then, and which of them are kept hangs on their order
            order = walk.astype(np.int8).argsort(kind="stable")
            member, walk, log = member[order], walk[order], log[order]
        kept = heaviest(log, MEMBERS)
        heavy = np.exp(log[kept] - log.max())
        return Found(heavy / heavy.sum(), walk[kept], member[kept], prior.shape[1:])

    def _law_weights(self, found: Found) -> dict[str, float]:
        by_drop = np.bincount(found.indices[2], found.weights, len(self.drop))
        laws = dict.fromkeys(("power", "annealing", "multi_power", "epochs"), 0.0)
        for law, weight in zip(self._laws, by_drop.tolist(), strict=True):
            laws[law] = laws.get(law, 0.0) + weight
        return laws


def _normalised(log: Floats) -> Floats:
    top = log.max()
    return np.asarray(log - top - np.log(np.exp(log - top).sum()), dtype=np.float64)
