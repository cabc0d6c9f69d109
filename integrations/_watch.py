"""One fit seen by the Lightning callback: collects the loss on the device, reads it when a window is full."""

import logging
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch

from scale_callbacks.integrations import _trainer
from scale_callbacks.integrations._source import Source, Tap, UnknownMetricError, nothing
from scale_callbacks.integrations.torch import LossWindow
from scale_callbacks.monitor import Monitor
from scale_callbacks.sinks import Record, Sink, Summary

_log = logging.getLogger("scale_callbacks")

NEVER = sys.maxsize


class Latest:
    """Sink that keeps the last record, so that it can be shown on every rank."""

    inline = True

    def __init__(self) -> None:
        self.record: Record | None = None

    def write(self, record: Record, summary: Summary) -> None:
        """Keep the record."""
        self.record = record

    def close(self, summary: Summary) -> None:
        """Do nothing."""


class Watch:
    """Collects, reads and shows; takes part in every reduction, so that no rank waits for another.

    Args:
        trainer: the trainer, at the start of its training.
        make_monitor: builds the monitor around the sinks it is given.
        sinks: the user's sinks.
        mlflow: as in `LossForecast`.
        progress_bar: show the forecast there.
        validation_names: what the validation of the sanity check has logged.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        make_monitor: Callable[[Sequence[Sink]], Monitor],
        *,
        sinks: Sequence[Sink] = (),
        mlflow: bool | None = None,
        progress_bar: bool = True,
        validation_names: frozenset[str] = frozenset(),
    ) -> None:
        self._trainer = trainer
        self._latest = Latest()
        self._mlflow = None if mlflow is False else _trainer.mlflow_sink(trainer, mlflow)
        own: list[Any] = [self._latest] if self._mlflow is None else [self._latest, self._mlflow]
        self.monitor = make_monitor([*own, *sinks])
        self.name = self.monitor.name
        self.off = False
        self._progress_bar = progress_bar
        self._every = _trainer.window_length(self.monitor.forecaster.horizon, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        self._window = LossWindow()
        self._tap = Tap(trainer, self.name, validation_names)
        self._automatic = trainer.lightning_module.automatic_optimization
        self._failed = False
        self._faults: Counter[str] = Counter()
        self._pending: list[tuple[int, float, int]] = []  # read while the source is open
        self._epoch_end: tuple[int, int] | None = None  # step and length of an epoch not read yet
        self._began = self._epoch_began = self._step = trainer.global_step
        self._boundary = self._after(self._began)
        self._asked = False
        self._patience = 0  # batches before which nothing can be due
        self._adopt(Source.OPEN)

    @property
    def warnings(self) -> Mapping[str, int]:
        """What went wrong so far, and how often."""
        return {**self.monitor.warnings, **self._faults}

    def belongs_to(self, trainer: pl.Trainer) -> bool:
        """Tell whether this trainer goes on where it was watched last."""
        return self._trainer is trainer and self._step == trainer.global_step

    def batch_ended(self, outputs: Any) -> None:
        """Collect the loss of a batch. Most steps end here, without waiting for the device."""
        try:
            value = self._tap.take(outputs)
            if value is not None:
                self._window.add(value)
        except Exception as fault:
            self.fail(fault)
        self._patience -= 1
        if self._patience <= 0:
            step = self._trainer.global_step
            if step >= self._next_read:
                self._due(step, outputs)
            # Asking for the step costs more than the rest of this hook: asked only when it may be reached.
            self._patience = self._next_read - step if self._automatic else 1

    def epoch_started(self) -> None:
        """Read what a hook after ours has logged at the end of the epoch before."""
        self.late_epoch_values()
        if self._tap.source is Source.EPOCH:
            self._tap.fresh()  # what stands there now is the epoch's that has ended
        self._epoch_began = self._trainer.global_step

    def epoch_ended(self) -> None:
        """Read a value that is logged once an epoch."""
        if self.off or self._tap.source not in (Source.OPEN, Source.EPOCH):
            return
        self._epoch_end = self._trainer.global_step, self._trainer.global_step - self._epoch_began
        if self._tap.source is Source.OPEN:
            self._settle(self._guess(lambda: self._tap.guess_at_epoch_end(last=False)))
        if self._tap.source is Source.EPOCH:
            self._read_epoch()

    def late_epoch_values(self) -> None:
        """Try again to read the value of an epoch that has ended."""
        if self.off or self._epoch_end is None:
            return
        if self._tap.source is Source.OPEN:
            self._settle(self._guess(lambda: self._tap.guess_at_epoch_end(last=True)))
            if self._tap.source is Source.OPEN and self._tap.everything_was_logged():
                self._note(f"{self._tap.unknown()}; waiting for it", None)
        if self._tap.source is Source.EPOCH:
            self._read_epoch()
        self._epoch_end = None

    def validated(self) -> None:
        """Read a value that the validation logs, with the train loss since the validation before."""
        if self.off:
            return
        if self._tap.source is Source.OPEN:
            self._settle(self._guess(self._tap.guess_at_validation))
        if self._tap.source is not Source.VALIDATION:
            return
        window, value = self._exchange(self._tap.fresh())
        if window.count:
            self._observe(self._trainer.global_step, value, extra={"train_loss": window.mean})
        else:
            self._observe(self._trainer.global_step, value)

    def close(self, outcome: str | None = None) -> None:
        """Close the sinks; the monitor stays readable."""
        self._step = self._trainer.global_step
        if outcome is not None and self._mlflow is not None:
            self._mlflow.outcome = outcome
        self.monitor.close()

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as plain data."""
        self._step = self._trainer.global_step
        if self._trainer.world_size == 1:
            self.late_epoch_values()  # a checkpoint of the epoch's end has what was logged after us
        return {
            "monitor": self.monitor.state_dict(),
            "window": self._window.totals().tolist(),
            "steps": [self._began, self._epoch_began, self._step],
            "source": int(self._tap.source),
            "pending": [list(read) for read in self._pending],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state. One that cannot be read is reported, and the run watched from here on."""
        try:
            self.monitor.load_state_dict(state["monitor"])
            same = state["steps"][2] == self._step
            if same:
                self._began, self._epoch_began, _ = state["steps"]
                self._boundary = self._after(self._began)
            self._pending = [(int(step), float(value), int(span)) for step, value, span in state["pending"]]
            self._asked = state["source"] != Source.OPEN
            self._adopt(Source(state["source"]))
            if same and self._trainer.is_global_zero:  # of the other ranks' windows nothing is saved
                self._window.restore(state["window"])
        except Exception as fault:
            self._note("the saved state cannot be used, watching from here on", fault)
            return
        if self.monitor.forecast is not None:
            f, key = self.monitor.forecast, f"forecast/{self.name}"
            metrics = {key: f.value, f"{key}_low": f.low, f"{key}_high": f.high}
            record = Record(self.name, self._step, f, self.monitor.decision, metrics)
            _trainer.show(self._trainer, record, progress_bar=self._progress_bar)

    # --- when something is due

    def _due(self, step: int, outputs: Any) -> None:
        if not self._asked:
            self._asked = True
            self._settle(self._guess(lambda: self._tap.guess_at_first_batch(outputs)))
            if self._tap.source is Source.STEP:
                value = self._tap.take(outputs)
                if value is not None:
                    self._window.add(value)
        self._next_read = self._boundary
        if step < self._boundary:
            return
        if self._tap.sampled:
            sample = self._tap.fresh()
            if sample is not None:
                self._window.add(sample)
        window, _ = self._exchange()
        span, self._began = step - self._began, step
        self._next_read = self._boundary = self._after(step)
        self._observe(step, window, span)

    def _after(self, step: int) -> int:
        """The end of the window that begins at a step: windows end on multiples, and on the horizon."""
        end = (step // self._every + 1) * self._every
        horizon = self.monitor.forecaster.horizon
        return horizon if step < horizon < end else end

    def _read_epoch(self) -> None:
        assert self._epoch_end is not None
        _, value = self._exchange(self._tap.fresh())
        if value.count or value.bad:
            step, span = self._epoch_end
            self._epoch_end = None
            self._observe(step, value, max(span, 1))

    def _exchange(self, value: torch.Tensor | None = None) -> tuple["Mean", "Mean"]:
        """Read the window and a further value, as means over all ranks; the only place that waits."""
        device = self._trainer.strategy.root_device
        parts = [torch.zeros(3, device=device)] * 2
        try:
            parts[0] = self._window.totals().to(device)
            if value is not None:
                one = LossWindow()
                one.add(value)
                parts[1] = one.totals().to(device)
            self._window.reset()
        except Exception as fault:
            self.fail(fault)
        failed = torch.full((1,), float(self._failed), device=device)
        numbers = self._sum(torch.cat((*parts, failed)))
        if numbers[6] and not self.off:
            self.off = True  # on all ranks at once
            self._note("a rank has failed, no more forecasts", None)
        return Mean(*numbers[:3]), Mean(*numbers[3:6])

    def _sum(self, numbers: torch.Tensor) -> list[float]:
        """Add up over ranks, and read. All ranks come here at the same steps, whatever happened to them."""
        try:
            if self._trainer.world_size > 1:
                numbers = self._trainer.strategy.reduce(numbers, reduce_op="sum")
        except Exception as fault:
            self.off = True
            self._note("the ranks cannot be reached, no more forecasts", fault)
        return [float(number) for number in numbers.tolist()]

    def _observe(
        self, step: int, mean: "Mean", span: int = 1, extra: Mapping[str, float] | None = None
    ) -> None:
        if self.off:
            return
        if mean.bad:
            self._note(f"{self.name} was not finite and left out", None, times=int(mean.bad))
        if not mean.count:
            if not mean.bad:
                self._note(f"{self.name} was not logged in time", None)
            return
        if self._tap.source is Source.OPEN:
            self._pending.append((step, mean.mean, span))
            return
        try:
            self.monitor.observe(step, mean.mean, extra=extra, span=span)
            if self._latest.record is not None:
                self._publish(self._latest.record)
                self._latest.record = None
        except Exception as fault:
            self.fail(fault)

    def _publish(self, record: Record) -> None:
        _trainer.show(self._trainer, record, progress_bar=self._progress_bar)
        if not self._trainer.is_global_zero:
            return
        for logger in self._trainer.loggers:
            if self._mlflow is not None and self._mlflow.covers(logger):
                continue
            try:
                logger.log_metrics(dict(record.metrics), step=_trainer.logger_step(self._trainer))
            except Exception as fault:
                self._note(f"{type(logger).__name__} failed to log", fault)

    # --- where the value comes from

    def _settle(self, guess: Source) -> None:
        """Agree with the other ranks on the source, and take the values from there."""
        agreed = int(guess)
        if self._trainer.world_size > 1:
            votes = torch.zeros(len(Source), device=self._trainer.strategy.root_device)
            votes[agreed] = 1.0
            agreed = max(i for i, count in enumerate(self._sum(votes)) if count)
        if agreed == Source.UNKNOWN:
            self.off = True
            raise UnknownMetricError(self._tap.unknown())
        if agreed != self._tap.source:
            self._adopt(Source(agreed))

    def _adopt(self, source: Source) -> None:
        self._tap.adopt(source)
        if source in (Source.EPOCH, Source.VALIDATION):
            self._boundary = NEVER
        self._next_read = self._boundary if self._asked else 0  # the first batch tells the source
        self._patience = 0
        if source is Source.OPEN:
            return
        if source in (Source.STEP, Source.EPOCH):
            self._window.reset()  # it held the loss returned, not the one logged
        pending, self._pending = self._pending, []
        if source is Source.OUTPUT:
            for step, value, span in pending:
                self._observe(step, Mean(value, 1.0, 0.0), span)

    def _guess(self, look: Callable[[], Source]) -> Source:
        try:
            return look()
        except Exception as fault:
            self.fail(fault)
            return Source.OPEN

    # --- faults

    def fail(self, fault: Exception) -> None:
        """Stop taking values. The reductions go on until all ranks know, so that none waits for us."""
        self._note("internal error, no more forecasts", fault)
        self._failed, self._tap.take = True, nothing
        if self._trainer.world_size == 1:
            self.off = True

    def _note(self, what: str, fault: Exception | None, *, times: int = 1) -> None:
        self._faults[what] += times
        if self._faults[what] == times:
            tail = "" if fault is None else f": {type(fault).__name__}: {fault}"
            _log.warning("LossForecast: %s%s (further ones are counted, training goes on)", what, tail)


@dataclass(frozen=True)
class Mean:
    """Sum of the finite values, their count, and the count of the others."""

    total: float
    count: float
    bad: float

    @property
    def mean(self) -> float:
        """The mean of the finite values."""
        return self.total / self.count
