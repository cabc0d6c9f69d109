"""LossForecaster: feed it (step, loss), ask where the run is heading."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scale_callbacks._numbers import as_floats
from scale_callbacks._state import check_numbers, reading
from scale_callbacks.bank import LawBank, Lesson
from scale_callbacks.curve import Bins, Curve
from scale_callbacks.evidence import LAST, Units, middle, quieter, usable
from scale_callbacks.forecast import Forecast, Status
from scale_callbacks.laws.base import Plan, plan_of
from scale_callbacks.measure import PLAIN, AsLoss, Measure, as_measure, contrary
from scale_callbacks.mixture import Mixture, Outlook, normal_quantile, quantiles
from scale_callbacks.prior import Prior, load_prior
from scale_callbacks.schedule import Schedule
from scale_callbacks.tables import Evidence

Floats = NDArray[np.float64]

FEWEST = 8  # observations before a forecast is made
_SIDES = np.array([-1.0, 1.0])  # low and high
_EVENLY = np.linspace(0.0, 1.0, 32)  # points of the path
_STEEPEST = 300.0  # log of what a loss may rise to over the forecast: a float's own limit is 709
_MOST_NOISE = 1e50  # over the loss: its square, and what that is multiplied by, stay finite


class LossForecaster:
    """Forecasts the mean loss over the last 1% of a run's plan, from what was seen so far.

    Args:
        schedule: the whole learning-rate plan, its future included.
        level: probability that the interval is to hold the final loss with.
        references: earlier runs of the same set-up, whose laws become the prior of this one.
        prior: population prior: a `Prior`, or the name of one that comes with the package.
        steps_per_epoch: optimizer steps after which the run starts its data again. How often it does tells
            fine-tuning, and models of pictures or speech, from language models that read their data once.
        measure: "loss"; "perplexity", whose log is one; or "score" for what rises, as an accuracy.

    Raises:
        ValueError: level outside (0, 1), steps_per_epoch not positive, another measure.

    >>> forecaster = LossForecaster(Schedule.cosine(3e-4, 1000, warmup=10))
    >>> steps = np.arange(1, 501)
    >>> forecaster.observe(steps, 2.0 + 4.0 * steps**-0.4)
    >>> forecast = forecaster.forecast()
    >>> forecast.low < forecast.value < forecast.high
    True
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        level: float = 0.9,
        references: Sequence[LossForecaster] = (),
        prior: Prior | str = "population",
        steps_per_epoch: float | None = None,
        measure: Measure | str = Measure.LOSS,
    ) -> None:
        if not 0.0 < level < 1.0:
            raise ValueError(f"level={level!r} must lie between 0 and 1, for instance 0.9")
        if steps_per_epoch is not None and not 0.0 < steps_per_epoch < math.inf:
            raise ValueError(f"steps_per_epoch={steps_per_epoch!r} must be positive")
        self.measure = as_measure(measure)
        self.schedule = schedule
        self.level = float(level)
        self._half = normal_quantile(0.5 * (1.0 + level))  # an interval's half-width over a normal's sd
        self.prior = load_prior(prior) if isinstance(prior, str) else prior
        lessons = [reference.lesson() for reference in references]
        self._references = tuple(lesson for lesson in lessons if lesson is not None)
        self.steps_per_epoch = steps_per_epoch
        self.curve = Curve(schedule.horizon)
        self.train = Curve(schedule.horizon)  # of extra["train_loss"], where given
        self._bank = LawBank(plan_of(schedule), self.prior, steps_per_epoch)

    @property
    def horizon(self) -> int:
        """The step forecast at: the plan's last, or the last observed one where that is later."""
        return max(self.schedule.horizon, math.ceil(self.curve.last_step or 0))

    @property
    def settings(self) -> dict[str, str | float | int | bool]:
        """Plain values that tell how the forecasts are made."""
        return {
            "level": self.level,
            "prior": self.prior.name,
            "references": len(self._references),
            "steps_per_epoch": self.steps_per_epoch or 0.0,
            "measure": str(self.measure),
            "horizon": self.schedule.horizon,
            "peak_lr": self.schedule.peak,
            "warmup": self.schedule.warmup,
        }

    def observe(
        self,
        steps: ArrayLike | SupportsFloat,
        losses: ArrayLike | SupportsFloat,
        *,
        extra: Mapping[str, ArrayLike | SupportsFloat] | None = None,
    ) -> None:
        """Take in losses, one or many.

        Args:
            steps: optimizer steps, strictly increasing within a call; an earlier one than the last rewinds.
            losses: the losses there; non-finite ones are counted and left out.
            extra: further values at the same steps, by name. "train_loss" sharpens the forecast of a
                validation loss: the shape of its curve is learned from both.

        Raises:
            TypeError: for what is not a number.
            ValueError: for lengths that differ or steps that are negative or not increasing.
        """
        count = len(as_floats(steps, "steps"))
        for name, values in (extra or {}).items():
            if len(as_floats(values, name)) != count:
                raise ValueError(f"extra[{name!r}] must hold {count} values, one a step")
        self.curve.observe(steps, losses)
        if extra and "train_loss" in extra:
            self.train.observe(steps, extra["train_loss"])

    def forecast(self) -> Forecast | None:
        """The forecast from what was seen, None before 8 usable observations."""
        if self.curve.n < FEWEST:
            return None
        bins, horizon = self.curve.bins(), float(self.horizon)
        bank = self._bank_for(horizon)
        evidence, units = self._evidence(self.curve, self._as_loss)
        points = _path_steps(float(bins.steps[0]), horizon)
        outlook = bank.predict(evidence, points, self._lessons(bank))
        end, noise = self._ended(outlook.end, units), self._last_noise(evidence.noise)
        edges = self._edges(outlook, end, noise, bank.plan, ratio=units.ratio)
        path = _over_observed(units.outward(edges), points, bins, float(evidence.steps[0]))
        return self._told(points, path, outlook)

    def noise_ahead(self, value: float) -> float:
        """Half-width of an interval about a final loss, were all but the noise of the last losses known."""
        evidence, units = self._evidence(self.curve, self._as_loss)
        noise = self._half * self._last_noise(evidence.noise)
        return abs(float(units.outward(units.watched(np.array([value])) + noise)[0]) - value)

    def measured(self) -> float | None:
        """What was to be forecast, once the plan has ended: the mean loss over its last 1%."""
        if float(self.curve.last_step or 0) <= (1.0 - LAST) * self.horizon:
            return None
        return self.curve.mean_after((1.0 - LAST) * self.horizon)

    def lesson(self) -> Lesson | None:
        """What this run says about the laws, for a later run that takes it as a reference."""
        if self.curve.n < FEWEST:
            return None
        return self._bank_for(float(self.horizon)).lesson(self._evidence(self.curve, self._as_loss)[0])

    def state_dict(self) -> dict[str, Any]:
        """Everything learned from the run, as plain JSON data."""
        return {"version": 1, "curve": self.curve.state_dict(), "train": self.train.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; forecasts are then bit for bit those of the saved forecaster.

        Raises:
            ValueError: the state is damaged; the forecaster is then as it was before.
        """
        curve, train = Curve(1), Curve(1)
        with reading("the state of a loss forecaster"):
            check_numbers(state)
            curve.load_state_dict(state["curve"])
            train.load_state_dict(state["train"])
        self.curve, self.train = curve, train

    @property
    def contrary(self) -> bool:
        """Whether the curve has clearly moved the wrong way, where data read again do not explain it."""
        return not self._several_epochs and contrary(self.measure, self.curve.bins(), self.curve.noise)

    @property
    def _as_loss(self) -> AsLoss:
        return AsLoss.of(self.measure, self.curve.bins())

    def _evidence(self, curve: Curve, as_loss: AsLoss = PLAIN) -> tuple[Evidence, Units]:
        """The part of a curve that the laws must explain, as a loss, and its units."""
        horizon, bins = float(self.horizon), curve.bins()
        warmup = min(self.schedule.warmup, horizon)
        single = as_loss.noise(curve.noise, middle(bins.robust[-3:]))
        used = usable(as_loss.bins(bins), horizon, warmup, self.prior.skip, single)
        units = Units.of(used, ratio=self._several_epochs, as_loss=as_loss)
        noise = min(quieter(used, single) / units.scale, _MOST_NOISE)
        if units.ratio:
            noise = math.sqrt(math.log1p(noise**2))  # of the log, were it normal
        variance = noise**2 / used.count + self.prior.floor**2
        spacing = (float(curve.last_step or 0) - float(curve.first_step or 0)) / max(curve.n - 1, 1)
        return Evidence(used.steps, units.inward(used.robust), variance, noise, spacing), units

    def _lessons(self, bank: LawBank) -> Floats | float:
        """Log weights that references and the train loss add to the prior."""
        told: Floats | float = 0.0
        for lesson in self._references:
            told = told + self.prior.trust[0] * bank.taught(lesson)
        if self.train.n >= FEWEST and self.measure is not Measure.SCORE:
            told = told + self.prior.trust[1] * bank.lesson(self._evidence(self.train)[0]).log
        return told

    @property
    def _several_epochs(self) -> bool:
        return self.steps_per_epoch is not None and self.horizon > self.steps_per_epoch

    def _bank_for(self, horizon: float) -> LawBank:
        if horizon == self.schedule.horizon:
            return self._bank
        return LawBank(plan_of(self.schedule, horizon), self.prior, self.steps_per_epoch)

    def _last_noise(self, noise: float) -> float:
        """The sd that the noise of single losses gives the mean of the last 1%, in units of the evidence."""
        density = self.curve.n / max(float(self.curve.last_step or 0), 1.0)
        return noise / math.sqrt(max(1.0, LAST * self.horizon * density))

    def _ended(self, mixture: Mixture, units: Units) -> Mixture:
        """The mixture with what was measured of the last 1% put in."""
        last, start = float(self.curve.last_step or 0), (1.0 - LAST) * self.horizon
        measured = self.curve.mean_after(start)
        mean, variance = mixture.mean, mixture.variance
        if measured is not None:
            share = min((last - start) / (self.horizon - start), 1.0)
            mean = mean + share * (units.watched(np.array([measured])) - mean)
            variance = (1.0 - share) ** 2 * variance
        return Mixture(mixture.weights, mean, variance + (0.1 * self.prior.floor) ** 2)

    def _edges(self, outlook: Outlook, end: Mixture, noise: float, plan: Plan, *, ratio: bool) -> Floats:
        """(value, low and high; points): the mixture's quantiles at the end, their shape before it.

        What is widened is what the laws do not know; the noise of the last losses is known, and added after.
        Above a forecast the loss itself is widened, not its log: no loss ends a hundred times higher.
        """
        tail = 0.5 * (1.0 - self.level)
        edges = quantiles(end.weights, end.mean, np.sqrt(end.variance), (0.5, tail, 1.0 - tail))
        seen = float(self.curve.last_step or 0) / self.horizon
        factor = self.prior.widening(seen, plan.fall_to_come(seen), outlook.kinds)
        below, above = factor * np.abs(edges[1:] - edges[0])
        if ratio:
            above = math.log1p(factor * math.expm1(min(above / factor, _STEEPEST)))
        edges[1:] = edges[0] + _SIDES * np.hypot((below, above), self._half * noise)
        before = outlook.spread / max(float(outlook.spread[-1]), 1e-12)
        path = outlook.path + (edges[:, None] - outlook.path[-1]) * before
        return np.concatenate((path[:, :-2], path[:, -1:]), axis=1)

    def _told(self, points: Floats, path: Floats, outlook: Outlook) -> Forecast:
        value, low, high = path[0], path[1:].min(axis=0), path[1:].max(axis=0)
        room = 1e-9 * np.abs(value) + 1e-300  # never an empty interval, whatever the units
        low, high = np.minimum(low, value - room), np.maximum(high, value + room)
        ends = float(value[-1]), float(low[-1]), float(high[-1])
        step = int(self.curve.last_step or 0)
        return Forecast(
            *ends,
            level=self.level,
            step=step,
            horizon=self.horizon,
            status=self._status(step, outlook),
            path_steps=tuple(points.tolist()),
            path_value=tuple(value.tolist()),
            path_low=tuple(low.tolist()),
            path_high=tuple(high.tolist()),
            weights=outlook.laws,
        )

    def _status(self, step: float, outlook: Outlook) -> Status:
        if step > self.schedule.horizon:
            return Status.PAST_HORIZON
        kinds = outlook.kinds
        strange = max(kinds.get("other", 0.0) + kinds.get("vision_speech", 0.0), outlook.astray)
        if strange > 0.5 or self.contrary:
            return Status.UNFAMILIAR
        return Status.EARLY if step < 0.1 * self.horizon else Status.OK


def _path_steps(first: float, horizon: float) -> Floats:
    """Steps from the first seen to the horizon, closer together where the curve bends."""
    start = min(first / horizon, 1.0) ** (2.0 / 3.0)
    steps = horizon * (start + (1.0 - start) * _EVENLY) ** 1.5
    steps[0], steps[-1] = min(first, horizon), horizon
    return steps if (steps[1:] > steps[:-1]).all() else np.unique(steps)


def _over_observed(path: Floats, points: Floats, bins: Bins, start: float) -> Floats:
    """The path with what was observed put in where no law is fitted: before `start`."""
    return np.where(points < start, np.interp(points, bins.steps, bins.robust), path)
