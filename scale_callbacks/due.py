"""When forecasts are due: at steps that the plan alone decides."""

import math

import numpy as np
from numpy.typing import NDArray

FIRST = 0.02  # share of the plan at which the first forecast is due
RATIO = 1.2  # geometric spacing at first: early on much changes
LINEAR = 1 / 50  # then as often as this share of the plan


def forecast_steps(horizon: int) -> NDArray[np.int64]:
    """Steps at which forecasts are due: geometric until a tenth of the plan, then linear, at most 55.

    They depend on the horizon alone, so that a resumed run repeats them and their whole cost is bounded.

    >>> forecast_steps(1000)[:5].tolist(), len(forecast_steps(1000)), len(forecast_steps(10**9))
    ([20, 24, 29, 35, 42], 55, 55)
    """
    bend = LINEAR / (RATIO - 1)  # where the geometric spacing has grown to the linear one
    early = FIRST * RATIO ** np.arange(math.ceil(math.log(bend / FIRST, RATIO)))
    late = np.arange(1.0, bend - 1e-9, -LINEAR)[::-1]  # the bend among them, however it is rounded
    return np.unique(np.ceil(np.concatenate((early, late)) * horizon - 1e-6).astype(np.int64))
