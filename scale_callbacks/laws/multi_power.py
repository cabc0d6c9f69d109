"""The multi-power law's drop: every fall of the rate pays out along a power law of the area after it."""

from __future__ import annotations

import numpy as np

from scale_callbacks.laws.base import Plan, Shapes, cost, to_come


class MultiPower:
    """Members LD = Σk (f(η(k−1)) − f(η(k)))·(1 − (1 + C·ηk^-γ·Sk)^-β).

    ηk is the rate over its peak, Sk the area since the fall over the plan's total, f the cost of a rate
    (`base.cost`): κ = 1 is the paper's, below it what a high rate costs saturates.

    Source: Luo et al. 2025, arXiv 2503.12811, equation 2.

    Args:
        speeds: values of C.
        forms: (γ, κ) pairs, κ in (0, 1].
        exponent: β.
    """

    def __init__(
        self, speeds: tuple[float, ...], forms: tuple[tuple[float, float], ...], exponent: float
    ) -> None:
        self.members = [(c, g, k) for c in speeds for g, k in forms]
        self.exponent = exponent

    def __call__(self, plan: Plan) -> Shapes:
        """Tabulate the members over a plan; none where the rate never changes after the warm-up."""
        before, after, level, middle, _ = plan.falls.T
        members = self.members if len(before) else []
        level = np.maximum(level, 1e-3)
        since = np.maximum(plan.area[:, None] - middle, 0.0)
        drop = np.zeros((len(members), len(plan.area)))
        for row, (speed, gamma, slope) in zip(drop, members, strict=True):
            paid = 1.0 - (1.0 + speed * since * level**-gamma) ** -self.exponent
            row[:] = paid @ (cost(before, slope) - cost(after, slope))
        speeds, gammas, slopes = np.array(members, dtype=np.float64).reshape(-1, 3).T
        return Shapes("multi_power", to_come(drop), {"speed": speeds, "gamma": gammas, "slope": slopes})
