"""One fit seen by the Lightning callback: collects losses on the device, reads them for a forecast."""

from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl

from scale_callbacks.integrations import _plan, _trainer
from scale_callbacks.integrations._collector import Collector
from scale_callbacks.integrations._finder import GRACE, Finder
from scale_callbacks.integrations._outlet import Notes, Outlet
from scale_callbacks.integrations._planner import Planner
from scale_callbacks.integrations._ranks import Mean, Ranks
from scale_callbacks.integrations._rhythm import NEVER, UNREAD, Rhythm
from scale_callbacks.integrations._source import Source, Tap, UnknownMetricError, nothing
from scale_callbacks.schedule import Schedule

STATE_VERSION = 2  # 1: one window, no plan, no MLflow run
PATIENCE = 0.05  # seconds in which sinks may finish with a plan that is given up


class Watch:
    """Collects, reads and shows; takes part in every reduction, so that no rank waits for another.

    Args:
        trainer: the trainer, at the start of its training.
        planner: reads the plan off the trainer.
        outlet: where the forecasts go.
        validation_names: what the validation of the sanity check has logged.
        state: what `state` gave before a restart, where there was one.

    Attributes:
        monitor: keeps the curve and forecasts.
        schedule: the plan that is followed.
        off: nothing is watched any more.
    """

    by_output = True  # a module that logs nothing is watched by the loss it returns
    patient = True  # windows are read when a forecast is due, not each when it is full

    def __init__(
        self,
        trainer: pl.Trainer,
        planner: Planner,
        outlet: Outlet,
        *,
        validation_names: frozenset[str] = frozenset(),
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._trainer, self._planner, self._outlet = trainer, planner, outlet
        self._step = step = trainer.global_step
        self._heard = self._epoch_began = step
        before, now = _plan.saved_plan(state), planner.plan()
        self.schedule = now if before is None else _plan.continued(before, now, step)
        self.monitor = outlet.monitor(self.schedule)
        self.name = self.monitor.name
        self.off = False
        self._note = Notes()
        self._rhythm = Rhythm(self.schedule.horizon, self._window_length(), step)
        self._ranks = Ranks(trainer, self._note)
        self._collector = Collector(self._ranks, self.fail)
        self._tap = Tap(trainer, self.name, validation_names, by_output=self.by_output)
        self._automatic = trainer.lightning_module.automatic_optimization
        # In manual optimisation the plan may turn out to be another between two forecasts.
        self._most_unread = UNREAD if self.patient and self._automatic else 1
        self._pending: list[tuple[int, float, int]] = []  # read while the source is open
        self._epoch_end: tuple[int, int] | None = None  # step and length of an epoch not read yet
        self._finder = Finder(self._tap, self._ranks, self._note, self.fail, step)
        self._next_read = self._patience = 0  # step and batches before which nothing can be due
        self._adopt(Source.OPEN)
        if state is not None:
            self._load(state)
        if before is not None and before != self.schedule:
            self._note(f"resumed with another plan: {_plan.told(before, self.schedule)}")

    @property
    def warnings(self) -> Mapping[str, int]:
        """What went wrong so far, and how often."""
        return {**self.monitor.warnings, **self._note.counts}

    @property
    def mlflow_sink(self) -> Any:
        """What writes to the MLflow run; None where there is none."""
        return self._outlet.mlflow

    def belongs_to(self, trainer: pl.Trainer) -> bool:
        """Tell whether this trainer goes on where it was watched last."""
        return self._trainer is trainer and self._step == trainer.global_step

    def batch_ended(self, outputs: Any) -> None:
        """Collect the loss of a batch. Most steps end here, without waiting for the device."""
        try:
            value = self._tap.take(outputs)
            if value is not None:
                self._collector.add(value)
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
            self._settle(self._finder.at_epoch_end)
        if self._tap.source is Source.EPOCH:
            self._read_epoch()

    def late_epoch_values(self) -> None:
        """Try again to read the value of an epoch that has ended."""
        if self.off or self._epoch_end is None:
            return
        if self._tap.source is Source.OPEN:
            ended = self._epoch_end[0]
            self._settle(lambda: self._finder.after_epoch(ended))
        if self._tap.source is Source.EPOCH:
            self._read_epoch()
        self._epoch_end = None

    def validated(self) -> None:
        """Read a value that the validation logs, with the train loss since the validation before."""
        if self.off:
            return
        if self._tap.source is Source.OPEN:
            self._settle(self._finder.at_validation)
        if self._tap.source is not Source.VALIDATION:
            return
        window, value = self._read(self._tap.fresh())
        if window.count:
            self._observe(self._trainer.global_step, value, extra={"train_loss": window.mean})
        else:
            self._observe(self._trainer.global_step, value)

    def catch_up(self, *, together: bool = True) -> None:
        """Read the windows that were not read yet, and observe them.

        Args:
            together: all ranks are asked at this moment; else this one speaks for all.
        """
        if not self._collector.unread:
            return
        closed = self._collector.closed(together=together)
        for step, span, mean in () if self._ranks.lost else closed:
            self._observe(step, mean, span)
        self._look_for_failure()

    def close(self, outcome: str | None = None) -> None:
        """Close the sinks; the monitor stays readable."""
        self._step = self._trainer.global_step
        self.catch_up(together=False)
        if outcome is not None and self._outlet.mlflow is not None:
            self._outlet.mlflow.outcome = outcome
        self.monitor.close()

    def check_pace(self, batches: int, *, whole_epoch: bool) -> None:
        """See, that many batches into an epoch, whether the run is as long as was thought."""
        pace = (self._trainer.global_step - self._epoch_began) / batches
        plan = self._planner.paced(pace, self.schedule, whole_epoch=whole_epoch)
        if plan is not None:
            self._replan(plan)

    def _replan(self, plan: Schedule) -> None:
        step = self._trainer.global_step
        plan = _plan.continued(self.schedule, plan, step)
        if plan is self.schedule:
            return
        self._note(f"{_plan.told(self.schedule, plan)}: followed from here on")
        self.monitor.flush(PATIENCE)
        state, self.schedule = self.monitor.state_dict(), plan
        self.monitor = self._outlet.monitor(plan)
        self.monitor.load_state_dict(state)
        self._rhythm.follow(plan.horizon, self._window_length(), step)
        self._next_read = self._patience = 0

    def state(self, *, together: bool = False) -> dict[str, Any]:
        """What a resumed run needs, as plain data.

        Args:
            together: all ranks are asked at this moment, so that the windows of all can be gathered. One of
                several that is asked alone does not tell of what was not read yet.
        """
        self._step = self._trainer.global_step
        alone = self._ranks.world == 1
        if together or alone:
            self.catch_up()
        windows = self._collector.totals(together=together)  # first: nothing that fails may come before
        if alone:
            self.late_epoch_values()  # a checkpoint of the epoch's end has what was logged after us
        return {
            "version": STATE_VERSION,
            "monitor": self.monitor.state_dict(),
            "windows": windows,
            "steps": [self._rhythm.began, self._epoch_began, self._step],
            "source": int(self._tap.source),
            "pending": [list(read) for read in self._pending],
            "plan": self.schedule.to_dict(),
            "planner": self._planner.state(),
            "faults": dict(self._note.counts),
            "mlflow": self._outlet.state(),
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state. One that cannot be read is reported, and the run watched from here on."""
        try:
            if (version := state.get("version", 1)) > STATE_VERSION:
                raise ValueError(f"its version is {version}: update scale-callbacks")
            self.monitor.load_state_dict(state["monitor"])
            same = state["steps"][2] == self._step
            if same:
                began, epoch_began, _ = state["steps"]
                self._epoch_began = epoch_began if _trainer.mid_epoch(self._trainer) else self._step
                self._rhythm.begin(began)
            self._pending = [(int(step), float(value), int(span)) for step, value, span in state["pending"]]
            self._adopt(Source(state["source"]))
            if same:
                self._collector.restore(state.get("windows") or [state["window"]])
            self._note.counts.update(state.get("faults", {}))
            self._outlet.show_again(self.monitor, self._step)
        except Exception as fault:
            self._note("the saved state cannot be used, watching from here on", fault)

    # --- when something is due

    def _due(self, step: int, outputs: Any) -> None:
        if self._tap.source is Source.OPEN and step >= self._finder.due:
            self._look_again(step, outputs)
        if step >= self._rhythm.end:
            self._close_window(step)
        look = self._finder.due if self._tap.source is Source.OPEN else NEVER
        self._next_read = min(self._rhythm.end, look)

    def _look_again(self, step: int, outputs: Any) -> None:
        fresh = False

        def look() -> Source:
            nonlocal fresh
            source, fresh = self._finder.at_batch(outputs, step)
            return source

        self._settle(look)
        value = self._tap.take(outputs) if self._tap.source is Source.STEP else None
        if value is not None and fresh:
            self._collector.add(value)

    def _close_window(self, step: int) -> None:
        if self._tap.sampled:
            sample = self._tap.fresh()
            if sample is not None:
                self._collector.add(sample)
        self._collector.close(step, step - self._rhythm.began)
        due = self._tap.source is not Source.OPEN and self._rhythm.due(step)
        self._rhythm.begin(step)
        if due or self._collector.unread >= self._most_unread:
            self.catch_up()

    def _read_epoch(self) -> None:
        assert self._epoch_end is not None
        _, value = self._read(self._tap.fresh())
        if value.count or value.bad:
            step, span = self._epoch_end
            self._epoch_end = None
            self._observe(step, value, max(span, 1))

    def _read(self, value: Any = None) -> tuple[Mean, Mean]:
        window, further = self._collector.read(value)
        self._look_for_failure()
        return window, further

    def _look_for_failure(self) -> None:
        if self._collector.ended and not self.off:
            self._note("a rank has failed, no more forecasts")
        self.off |= self._collector.ended or self._ranks.lost  # on all ranks at once

    def _window_length(self) -> int:
        return _trainer.window_length(self.schedule.horizon, self._trainer.log_every_n_steps)  # type: ignore[attr-defined]

    def _observe(
        self, step: int, mean: Mean, span: int = 1, extra: Mapping[str, float] | None = None
    ) -> None:
        if self.off:
            return
        if mean.bad:
            self._note(f"{self.name} was not finite and left out", times=int(mean.bad))
        if not mean.count:
            if not mean.bad and step - self._heard > max(GRACE, 2 * self._rhythm.every):
                self._heard = step
                self._note(f"{self.name} was not logged in time")
            return
        self._heard = step
        if self._tap.source is Source.OPEN:
            self._pending.append((step, mean.mean, span))
            return
        try:
            self.monitor.observe(step, mean.mean, extra=extra, span=span)
            if self._outlet.publish(self._note) and self._planner.departed(self.schedule, step):
                self._replan(self._planner.plan())
        except Exception as fault:
            self.fail(fault)

    # --- where the value comes from

    def _settle(self, find: Callable[[], Source]) -> None:
        """Take the values from where all ranks have found them."""
        try:
            source = find()
        except UnknownMetricError:
            self.off = True
            raise
        self.off |= self._ranks.lost
        if source is not self._tap.source:
            self._adopt(source)

    def _adopt(self, source: Source) -> None:
        self._tap.adopt(source)
        if source in (Source.EPOCH, Source.VALIDATION):
            self._rhythm.stop()
        self._next_read = 0 if source is Source.OPEN else self._rhythm.end  # the first batch is looked at
        self._patience = 0
        if source is Source.OPEN:
            return
        pending, self._pending = self._pending, []
        if source is Source.OUTPUT:
            for step, value, span in pending:
                self._observe(step, Mean(value, 1.0, 0.0), span)
            self.catch_up()
        else:
            # The collector held the loss returned, not the one logged; with a validation's it is looked at.
            self._collector.forget(window=source is not Source.VALIDATION)

    # --- faults

    def fail(self, fault: Exception) -> None:
        """Stop taking values. The reductions go on until all ranks know, so that none waits for us."""
        self._note("internal error, no more forecasts", fault)
        self._collector.failed, self._tap.take = True, nothing
        if self._ranks.world == 1:
            self.off = True
