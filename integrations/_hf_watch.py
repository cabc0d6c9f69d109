"""One training seen by a Transformers callback: turns the rows it logs into observations of a monitor."""

import logging
import math
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from scale_callbacks.integrations import trl
from scale_callbacks.monitor import Monitor

_log = logging.getLogger("scale_callbacks")

PATIENCE = 4  # rows without the name before it is called unknown


class Watch:
    """Reads rows. A row that the trainer logs holds means over the steps since the row before.

    Args:
        monitor: what is told of them; its name is the metric's.
        began: optimizer steps taken when the training began.
        faults: counts what goes wrong, by name; shared with the callback.
        signals: take the evidence of RL trainers along, and the time a step takes.
        patience: rows of train metrics that may pass without the name.
        live: rows come as they are logged, so that the time between them tells something.
    """

    def __init__(
        self,
        monitor: Monitor,
        began: int,
        faults: Counter[str],
        *,
        signals: bool,
        patience: int = PATIENCE,
        live: bool = True,
    ) -> None:
        self.monitor = monitor
        self._logged = began  # step of the last row of train metrics
        self._seen = -1  # step last observed
        self._faults = faults
        self._signals = signals
        self._patience = patience
        self._names: dict[str, None] = {}
        self._rows = 0
        self._found = self._told = False
        self._train = [0.0, 0.0]  # sum and number of the train losses since the last evaluation
        self._clock = (time.perf_counter(), began) if live else None

    @property
    def wants_evaluations(self) -> bool:
        """Whether the metric is one that an evaluation logs."""
        return self.monitor.name.startswith(trl.EVAL)

    def row(self, logs: Mapping[str, Any], step: int) -> None:
        """Take a row that was logged after `step` optimizer steps."""
        train = "loss" in logs
        metric = trl.metric_name(self.monitor.name, logs)
        span = 1 if metric is None or metric.startswith(trl.EVAL) else max(step - self._logged, 1)
        if train:
            self._look_at_gradient(logs)
            self._add_train_loss(trl.number(logs["loss"]), step - self._logged)
            self._logged = step
        if metric is None:
            self._miss(logs, train)
        elif step > self._seen:  # the row at the end of a training repeats the step, and the one before it
            self._found = True
            self._observe(logs, metric, step, span)

    def ended(self) -> None:
        """Say at the end that the metric was never logged, where that was not said before."""
        if self._names and not self._found and not self._told:
            self._tell_names()

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as plain data."""
        return {
            "monitor": self.monitor.state_dict(),
            "steps": [self._logged, self._seen],
            "train": list(self._train),
            "found": self._found,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        steps, train = [int(step) for step in state["steps"]], [float(x) for x in state["train"]]
        self.monitor.load_state_dict(state["monitor"])
        self._seen, self._train, self._found = steps[1], train, bool(state["found"])

    def _observe(self, logs: Mapping[str, Any], metric: str, step: int, span: int) -> None:
        value = trl.number(logs[metric])
        if value is None:
            self._faults[f"{self.monitor.name} was no number and left out"] += 1
            return
        self._seen = step
        extra: dict[str, float] = {}
        if self._signals:
            extra = trl.evidence(logs, metric) | self._pace(step)
        elif metric.startswith(trl.EVAL) and self._train[1]:
            extra = {"train_loss": self._train[0] / self._train[1]}
            self._train = [0.0, 0.0]
        self.monitor.observe(step, value, extra=extra or None, span=span)

    def _pace(self, step: int) -> dict[str, float]:
        """Seconds a step, evaluations and checkpoints included: what stopping would save."""
        if self._clock is None:
            return {}
        now, (before, last) = time.perf_counter(), self._clock
        self._clock = now, step
        return {"step_time": (now - before) / (step - last)} if step > last else {}

    def _add_train_loss(self, loss: float | None, steps: int) -> None:
        if loss is not None and math.isfinite(loss) and steps > 0:
            self._train[0] += loss * steps
            self._train[1] += steps

    def _look_at_gradient(self, logs: Mapping[str, Any]) -> None:
        norm = trl.number(logs.get("grad_norm"))
        if norm is not None and not math.isfinite(norm):
            # With logging_nan_inf_filter, the trainer's default, a loss that is NaN leaves no other trace.
            self._faults["grad_norm was not finite: the loss may not have been either"] += 1

    def _miss(self, logs: Mapping[str, Any], train: bool) -> None:
        if self._found or self._told:
            return
        self._names |= dict.fromkeys(logs)
        evaluation = any(name.startswith(trl.EVAL) for name in logs)
        self._rows += train and not self.wants_evaluations
        if self._rows >= self._patience or (evaluation and self.wants_evaluations):
            self._tell_names()

    def _tell_names(self) -> None:
        self._told = True
        self._faults[f"{self.monitor.name} was not logged"] += 1
        names = ", ".join(name for name in self._names if name not in ("epoch", "step"))
        _log.warning(
            "%r was not logged, so nothing can be forecast. Logged were: %s", self.monitor.name, names
        )
