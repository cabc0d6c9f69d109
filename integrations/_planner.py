"""Reads the plan of a Lightning training, and sees when it has turned out to be another."""

import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning.pytorch as pl

from scale_callbacks.integrations import _trainer
from scale_callbacks.schedule import Schedule

UNKNOWN_LENGTH = (
    "the length of this run cannot be known (no max_steps, and no max_epochs over data of a known length): "
    "give LossForecast(horizon=<optimizer steps>), or the Trainer max_steps or max_epochs"
)


class Pace(NamedTuple):
    """How manual optimisation goes, as measured.

    Attributes:
        per_batch: optimizer steps a batch.
        per_update: optimizer steps between two updates of the scheduler; 0 where there was none yet.
        whole_epoch: measured over a whole epoch, not over its beginning.
    """

    per_batch: float
    per_update: float
    whole_epoch: bool


OFF_PACE = 0.02  # by which a length measured in mid-epoch must differ to be believed
DEPARTED = 0.01  # of the peak rate: a rate that far from the plan was set by somebody


class Planner:
    """Reads a run's plan off its trainer.

    Made by all ranks together, which then go by the length of rank 0's data; nothing later waits for a rank.

    Args:
        trainer: the trainer, its data and optimizers set up.
        horizon: optimizer steps of the whole run, where the user has told.
        schedule: the plan, where the user has told.
        state: what `state` gave before a restart.

    Attributes:
        epoch_steps: optimizer steps of an epoch, infinite where the length of the data is unknown.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        *,
        horizon: int | None = None,
        schedule: Schedule | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._trainer = trainer
        self._horizon, self._schedule = horizon, schedule
        self._batches = _trainer.batches_per_epoch(trainer)
        self.epoch_steps = _trainer.steps_per_epoch(trainer, self._batches)
        saved = state or {}
        before = saved.get("epoch_steps")
        self._other_epochs = before not in (None, self.epoch_steps) and trainer.global_step > 0
        self._pace = Pace(*saved["pace"]) if saved.get("pace") else None
        self._quiet = not trainer.is_global_zero

    def plan(self) -> Schedule:
        """The plan as it is now.

        Raises:
            ValueError: the length of the run cannot be known.
        """
        if self._schedule is not None:
            return self._schedule
        per_batch, per_update, _ = self._pace or (None, None, False)
        horizon = self._horizon or _trainer.horizon_of(
            self._trainer, self._batches, pace=per_batch, other_epochs=self._other_epochs
        )
        if not horizon:
            raise ValueError(UNKNOWN_LENGTH)
        with warnings.catch_warnings():
            if self._quiet:  # what is to be said was said, or another rank says it
                warnings.simplefilter("ignore")
            rare = math.inf if per_update == 0 else per_update
            plan = _trainer.plan_of(self._trainer, horizon, self._batches, per_update=rare)
        self._quiet = True
        return plan

    def paced(self, pace: float, schedule: Schedule, *, whole_epoch: bool) -> Schedule | None:
        """The plan by the optimizer steps a batch that were measured; None where it stays what it is.

        Args:
            pace: optimizer steps a batch.
            schedule: the plan so far.
            whole_epoch: measured over a whole epoch, not over its beginning.
        """
        known = self._pace is not None and self._pace.whole_epoch
        if self._schedule is not None or pace <= 0 or (known and not whole_epoch):
            return None
        before = self._pace
        self._pace = Pace(pace, _trainer.steps_per_update_so_far(self._trainer), whole_epoch)
        plan = self.plan()
        if abs(plan.horizon - schedule.horizon) > (0 if whole_epoch else OFF_PACE * schedule.horizon):
            return plan
        self._pace = before
        return None

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to read the same plan, as plain data."""
        steps = self.epoch_steps
        return {
            "epoch_steps": steps if math.isfinite(steps) else None,
            "pace": None if self._pace is None else list(self._pace),
        }

    def departed(self, schedule: Schedule, step: int) -> bool:
        """Tell whether the rate applied after a step is not the plan's, since somebody has set it."""
        live = None if self._schedule is not None else _trainer.rate_now(self._trainer)
        if live is None or step >= schedule.horizon:
            return False
        around = schedule.lr(
            [max(step - 1, 1), step, step + 1, step + 2]
        )  # a step is how far they may differ
        room = DEPARTED * schedule.peak
        return not min(around) - room <= live <= max(around) + room
