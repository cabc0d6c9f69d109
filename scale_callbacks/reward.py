"""RewardForecaster: feed it (step, reward), ask what the rest of the budget still brings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, SupportsFloat

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scale_callbacks._numbers import as_floats
from scale_callbacks._state import check_numbers, reading
from scale_callbacks.curve import Curve
from scale_callbacks.due import REWARDS
from scale_callbacks.forecast import Forecast, Status
from scale_callbacks.outlook import Outlook, look_at
from scale_callbacks.reward_bank import Seen, look
from scale_callbacks.reward_end import LAST as LAST
from scale_callbacks.reward_end import end_of, way_to
from scale_callbacks.reward_spread import weigh
from scale_callbacks.schedule import Schedule

Floats = NDArray[np.float64]

BINS = 128  # that a run is kept in
FEWEST = 8  # observations before a forecast is made
EXTRAS = 16  # further signals kept
UNKNOWN = 1000  # steps planned for where the horizon is not known
SCHEDULED = 0.5  # how far the clock follows the learning rate: rewards go on rising at a small one
_PATH = 33


class RewardForecaster:
    """Forecasts the mean reward over the last tenth of a run, and how much of the gain is still to come.

    State is bounded whatever the run's length. Rewards that are not finite are counted and left out; an
    earlier step than the last is a restart and replaces what came after; a run that goes past its horizon
    takes it along.

    Args:
        horizon: optimizer steps of the whole run; None where that is not known: as many steps again as were
            seen are then taken to come.
        level: probability that the interval is to hold the final reward with.
        direction: "max" for a reward, "min" for a score that falls as it gets better.
        ceiling: best reward there can be, where that is known; one that was passed is no ceiling.
        schedule: the learning-rate plan: a reward also flattens because the rate goes to zero.

    Raises:
        ValueError: a horizon below 1 or other than the schedule's, level outside (0, 1), another direction,
            a ceiling that is not finite.

    >>> forecaster = RewardForecaster(400)
    >>> steps = np.arange(1, 201)
    >>> forecaster.observe(steps, 1.0 - np.exp(-steps / 20) + 0.05 * np.sin(7.0 * steps))
    >>> outlook = forecaster.outlook()
    >>> outlook.probability(0.1) < 0.1
    True
    """

    # Rewards take many shapes under autocorrelated noise: of 51 sound runs 14 would have been warned of.
    warns_of_deviation = False
    times_as_often = REWARDS  # as losses are forecasts due

    def __init__(
        self,
        horizon: int | None,
        *,
        level: float = 0.9,
        direction: Literal["max", "min"] = "max",
        ceiling: float | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        _check(horizon, level, direction, ceiling, schedule)
        self.level = float(level)
        self.direction = direction
        self.ceiling = ceiling
        self.schedule = schedule
        self.curve = Curve(self._planned(horizon), bins=BINS, robust=False)
        self.extra: dict[str, Curve] = {}
        self._horizon = horizon
        self._cache: tuple[Any, Outlook | None] | None = None

    @property
    def horizon(self) -> int:
        """The step forecast at; where it is not known, twice the last step seen."""
        last = math.ceil(self.curve.last_step or 0)
        if self._horizon is None and last:
            return 2 * last
        return max(self._planned(self._horizon), last)

    @property
    def horizon_known(self) -> bool:
        """Whether the length of the run was given."""
        return self._horizon is not None

    @property
    def sign(self) -> float:
        """1 where more is better, -1 where less is."""
        return 1.0 if self.direction == "max" else -1.0

    @property
    def settings(self) -> dict[str, str | float | int | bool]:
        """Plain values that tell how the forecasts are made."""
        return {
            "level": self.level,
            "direction": self.direction,
            "ceiling": "none" if self.ceiling is None else self.ceiling,
            "horizon": self._horizon or 0,
            "horizon_known": self.horizon_known,
            "schedule_known": self.schedule is not None,
        }

    def observe(
        self,
        steps: ArrayLike | SupportsFloat,
        rewards: ArrayLike | SupportsFloat,
        *,
        extra: Mapping[str, ArrayLike | SupportsFloat] | None = None,
    ) -> None:
        """Take in rewards, one or many.

        Args:
            steps: optimizer steps, strictly increasing within a call; an earlier one than the last rewinds.
            rewards: the rewards there; those that are not finite are counted and left out.
            extra: further values at the same steps, kept as curves of their own: "reward_std" (within groups)
                tells how noisy a step is and what learning signal is left, "frac_reward_zero_std" of groups
                without any, "step_time" (seconds a step) of hours saved.

        Raises:
            TypeError: for what is not a number.
            ValueError: for lengths that differ or steps that are negative or not increasing.
        """
        count = len(as_floats(steps, "steps"))
        for name, values in (extra or {}).items():
            if len(as_floats(values, name)) != count:
                raise ValueError(f"extra[{name!r}] must hold {count} values, one a step")
        self.curve.observe(steps, rewards)
        for name, values in (extra or {}).items():
            if name not in self.extra and len(self.extra) < EXTRAS:
                self.extra[name] = Curve(self._planned(self._horizon), bins=BINS, robust=False)
            if name in self.extra:
                self.extra[name].observe(steps, values)

    def outlook(self) -> Outlook | None:
        """What the curve says now and said before; None before 8 observations."""
        key = (self.curve.n, self.curve.last_step, self.curve.rewinds, self.curve.last_value)
        if self._cache is None or self._cache[0] != key:
            self._cache = key, self._outlook()
        return self._cache[1]

    def forecast(self) -> Forecast | None:
        """Forecast of the mean reward over the last tenth of the run, None before 8 observations."""
        outlook = self.outlook()
        if outlook is None:
            return None
        horizon = float(self.horizon)
        end = end_of(outlook, horizon=horizon, last=float(self.curve.last_step or 0), level=self.level)
        points = np.unique(np.concatenate((np.linspace(outlook.at[0], self.horizon, _PATH), [self.horizon])))
        mean, sd = way_to(outlook, points, self._clock(points), horizon=horizon, end=end)
        below, above = (end.value - end.low) * sd / end.sd, (end.high - end.value) * sd / end.sd
        edges = [self._outward(edge) for edge in (mean, mean - below, mean + above)]
        if self.direction == "min":
            edges[1], edges[2] = edges[2], edges[1]
        value, low, high = (float(edge[-1]) for edge in edges)
        return Forecast(
            value=value,
            low=low,
            high=high,
            level=self.level,
            step=int(self.curve.last_step or 0),
            horizon=self.horizon,
            status=self._status(),
            path_steps=tuple(points.tolist()),
            path_value=tuple(edges[0].tolist()),
            path_low=tuple(edges[1].tolist()),
            path_high=tuple(edges[2].tolist()),
            weights=outlook.looks.families(),
        )

    def time_constant(self) -> float | None:
        """Steps from the first observation to 63% of the expected final gain; None without gain."""
        forecast = self.forecast()
        if forecast is None:
            return None
        value = self.sign * np.array(forecast.path_value)
        gain = value[-1] - value[0]
        reached = np.flatnonzero(value - value[0] >= (1.0 - math.exp(-1.0)) * gain)
        return float(forecast.path_steps[reached[0]] - forecast.path_steps[0]) if gain > 0.0 else None

    def recent(self, name: str, share: float) -> tuple[float, float] | None:
        """(mean, lowest bin) of a further signal over the last share of the budget; None where not logged."""
        last = self.curve.last_step
        if name not in self.extra or last is None:
            return None
        bins = self.extra[name].bins()
        inside = (bins.steps > last - share * self.horizon) & (bins.steps <= last)
        if not inside.any():
            return None
        count, mean = bins.count[inside], bins.mean[inside]
        return float(mean @ count / count.sum()), float(mean.min())

    def state_dict(self) -> dict[str, Any]:
        """Everything learned from the run, as plain JSON data."""
        extra = {name: curve.state_dict() for name, curve in self.extra.items()}
        return {"version": 1, "curve": self.curve.state_dict(), "extra": extra}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; forecasts are then bit for bit those of the saved forecaster.

        Raises:
            ValueError: the state is damaged; the forecaster is then as it was before.
        """
        curve = Curve(1)
        with reading("the state of a reward forecaster"):
            check_numbers(state)
            curve.load_state_dict(state["curve"])
            extra = {str(name): Curve(1) for name in state["extra"]}
            for name, saved in extra.items():
                saved.load_state_dict(state["extra"][name])
        self.curve, self.extra, self._cache = curve, extra, None

    def _planned(self, horizon: int | None) -> int:
        return UNKNOWN if horizon is None else int(horizon)

    def _clock(self, steps: Floats) -> Floats:
        """Share of the budget at each step, in steps or half in area under the learning rate."""
        horizon = float(self.horizon)
        share = np.asarray(steps / horizon, dtype=np.float64)
        total = 0.0 if self.schedule is None else float(self.schedule.area(horizon))
        if self.schedule is None or total <= 0.0:
            return share
        area = np.asarray(self.schedule.area(np.maximum(steps, 0.0)), dtype=np.float64) / total
        return (1.0 - SCHEDULED) * share + SCHEDULED * area

    def _outlook(self) -> Outlook | None:
        bins = self.curve.bins()
        if self.curve.n < FEWEST or len(bins) < 4:
            return None
        rewards = self.sign * bins.mean
        start, scale = float(rewards[0]), float(np.ptp(rewards)) or 1.0
        weight = weigh(bins, self.extra.get("reward_std"), horizon=float(self.horizon))
        seen = Seen(self._clock(bins.steps), (rewards - start) / scale, bins.count, weight)
        ends = look_at(bins)
        finish = np.maximum(1.0 - LAST / 2.0, (bins.steps[ends] / self.horizon + 1.0) / 2.0)
        looks = look(seen, ends, self._clock(finish * self.horizon))
        level = start + scale * float(looks.weights[-1] @ looks.level[-1])
        room = math.inf
        if self.ceiling is not None and self.sign * self.ceiling >= float(rewards.max()):
            room = max(self.sign * self.ceiling - level, 0.0)
        return Outlook(looks, bins.steps[ends], seen, ends, bins.steps, scale, start, room)

    def measured(self) -> float | None:
        """What was to be forecast, once the budget is spent: the mean reward over its last tenth."""
        if float(self.curve.last_step or 0) <= (1.0 - LAST) * self.horizon:
            return None
        return self.curve.mean_after((1.0 - LAST) * self.horizon)

    def _outward(self, rewards: Floats) -> Floats:
        """Back to the reward's own direction, held below a ceiling that was never passed."""
        if self.ceiling is not None and self.curve.n:
            top = max(self.sign * self.ceiling, float((self.sign * self.curve.bins().mean).max()))
            rewards = np.minimum(rewards, top)
        return self.sign * rewards

    def _status(self) -> Status:
        last = float(self.curve.last_step or 0)
        if self._horizon is None:
            return Status.UNFAMILIAR
        if last > self._horizon:
            return Status.PAST_HORIZON
        return Status.EARLY if last < 0.1 * self.horizon else Status.OK


def _check(
    horizon: int | None, level: float, direction: str, ceiling: float | None, schedule: Schedule | None
) -> None:
    if horizon is not None and (
        isinstance(horizon, bool) or not 1 <= horizon < math.inf or horizon != int(horizon)
    ):
        raise ValueError(f"horizon={horizon!r} must be a whole number of optimizer steps, 1 or more, or None")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level={level!r} must lie between 0 and 1, for instance 0.9")
    if direction not in ("max", "min"):
        raise ValueError(f"direction={direction!r} must be 'max' or 'min'")
    if ceiling is not None and not math.isfinite(ceiling):
        raise ValueError(f"ceiling={ceiling!r} must be finite, or None where it is not known")
    if schedule is not None and schedule.horizon != horizon:
        raise ValueError(f"horizon={horizon} is not the schedule's {schedule.horizon}")
