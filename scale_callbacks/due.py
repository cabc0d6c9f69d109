"""When forecasts are due: at steps that the plan alone decides."""

import math

import numpy as np
from numpy.typing import NDArray

FIRST = 0.02  # share of the plan at which the first forecast is due
RATIO = 1.25  # geometric spacing at first: early on much changes
LINEAR = 1 / 40  # then as often as this share of the plan
REWARDS = 1.25  # so many times as often for rewards: whether to stop is asked with each forecast


def forecast_steps(horizon: int, times: float = 1.0) -> NDArray[np.int64]:
    """Steps at which forecasts are due: geometric until a tenth of the plan, then linear, at most 45.

    They depend on the horizon alone, so that a resumed run repeats them and their whole cost is bounded.

    Args:
        horizon: optimizer steps of the plan.
        times: so many times as often.

    >>> forecast_steps(1000)[:5].tolist(), len(forecast_steps(1000)), len(forecast_steps(10**9))
    ([20, 25, 32, 40, 49], 45, 45)
    """
    linear, ratio = LINEAR / times, 1.0 + (RATIO - 1.0) / times
    bend = linear / (ratio - 1.0)  # where the geometric spacing has grown to the linear one
    early = FIRST * ratio ** np.arange(math.ceil(math.log(bend / FIRST, ratio)))
    late = np.arange(1.0, bend - 1e-9, -linear)[::-1]  # the bend among them, however it is rounded
    return np.unique(np.ceil(np.concatenate((early, late)) * horizon - 1e-6).astype(np.int64))


def due_between(horizon: int, earlier: float, later: float) -> bool:
    """Tell whether a forecast is due after one step, up to another.

    >>> due_between(1000, 19, 20), due_between(1000, 20, 24)
    (True, False)
    """
    steps = forecast_steps(horizon)
    return bool(steps.searchsorted(later, side="right") > steps.searchsorted(earlier, side="right"))
