"""Overfitting: a validation loss that rises while the data are read again."""

from __future__ import annotations

import numpy as np

from scale_callbacks.laws.base import Plan, Shapes


class Overfitting:
    """Members -(1 − (t − t0)₊/(1 − t0)): a rise that sets in at t0 and goes on to the end of the plan.

    The coefficient is the whole rise. t is the share of the steps. There is no published law for it; public
    logs of fine-tuning show rises nearly straight in the log of the loss from the second epoch on.

    Args:
        onsets: values of t0; none where the data are read once.
    """

    def __init__(self, onsets: tuple[float, ...]) -> None:
        self.onsets = onsets

    def __call__(self, plan: Plan) -> Shapes:
        """Tabulate the members over a plan."""
        onsets = np.array(self.onsets, dtype=np.float64)
        risen = np.maximum(plan.time - onsets[:, None], 0.0) / (1.0 - onsets[:, None])
        return Shapes("overfitting", risen - 1.0, {"onset": onsets})
