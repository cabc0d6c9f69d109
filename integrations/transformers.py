"""Transformers and TRL: callbacks that forecast the final loss, and stop when the reward has saturated."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from scale_callbacks.due import REWARDS, forecast_steps
from scale_callbacks.forecaster import LossForecaster
from scale_callbacks.integrations import trl
from scale_callbacks.integrations._agreement import Agreement
from scale_callbacks.integrations._hf_callback import WatchingCallback, guarded
from scale_callbacks.integrations._options import check
from scale_callbacks.measure import measure_of
from scale_callbacks.monitor import Monitor
from scale_callbacks.reward import RewardForecaster
from scale_callbacks.saturation import Reason, SaturationRule
from scale_callbacks.schedule import Schedule
from scale_callbacks.sinks import Sink
from scale_callbacks.stopping import Decision

_log = logging.getLogger("scale_callbacks")


class LossForecastCallback(WatchingCallback):
    """Forecasts the final value of a logged loss, from early in the run to its end.

    `Trainer(..., callbacks=[LossForecastCallback()])` is all there is to do. The forecast and its interval go
    to MLflow, Weights & Biases and TensorBoard where `report_to` names them, as `forecast/<monitor>`, `_low`
    and `_high`, and to the progress bar. Forecasts are made on process 0; the state is kept in a file of its
    own in each checkpoint, so that a resumed run forecasts as if it had never stopped.

    Nothing that goes wrong inside ends or holds up a training: it is logged once and counted in `warnings`.

    Args:
        monitor: name of a logged loss, "eval_loss" for instance; the train loss then goes along. Or of a
            perplexity or a score that rises, told by their names ("eval_accuracy").
        horizon: optimizer steps of the whole run; by default the trainer's.
        schedule: the learning-rate plan; by default read off the live scheduler.
        level: probability that the interval is to hold the final loss with.
        sinks: further takers of the forecasts, on process 0, for instance a `JsonlSink`.
        mlflow: None logs to the MLflow run there is, unless `report_to` is "none"; True makes one where there
            is none, False never logs to MLflow.
        progress_bar: show the forecast on the progress bar, in a notebook in the table.

    Raises:
        ValueError: an empty name, horizon below 1 or other than the schedule's, level outside (0, 1).
        TypeError: a schedule that is no `Schedule`, a sink that is none.
    """

    def __init__(
        self,
        monitor: str = "loss",
        *,
        horizon: int | None = None,
        schedule: Schedule | None = None,
        level: float = 0.9,
        sinks: Sequence[Sink] = (),
        mlflow: bool | None = None,
        progress_bar: bool = True,
    ) -> None:
        check(monitor, horizon=horizon, schedule=schedule, level=level, sinks=sinks)
        super().__init__(monitor, horizon, schedule, sinks, mlflow, progress_bar)
        self.level = level

    def make_monitor(self, schedule: Schedule, epoch: float | None, sinks: Sequence[Sink]) -> Monitor:
        """A monitor of the loss."""
        measure = measure_of(self.monitor)
        forecaster = LossForecaster(schedule, level=self.level, steps_per_epoch=epoch, measure=measure)
        return Monitor(forecaster, sinks=sinks, name=self.monitor)


class SaturationStoppingCallback(WatchingCallback):
    """Stops a training whose logged reward will probably not rise any more, and says why in one sentence.

    For TRL's trainers: `GRPOTrainer(..., callbacks=[SaturationStoppingCallback()])`. Process 0 decides and
    all processes stop together, at one of at most 55 steps that the length of the run alone fixes. As at
    the end of a run, there is an evaluation where `eval_strategy` is "steps", a checkpoint unless
    `save_strategy` is "no", and `load_best_model_at_end` is obeyed. The reason is the last row of
    `trainer.state.log_history` but those of that evaluation and the end.

    Args:
        monitor: name of the logged reward, or of one reward function: "accuracy_reward" finds
            "rewards/accuracy_reward/mean". "eval_reward" takes the evaluations'.
        rule: when to stop; by default `SaturationRule()`. `SaturationRule(stop_on=())` only advises.
        horizon: optimizer steps of the whole run; by default the trainer's.
        direction: "max", or "min" for a score that falls as it gets better.
        ceiling: best reward there can be, where that is known.
        sinks: takers of the forecasts and decisions, on process 0.
        mlflow: as in `LossForecastCallback`.

    Raises:
        ValueError: an empty name, horizon below 1, another direction, a ceiling that is not finite.
        TypeError: a rule that is no `SaturationRule`, a sink that is none.

    Attributes:
        stopping_reason: why the run was stopped; None while it was not.
        stopped_step: optimizer step at which it was; None while it was not.
        evidence: numbers behind the stop, on process 0.
    """

    signals = True

    def __init__(
        self,
        monitor: str = "reward",
        *,
        rule: SaturationRule | None = None,
        horizon: int | None = None,
        direction: Literal["max", "min"] = "max",
        ceiling: float | None = None,
        sinks: Sequence[Sink] = (),
        mlflow: bool | None = None,
    ) -> None:
        check(monitor, horizon=horizon, sinks=sinks)
        RewardForecaster(horizon, direction=direction, ceiling=ceiling)  # refuses what it cannot take, now
        super().__init__(monitor, horizon, None, sinks, mlflow, progress_bar=True)
        self.rule = SaturationRule() if rule is None else rule
        if not isinstance(self.rule, SaturationRule):
            raise TypeError(f"rule={rule!r} must be a SaturationRule")
        self.direction: Literal["max", "min"] = direction
        self.ceiling = ceiling
        self.stopping_reason: Reason | None = None
        self.stopped_step: int | None = None
        self.evidence: Mapping[str, float] = {}
        self._agreement: Agreement | None = None  # while training
        self._due = 0
        self._saved: int | None = None

    @property
    def decision(self) -> Decision:
        """The latest decision, on process 0."""
        return Decision() if self._watch is None else self._watch.monitor.decision

    def make_monitor(self, schedule: Schedule, epoch: float | None, sinks: Sequence[Sink]) -> Monitor:
        """A monitor of the reward."""
        forecaster = RewardForecaster(
            schedule.horizon, direction=self.direction, ceiling=self.ceiling, schedule=schedule
        )
        return Monitor(forecaster, rules=[self.rule], sinks=sinks, name=self.monitor)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to watch, ready to agree with the other processes."""
        super().on_train_begin(args, state, control, **kwargs)
        self.stopping_reason, self.stopped_step, self.evidence, self._saved = None, None, {}, None
        self._part()
        self._agreement = Agreement()
        self._due = _after(self.planned(state), state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Take the row; when a decision is due, stop on all processes or on none."""
        super().on_log(args, state, control, logs=logs, **kwargs)
        self._agree(args, state, control, logs=logs or {})

    @guarded
    def _agree(self, args: Any, state: Any, control: Any, *, logs: Mapping[str, Any]) -> None:
        if self._agreement is None or self.stopping_reason is not None or state.global_step < self._due:
            return
        # The same rows on every process, whatever has become of its watch: the processes meet here.
        evaluated = self.monitor.startswith(trl.EVAL)
        if not any(name.startswith(trl.EVAL) if evaluated else name == "loss" for name in logs):
            return
        self._due = _after(self.planned(state), state.global_step)
        if self._agreement.broadcast(not self.off and self.decision.stop):
            self._stop(args, state, control, evaluating=evaluated)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put a file of our own into the checkpoint."""
        self._saved = state.global_step
        super().on_save(args, state, control, **kwargs)

    @guarded
    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save where a stop has ended the epoch, unless that was done."""
        if self.stopped_step == state.global_step != self._saved and _value(args.save_strategy) != "no":
            control.should_save = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the sinks; forecast and decision stay readable."""
        super().on_train_end(args, state, control, **kwargs)
        self._part()

    @guarded
    def _stop(self, args: Any, state: Any, control: Any, *, evaluating: bool) -> None:
        control.should_training_stop = True
        decision, step = self.decision, state.global_step
        self.stopped_step, self.evidence = step, decision.evidence
        self.stopping_reason = Reason.of(decision) if decision.stop else Reason.SATURATED
        if not evaluating and _value(args.eval_strategy) == "steps" and step >= args.eval_delay:
            control.should_evaluate = True
        told = decision.reason if decision.stop else "decided on process 0"
        row = {"stop_monitor": self.monitor, "stop_reason": told, "epoch": state.epoch, "step": step}
        state.log_history.append(row)
        if state.is_world_process_zero:
            _log.warning("training is stopped at step %s, %s %s", f"{step:,}", self.monitor, told)

    def _part(self) -> None:
        agreement, self._agreement = self._agreement, None
        if agreement is not None:
            agreement.close()


def _after(horizon: int, step: int) -> int:
    """The first step after this one at which all processes ask whether to stop."""
    later = forecast_steps(max(horizon, 1), REWARDS)
    later = later[later > step]
    return int(later[0]) if len(later) else step + max(1, horizon // 10)


def _value(strategy: Any) -> str:
    return str(getattr(strategy, "value", strategy))
