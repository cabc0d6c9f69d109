"""Replay finished runs as if they were live, and measure how right and how honest the forecasts were."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scale_callbacks.forecast import Forecast
from scale_callbacks.forecaster import LossForecaster
from scale_callbacks.prior import Prior
from scale_callbacks.schedule import Schedule

Floats = NDArray[np.float64]

SHARES = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
_UNCOUNTED = frozenset({"diverged", "lr_only_rises", "resumed_lr_jump", "finetune"})


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        name: source and run, joined by a slash.
        schedule: the plan that was trained.
        steps: steps of the loss that is forecast.
        losses: that loss.
        train: (steps, losses) of the train loss.
        final: the loss that was to be forecast.
        flags: what is odd about it.
        epochs: how often it saw its data, where known.
    """

    name: str
    schedule: Schedule
    steps: Floats
    losses: Floats
    train: tuple[Floats, Floats]
    final: float
    flags: frozenset[str]
    epochs: float | None

    @property
    def source(self) -> str:
        """What is left out together in validation."""
        return self.name.split("/")[0]

    @property
    def counts(self) -> bool:
        """Whether it belongs into scores."""
        return not self.flags & _UNCOUNTED

    @property
    def language_model(self) -> bool:
        """Whether it is a language model's."""
        return "not_language_model" not in self.flags and self.source != "algoperf"

    @property
    def steps_per_epoch(self) -> float | None:
        """Optimizer steps an epoch, where known."""
        return self.schedule.horizon / self.epochs if self.epochs else None


def load_runs(path: Path | str) -> list[Run]:
    """Read the runs of an `.npz` bundle (its NOTICE says what it holds)."""
    with np.load(path) as bundle:
        runs = []
        for i, meta in enumerate(json.loads(str(bundle["meta"]))):
            train = bundle[f"{i}.train"]
            loss = bundle[f"{i}.val"] if meta["target"] == "val" else train
            runs.append(
                Run(
                    meta["run"],
                    Schedule.from_points(*bundle[f"{i}.plan"]),
                    loss[0],
                    loss[1],
                    (train[0], train[1]),
                    meta["final"],
                    frozenset(meta.get("flags", ())),
                    meta.get("epochs"),
                )
            )
    return runs


def replay(
    run: Run, *, shares: Sequence[float] = SHARES, prior: Prior | str = "population", level: float = 0.9
) -> Iterator[tuple[float, Forecast]]:
    """Forecasts of a run at shares of its plan, as they would have been made live.

    Args:
        run: the finished run.
        shares: shares of the plan seen, increasing.
        prior: the population prior to forecast with.
        level: of the interval.

    Yields:
        The share and the forecast, wherever there is one.
    """
    forecaster = LossForecaster(run.schedule, prior=prior, level=level, steps_per_epoch=run.steps_per_epoch)
    ends = np.searchsorted(run.steps, np.array(shares) * run.schedule.horizon, side="right").tolist()
    for share, start, end in zip(shares, [0, *ends], ends, strict=False):
        forecaster.observe(run.steps[start:end], run.losses[start:end])
        forecast = forecaster.forecast()
        if forecast is not None:
            yield share, forecast
