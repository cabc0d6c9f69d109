"""The learning rate over the whole plan of a run, its future included, and the areas under it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scale_callbacks import _sampling, _shapes

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Schedule:
    """A learning-rate plan: piecewise linear between knots on whole optimizer steps.

    Build one with a class method: `from_points`, `from_function`, or a named shape. `lr(t)` is the rate
    that is applied at optimizer step t, 1 to `horizon`; after the horizon the last rate is held.

    Attributes:
        steps: knots, whole steps, strictly increasing, the first at 0.
        rates: learning rate at each knot, in any unit.
    """

    steps: Floats
    rates: Floats

    def __post_init__(self) -> None:
        for array in (self.steps, self.rates):
            array.setflags(write=False)

    @classmethod
    def from_points(cls, steps: ArrayLike, learning_rates: ArrayLike) -> Self:
        """Join the points of a plan by straight lines.

        Before the first point a linear warm-up from zero at step 0 is assumed; the horizon is the last step.

        Args:
            steps: optimizer steps of the points, strictly increasing, at least one.
            learning_rates: the rate at each of them, not negative, in any unit.

        Raises:
            ValueError: steps not increasing, negative or not finite, lengths that differ, a rate that is
                negative or not finite, or no positive rate at all.
        """
        x = np.atleast_1d(np.array(steps, dtype=np.float64))
        y = np.atleast_1d(np.array(learning_rates, dtype=np.float64))
        _check_points(x, y)
        if x[0] > 0:
            x, y = np.concatenate(([0.0], x)), np.concatenate(([0.0], y))
        if np.any(x != np.floor(x)):
            # Only whole steps are ever trained, so a knot between two of them is the same as one on each.
            last = max(math.floor(x[-1]), 1)
            whole = np.unique(np.concatenate((np.floor(x), np.ceil(x))))
            whole = whole[whole <= last]
            x, y = whole, np.interp(whole, x, y)
        plan = cls(x, y)
        if not plan.area(plan.horizon) > 0:
            raise ValueError(
                "the plan has no positive learning rate from step 1 on: give the rates that are applied"
            )
        return plan

    @classmethod
    def from_function(cls, function: Callable[[int], float], horizon: int) -> Self:
        """Sample a function of the step, finely where it bends.

        Plans of up to some thousand steps are taken step by step; longer ones are sampled by bisection until
        straight lines are within 1e-5 of the peak rate, so the cost does not grow with the horizon.

        Args:
            function: optimizer step, 1 to `horizon`, to learning rate.
            horizon: last optimizer step of the plan.

        Raises:
            ValueError: horizon below 1, or a rate that is negative or not finite.
        """
        return cls.from_points(*_sampling.sample(function, _shapes.check_horizon(horizon)))

    @classmethod
    def constant(cls, rate: float, horizon: int, *, warmup: int = 0) -> Self:
        """Hold one rate, after a linear warm-up of `warmup` steps."""
        return cls.from_points(*_shapes.cooled(rate, horizon, warmup, 0, "linear", 0.0))

    @classmethod
    def linear(cls, rate: float, horizon: int, *, warmup: int = 0, floor: float = 0.0) -> Self:
        """Fall in a straight line from `rate` after the warm-up to `floor` at the horizon."""
        return cls.from_points(*_shapes.cooled(rate, horizon, warmup, None, "linear", floor))

    @classmethod
    def cosine(cls, rate: float, horizon: int, *, warmup: int = 0, floor: float = 0.0) -> Self:
        """Fall along half a cosine from `rate` after the warm-up to `floor` at the horizon.

        Source: Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5.
        """
        return cls.from_points(*_shapes.cooled(rate, horizon, warmup, None, "cosine", floor))

    @classmethod
    def wsd(
        cls,
        rate: float,
        horizon: int,
        *,
        warmup: int = 0,
        cooldown: int,
        shape: str = "linear",
        floor: float = 0.0,
    ) -> Self:
        """Warm up, hold (stable), then cool down over the last `cooldown` steps.

        Sources: WSD, Hu et al. 2024, arXiv 2404.06395; 1-sqrt cooldown, Hägele et al. 2024, arXiv 2405.18392.

        Args:
            rate: the rate that is held.
            horizon: last optimizer step.
            warmup: steps of linear warm-up.
            cooldown: steps of the cooldown, at most `horizon - warmup`.
            shape: "linear", "1-sqrt", "cosine" or "exponential" (which needs a positive `floor`).
            floor: rate at the horizon.

        Raises:
            ValueError: a value out of its range, or an unknown shape.
        """
        return cls.from_points(*_shapes.cooled(rate, horizon, warmup, cooldown, shape, floor))

    @classmethod
    def multi_step(
        cls, rate: float, horizon: int, *, milestones: Sequence[int], gamma: float = 0.1, warmup: int = 0
    ) -> Self:
        """Multiply the rate by `gamma` after each milestone step.

        Raises:
            ValueError: a value out of its range, or milestones that do not increase from warm-up to horizon.
        """
        return cls.from_points(*_shapes.stepped(rate, horizon, warmup, milestones, gamma))

    @property
    def horizon(self) -> int:
        """Last optimizer step of the plan."""
        return int(self.steps[-1])

    @cached_property
    def peak(self) -> float:
        """Highest rate of the plan, in the unit that was given."""
        return float(self.rates.max())

    @cached_property
    def warmup(self) -> int:
        """Step at which the leading rise of the rate reaches its top; 0 when the plan starts there."""
        falls = np.flatnonzero(np.diff(self.rates) < -1e-9 * self.peak)
        end = int(falls[0]) if len(falls) else len(self.rates) - 1
        top = self.rates[: end + 1].max()
        return int(self.steps[int(np.argmax(self.rates[: end + 1] >= (1 - 1e-9) * top))])

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of the knots: equal plans have equal fingerprints."""
        import hashlib  # milliseconds, and seldom needed

        return hashlib.sha256(self.steps.tobytes() + self.rates.tobytes()).hexdigest()[:16]

    @overload
    def lr(self, steps: float) -> float: ...
    @overload
    def lr(self, steps: Sequence[float] | NDArray[Any]) -> Floats: ...
    def lr(self, steps: ArrayLike) -> float | Floats:
        """Learning rate applied at the given step or steps."""
        return _like(steps, np.interp(_as_steps(steps), self.steps, self.rates))

    @overload
    def area(self, steps: float) -> float: ...
    @overload
    def area(self, steps: Sequence[float] | NDArray[Any]) -> Floats: ...
    def area(self, steps: ArrayLike) -> float | Floats:
        """Area S1 under the learning rate: the sum of the rates applied at steps 1 to t.

        Source: Tissue et al. 2024, arXiv 2408.11029, equation 1. Exact, by arithmetic series over the knots.
        """
        return self._at_whole_steps(steps, self._area_at)

    @overload
    def annealing_area(self, steps: float, decay: float = ...) -> float: ...
    @overload
    def annealing_area(self, steps: Sequence[float] | NDArray[Any], decay: float = ...) -> Floats: ...
    def annealing_area(self, steps: ArrayLike, decay: float = 0.999) -> float | Floats:
        """Annealing area S2: every fall of the rate, summed with a momentum that forgets.

        S2(t) = sum over i = 1..t of m(i), with m(i) = decay * m(i-1) + lr(i-1) - lr(i). The leading warm-up
        counts as area only, not as annealing; a later rise of the rate counts negatively.

        Source: Tissue et al. 2024, arXiv 2408.11029, equation 1. Exact, by geometric series over the knots.

        Args:
            steps: one or more optimizer steps.
            decay: the momentum's factor per step, 0 <= decay < 1 (the paper's lambda, 0.99 to 0.999).

        Raises:
            ValueError: decay out of its range.
        """
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} must lie in [0, 1)")
        return self._at_whole_steps(steps, lambda whole: self._annealing_at(whole, decay))

    def to_dict(self) -> dict[str, list[float]]:
        """Plain data that `from_dict` turns back into the same plan, to the last bit."""
        return {"steps": self.steps.tolist(), "rates": self.rates.tolist()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Sequence[float]]) -> Self:
        """Rebuild a plan from `to_dict`."""
        return cls.from_points(data["steps"], data["rates"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        knots = len(self.steps)
        return f"Schedule(horizon={self.horizon}, peak={self.peak:g}, warmup={self.warmup}, knots={knots})"

    def _at_whole_steps(self, steps: Any, total: Callable[[Any], Any]) -> float | Floats:
        one = isinstance(steps, int | float) and math.isfinite(steps)  # takes a tenth of the time of an array
        t: Any = max(float(steps), 0.0) if one else np.maximum(_as_steps(steps), 0.0)
        whole = t // 1.0
        value, part = total(whole), t - whole
        if part if isinstance(part, float) else part.any():
            value = value + part * (total(whole + 1.0) - value)
        return _like(steps, value)

    @cached_property
    def _slopes(self) -> Floats:
        """After each knot: none after the last."""
        return np.append(np.diff(self.rates) / np.diff(self.steps), 0.0)

    @cached_property
    def _falls(self) -> Floats:
        """After each knot, how much the rate falls each step; the leading warm-up does not count."""
        return np.where(self.steps < self.warmup, 0.0, -self._slopes)

    @cached_property
    def _area_at_knots(self) -> Floats:
        n, rise = np.diff(self.steps), np.diff(self.rates)
        return np.concatenate(([0.0], np.cumsum(n * self.rates[:-1] + rise * (n + 1) / 2)))

    def _area_at(self, whole: Any) -> Any:
        k, j, slope = self._locate(whole)
        return self._area_at_knots[k] + j * self.rates[k] + slope * j * (j + 1) / 2

    def _annealing_at(self, whole: Any, decay: float) -> Any:
        k, j, _ = self._locate(whole)
        momentum, total = self._annealing_at_knots(decay)
        fall = self._falls[k]
        forgotten = (1.0 - decay**j) / (1.0 - decay)
        return total[k] + momentum[k] * decay * forgotten + fall / (1.0 - decay) * (j - decay * forgotten)

    def _annealing_at_knots(self, decay: float) -> tuple[Floats, Floats]:
        cache: dict[float, tuple[Floats, Floats]] = self.__dict__.setdefault("_annealing_cache", {})
        if decay not in cache:
            n, fall = np.diff(self.steps), self._falls[:-1]
            kept = decay**n
            forgotten = (1.0 - kept) / (1.0 - decay)
            momenta = [0.0]
            for keep, gain in zip(kept.tolist(), (fall * forgotten).tolist(), strict=True):
                momenta.append(keep * momenta[-1] + gain)
            momentum = np.array(momenta)
            grown = momentum[:-1] * decay * forgotten + fall / (1.0 - decay) * (n - decay * forgotten)
            cache[decay] = momentum, np.concatenate(([0.0], np.cumsum(grown)))
        return cache[decay]

    def _locate(self, whole: Any) -> tuple[Any, Any, Any]:
        """Knot at or before each step (there is one at 0), steps since it, and the slope there."""
        k = self.steps.searchsorted(whole, side="right") - 1
        return k, whole - self.steps[k], self._slopes[k]


def _check_points(x: Floats, y: Floats) -> None:
    if x.ndim != 1 or x.shape != y.shape or len(x) == 0:
        raise ValueError(f"steps and learning_rates must be of one length, 1 or more: {x.shape}, {y.shape}")
    if not np.all(np.isfinite(x)) or x.min() < 0 or x.max() < 1:
        raise ValueError(f"steps must be finite, 0 or more, and reach 1: got {x[0]:g} to {x[-1]:g}")
    if np.any(np.diff(x) <= 0):
        i = int(np.argmax(np.diff(x) <= 0))
        raise ValueError(f"steps must increase: {x[i + 1]:g} follows {x[i]:g}; sort them and drop repeats")
    bad = ~np.isfinite(y) | (y < 0)
    if np.any(bad):
        i = int(np.argmax(bad))
        raise ValueError(f"learning rate {y[i]:g} at step {x[i]:g} must be finite and not negative")


def _as_steps(steps: ArrayLike) -> Floats:
    t = np.asarray(steps, dtype=np.float64)
    if not np.isfinite(t).all():
        raise ValueError(f"steps must be finite: got {steps!r}")
    return t


def _like(steps: ArrayLike, value: Any) -> float | Floats:
    return float(value) if np.ndim(steps) == 0 else np.asarray(value, dtype=np.float64)
