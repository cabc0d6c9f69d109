"""The annealing law's drop: proportional to the annealing area, a momentum over the falls of the rate."""

from __future__ import annotations

import numpy as np

from scale_callbacks.laws.base import Floats, Plan, Shapes, cost, to_come


class AnnealingArea:
    """Members S2(λ): each fall of the rate sinks in with a memory of 1/(1 − λ) steps.

    Scaled by (1 − λ) over the peak rate, so that a fall from the peak to zero long ago counts 1.

    Source: L = L0 + A·S1^-α − C·S2, Tissue et al. 2024, arXiv 2408.11029, equation 1.

    Args:
        members: pairs of 1/(1 − λ), as a share of the horizon, and κ: 1 is the paper's, below it what a high
            rate costs saturates as in `base.cost`.
    """

    def __init__(self, members: tuple[tuple[float, float], ...]) -> None:
        self.members = members

    def __call__(self, plan: Plan) -> Shapes:
        """Tabulate the members over a plan; none where the rate never changes after the warm-up."""
        before, after, _, _, start = plan.falls.T
        members = self.members if len(before) else ()
        memories, slopes = np.array(members, dtype=np.float64).reshape(-1, 2).T
        age = np.maximum(plan.time[:, None] - start, 0.0)
        sunk = np.zeros((len(members), len(plan.time)))
        for row, (memory, slope) in zip(sunk, members, strict=True):
            row[:] = -np.expm1(-age / memory) @ (cost(before, slope) - cost(after, slope))
        return Shapes("annealing", to_come(sunk), {"speed": 1.0 / memories, "slope": slopes})


def stirred(plan: Plan, memory: float) -> Floats:
    """How much the changes of the rate so far, up or down, have stirred the loss: sudden ones the most.

    Falls of the rate sink in with one memory m, and what still has to, r(t), stirs in proportion to its
    square: the integral of 2 r(t)^2 / m dt.

    Args:
        plan: the plan.
        memory: m, share of the horizon.

    Returns:
        (plan points), never falling; 1 long after a sudden change by the peak rate, less after a slow one.
    """
    before, after, _, _, start = plan.falls.T
    change = np.abs(before - after)
    together = np.exp(-np.maximum(start[:, None] - start, 0.0) / memory) * (start[:, None] >= start)
    size = change * (2.0 * together @ change - change)
    age = np.maximum(plan.time[:, None] - start, 0.0)
    return np.asarray(-np.expm1(-2.0 * age / memory) @ size, dtype=np.float64)
