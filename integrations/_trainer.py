"""What a Lightning trainer can be asked: its length, plan and MLflow run; and how a forecast is shown."""

import logging
import math
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from scale_callbacks.integrations.torch import schedule_of
from scale_callbacks.schedule import Schedule
from scale_callbacks.sinks import Record

_log = logging.getLogger("scale_callbacks")

FEWEST_READS = 500  # a run is read at least so often where it has as many steps,
MOST_READS = 1000  # and at most so often, whatever its length


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


def window_length(horizon: int, log_every_n_steps: int) -> int:
    """Optimizer steps between two reads of the device: as often as the trainer logs, within bounds."""
    most = max(1, horizon // FEWEST_READS)
    return max(math.ceil(horizon / MOST_READS), min(log_every_n_steps or most, most))


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


def mlflow_sink(trainer: pl.Trainer, mode: bool | None) -> Any:
    """The sink for the MLflow run that the trainer's loggers or the environment name, if there is one."""
    try:
        from scale_callbacks.integrations.mlflow import resolve_sink

        return resolve_sink(trainer.loggers, mode=mode)
    except Exception as fault:
        _log.warning("LossForecast: no MLflow sink: %s: %s (training goes on)", type(fault).__name__, fault)
        return None
