"""Lightning: stops RL post-training when the reward has saturated."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from scale_callbacks.due import REWARDS, forecast_steps
from scale_callbacks.integrations._ranks import Mean
from scale_callbacks.integrations._watch import Watch
from scale_callbacks.integrations.lightning import LossForecast
from scale_callbacks.reward import RewardForecaster
from scale_callbacks.saturation import Reason, SaturationRule
from scale_callbacks.schedule import Schedule
from scale_callbacks.sinks import Sink
from scale_callbacks.stopping import Decision

SIGNALS = ("frac_reward_zero_std", "reward_std", "kl", "entropy")  # taken along where the module logs them


class SaturationStopping(LossForecast):
    """Stops a training whose logged reward will probably not rise any more, and says why in one sentence.

    The forecast of the reward goes where `LossForecast` puts that of a loss. Whether to stop is asked at most
    55 times a run, at steps that the plan alone decides; all ranks stop together. `min_steps`
    and `min_epochs` of the trainer are obeyed. Nothing that goes wrong inside ends a training.

    Args:
        monitor: name of the logged reward.
        rule: when to stop; by default `SaturationRule()`. `SaturationRule(stop_on=())` only advises.
        horizon: optimizer steps of the whole run; by default from the trainer.
        direction: "max", or "min" for a score that falls as it gets better.
        ceiling: best reward there can be, where that is known.
        restore_best: after a stop, load the weights of the checkpoint callback's best checkpoint.
        sinks: takers of the forecasts and decisions, on rank 0.

    Attributes:
        decision: the latest decision, on every rank.
        stopping_reason: why the run was stopped; None while it was not.
        stopped_step: optimizer step at which it was; None while it was not.
        evidence: numbers behind the stop.
    """

    def __init__(
        self,
        monitor: str = "reward",
        *,
        rule: SaturationRule | None = None,
        horizon: int | None = None,
        direction: Literal["max", "min"] = "max",
        ceiling: float | None = None,
        restore_best: bool = False,
        sinks: Sequence[Sink] = (),
    ) -> None:
        super().__init__(monitor, horizon=horizon, sinks=sinks)
        RewardForecaster(horizon, direction=direction, ceiling=ceiling)  # refuses what it cannot take, now
        self.rule = SaturationRule() if rule is None else rule
        if not isinstance(self.rule, SaturationRule):
            raise TypeError(f"rule={rule!r} must be a SaturationRule")
        self.direction = direction
        self.ceiling = ceiling
        self.restore_best = restore_best
        self.stopping_reason: Reason | None = None
        self.stopped_step: int | None = None
        self.evidence: Mapping[str, float] = {}
        self._due = 0

    @property
    def decision(self) -> Decision:
        """The latest decision."""
        return Decision() if self._watch is None else self._watch.monitor.decision

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the plan off the trainer, and go on from a checkpoint where there is one."""
        state = self._state_to_continue(trainer)
        self.stopping_reason, self.stopped_step, self.evidence = None, None, {}
        self._watch = self._start(_RewardWatch, trainer, state, rules=[self.rule])
        self._due = _after(self._watch.schedule.horizon, trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Collect the reward; when a decision is due, stop on all ranks or on none."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        step = trainer.global_step
        if self._watch is None or step < self._due:
            return
        # The same steps on every rank, whatever has become of it: the ranks meet here.
        self._due = _after(self._watch.monitor.forecaster.horizon, step)
        want = self.decision.stop and not self._watch.off and _may_stop(trainer)
        if self.stopping_reason is None and trainer.strategy.reduce_boolean_decision(want, all=False):
            self._stop(trainer, step)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Load the best weights, where that was asked for and there are any."""
        best = getattr(trainer.checkpoint_callback, "best_model_path", "")
        if not (self.restore_best and self.stopping_reason is not None and best):
            return
        try:
            trainer.strategy.load_model_state_dict(trainer.strategy.load_checkpoint(best), strict=True)
        except Exception as fault:
            if self._watch is not None:
                self._watch.fail(fault)

    def _forecaster(self, schedule: Schedule, epoch: float) -> Any:
        return RewardForecaster(
            schedule.horizon, direction=self.direction, ceiling=self.ceiling, schedule=schedule
        )

    def _stop(self, trainer: pl.Trainer, step: int) -> None:
        trainer.should_stop = True
        decision = self.decision
        self.stopped_step, self.evidence = step, decision.evidence
        self.stopping_reason = Reason.of(decision) if decision.reason else Reason.SATURATED
        if trainer.is_global_zero:
            rank_zero_info(f"{self.monitor} at step {step:,}: {decision.reason}")


class _RewardWatch(Watch):
    """A watch that takes no loss for a reward, and further signals along, at the time of each window."""

    by_output = patient = False

    def __init__(self, *args: Any, **options: Any) -> None:
        self._last_read = (time.perf_counter(), -1)
        super().__init__(*args, **options)

    def _observe(
        self, step: int, mean: Mean, span: int = 1, extra: Mapping[str, float] | None = None
    ) -> None:
        now, (before, last) = time.perf_counter(), self._last_read
        self._last_read = now, step
        signals = dict(extra or {})
        if 0 <= last < step:
            signals["step_time"] = (now - before) / (step - last)
        if not self.off:
            logged = self._trainer.callback_metrics
            signals |= {name: float(logged[name]) for name in SIGNALS if name in logged}
        super()._observe(step, mean, span, signals or None)


def _after(horizon: int, step: int) -> int:
    later = forecast_steps(horizon, REWARDS)
    later = later[later > step]
    return int(later[0]) if len(later) else horizon + max(1, horizon // 10) * (1 + step // max(1, horizon))


def _may_stop(trainer: pl.Trainer) -> bool:
    """Whether `min_steps` and `min_epochs` are met."""
    steps, epochs = trainer.min_steps or 0, trainer.min_epochs or 0
    return trainer.global_step >= steps and trainer.current_epoch + 1 >= epochs
