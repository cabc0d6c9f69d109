"""Keeps MLflow's autologging for Lightning from logging a forecast a second time, at other steps."""

from __future__ import annotations

from collections.abc import Iterable

CALLBACK = "__MLflowPLCallback"  # by name: importing MLflow takes seconds


def keep_from_autolog(callbacks: Iterable[object], names: Iterable[str]) -> None:
    """Have `mlflow.pytorch.autolog` pass over these metrics.

    It logs whatever stands in `trainer.callback_metrics`, by epoch (epochs for steps) or every so many steps,
    and leaves out by epoch what it knows as a metric of steps, and the other way round: told both, it logs
    neither. The sink logs them to the same run, at optimizer steps.

    Args:
        callbacks: The trainer's.
        names: The metrics.
    """
    for callback in callbacks:
        if type(callback).__module__.startswith("mlflow."):  # by name: importing MLflow takes seconds
            for known in ("_step_metrics", "_epoch_metrics"):
                metrics = getattr(callback, known, None)
                if isinstance(metrics, set):
                    metrics.update(names)
