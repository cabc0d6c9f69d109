"""Sigmoids for rewards: ScaleRL's in the log of compute, and stages that set in one after the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def sigmoid(clock: Floats, middle: Floats, power: Floats) -> Floats:
    """ScaleRL's sigmoid: 1 / (1 + (Cmid / C)^B).

    Source: R = R0 + (A - R0) / (1 + (Cmid / C)^B), Khatri et al. 2025, arXiv 2510.13786, equation 1.

    Args:
        clock: (points) share of the budget, C; 0 gives 0.
        middle: (members) Cmid, in shares of the budget.
        power: (members) B.

    Returns:
        (points, members).
    """
    t = np.maximum(clock[:, None], 1e-9)
    return np.asarray(1.0 / (1.0 + (middle / t) ** power), dtype=np.float64)


def stage(clock: Floats, middle: Floats, width: Floats) -> Floats:
    """One stage of learning: a logistic step around its middle.

    Two of them added up, each with a coefficient of its own, are a run that first learns the format of the
    answer and then to be right.

    Args:
        clock: (points) share of the budget.
        middle: (members) where half the stage is done, in shares of the budget.
        width: (members) its logistic width, in shares of the budget.

    Returns:
        (points, members).
    """
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * (clock[:, None] - middle) / width), dtype=np.float64)
