"""What a Lightning trainer can be asked: how long the run is, what its plan is, where a metric comes from."""

import math
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler
from lightning.pytorch.utilities.model_helpers import is_overridden

from scale_callbacks.integrations.torch import schedule_of
from scale_callbacks.schedule import Schedule
from scale_callbacks.sinks import Record


class Source(IntEnum):
    """Where the monitored value comes from; ranks that differ agree on the highest."""

    UNKNOWN = 0  # nothing by that name can still come
    OPEN = 1  # not seen yet
    OUTPUT = 2  # the loss that training_step returns
    EPOCH = 3  # logged on_epoch only: one value an epoch
    STEP = 4  # logged by training_step on each step
    VALIDATION = 5  # logged by the validation


def optimizer_steps_per_batch(trainer: pl.Trainer) -> int:
    """In manual optimisation each optimizer is taken to step once a batch; Lightning counts them all."""
    return 1 if trainer.lightning_module.automatic_optimization else max(len(trainer.optimizers), 1)


def steps_per_epoch(trainer: pl.Trainer, epoch: int = 0) -> float:
    """Optimizer steps of an epoch; infinite where the length of the data is unknown."""
    batches = trainer.num_training_batches
    if batches == math.inf:
        return math.inf
    group = trainer.accumulate_grad_batches
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            group = callback.get_accumulate_grad_batches(epoch)
    return math.ceil(batches / group) * optimizer_steps_per_batch(trainer)


def length_is_unknown(trainer: pl.Trainer) -> bool:
    """Tell, before the data are loaded, that nothing limits the run."""
    return trainer.max_steps == -1 and trainer.max_epochs == -1


def horizon_of(trainer: pl.Trainer) -> int:
    """Optimizer steps of the whole run, as rank 0 sees it; 0 where that cannot be known."""
    steps = math.inf if trainer.max_steps == -1 else float(trainer.max_steps)
    epochs = trainer.max_epochs
    if epochs is not None and epochs > 0:
        steps = min(steps, sum(steps_per_epoch(trainer, epoch) for epoch in range(epochs)))
    known = 0 if steps == math.inf else max(int(steps), 1)
    return int(trainer.strategy.broadcast(known)) if trainer.world_size > 1 else known


def plan_of(trainer: pl.Trainer, horizon: int) -> Schedule:
    """The learning-rate plan of the optimizer that holds the most parameters."""
    optimizer = max(trainer.optimizers, key=_size)
    configs = [c for c in trainer.lr_scheduler_configs if c.scheduler.optimizer is optimizer]
    configs.sort(key=lambda config: config.reduce_on_plateau)
    if not configs:
        return schedule_of(optimizer, None, horizon)
    config = configs[0]
    pace = _steps_per_update(trainer, config)
    if pace == math.inf:
        return schedule_of(optimizer, None, horizon)
    return schedule_of(optimizer, config.scheduler, horizon, steps_per_update=pace, step=trainer.global_step)


def _size(optimizer: torch.optim.Optimizer) -> int:
    return sum(p.numel() for group in optimizer.param_groups for p in group["params"])


def _steps_per_update(trainer: pl.Trainer, config: Any) -> float:
    """Optimizer steps between two updates of a scheduler, infinite where it is never updated."""
    if not trainer.lightning_module.automatic_optimization:
        return optimizer_steps_per_batch(trainer)  # the module steps it: taken to be once a batch
    steps, every = steps_per_epoch(trainer), int(config.frequency)
    if config.interval == "epoch":
        return steps * every
    if every == 1:
        return 1
    group, batches = trainer.accumulate_grad_batches, trainer.num_training_batches
    if batches == math.inf:
        return math.lcm(group, every) / group
    # Lightning counts the batches of the epoch, and looks only where the optimizer steps.
    updates = sum(b % every == 0 for b in range(1, int(batches) + 1) if b % group == 0 or b == batches)
    return steps / updates if updates else math.inf


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


def logger_step(trainer: pl.Trainer) -> int:
    """The step Lightning's own loggers use for the batch at hand."""
    loop = trainer.fit_loop.epoch_loop
    return int(getattr(loop, "_batches_that_stepped", trainer.global_step))


def show(trainer: pl.Trainer, record: Record, *, progress_bar: bool) -> None:
    """Put a forecast where callbacks and the progress bar find it, on every rank."""
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in record.metrics.items()})
    f = record.forecast
    if progress_bar and f is not None:
        text = f"{f.value:.4g} [{f.low:.4g}, {f.high:.4g}]"
        trainer.progress_bar_metrics[f"forecast/{record.name}"] = text  # type: ignore[assignment]
