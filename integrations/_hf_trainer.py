"""What a Transformers trainer can be asked: its plan, its epochs, and what it keeps from its callbacks."""

import inspect
import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scale_callbacks.integrations.torch import schedule_of
from scale_callbacks.schedule import Schedule

_log = logging.getLogger("scale_callbacks")

DEEP = 30  # calls that may lie between the trainer and a callback


@dataclass(frozen=True)
class Surroundings:
    """Who else listens to the trainer, and the checkpoint it goes on from.

    Attributes:
        callbacks: all callbacks of the trainer, the progress bar's and the reporting ones included.
        resumed_from: folder of the checkpoint that was asked for; None without one.
    """

    callbacks: Sequence[Any] = ()
    resumed_from: Path | None = None

    def named(self, name: str) -> list[Any]:
        """The callbacks of a class, or of one that is derived from it, by the class's name."""
        return [c for c in self.callbacks if any(cls.__name__ == name for cls in type(c).__mro__)]


def surroundings(callback: object) -> Surroundings:
    """Look who has called a hook of this callback.

    A trainer hands its callbacks neither the other callbacks nor the folder it resumes from, so both are read
    off the calls that led here: `CallbackHandler.call_event` and `Trainer.train`. Where they are not found,
    forecasts are not shown on the progress bar, and the checkpoint is looked for in the output folder.
    """
    callbacks: Sequence[Any] = ()
    frame = inspect.currentframe()
    for _ in range(DEEP):
        if frame is None:
            break
        known = frame.f_locals
        callbacks = callbacks or _listeners(known.get("self"), callback)
        if callbacks and "resume_from_checkpoint" in known:
            folder = known["resume_from_checkpoint"]
            return Surroundings(callbacks, Path(folder) if isinstance(folder, str | Path) else None)
        frame = frame.f_back
    return Surroundings(callbacks)


def _listeners(owner: Any, callback: object) -> Sequence[Any]:
    try:
        listeners = owner.callbacks
        return listeners if isinstance(listeners, list) and any(c is callback for c in listeners) else ()
    except Exception:  # whatever a property of somebody's class may raise
        return ()


def plan_of(optimizer: Any, scheduler: Any, horizon: int, step: int) -> Schedule:
    """The learning-rate plan of the live scheduler. What cannot be known ahead is logged, and held."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            plan = schedule_of(optimizer, scheduler, horizon, step=step)
        except Exception as fault:
            plan = Schedule.constant(1.0, horizon)
            warnings.warn(f"no learning-rate plan ({fault}): taken to be constant", stacklevel=1)
    for text in dict.fromkeys(str(warning.message) for warning in said):
        _log.warning("%s", text)
    return plan


def steps_per_epoch(args: Any, state: Any, dataloader: Any) -> float | None:
    """Optimizer steps of an epoch where there are several; None else, and for data of unknown length."""
    try:
        batches = len(dataloader)
    except (TypeError, NotImplementedError):
        return None
    steps = max(math.ceil(batches / max(args.gradient_accumulation_steps, 1)), 1)
    return float(steps) if steps < state.max_steps else None


def rows_to_come(args: Any, state: Any) -> int | None:
    """How many rows of train metrics the whole run will log; None where that is not a matter of steps."""
    strategy = str(getattr(args.logging_strategy, "value", args.logging_strategy))
    if strategy == "no":
        return 0
    if strategy != "steps" or not state.logging_steps:
        return None
    return int(state.max_steps // max(state.logging_steps, 1))
