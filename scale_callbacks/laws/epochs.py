"""Epoch borders: a fine-tuning run's train loss steps down each time its data starts again."""

from __future__ import annotations

import numpy as np

from scale_callbacks.laws.base import Plan, Shapes, to_come


class EpochBorders:
    """Members Σb ρ^(b−1)·(1 − φ + φ·progress): a fall at each border b that shrinks from epoch to epoch.

    The share φ of each fall comes gradually over the epoch that follows, the rest at its border. The
    coefficient is the first fall. There is no published law for it; the form is what public fine-tuning logs
    show: little change within an epoch, steps of 1% to 60% of the loss at its end.

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
        since = plan.steps[:, None] - borders
        gradual = np.clip(since / length, 0.0, 1.0)
        sunk = np.zeros((len(members), len(plan.steps)))
        for row, (shrink, share) in zip(sunk, members, strict=True):
            fallen = (since > 0.0) * (1.0 - share) + share * gradual
            row[:] = fallen @ shrink ** np.arange(len(borders))
        shrinks, shares = np.array(members, dtype=np.float64).reshape(-1, 2).T
        return Shapes("epochs", to_come(sunk), {"shrink": shrinks, "gradual": shares})


_MOST = 400  # borders; beyond them the falls are too small to see
