"""Optuna: a pruner that gives up a trial when its final value will probably not be the best."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

try:
    from optuna.pruners import BasePruner
    from optuna.study import Study, StudyDirection
    from optuna.trial import FrozenTrial, TrialState
except ImportError as fault:
    raise ImportError("ForecastPruner needs Optuna: pip install 'scale-callbacks[sweeps]'") from fault

from scale_callbacks._text import fault_text
from scale_callbacks.due import due_between
from scale_callbacks.forecaster import FEWEST, LossForecaster
from scale_callbacks.measure import Measure, as_measure
from scale_callbacks.schedule import Schedule
from scale_callbacks.stopping import Decision
from scale_callbacks.target import TargetRule

_log = logging.getLogger("scale_callbacks")

Plan = Schedule | Callable[[FrozenTrial], Schedule]


class ForecastPruner(BasePruner):
    """Prunes a trial whose final value, as its curve and its plan foretell it, will not beat the best so far.

    A pruner that compares trials at the same step punishes high rates and long warm-ups, which are behind at
    first and ahead at the end. This one compares where trials will end. It learns from the best trial what
    runs of this search look like, never prunes before one has completed, and looks at the steps at which
    forecasts are due, at most 45 a trial, however often it is asked.

    What is reported must be what the objective returns at the end: the loss (minimised) or a score
    (maximised). Steps are counted as the schedule counts them, from 1 to its horizon; a trial that reports a
    step 0 counts from 0. A forecast needs 8 reported values: report the loss often.

    Args:
        schedule: the learning-rate plan of the trials, or a function that makes it of a trial: its
            `trial.params` hold what was suggested so far.
        confidence: probability of not becoming the best from which on a trial is pruned.
        earliest: share of the plan before which none is.
        steps_per_epoch: steps after which the data start again.
        measure: "loss", "perplexity" or "score"; by default as the study's direction says.

    Raises:
        TypeError: a schedule that is none.
        ValueError: a confidence outside 0.5 to 1, an earliest outside 0 to 1, another measure.

    >>> import optuna
    >>> study = optuna.create_study(pruner=ForecastPruner(Schedule.cosine(1.0, 1000, warmup=50)))
    """

    def __init__(
        self,
        schedule: Plan,
        *,
        confidence: float = 0.95,
        earliest: float = 0.1,
        steps_per_epoch: float | None = None,
        measure: Measure | str | None = None,
    ) -> None:
        if not (isinstance(schedule, Schedule) or callable(schedule)):
            raise TypeError(f"schedule must be a Schedule or make one of a trial, not {schedule!r}")
        TargetRule(0.0, confidence=confidence, earliest=earliest)  # says what is wrong with these
        self._schedule, self._measure = schedule, None if measure is None else as_measure(measure)
        self._confidence, self._earliest = confidence, earliest
        self._steps_per_epoch = steps_per_epoch
        self._faulty: set[int] = set()  # trials that were said not to be judged

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Tell Optuna whether to prune a trial; a fault of ours is logged and never ends a study."""
        try:
            decision = self.decide(study, trial)
        except Exception as fault:
            if trial.number not in self._faulty:
                self._faulty.add(trial.number)
                _log.warning("trial %d is not judged: %s", trial.number, fault_text(fault))
            return False
        if decision.stop:
            _log.info("trial %d is pruned: it %s", trial.number, decision.reason)
        return decision.stop

    def decide(self, study: Study, trial: FrozenTrial) -> Decision:
        """Say whether to prune a trial, and why.

        Args:
            study: with the trials before.
            trial: with the values it has reported.
        """
        steps = _steps(trial)
        if len(steps) < FEWEST:
            return Decision(reason=f"not yet: {len(steps)} of {FEWEST} values reported")
        measure = self._measure or _measure_of(study)
        if (measure is Measure.SCORE) is not (study.direction == StudyDirection.MAXIMIZE):
            raise ValueError(f"a study that is to {study.direction.name.lower()} a {measure}: see measure=")
        schedule = self._plan(trial)
        if not due_between(schedule.horizon, steps[-2], steps[-1]):
            return Decision(reason="not yet: no forecast is due")
        best = _best(study, trial)
        if best is None:
            return Decision(reason="not yet: no trial has completed")
        earlier = [self._forecaster(best, self._plan(best), measure)] if best.intermediate_values else []
        forecaster = self._forecaster(trial, schedule, measure, earlier)
        assert best.value is not None
        rule = TargetRule(best.value, confidence=self._confidence, earliest=self._earliest)
        return rule.decide(forecaster)

    def _plan(self, trial: FrozenTrial) -> Schedule:
        return self._schedule if isinstance(self._schedule, Schedule) else self._schedule(trial)

    def _forecaster(
        self,
        trial: FrozenTrial,
        schedule: Schedule,
        measure: Measure,
        earlier: Sequence[LossForecaster] = (),
    ) -> LossForecaster:
        forecaster = LossForecaster(
            schedule, references=earlier, steps_per_epoch=self._steps_per_epoch, measure=measure
        )
        values = trial.intermediate_values
        forecaster.observe(_steps(trial), [values[step] for step in sorted(values)])
        return forecaster


def _steps(trial: FrozenTrial) -> list[int]:
    """Reported steps in order, from 1 on."""
    steps = sorted(trial.intermediate_values)
    return [step + 1 for step in steps] if steps and steps[0] == 0 else steps


def _best(study: Study, trial: FrozenTrial) -> FrozenTrial | None:
    """The best trial that has completed."""
    done = [
        other
        for other in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if other.number != trial.number and other.value is not None
    ]
    pick = max if study.direction == StudyDirection.MAXIMIZE else min
    return pick(done, key=lambda other: other.value or 0.0) if done else None


def _measure_of(study: Study) -> Measure:
    return Measure.SCORE if study.direction == StudyDirection.MAXIMIZE else Measure.LOSS
