"""Epoch borders: a fine-tuning run's train loss steps down each time its data starts again."""

from __future__ import annotations

import numpy as np

from scale_callbacks.laws.base import Plan, Shapes, to_come


class EpochBorders:
    """Members Σb ρ^(b−1)·(√(a_b/a_1)·(1 − φ) + √(a_(b+1)/a_1)·φ·progress): a fall at each border b.

    The falls shrink from epoch to epoch (or grow, by half at most), by ρ and as the square root of the area
    a_b under the learning rate in the epoch that ends there: what is left to learn by heart goes, and so does
    the rate to learn it with. The share φ of a fall comes gradually over the epoch that follows, as its area
    does, the rest at the border. The coefficient is the first fall. There is no published law for it; the
    form is what public fine-tuning logs show: little change within an epoch, steps of 1% to 60% of the loss
    at its end.

    Args:
        steps_per_epoch: optimizer steps an epoch, None where the data never starts again.
        members: (ρ, φ) pairs.
    """

    def __init__(self, steps_per_epoch: float | None, members: tuple[tuple[float, float], ...]) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.members = members

    def __call__(self, plan: Plan) -> Shapes:
        """Tabulate the members over a plan; none where it holds less than one border."""
        length = self.steps_per_epoch or plan.horizon
        borders = np.arange(1.0, np.ceil(plan.horizon / length))[:_MOST] * length
        members = self.members if len(borders) else ()
        ends = length * np.arange(len(borders) + 2.0)
        area = np.interp(ends, plan.steps, plan.area)
        brought = np.maximum(np.diff(area), 0.0)  # interpolation rounds
        size = np.sqrt(np.minimum(brought / max(float(brought[0]), _LEAST), _WARMED))
        progress = np.clip((plan.area[:, None] - area[1:-1]) / np.maximum(brought[1:], _LEAST), 0.0, 1.0)
        passed = plan.steps[:, None] > borders
        sunk = np.zeros((len(members), len(plan.steps)))
        for row, (shrink, share) in zip(sunk, members, strict=True):
            fallen = (1.0 - share) * passed * size[:-1] + share * progress * size[1:]
            row[:] = fallen @ np.minimum(shrink ** np.arange(len(borders)), _GROWN)
        shrinks, shares = np.array(members, dtype=np.float64).reshape(-1, 2).T
        return Shapes("epochs", to_come(sunk), {"shrink": shrinks, "gradual": shares})


_MOST = 400  # borders; beyond them the falls are too small to see
_GROWN = 1.5  # falls over the first one, where they grow
_WARMED = 9.0  # areas over the first epoch's, of which the warm-up takes some
_LEAST = 1e-9  # share of the plan's area in an epoch
