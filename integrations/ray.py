"""Ray Tune: a stopper that ends a trial when its final value will probably not be the best."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

try:
    from ray.tune import Stopper
except ImportError as fault:
    raise ImportError("ForecastStopper needs Ray Tune: pip install 'scale-callbacks[sweeps]'") from fault

from scale_callbacks._text import fault_text
from scale_callbacks.due import due_between
from scale_callbacks.forecaster import LossForecaster
from scale_callbacks.measure import Measure, measure_of
from scale_callbacks.schedule import Schedule
from scale_callbacks.stopping import Decision
from scale_callbacks.target import TargetRule

_log = logging.getLogger("scale_callbacks")

Plan = Schedule | Callable[[Mapping[str, Any]], Schedule]


class ForecastStopper(Stopper):
    """Ends a trial whose final value, as its curve and its plan foretell it, will not beat the best so far.

    `RunConfig(stop=ForecastStopper("loss", schedule=...))`. Schedulers that compare trials at the same step
    punish high rates and long warm-ups, which are behind at first and ahead at the end; this compares where
    trials will end. None is ended before another has completed its plan, so run fewer trials at once than
    there are. It looks at the steps at which forecasts are due, at most 45 a trial. Nothing that goes wrong
    in it ends a trial: it is logged.

    Args:
        metric: what `tune.report` calls the loss or score.
        schedule: the learning-rate plan of the trials, in the steps that are reported, or a function that
            makes it of a trial's config.
        mode: "min" for a loss, "max" for a score.
        confidence: probability of not becoming the best from which on a trial is ended.
        earliest: share of the plan before which none is.
        steps_per_epoch: steps after which the data start again.
        time: what is reported of the step.

    Raises:
        TypeError: a schedule that is none.
        ValueError: another mode, a confidence outside 0.5 to 1, an earliest outside 0 to 1.
    """

    def __init__(
        self,
        metric: str,
        *,
        schedule: Plan,
        mode: Literal["min", "max"] = "min",
        confidence: float = 0.95,
        earliest: float = 0.1,
        steps_per_epoch: float | None = None,
        time: str = "training_iteration",
    ) -> None:
        if not (isinstance(schedule, Schedule) or callable(schedule)):
            raise TypeError(f"schedule must be a Schedule or make one of a config, not {schedule!r}")
        if mode not in ("min", "max"):
            raise ValueError(f"mode={mode!r} must be 'min' or 'max'")
        TargetRule(0.0, confidence=confidence, earliest=earliest)  # says what is wrong with these
        self._metric, self._schedule, self._time = metric, schedule, time
        self._confidence, self._earliest = confidence, earliest
        self._steps_per_epoch = steps_per_epoch
        told = Measure.SCORE if mode == "max" else measure_of(metric)
        self._measure = Measure.LOSS if mode == "min" and told is Measure.SCORE else told
        self._running: dict[str, LossForecaster] = {}
        self._faulty: set[str] = set()  # trials that were said not to be judged
        self._best: tuple[float, LossForecaster] | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Tell Ray Tune whether to end a trial, given what it has just reported."""
        try:
            decision = self.decide(trial_id, result)
        except Exception as fault:
            if trial_id not in self._faulty:
                self._faulty.add(trial_id)
                _log.warning("trial %s is not judged: %s", trial_id, fault_text(fault))
            return False
        if decision.stop:
            self._running.pop(trial_id, None)
            _log.info("trial %s is ended: it %s", trial_id, decision.reason)
        return decision.stop

    def stop_all(self) -> bool:
        """Never end the whole experiment."""
        return False

    def decide(self, trial_id: str, result: Mapping[str, Any]) -> Decision:
        """Take in a result, and say whether to end its trial, and why."""
        if self._metric not in result:
            return Decision(reason=f"not yet: no {self._metric} reported")
        if trial_id not in self._running:
            if result.get("done"):
                return Decision(reason="it has ended")
            self._running[trial_id] = self._forecaster(result.get("config", {}))
        forecaster, step = self._running[trial_id], float(result[self._time])
        before = float(forecaster.curve.last_step or 0)
        if step > before:  # the last result of a trial comes twice
            forecaster.observe(step, result[self._metric])
        if step >= forecaster.schedule.horizon or result.get("done"):
            self._ended(trial_id, step)
            return Decision(reason="it has ended")
        if self._best is None:
            return Decision(reason="not yet: no trial has completed")
        if not due_between(forecaster.schedule.horizon, before, step):
            return Decision(reason="not yet: no forecast is due")
        rule = TargetRule(self._best[0], confidence=self._confidence, earliest=self._earliest)
        return rule.decide(forecaster)

    def _forecaster(self, config: Mapping[str, Any]) -> LossForecaster:
        schedule = self._schedule if isinstance(self._schedule, Schedule) else self._schedule(config)
        return LossForecaster(
            schedule,
            references=() if self._best is None else (self._best[1],),
            steps_per_epoch=self._steps_per_epoch,
            measure=self._measure,
        )

    def _ended(self, trial_id: str, step: float) -> None:
        """Keep a trial that has completed its plan, where it is the best."""
        forecaster = self._running.pop(trial_id)
        final = forecaster.measured()
        if final is None:
            final = forecaster.curve.last_value
        if final is None or step < forecaster.schedule.horizon:
            return
        rises = self._measure is Measure.SCORE
        if self._best is None or (final > self._best[0] if rises else final < self._best[0]):
            self._best = final, forecaster
