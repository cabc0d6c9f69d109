"""Lightning: one callback that forecasts the final loss while the run goes on."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from scale_callbacks.forecast import Forecast
from scale_callbacks.forecaster import LossForecaster
from scale_callbacks.integrations import _trainer
from scale_callbacks.integrations._options import check
from scale_callbacks.integrations._outlet import Outlet
from scale_callbacks.integrations._planner import UNKNOWN_LENGTH, Planner
from scale_callbacks.integrations._source import UnknownMetricError
from scale_callbacks.integrations._watch import Watch
from scale_callbacks.measure import measure_of
from scale_callbacks.monitor import Monitor
from scale_callbacks.schedule import Schedule
from scale_callbacks.sinks import Sink
from scale_callbacks.stopping import Rule

PACE_CHECKS = (16, 256, 4096)  # batches into an epoch after which manual optimisation is timed


class LossForecast(Callback):
    """Forecasts the final value of a logged loss, from early in the run to its end.

    The forecast and its interval go to `trainer.callback_metrics`, to the trainer's loggers and to the
    progress bar, as `forecast/<monitor>`, `_low` and `_high`. Steps are optimizer steps
    (`trainer.global_step`; with several optimizers Lightning counts the steps of all of them). The loss is
    collected on the device, in 500 to 1,000 windows a run, which are read when a forecast is due, at most
    some fifty times; no other step waits for the device. In manual optimisation each window is read.

    Nothing that goes wrong inside ends or holds up a training: it is logged once and the callback switches
    itself off. Only set-up errors are raised: bad arguments, a length that cannot be known, a name that
    nothing logs.

    Args:
        monitor: name of a logged training or validation loss, or of a perplexity or a score that rises, told
            by their names ("val_ppl", "val_acc"). A module that logs nothing in training is watched by the
            loss its `training_step` returns.
        horizon: optimizer steps of the whole run; by default from the trainer's `max_steps` and `max_epochs`.
        schedule: the learning-rate plan; by default read off the live optimizer and scheduler.
        level: probability that the interval is to hold the final loss with.
        sinks: further takers of the forecasts, on rank 0, for instance a `JsonlSink`.
        mlflow: None logs to an MLflow run where there is one, True makes one, False never logs to MLflow.
        progress_bar: show the forecast on the progress bar.

    Raises:
        ValueError: an empty name, horizon below 1 or other than the schedule's, level outside (0, 1).
        TypeError: a schedule that is no `Schedule`, a sink that is none.

    Attributes:
        monitor: name of the watched metric.
    """

    def __init__(
        self,
        monitor: str = "train_loss",
        *,
        horizon: int | None = None,
        schedule: Schedule | None = None,
        level: float = 0.9,
        sinks: Sequence[Sink] = (),
        mlflow: bool | None = None,
        progress_bar: bool = True,
    ) -> None:
        check(monitor, horizon=horizon, schedule=schedule, level=level, sinks=sinks)
        self.monitor = monitor
        self.horizon = horizon
        self.schedule = schedule
        self.level = level
        self.sinks = tuple(sinks)
        self.mlflow = mlflow
        self.progress_bar = progress_bar
        self._watch: Watch | None = None
        self._loaded: dict[str, Any] | None = None
        self._alone = False
        self._validation_names: frozenset[str] = frozenset()

    @property
    def forecast(self) -> Forecast | None:
        """The latest forecast; None before there is one."""
        return None if self._watch is None else self._watch.monitor.forecast

    @property
    def warnings(self) -> Mapping[str, int]:
        """What went wrong so far, and how often."""
        return {} if self._watch is None else self._watch.warnings

    @property
    def mlflow_sink(self) -> Any:
        """What writes to the MLflow run; None where there is none."""
        return None if self._watch is None else self._watch.mlflow_sink

    @property
    def state_key(self) -> str:
        """Name of this callback's state in a checkpoint."""
        return self._generate_state_key(monitor=self.monitor)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a run whose end cannot be known, before anything is loaded."""
        self._validation_names = frozenset()
        if self.horizon is None and self.schedule is None and _trainer.length_is_unknown(trainer):
            raise ValueError(UNKNOWN_LENGTH)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the plan off the trainer, and go on from a checkpoint where there is one."""
        state = self._state_to_continue(trainer)
        self._watch = self._start(Watch, trainer, state)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Collect the loss; read it when a window is full."""
        watch = self._watch
        if watch is None or watch.off:
            return
        try:
            watch.batch_ended(outputs)
        except UnknownMetricError:
            raise
        except Exception as fault:
            watch.fail(fault)
        if batch_idx + 1 in PACE_CHECKS and not pl_module.automatic_optimization:
            self._tell(lambda watch: watch.check_pace(batch_idx + 1, whole_epoch=False))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read a loss that the module has logged at the end of the epoch before."""
        self._tell(Watch.epoch_started)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read a loss that is logged once an epoch."""
        if not pl_module.automatic_optimization and not trainer.should_stop:
            batches = trainer.fit_loop.epoch_loop.batch_idx + 1
            self._tell(lambda watch: watch.check_pace(batches, whole_epoch=True))
        self._tell(Watch.epoch_ended)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read a loss that the validation logs."""
        if trainer.sanity_checking:
            self._validation_names = frozenset(trainer.callback_metrics)
        elif trainer.state.fn == "fit":
            self._tell(Watch.validated)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read what is left, and close the sinks."""
        self._tell(Watch.late_epoch_values)
        self._tell(Watch.catch_up)
        self._tell(Watch.close)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Close the sinks of a run that failed or was interrupted."""
        self._alone = True  # the other ranks may still train: they are not asked any more
        outcome = "KILLED" if isinstance(exception, KeyboardInterrupt) else "FAILED"
        self._tell(lambda watch: watch.close(outcome))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the sinks, should nothing else have done so."""
        if stage == "fit":
            self._tell(Watch.close)

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, as plain JSON-able data."""
        if self._watch is None:
            return self._loaded or {}
        return self._watch.state()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put in what the other ranks have collected: a checkpoint is written by all ranks together."""
        if trainer.world_size == 1 or self._watch is None or self._alone:
            return
        try:
            state = self._watch.state(together=True)
        except Exception as fault:
            self._watch.fail(fault)
        else:
            checkpoint["callbacks"][self.state_key] = state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of a checkpoint for the training that is to start from it."""
        self._loaded = state_dict

    def __getstate__(self) -> dict[str, Any]:
        # The watch holds device memory, threads and open files; its state is plain data.
        return {**self.__dict__, "_watch": None, "_loaded": self.state_dict() or None}

    def _tell(self, hook: Callable[[Watch], None]) -> None:
        """Call the watch, and let nothing that fails in it reach the training."""
        if self._watch is None:
            return
        try:
            hook(self._watch)
        except UnknownMetricError:
            raise
        except Exception as fault:
            self._watch.fail(fault)

    def _forecaster(self, schedule: Schedule, epoch: float) -> Any:
        """The forecaster of a plan, with so many steps an epoch."""
        several = 0 < epoch < schedule.horizon
        steps = epoch if several else None
        measure = measure_of(self.monitor)
        return LossForecaster(schedule, level=self.level, steps_per_epoch=steps, measure=measure)

    def _start(
        self, watch: type[Watch], trainer: pl.Trainer, state: Any, rules: Sequence[Rule] = ()
    ) -> Watch:
        """Watch a fit from here on."""
        self._alone = False
        saved: Mapping[str, Any] = state or {}
        planner = Planner(trainer, horizon=self.horizon, schedule=self.schedule, state=saved.get("planner"))

        def monitor(schedule: Schedule, sinks: Sequence[Sink]) -> Monitor:
            forecaster = self._forecaster(schedule, planner.epoch_steps)
            return Monitor(forecaster, rules=rules, sinks=sinks, name=self.monitor)

        dry = bool(trainer.fast_dev_run) or not trainer.is_global_zero  # type: ignore[attr-defined]
        outlet = Outlet(
            trainer,
            monitor,
            sinks=() if dry else self.sinks,
            mlflow=None if dry or self.mlflow is False else self._mlflow_sink(trainer, saved.get("mlflow")),
            progress_bar=self.progress_bar,
        )
        return watch(trainer, planner, outlet, validation_names=self._validation_names, state=state)

    def _mlflow_sink(self, trainer: pl.Trainer, resume: Any) -> Any:
        """The sink of the MLflow run; a second callback writes to the first one's, under its own names."""
        for other in trainer.callbacks[: trainer.callbacks.index(self)]:  # type: ignore[attr-defined]
            first = other.mlflow_sink if isinstance(other, LossForecast) else None
            if first is not None:
                prefix = f"forecast-{re.sub(r'[^A-Za-z0-9_.]+', '_', self.monitor)}"
                beside = {**first.state_dict(), "own": False}
                return _trainer.mlflow_sink(trainer, self.mlflow, prefix=prefix, resume=beside)
        return _trainer.mlflow_sink(trainer, self.mlflow, resume=resume)

    def _state_to_continue(self, trainer: pl.Trainer) -> dict[str, Any] | None:
        """The state of a checkpoint, or of an earlier fit that this one goes on from."""
        state, self._loaded = self._loaded, None
        step = trainer.global_step
        if state is None and self._watch is not None and self._watch.belongs_to(trainer):
            state = self.state_dict()
        self._watch = None
        return state if step > 0 else None
