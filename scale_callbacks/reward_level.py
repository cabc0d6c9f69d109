"""The level of a reward curve: its trend, and how far it lies below its best and below where it should be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from scale_callbacks.outlook import Outlook

FALL = 5.0  # standard errors that make a fall
FALLEN = 0.5  # and share of the gain
ROUGH = 1.5  # most that autocorrelation may add to the noise of neighbours when a fall is judged
LEVEL = 0.05  # share of the run whose mean is a level


@dataclass(frozen=True)
class Level:
    """Where the mean of the last 5% of the budget lies, in the reward's own units, upwards good.

    Attributes:
        drop: how far below the best such mean there was.
        errors: the same in standard errors.
        best: that best mean.
        best_step: step at its middle.
        fallen: whether noise does not explain the drop, at two bins running.
        dip: how far below the level that the laws tell.
        error: standard error of the mean.
    """

    drop: float
    errors: float
    best: float
    best_step: float
    fallen: bool
    dip: float
    error: float


def trend(outlook: Outlook, horizon: float) -> tuple[float, float]:
    """Slope of a line through the last half, in reward a budget, and its standard error."""
    half = outlook.at >= 0.5 * outlook.at[-1]
    x, y, count = outlook.at[half] / horizon, outlook.seen.reward[half], outlook.seen.weight[half]
    x = x - x @ count / count.sum()
    square = max(float(count @ x**2), 1e-12)
    return outlook.scale * float((count * x) @ y) / square, outlook.noise / math.sqrt(square)


def level_now(outlook: Outlook, horizon: float) -> Level:
    """Compare the mean of the last few percent with the best there was, and with the laws."""
    count, reward, at = outlook.seen.count, outlook.seen.reward, outlook.at
    n, total, moment = (
        np.concatenate(([0.0], np.cumsum(column))) for column in (count, count * reward, count * at)
    )
    width = max(4.0, LEVEL * n[-1] * horizon / max(float(at[-1]), 1.0))
    last = np.flatnonzero(n[1:] >= width) + 1
    if len(last) < 3:
        return Level(0.0, 0.0, outlook.level, float(at[-1]), False, 0.0, 0.0)
    first = np.maximum(np.searchsorted(n, n[last] - width + 1e-9, side="right") - 1, 0)
    held = n[last] - n[first]
    level, centre = (total[last] - total[first]) / held, (moment[last] - moment[first]) / held
    best = np.maximum.accumulate(level)
    drop = best - level
    # Residuals of laws that cannot fall call a fall noise: neighbours tell better.
    noise = min(float(outlook.looks.noise[-1]), ROUGH * float(outlook.looks.local[-1]))
    error = noise * np.sqrt(1.0 / held)
    errors = drop / (math.sqrt(2.0) * error)
    gain = max(float(np.maximum(outlook.looks.gain()[0], 0.0).max()), 0.0)
    fallen = (errors > FALL) & (drop > FALLEN * gain)
    top = int(level.argmax())
    dip = (outlook.level - outlook.start) / outlook.scale - float(level[-1])
    return Level(
        drop=outlook.scale * float(drop[-1]),
        errors=float(errors[-1]),
        best=outlook.start + outlook.scale * float(level[top]),
        best_step=float(round(float(centre[top]))),
        fallen=bool(fallen[-2:].all()),
        dip=outlook.scale * dip,
        error=outlook.scale * float(error[-1]),
    )
