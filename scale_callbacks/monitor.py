"""The one object an adapter holds: keeps the curve, forecasts when due, asks the rules, feeds the sinks."""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Protocol

from scale_callbacks._state import check_numbers, check_seal, finite, natural, reading, sealed
from scale_callbacks._text import fault_text
from scale_callbacks.curve import Curve
from scale_callbacks.delivery import Delivery
from scale_callbacks.deviation import Deviation, Expectation, deviation, frozen
from scale_callbacks.due import RATIO, forecast_steps
from scale_callbacks.forecast import Forecast
from scale_callbacks.measure import Measure, remedy
from scale_callbacks.schedule import Schedule
from scale_callbacks.sinks import ForecastPoint, Record, Setting, Sink, Summary
from scale_callbacks.stopping import Decision, Rule

_log = logging.getLogger("scale_callbacks")

STATE_VERSION = 2  # 1: without expectations and deviation


class Forecaster(Protocol):
    """What the monitor needs of a forecaster."""

    @property
    def schedule(self) -> Schedule | None: ...  # noqa: D102
    @property
    def curve(self) -> Curve: ...  # noqa: D102
    @property
    def horizon(self) -> int: ...  # noqa: D102
    @property
    def settings(self) -> Mapping[str, Setting]: ...  # noqa: D102
    def observe(self, steps: Any, losses: Any, *, extra: Any = None) -> None: ...  # noqa: D102
    def forecast(self) -> Forecast | None: ...  # noqa: D102
    def measured(self) -> float | None: ...  # noqa: D102
    def state_dict(self) -> dict[str, Any]: ...  # noqa: D102
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...  # noqa: D102


