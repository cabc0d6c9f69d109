"""What a Lightning trainer can be asked: its length, plan and MLflow run; and how a forecast is shown."""

import logging
import math
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from scale_callbacks._text import fault_text
from scale_callbacks.integrations._mlflow_autolog import keep_from_autolog
from scale_callbacks.integrations.torch import schedule_of
from scale_callbacks.schedule import Schedule
from scale_callbacks.sinks import Record

_log = logging.getLogger("scale_callbacks")

FEWEST_READS = 500  # a run has at least so many windows where it has as many steps,
MOST_READS = 1000  # and at most so many, whatever its length


def optimizer_steps_per_batch(trainer: pl.Trainer) -> float:
    """In manual optimisation each optimizer is taken to step once a batch; Lightning counts them all."""
    return 1 if trainer.lightning_module.automatic_optimization else max(len(trainer.optimizers), 1)


def batches_per_epoch(trainer: pl.Trainer) -> float:
    """Batches of an epoch, as rank 0 has them; infinite where the length of the data is unknown."""
    batches = float(trainer.num_training_batches)
    return float(trainer.strategy.broadcast(batches)) if trainer.world_size > 1 else batches


def steps_per_epoch(
    trainer: pl.Trainer, batches: float, epoch: int = 0, *, pace: float | None = None
) -> float:
    """Optimizer steps of an epoch; infinite where the length of the data is unknown.

    Args:
        trainer: the trainer.
        batches: of an epoch, the same on all ranks.
        epoch: which one: the accumulation of gradients may change by epoch.
        pace: measured optimizer steps a batch.
    """
    if batches == math.inf:
        return math.inf
    if pace is not None:
        return max(round(batches * pace), 1)
    group = trainer.accumulate_grad_batches
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            group = callback.get_accumulate_grad_batches(epoch)
    return math.ceil(batches / group) * optimizer_steps_per_batch(trainer)


def length_is_unknown(trainer: pl.Trainer) -> bool:
    """Tell, before the data are loaded, that nothing limits the run."""
    return trainer.max_steps == -1 and trainer.max_epochs == -1


def mid_epoch(trainer: pl.Trainer) -> bool:
    """Tell whether a training that is about to start goes on inside an epoch."""
    progress: Any = trainer.fit_loop.epoch_progress.current
    return bool(progress.ready > progress.processed)


def horizon_of(
    trainer: pl.Trainer, batches: float, *, pace: float | None = None, other_epochs: bool = False
) -> int:
    """Optimizer steps of the whole run; 0 where that cannot be known.

    Args:
        trainer: the trainer.
        batches: of an epoch, the same on all ranks.
        pace: measured optimizer steps a batch.
        other_epochs: the epochs so far had another length, on another number of processes perhaps.
    """
    steps = math.inf if trainer.max_steps == -1 else float(trainer.max_steps)
    epochs = trainer.max_epochs
    if epochs is not None and epochs > 0:
        done, taken = (trainer.current_epoch, trainer.global_step) if other_epochs else (0, 0)
        if other_epochs and mid_epoch(trainer):
            seen = trainer.fit_loop.epoch_loop.batch_progress.current.ready
            # Lightning goes on behind the batches seen, or where there are not so many, from the first.
            left = (batches - seen) / batches if seen < batches else 1.0
            taken += math.ceil(left * steps_per_epoch(trainer, batches, done, pace=pace))
            done += 1
        later = (steps_per_epoch(trainer, batches, epoch, pace=pace) for epoch in range(done, epochs))
        steps = min(steps, taken + sum(later))
    return 0 if steps == math.inf else max(int(steps), 1)


def plan_of(
    trainer: pl.Trainer, horizon: int, batches: float, *, per_update: float | None = None
) -> Schedule:
    """The learning-rate plan of the optimizer that holds the most parameters.

    Args:
        trainer: the trainer.
        horizon: optimizer steps of the whole run.
        batches: of an epoch.
        per_update: measured optimizer steps between two updates of the scheduler.
    """
    optimizer, config = _followed(trainer)
    if config is None:
        return schedule_of(optimizer, None, horizon)
    pace = _steps_per_update(trainer, config, batches) if per_update is None else per_update
    if pace == math.inf:
        return schedule_of(optimizer, None, horizon)
    return schedule_of(optimizer, config.scheduler, horizon, steps_per_update=pace, step=trainer.global_step)


