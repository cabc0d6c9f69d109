"""Laws for rewards that flatten: features from 0 towards 1, linear in one coefficient each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def exponential(clock: Floats, tau: Floats, delay: Floats) -> Floats:
    """Exponential saturation with a delay: 1 - exp(-(t - t0)+ / τ).

    Source: R(t) = R0 + ΔR·(1 - e^(-(t - t0)/τ)), Nimmaturi et al. 2025, arXiv 2507.18014: slow start, rapid
    rise, plateau.

    Args:
        clock: (points) share of the budget.
        tau: (members) time constants, in shares of the budget.
        delay: (members) t0, in shares of the budget.

    Returns:
        (points, members).
    """
    return np.asarray(-np.expm1(-np.maximum(clock[:, None] - delay, 0.0) / tau), dtype=np.float64)


def overdamped(clock: Floats, slow: Floats, fast: Floats) -> Floats:
    """Overdamped limit of the damped oscillator: 1 - (τ1·e^(-t/τ1) - τ2·e^(-t/τ2)) / (τ1 - τ2).

    It starts with slope zero, so it bends up before it flattens.

    Source: the two-exponential solution in the overdamped regime of arXiv 2606.30789.

    Args:
        clock: (points) share of the budget.
        slow: (members) τ1, in shares of the budget.
        fast: (members) τ2, smaller than τ1.

    Returns:
        (points, members).
    """
    t = clock[:, None]
    decays = slow * np.exp(-t / slow) - fast * np.exp(-t / fast)
    return np.asarray(1.0 - decays / (slow - fast), dtype=np.float64)


def line(clock: Floats) -> Floats:
    """A linear rise: what a reward far from its ceiling looks like.

    Returns:
        (points, 1).
    """
    return clock[:, None]