class Monitor:
    """Watches one run: hand it every loss, it forecasts when due and never raises in mid-training.

    A plain loop uses it directly; every adapter holds one. What fails inside (a law, a rule, a sink) is
    logged once, counted in `warnings`, and does not reach the run.

    Args:
        forecaster: a `LossForecaster` or `RewardForecaster`.
        rules: asked in this order whenever a forecast is due; the first that wants to stop is heard.
        sinks: take each forecast and, at `close`, the summary.
        name: the monitored metric, for instance "train_loss".

    Attributes:
        forecast: the latest forecast; None before there is one.
        decision: the latest decision.
        deviation: how far the loss is from what was forecast for it; None before that can be said.
        history: all forecasts so far: 45 of a loss, 55 of a reward, at most, until the plan ends.
    """

    def __init__(
        self,
        forecaster: Forecaster,
        *,
        rules: Sequence[Rule] = (),
        sinks: Sequence[Sink] = (),
        name: str = "loss",
    ) -> None:
        for rule in rules:
            if not isinstance(rule, Rule):
                raise TypeError(f"rule {rule!r} has no method decide(forecaster)")
        for sink in sinks:
            if not isinstance(sink, Sink):
                raise TypeError(f"sink {sink!r} has no methods write(record, summary) and close(summary)")
        self.forecaster = forecaster
        self.name = name
        self.forecast: Forecast | None = None
        self.decision = Decision()
        self.deviation: Deviation | None = None
        self.history: list[ForecastPoint] = []
        self._rules = tuple(rules)
        self._delivery = Delivery(sinks)
        self._faults: Counter[str] = Counter()
        self._plan = forecast_steps(forecaster.horizon, getattr(forecaster, "times_as_often", 1.0))
        self._fired: list[int] = []
        self._expected: list[Expectation] = []  # of each forecast in the history
        self._last_step = 0
        self._observed = False
        self._closed = False
        self._next_due = int(self._plan[0])

    def observe(
        self, step: float, value: float, *, extra: Mapping[str, float] | None = None, span: int = 1
    ) -> Decision:
        """Take the value of a step; forecast, decide and log when that is due.

        A step at or before the last one is a restart from a checkpoint: it replaces what came after.

        Args:
            step: optimizer step, 1 or more (0 for an evaluation before training).
            value: loss or reward at this step, or its mean over the last `span` steps.
            extra: further metrics seen at this step.
            span: steps the value is the mean of; it is placed at their middle.

        Returns:
            The latest decision.

        Raises:
            TypeError, ValueError: the first observation ever is not a number or the step is none. Later ones
                are left out and counted.
        """
        try:
            self.forecaster.observe(step - (span - 1) / 2, value, extra=extra)
            if step <= self._last_step and self._observed:
                self._rewind(step)
        except Exception as fault:
            if not self._observed:
                raise
            self._note("observation left out", fault)
            # Forecast all the same: other ranks do, and the plan alone is to decide when.
            if not _planned(step, self.forecaster.horizon):
                return self.decision
        else:
            self._observed = True
            self._last_step = int(step)
        if step >= self._next_due:
            self._fire(int(step))
        return self.decision

    def due(self, step: float) -> bool:
        """Tell whether an observation at this step makes a forecast."""
        return step >= self._next_due

    @property
    def warnings(self) -> Mapping[str, int]:
        """What went wrong so far, and how often."""
        self._hear_of_sinks()
        counts = dict(self._faults)
        if self.forecaster.curve.nonfinite:
            counts[f"{self.name} was not finite and left out"] = self.forecaster.curve.nonfinite
        return counts

    def summary(self) -> Summary:
        """Snapshot of the run so far."""
        finished, measured = self._last_step >= self.forecaster.horizon, None
        if finished:
            measured = self.forecaster.measured()
            if measured is None:  # the last mean that was logged lies, by its middle, before the last 1%
                measured = self.forecaster.curve.last_value
        return Summary(
            name=self.name,
            horizon=self.forecaster.horizon,
            schedule=self.forecaster.schedule,
            bins=self.forecaster.curve.bins(),
            last_step=self._last_step,
            history=tuple(self.history),
            forecast=self.forecast,
            decision=self.decision,
            settings=dict(self.forecaster.settings),
            warnings=self.warnings,
            deviation=self.deviation,
            finished=finished,
            measured=measured,
        )

    def flush(self, seconds: float = 5.0) -> bool:
        """Wait until the sinks have taken every forecast so far; False when the time was too short."""
        return self._delivery.flush(seconds)

    def close(self) -> None:
        """Hand the summary to the sinks, and wait a few seconds at most. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self._delivery.close(self.summary())
        except Exception as fault:
            self._note("closing failed", fault)
        self._hear_of_sinks()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as plain JSON-able data."""
        self._hear_of_sinks()
        state = {
            "version": STATE_VERSION,
            "forecaster": self.forecaster.state_dict(),
            "forecast": None if self.forecast is None else self.forecast.to_dict(),
            "decision": self.decision.to_dict(),
            "deviation": None if self.deviation is None else self.deviation.to_dict(),
            "history": [[p.step, p.value, p.low, p.high, str(p.status)] for p in self.history],
            "expected": [expectation.to_list() for expectation in self._expected],
            "fired": list(self._fired),
            "last_step": self._last_step,
            "observed": self._observed,
            "faults": dict(self._faults),
        }
        return sealed(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: the state is damaged, or was written by a newer version of this package; the monitor
                is then as it was before.
        """
        with reading("the state of a monitor"):
            version = natural(state["version"])
        if version > STATE_VERSION:
            raise ValueError(
                f"monitor state has version {version}, this package reads up to {STATE_VERSION}: "
                "update scale-callbacks"
            )
        with reading("the state of a monitor"):
            check_numbers(state)
            check_seal(state)
            forecast = None if state["forecast"] is None else Forecast.from_dict(state["forecast"])
            away = state.get("deviation")
            deviation = None if away is None else Deviation.from_dict(away)
            history = [_point(*point) for point in state["history"]]
            expected = [Expectation.from_list(data) for data in state.get("expected", ())]
            fired = [natural(step) for step in state["fired"]]
            last, observed = int(finite([state["last_step"]])[0]), bool(state["observed"])
            faults = Counter({str(what): natural(count) for what, count in state["faults"].items()})
            decision = Decision.from_dict(state["decision"])
            self.forecaster.load_state_dict(state["forecaster"])
        self.forecast, self.decision, self.deviation, self.history = forecast, decision, deviation, history
        self._expected, self._fired, self._last_step, self._observed = expected, fired, last, observed
        self._faults = faults
        self._next_due = self._due_after(fired[-1] if fired else 0)

    def _rewind(self, step: float) -> None:
        self._fired = [fired for fired in self._fired if fired < step]
        kept = [point for point in self.history if point.step < step]
        if undone := len(self.history) - len(kept):
            del self._expected[-undone:]
        self.history = kept
        self._next_due = self._due_after(self._fired[-1] if self._fired else 0)

    def _due_after(self, step: int) -> int:
        i = int(self._plan.searchsorted(step, side="right"))
        if i < len(self._plan):
            return int(self._plan[i])
        return math.ceil(step * RATIO)  # past the horizon: rarer and rarer

    def _fire(self, step: int) -> None:
        """Forecast, decide, and only then take note: one that is interrupted is made at the next step."""
        try:
            forecast = self.forecaster.forecast()
            decision = self._decide()
            away = deviation(self._expected, self.forecaster.curve, self.forecaster.horizon)
        except Exception as fault:
            self._note("forecast failed", fault)
            self._fired.append(step)
            self._next_due = self._due_after(step)
            return
        self.forecast, self.decision, self.deviation = forecast, decision, away
        if forecast is not None:
            f = forecast
            self.history.append(ForecastPoint(step, f.value, f.low, f.high, str(f.status)))
            self._expected.append(Expectation.of(f))
        self._look_for_trouble()
        self._fired.append(step)
        self._next_due = self._due_after(step)
        if self._delivery:
            self._deliver(step)

    def _deliver(self, step: int) -> None:
        try:
            record = Record(self.name, step, self.forecast, self.decision, self._metrics(step))
            self._delivery.write(record, self.summary())
        except Exception as fault:
            self._note("forecast not handed to the sinks", fault)
        self._hear_of_sinks()

    def _decide(self) -> Decision:
        decisions = []
        for rule in self._rules:
            try:
                decisions.append(rule.decide(self.forecaster))
            except Exception as fault:
                self._note(f"{type(rule).__name__} failed to decide", fault)
        stops = [decision for decision in decisions if decision.stop]
        return next(iter(stops or decisions), Decision())

    def _metrics(self, step: int) -> dict[str, float]:
        metrics: dict[str, float] = {}
        if self.forecast is not None:
            key = f"forecast/{self.name}"
            metrics |= {
                key: self.forecast.value,
                f"{key}_low": self.forecast.low,
                f"{key}_high": self.forecast.high,
            }
        if self.deviation is not None:
            metrics["forecast/deviation"] = self.deviation.score
        if self.forecaster.schedule is not None:
            metrics["lr_area"] = self.forecaster.schedule.area(step)
            metrics["lr_annealing_area"] = self.forecaster.schedule.annealing_area(step)
        return metrics

    def _look_for_trouble(self) -> None:
        told = getattr(self.forecaster, "warns_of_deviation", True)
        if told and self.deviation is not None and self.deviation.outside:
            self._count(f"{self.name} left its forecast band", self.deviation.sentence(self.name))
        if getattr(self.forecaster, "contrary", False):
            self._count(
                f"{self.name} moves the wrong way", remedy(getattr(self.forecaster, "measure", Measure.LOSS))
            )
        if frozen(self.forecaster.curve.bins()):
            self._count(f"{self.name} does not change", "the same value at every step of late")

    def _hear_of_sinks(self) -> None:
        for what, fault in self._delivery.faults():
            self._note(what, fault)

    def _note(self, what: str, fault: BaseException) -> None:
        self._count(what, fault_text(fault))

    def _count(self, what: str, detail: str) -> None:
        """Count what went wrong; log its first time (logging, since a warning may become an error)."""
        self._faults[what] += 1
        if self._faults[what] == 1:
            _log.warning("%s: %s (further ones are counted, training goes on)", what, detail)


def _point(step: Any, value: Any, low: Any, high: Any, status: Any) -> ForecastPoint:
    middle, bottom, top = finite([value, low, high])
    return ForecastPoint(natural(step), middle, bottom, top, str(status))


def _planned(step: Any, horizon: int) -> bool:
    return isinstance(step, Real) and bool(step <= horizon)
