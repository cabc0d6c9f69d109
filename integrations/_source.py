"""Where the monitored value of a Lightning training comes from, and how to take it without waiting for it."""

from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden

_OURS = ("forecast/", "lr_area", "lr_annealing_area")  # names that another callback of ours may have logged


class Source(IntEnum):
    """Where the monitored value comes from; ranks that differ agree on the highest."""

    UNKNOWN = 0  # nothing by that name can still come
    OPEN = 1  # not seen yet
    OUTPUT = 2  # the loss that training_step returns
    EPOCH = 3  # logged on_epoch only: one value an epoch
    STEP = 4  # logged by training_step on each step
    VALIDATION = 5  # logged by the validation


class UnknownMetricError(ValueError):
    """The monitored name is not among those that the module logs."""


class Tap:
    """Takes the monitored value off the trainer, once it is known where it appears.

    Args:
        trainer: the trainer.
        name: the monitored metric.
        validation_names: what the validation of the sanity check has logged.
        by_output: a module that logs nothing is watched by the loss it returns.

    Attributes:
        source: where the value comes from; change it with `adopt`.
        take: gives the value of a batch from its outputs, or None; called on every batch.
        validated: whether it is known what the validation logs.
    """

    def __init__(
        self, trainer: pl.Trainer, name: str, validation_names: frozenset[str], *, by_output: bool = True
    ) -> None:
        self.name = name
        self.source = Source.OPEN
        self.take: Callable[[Any], torch.Tensor | None] = self._of_output
        self.validated = bool(validation_names)
        self.sampled = False  # Lightning hides its results: one sample has to do for a window
        self._trainer = trainer
        self._automatic = trainer.lightning_module.automatic_optimization
        self._validation_names = validation_names
        self._by_output = by_output
        self._metric: Any = None
        self._last: Any = None  # the value taken last: another object is a new value

    def adopt(self, source: Source) -> None:
        """Take the value from there from now on."""
        self.source = source
        self.sampled = source is Source.STEP and train_metrics(self._trainer) is None
        if source is Source.STEP and not self.sampled:
            self.take = self._of_log
        else:
            self.take = nothing if source in (Source.STEP, Source.EPOCH) else self._of_output

    def fresh(self) -> torch.Tensor | None:
        """The value under our name among the trainer's metrics, if it is a new one."""
        value = self._trainer.callback_metrics.get(self.name)
        if value is None or value is self._last:
            return None
        self._last = value
        return value

    def guess_at_batch(self, outputs: Any, *, settled: bool) -> Source:
        """What the batches so far and the sanity check tell of the source.

        Args:
            outputs: of the last batch.
            settled: no name is waited for any longer that nothing else may log.
        """
        metrics = train_metrics(self._trainer)
        if metrics is None:
            metrics = dict.fromkeys(self._trainer.callback_metrics)
        if self.name in metrics:
            metric = metrics[self.name]
            return Source.STEP if metric is None or is_logged_on_step(metric, self.name) else Source.EPOCH
        if self.name in self._validation_names:
            return Source.VALIDATION
        if may_log_later(self._trainer, validation_seen=self.validated):
            return Source.OPEN
        if metrics or not self._by_output:
            return Source.UNKNOWN if settled else Source.OPEN
        return Source.OPEN if self._of_output(outputs) is None else Source.OUTPUT

    def guess_at_validation(self) -> Source:
        """What a validation tells of a source that is still open."""
        self.validated = True
        return Source.VALIDATION if self.name in self._trainer.callback_metrics else Source.OPEN

    def guess_at_epoch_end(self, *, last: bool) -> Source:
        """What an epoch's end tells; the last look comes after all hooks."""
        metric = (train_metrics(self._trainer) or {}).get(self.name)
        if metric is not None and is_logged_on_step(metric, self.name):
            return Source.STEP
        if self.name in self._trainer.callback_metrics:
            return Source.EPOCH
        if not last or not self.everything_was_logged():
            return Source.OPEN
        return Source.OPEN if train_metrics(self._trainer) or not self._by_output else Source.OUTPUT

    def everything_was_logged(self) -> bool:
        """Tell, after an epoch, whether the validation, if there is one, has shown its names too."""
        return self.validated or not validates(self._trainer)

    def unknown(self) -> str:
        """Say that the name is not logged, and what is."""
        names = {*(train_metrics(self._trainer) or ()), *self._trainer.callback_metrics}
        theirs = {name for name in names | self._validation_names if not name.startswith(_OURS)}
        logged = ", ".join(sorted(theirs)) or "nothing"
        return (
            f"monitor={self.name!r} is not logged by this module; it logs: {logged}. "
            f"Give LossForecast one of these, or log it in training_step: self.log({self.name!r}, loss)"
        )

    def _of_output(self, outputs: Any) -> Any:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        batches = self._trainer.accumulate_grad_batches if self._automatic else 1
        # Lightning has divided it by the number of batches it accumulates.
        return loss if loss is None or batches == 1 else loss * batches

    def _of_log(self, outputs: Any) -> Any:
        if self._metric is None:
            self._metric = (train_metrics(self._trainer) or {}).get(self.name)
            if self._metric is None:
                return None
        value = self._metric._forward_cache
        if value is self._last:
            return None  # not logged on this batch
        self._last = value
        return value


def nothing(outputs: Any) -> None:
    """Take no value."""


def train_metrics(trainer: pl.Trainer) -> Mapping[str, Any] | None:
    """Everything the training has logged so far, by name; None where Lightning does not show it.

    `trainer.callback_metrics` knows it too, but is built anew on each read, waits for the device when a
    metric is on the progress bar, and shows `on_epoch` metrics only at the epoch's end.
    """
    try:
        results = trainer.fit_loop.epoch_loop._results
        found = {}
        for metric in results.values():
            meta = metric.meta
            for name in {meta.name, meta.forked_name(on_step=True), meta.forked_name(on_step=False)}:
                found[name] = metric
        return found
    except AttributeError:
        return None


def is_logged_on_step(metric: Any, name: str) -> bool:
    """Tell whether the metric has a value for each step under this name."""
    meta = metric.meta
    return bool(meta.on_step) and not (meta.forked and name == meta.forked_name(on_step=False))


def validates(trainer: pl.Trainer) -> bool:
    """Tell whether this run has validations."""
    return bool(trainer.enable_validation) and any(trainer.num_val_batches)


def may_log_later(trainer: pl.Trainer, *, validation_seen: bool) -> bool:
    """Tell whether a name that the first batch has not logged may still appear."""
    if validates(trainer) and not validation_seen:
        return True
    hooks = ("on_train_batch_end", "on_train_epoch_end")
    if any(is_overridden(hook, trainer.lightning_module) for hook in hooks):
        return True
    return any(
        getattr(type(callback), hook) is not getattr(Callback, hook)
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if not type(callback).__module__.startswith(("lightning.", "scale_callbacks.", "integrations."))
        for hook in hooks
    )
