"""Population priors: what finished runs tell about the next one, kept as JSON with how it was learned."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Self

import numpy as np

Pair = tuple[float, float]

_ADAM = 5e-3  # rates above it are those of other optimizers, and do not tell kinds of runs apart
# From the second to the third of these a rate is SGD's, which no language model is trained with, from the
# first on a little; a relative one has its peak at 1.
_SGD = (0.02, 0.05, 0.6)
_TYPICAL, _LENGTHS = 20_000.0, (1e3, 4e5)  # optimizer steps of a plan, and the range its length is heeded in
# Kinds whose widths the table for language models leaves alone.
_APART = ("other", "finetuning", "vision_speech", "young", "classifiers", "many_epochs")


def like_sgd(peak: float) -> float:
    """How much a peak rate looks like one of SGD: 0 for Adam's and relative ones, 1 from .05 on."""
    if not _SGD[0] < peak <= _SGD[2]:
        return 0.0
    return min(math.log(peak / _SGD[0]) / math.log(_SGD[1] / _SGD[0]), 1.0)


def log_peak(peak: float) -> float:
    """Log of an Adam's peak rate over 5e-4, kept to the range known; 0 for SGD's and relative ones."""
    if peak > _SGD[2]:
        return 0.0
    return (1.0 - like_sgd(peak)) * math.log(min(max(peak, 2e-4), 4e-3) / 5e-4)


@dataclass(frozen=True)
class Regime:
    """One kind of run: how its curves bend, and how deep its cooldowns go.

    Attributes:
        name: what the runs are.
        weight: prior probability, before the curve is seen.
        exponent: mean and sd of the decay's exponent α.
        slope: mean and sd of log(loss brought by one e-fold of training at the horizon, over the final loss),
            in a plan of 20,000 steps.
        tie: correlation of the exponent and the log slope.
        drop: mean and sd of log(loss brought by annealing from the peak to zero, over the final loss).
        speed: mean and sd of log(multi-power's C).
        horizon: mean and sd of log(planned steps): where such runs are found.
        noise: mean and sd of log(sd of one observation over the loss).
        rate: mean and sd of log(peak learning rate), where that is an Adam's in absolute units.
        widening: factors on the interval's half-widths of such runs, up to two fifths of the plan and from
            four fifths on.
        tilt: by how much the mean log slope changes with the log of the plan's length: the excess over the
            loss that cannot be reduced falls as a power of the steps, so that longer plans end flatter.
        flat: factor on the weight of having no drop at all, in runs that read their data once.
        sgd: factor on the weight where the peak rate is SGD's (`like_sgd`).
        told: factor on the weight where several epochs are told.
        epochs: mean and sd of log(planned epochs).
        borders: factor on the weights of falls at epoch borders, and of none, in runs of several epochs.
        forms: factors on the weights of the prior's forms; empty where they are as for everyone.
    """

    name: str
    weight: float
    exponent: Pair
    slope: Pair
    tie: float
    drop: Pair
    speed: Pair
    horizon: Pair
    noise: Pair
    rate: Pair = (-7.5, 3.0)
    widening: Pair = (1.0, 1.0)
    tilt: float = 0.0
    flat: float = 1.0
    sgd: float = 1.0
    told: float = 1.0
    epochs: Pair = (1.0, 1.2)
    borders: float = 1.0
    forms: tuple[float, ...] = ()

    def slope_for(self, horizon: float) -> Pair:
        """Mean and sd of the log slope for a plan of so many steps."""
        length = min(max(horizon, _LENGTHS[0]), _LENGTHS[1])
        return self.slope[0] + self.tilt * math.log(length / _TYPICAL), self.slope[1]

    def weigh(self, horizon: float, noise: float, peak: float, epochs: float = 1.0) -> float:
        """Probability of the kind, up to a factor, for a plan's length, a curve's noise and the peak rate.

        Each says little, so none may count against a kind by more than a factor of e^4; the epochs, which
        are known exactly, by more than e^8.

        Args:
            horizon: planned steps.
            noise: sd of one observation over the loss.
            peak: highest learning rate; nothing is made of one that may be relative.
            epochs: planned, where several are told; else 1.
        """
        weight: float = self.weight * self.sgd ** like_sgd(peak)
        told = [(horizon, self.horizon), (max(noise, 1e-6), self.noise)]
        if 0.0 < peak < _ADAM:
            told.append((peak, self.rate))
        for value, (mean, sd) in told:
            weight *= math.exp(-min(0.5 * ((math.log(value) - mean) / sd) ** 2, 4.0)) / sd
        if epochs > 1.0:
            mean, sd = self.epochs
            weight *= self.told * math.exp(-min(0.5 * ((math.log(epochs) - mean) / sd) ** 2, 8.0)) / sd
        return weight

    def widened(self, seen: float) -> float:
        """Log of the factor on half-widths when a share of the plan is seen."""
        late = min(max((seen - 0.4) / 0.4, 0.0), 1.0)
        return (1.0 - late) * math.log(self.widening[0]) + late * math.log(self.widening[1])