def _size(optimizer: torch.optim.Optimizer) -> int:
    return sum(_parameters(group) for group in optimizer.param_groups)


def steps_per_update_so_far(trainer: pl.Trainer) -> float:
    """Optimizer steps between two updates of the scheduler, as they were so far; 0 before the first."""
    _, config = _followed(trainer)
    updates = 0 if config is None else int(config.scheduler.last_epoch)
    return max(trainer.global_step / updates, 1.0) if updates > 0 else 0.0


def _followed(trainer: pl.Trainer) -> tuple[torch.optim.Optimizer, Any]:
    """The optimizer that holds the most parameters, and its scheduler's configuration if it has one."""
    optimizer = max(trainer.optimizers, key=_size)
    configs = [c for c in trainer.lr_scheduler_configs if c.scheduler.optimizer is optimizer]
    return optimizer, min(configs, key=lambda config: config.reduce_on_plateau, default=None)


def rate_now(trainer: pl.Trainer) -> float | None:
    """The rate that the followed optimizer applies next; None where it is kept on a device."""
    optimizer = max(trainer.optimizers, key=_size)
    rate = max(optimizer.param_groups, key=_parameters).get("lr")
    return float(rate) if isinstance(rate, int | float) else None


def _parameters(group: Any) -> int:
    return sum(p.numel() for p in group["params"])


def _steps_per_update(trainer: pl.Trainer, config: Any, batches: float) -> float:
    """Optimizer steps between two updates of a scheduler, infinite where it is never updated."""
    if not trainer.lightning_module.automatic_optimization:
        return optimizer_steps_per_batch(trainer)  # the module steps it: taken to be once a batch
    steps, every = steps_per_epoch(trainer, batches), int(config.frequency)
    if config.interval == "epoch":
        return steps * every
    if every == 1:
        return 1
    group = trainer.accumulate_grad_batches
    if batches == math.inf:
        return math.lcm(group, every) / group
    # Lightning counts the batches of the epoch, and looks only where the optimizer steps.
    updates = sum(b % every == 0 for b in range(1, int(batches) + 1) if b % group == 0 or b == batches)
    return steps / updates if updates else math.inf


def window_length(horizon: int, log_every_n_steps: int) -> int:
    """Optimizer steps whose mean is one observation: as often as the trainer logs, within bounds."""
    most = max(1, horizon // FEWEST_READS)
    return max(math.ceil(horizon / MOST_READS), min(log_every_n_steps or most, most))


def logger_step(trainer: pl.Trainer) -> int:
    """The step Lightning's own loggers use for the batch at hand."""
    loop = trainer.fit_loop.epoch_loop
    return int(getattr(loop, "_batches_that_stepped", trainer.global_step))


def show(trainer: pl.Trainer, record: Record, *, progress_bar: bool) -> None:
    """Put a forecast where callbacks and the progress bar find it, on every rank."""
    keep_from_autolog(trainer.callbacks, record.metrics)  # type: ignore[attr-defined]
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in record.metrics.items()})
    f = record.forecast
    if progress_bar and f is not None:
        text = f"{f.value:.4g} [{f.low:.4g}, {f.high:.4g}]"
        trainer.progress_bar_metrics[f"forecast/{record.name}"] = text  # type: ignore[assignment]


def mlflow_sink(
    trainer: pl.Trainer, mode: bool | None, *, prefix: str = "forecast", resume: Any = None
) -> Any:
    """The sink for the MLflow run that the trainer's loggers or the environment name, if there is one."""
    if mode is False:
        return None
    try:
        from scale_callbacks.integrations.mlflow import resolve_sink

        return resolve_sink(trainer.loggers, mode=mode, prefix=prefix, resume=resume)
    except Exception as fault:
        _log.warning("LossForecast: no MLflow sink: %s (training goes on)", fault_text(fault))
        return None
