"""What both Transformers callbacks share: a watch for each training, its state, and no fault let out."""

import atexit
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from scale_callbacks import __version__
from scale_callbacks._text import fault_text
from scale_callbacks.forecast import Forecast
from scale_callbacks.integrations import _hf_state, _plan, trl
from scale_callbacks.integrations._hf_show import Outlets, mlflow_sink
from scale_callbacks.integrations._hf_trainer import (
    Surroundings,
    plan_of,
    rows_to_come,
    steps_per_epoch,
    surroundings,
)
from scale_callbacks.integrations._hf_watch import PATIENCE, Watch
from scale_callbacks.monitor import Monitor
from scale_callbacks.schedule import Schedule
from scale_callbacks.sinks import Sink

_log = logging.getLogger("scale_callbacks")

FEWEST = 8  # rows before which there is no forecast
_UNUSABLE = "the saved state cannot be used"


def guarded(hook: Callable[..., None]) -> Callable[..., None]:
    """Make a hook count and log what fails in it, and switch the callback off, instead of raising."""

    @wraps(hook)
    def safe(self: "WatchingCallback", args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        try:
            hook(self, args, state, control, **kwargs)
        except Exception as fault:
            self.off = True
            self.note("internal error, no more forecasts", fault)

    return safe


class WatchingCallback(TrainerCallback):
    """Watches one metric of a trainer on process 0; subclasses say with which forecaster."""

    signals = False

    def __init__(
        self,
        monitor: str,
        horizon: int | None,
        schedule: Schedule | None,
        sinks: Sequence[Sink],
        mlflow: bool | None,
        progress_bar: bool,
    ) -> None:
        self.monitor = monitor
        self.horizon = horizon
        self.schedule = schedule
        self.sinks = tuple(sinks)
        self.mlflow = mlflow
        self.progress_bar = progress_bar
        self.off = False
        self._faults: Counter[str] = Counter()
        self._watch: Watch | None = None
        self._outlets: Outlets | None = None
        self._twins = 0  # callbacks of this kind before this one that watch the same metric

    @property
    def forecast(self) -> Forecast | None:
        """The latest forecast; None before there is one, and on processes other than 0."""
        return None if self._watch is None else self._watch.monitor.forecast

    @property
    def warnings(self) -> Mapping[str, int]:
        """What went wrong so far, and how often."""
        told = {} if self._watch is None else self._watch.monitor.warnings
        return {**told, **self._faults}

    def close(self) -> None:
        """Close the sinks of a training that never came to its end; a program that ends does so by itself."""
        self._close("FAILED")

    def make_monitor(self, schedule: Schedule, epoch: float | None, sinks: Sequence[Sink]) -> Monitor:
        """The monitor of a training with this plan."""
        raise NotImplementedError

    @guarded
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Read the plan off the trainer, and go on from a checkpoint where there is one."""
        self.close()
        self.off, self._watch = False, None
        self._faults.clear()
        horizon = self.planned(state)
        if horizon < 1 or not state.is_world_process_zero:
            return
        around = surroundings(self)
        self._twins = _twins_before(self, around)
        saved = self._saved_state(args, state, around) if state.global_step > 0 else None
        schedule = self.schedule or self._plan(kwargs, horizon, state.global_step, saved)
        epoch = steps_per_epoch(args, state, kwargs.get("train_dataloader"))
        self._outlets = self._make_outlets(args, around, None if saved is None else saved.get("mlflow"))
        self._watch = Watch(
            self.make_monitor(schedule, epoch, [self._outlets, *self.sinks]),
            state.global_step,
            self._faults,
            signals=self.signals,
            patience=max(PATIENCE, 1 + trl.rows_without_reward(args)),
        )
        atexit.register(self.close)  # there is no hook for a training that fails
        if state.global_step > 0 and not self._load(saved):
            self._go_through(state.log_history, schedule, epoch)
        self._warn_of_few_rows(args, state)

    @guarded
    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Take the row that the trainer has logged."""
        if self._watch is None or self._outlets is None or self.off or not logs:
            return
        self._outlets.open(args, state, control)
        self._watch.row(logs, state.global_step)

    @guarded
    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the forecast where a notebook shows evaluations."""
        if self._watch is not None and self._outlets is not None and not self.off:
            self._outlets.evaluated(args, state)

    @guarded
    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put a file of our own into the checkpoint."""
        if self._watch is None or self.off:
            return
        folder = _hf_state.folder_just_saved(args, state)
        if folder is None:
            self.note("the checkpoint's folder was not found, the state is not saved", None)
            return
        try:
            _hf_state.write(folder, self._file, self._content(state))
        except OSError as fault:
            self.note("the state was not saved", fault)

    @guarded
    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the sinks; the forecast stays readable."""
        if self._watch is not None and not self.off:
            self._watch.ended()
        self._close(None)

    def note(self, what: str, fault: Exception | None) -> None:
        """Count a fault; log its first occurrence."""
        self._faults[what] += 1
        if self._faults[what] == 1:
            tail = "" if fault is None else f": {fault_text(fault)}"
            _log.warning(
                "%s: %s%s (further ones are counted, training goes on)", type(self).__name__, what, tail
            )

    def planned(self, state: Any) -> int:
        """Optimizer steps of the whole training, the same on every process."""
        return int(self.horizon or (self.schedule.horizon if self.schedule else 0) or state.max_steps)

    def __getstate__(self) -> dict[str, Any]:
        # A watch belongs to one training and its trainer; open files and threads do not travel.
        return {**self.__dict__, "_watch": None, "_outlets": None}

    @property
    def _file(self) -> str:
        return _hf_state.file_name(type(self).__name__, self.monitor, self._twins)

    def _close(self, outcome: str | None) -> None:
        atexit.unregister(self.close)
        outlets, self._outlets = self._outlets, None
        if self._watch is not None and outlets is not None:
            outlets.outcome = outcome
            self._watch.monitor.close()

    def _content(self, state: Any) -> dict[str, Any]:
        assert self._watch is not None
        plan = self._watch.monitor.forecaster.schedule
        return {
            "package": __version__,
            "step": state.global_step,
            "log": _hf_state.fingerprint(state.log_history),
            "plan": None if plan is None else plan.to_dict(),
            "watch": self._watch.state(),
            "faults": dict(self._faults),
            "mlflow": None if self._outlets is None else self._outlets.mlflow_state(),
        }

    def _saved_state(self, args: Any, state: Any, around: Surroundings) -> dict[str, Any] | None:
        """What our file in the checkpoint says; None where there is none of this run."""
        try:
            found = _hf_state.read(_folders(args, state, around), self._file)
            if found is not None and _is_of_this_run(found[1], state, found[0] == around.resumed_from):
                return found[1]
        except Exception as fault:
            self.note(_UNUSABLE, fault)
            return None
        _log.warning(
            "the checkpoint at step %s has no state of %s(%r): taking what the trainer has logged",
            f"{state.global_step:,}",
            type(self).__name__,
            self.monitor,
        )
        return None

    def _plan(
        self, kwargs: Mapping[str, Any], horizon: int, step: int, saved: Mapping[str, Any] | None
    ) -> Schedule:
        """The live plan, with the past as it was trained."""
        now = plan_of(kwargs.get("optimizer"), kwargs.get("lr_scheduler"), horizon, step)
        before = _plan.saved_plan(saved)
        plan = now if before is None else _plan.continued(before, now, step)
        if before is not None and plan is not before:
            self.note(f"resumed with another plan: {_plan.told(before, plan)}", None)
        return plan

    def _make_outlets(self, args: Any, around: Surroundings, run: Mapping[str, Any] | None) -> Outlets:
        mode = self.mlflow if args.report_to or self.mlflow is not None else False
        make = None if mode is False else partial(mlflow_sink, mode, run)
        return Outlets(around, self.note, progress_bar=self.progress_bar, make_mlflow=make)

    def _load(self, saved: Mapping[str, Any] | None) -> bool:
        """Go on from a saved state; False where that was not possible."""
        assert self._watch is not None
        if saved is None:
            return False
        try:
            self._watch.load(saved["watch"])
            self._faults.update(saved["faults"])
        except Exception as fault:
            self.note(_UNUSABLE, fault)
            return False
        return True

    def _go_through(self, rows: Sequence[Mapping[str, Any]], schedule: Schedule, epoch: float | None) -> None:
        """Learn the past from the rows that the trainer has kept, and show nothing of it."""
        assert self._watch is not None
        monitor = self.make_monitor(schedule, epoch, ())
        past = Watch(monitor, 0, Counter(), signals=self.signals, patience=len(rows) + 1, live=False)
        for row in rows:
            past.row(row, int(row["step"]))
        self._watch.load(past.state())

    def _warn_of_few_rows(self, args: Any, state: Any) -> None:
        if self.monitor.startswith(trl.EVAL):
            return
        rows = rows_to_come(args, state)
        if rows is not None and rows < FEWEST <= state.max_steps:
            _log.warning(
                "%d steps logged every %s give %d values, and a forecast needs %d: set logging_steps=%d",
                state.max_steps,
                state.logging_steps,
                rows,
                FEWEST,
                max(1, state.max_steps // 100),
            )


def _twins_before(callback: WatchingCallback, around: Surroundings) -> int:
    alike = [c for c in around.callbacks if type(c) is type(callback) and c.monitor == callback.monitor]
    return next((i for i, other in enumerate(alike) if other is callback), 0)


def _folders(args: Any, state: Any, around: Surroundings) -> Iterator[Path]:
    """Where the checkpoint may lie that a training goes on from."""
    if around.resumed_from is not None:
        yield around.resumed_from
        return
    if isinstance(args.resume_from_checkpoint, str):
        yield Path(args.resume_from_checkpoint)
    yield Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _is_of_this_run(content: Mapping[str, Any], state: Any, certain: bool) -> bool:
    same = content["step"] == state.global_step
    return bool(same and (certain or content["log"] == _hf_state.fingerprint(state.log_history)))