@dataclass(frozen=True)
class Prior:
    """Everything the bank of laws must be told before a run begins.

    Attributes:
        name: which population it speaks of.
        source: what it was learned from, and how.
        exponents: grid of α.
        offsets: grid of o, shares of the plan.
        offset_sd: sd of o.
        slopes: grid of the decay's coefficient over the final loss.
        slope_width: relative sd within a grid cell of `slopes`.
        drops: grid of the drop's coefficient over the final loss.
        drop_width: relative sd within a grid cell of `drops`.
        speeds: grid of multi-power's C.
        forms: (γ, κ, weight) of the multi-power members.
        memories: (share of the horizon, κ, weight) of the annealing law's members.
        late_forms: further forms where several epochs are told: gains that come late, at low rates.
        late_memories: further memories there.
        plain: weight of having no drop at all.
        annealing: weight of the annealing law's members beside multi-power's.
        borders: (ρ, φ) of the epoch-border members.
        border_drops: grid of the fall at the first border over the loss, as long as `drops`.
        border_width: relative sd within a grid cell of `border_drops`.
        border: mean and sd of log(fall at the first border).
        onsets: shares of the plan at which an overfitting member's rise sets in.
        overfitting: weight of those members, in runs of several epochs.
        peak: exponent of the absolute peak rate in the depth of cooldowns.
        steps: weight of the power law in steps beside that in area.
        regimes: kinds of runs.
        wander: grid of the discrepancy's sd per unit of its clock.
        wander_weights: prior weights of that grid.
        late_wander: a further sd, and its weight, where several epochs are told.
        stir: (sd that a sudden change of the rate by its peak adds to the discrepancy, memory with which it
            sinks in, as a share of the plan).
        clock: exponent p of the discrepancy's clock, -area^-p / p.
        floor: sd of a bin's mean that no number of observations undercuts, share of the loss.
        skip: (share of the plan, share of what was seen of a quiet curve, warm-ups) left out at the start.
        trust: weight of a reference run's evidence, and of the train loss's for a validation loss.
        calibration: (share of the plan seen, factor on the interval's half-widths with no fall of the rate to
            come, factor with all of it to come), shares increasing.
    """

    name: str
    source: str
    exponents: tuple[float, ...]
    offsets: tuple[float, ...]
    offset_sd: float
    slopes: tuple[float, ...]
    slope_width: float
    drops: tuple[float, ...]
    drop_width: float
    speeds: tuple[float, ...]
    forms: tuple[tuple[float, float, float], ...]
    memories: tuple[tuple[float, float, float], ...]
    late_forms: tuple[tuple[float, float, float], ...]
    late_memories: tuple[tuple[float, float, float], ...]
    plain: float
    annealing: float
    borders: tuple[Pair, ...]
    border_drops: tuple[float, ...]
    border_width: float
    border: Pair
    onsets: tuple[float, ...]
    overfitting: float
    peak: float
    steps: float
    regimes: tuple[Regime, ...]
    wander: tuple[float, ...]
    wander_weights: tuple[float, ...]
    late_wander: Pair
    stir: Pair
    clock: float
    floor: float
    skip: tuple[float, float, float]
    trust: Pair
    calibration: tuple[tuple[float, float, float], ...]

    def widening(self, seen: float, to_come: float, kinds: Mapping[str, float]) -> float:
        """Factor on the interval's half-widths.

        Args:
            seen: share of the plan seen.
            to_come: how far the rate still falls, over its peak.
            kinds: posterior probability of each kind of run.
        """
        part = min(max(2.0 * to_come - 0.2, 0.0), 1.0)
        shares = [share for share, _, _ in self.calibration]
        logs = [math.log(a) * (1.0 - part) + math.log(b) * part for _, a, b in self.calibration]
        kind = sum(kinds.get(regime.name, 0.0) * regime.widened(seen) for regime in self.regimes)
        familiar = 1.0 - sum(kinds.get(name, 0.0) for name in _APART)  # the others set the table
        return math.exp(familiar * float(np.interp(seen, shares, logs)) + kind)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a prior from `to_dict` or from the JSON of a prior file."""
        plain = {key: _tupled(value) for key, value in data.items() if key != "regimes"}
        regimes = [Regime(**{k: _tupled(v) for k, v in regime.items()}) for regime in data["regimes"]]
        return cls(**plain, regimes=tuple(regimes))

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` turns back into the same prior."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    def with_(self, **changes: Any) -> Self:
        """The same prior with some attributes changed."""
        return replace(self, **changes)


@cache
def load_prior(name: str = "population") -> Prior:
    """Read a prior that comes with the package.

    Raises:
        ValueError: no prior of that name.
    """
    from importlib.resources import files  # milliseconds that `import scale_callbacks` need not take

    path = files("scale_callbacks") / "priors" / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"no prior named {name!r} comes with the package: give a Prior, or 'population'")
    return Prior.from_dict(json.loads(path.read_text()))


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list | tuple) else value
