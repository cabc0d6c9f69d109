"""Breaks: where a curve leaves its course from one bin to the next, as where the data are changed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_COURSE = 9  # neighbouring increments whose median is the course
_SURE = 6.0  # standard deviations from it that no noise explains
_LEAST = 0.02  # of the loss: what is less needs no explanation
_WANDER = 0.02  # sd of a curve that keeps to its laws, per unit of the random walk's clock
_AGAIN = 0.03  # share of the variance of its breaks that a run is expected to add in as much time again


def breaks(
    steps: Floats, values: Floats, variance: Floats, walk: Floats, turned: Floats, epochs: Floats
) -> Floats:
    """Variance that the breaks of a curve have added by each bin: the squares of what they moved it by.

    No law explains a break, and the bins on its two sides must not be made to meet: what a law says of the
    one side says nothing of the level of the other. Not a break is what a change of the rate may have
    brought, a loss as large as the share of the peak rate that changed, nor a fall where the data start
    again.

    Args:
        steps: (bins) mean step of each.
        values: (bins) their loss over the present one.
        variance: (bins) of the noise in `values`.
        walk: (bins) clock of the random walk.
        turned: (bins) how far the rate has moved so far, up and down, over its peak.
        epochs: (bins) how often the data have started again.

    Returns:
        (bins) never falling, 0 at the first bin; 0 throughout where the curve keeps its course.
    """
    span = min(_COURSE, len(values) - 1)
    if span < 3:
        return np.zeros(len(values))
    moved, log = np.diff(values), np.log(steps + 0.5)
    strides = np.maximum(np.diff(log), 1e-12)
    around = np.sort(np.lib.stride_tricks.sliding_window_view(moved / strides, span), axis=1)
    middle = np.arange(len(moved)) - span // 2
    course = around[np.minimum(np.maximum(middle, 0), len(around) - 1), span // 2]
    beside = moved - course * strides
    off = np.abs(beside) - np.diff(turned)
    noise = np.sqrt(variance[1:] + variance[:-1] + _WANDER**2 * np.diff(walk))
    broken = (off > np.maximum(_SURE * noise, _LEAST)) & ((beside > 0.0) | (np.diff(epochs) == 0.0))
    return np.concatenate((np.zeros(1), np.cumsum(np.where(broken, off**2, 0.0))))


def broken_until(at: Floats, steps: Floats, broken: Floats) -> Floats:
    """Variance that breaks have added, and may yet add, by further steps: a run that broke may break again.

    Args:
        at: steps.
        steps: (bins) mean step of each.
        broken: (bins) what `breaks` returned.
    """
    ahead = np.maximum(at / max(float(steps[-1]), 1.0) - 1.0, 0.0)
    return np.asarray(np.interp(at, steps, broken) + _AGAIN * broken[-1] * ahead, dtype=np.float64)
