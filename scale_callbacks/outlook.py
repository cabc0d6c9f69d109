"""Outlook: what a reward curve says at its last bin, and said at earlier ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scale_callbacks.curve import Bins
from scale_callbacks.reward_bank import Looks, Seen

Floats = NDArray[np.float64]

WINDOW = 0.15  # share of what was seen whose looks are told apart


@dataclass(frozen=True)
class Outlook:
    """What a reward curve says at its last bin and at earlier ones, in the reward's own units, upwards good.

    Attributes:
        looks: the bank at each look, in units of `scale`.
        steps: (looks) last step of each look.
        seen: (bins) the curve the looks are taken of, in units of `scale`.
        ends: (looks) last bin of each look.
        at: (bins) mean step of each bin.
        scale: what one unit is worth.
        start: reward of the first bin.
        room: what the known ceiling leaves above the present level; infinite where none is known.
    """

    looks: Looks
    steps: Floats
    seen: Seen
    ends: NDArray[np.intp]
    at: Floats
    scale: float
    start: float
    room: float

    @property
    def gain(self) -> float:
        """Expected gain from the first observation to now."""
        return self.scale * float(self.looks.gain()[0][-1])

    @property
    def gain_sd(self) -> float:
        """Its standard deviation."""
        return self.scale * float(self.looks.gain()[1][-1])

    @property
    def remaining(self) -> float:
        """Expected gain from now to the end of the budget."""
        rest = float(self.looks.weights[-1] @ self.looks.rest[-1])
        return min(self.scale * rest, self.room)

    @property
    def level(self) -> float:
        """Reward expected now, without the noise of a step."""
        level = float(self.looks.weights[-1] @ self.looks.level[-1])
        return self.start + self.scale * level

    @property
    def noise(self) -> float:
        """Standard deviation of one observation, autocorrelation included."""
        return self.scale * float(self.looks.noise[-1])

    def probability(self, gain: float) -> float:
        """Probability that the laws still bring more than a gain (in the reward's units) by the end."""
        if gain >= self.room:
            return 0.0
        threshold = np.full(len(self.steps), gain / self.scale)
        return float(np.clip(self.looks.exceeds(threshold)[-1], 0.0, 1.0))

    @property
    def share_reached(self) -> float | None:
        """Share of the final gain that is reached; None where nothing was gained yet."""
        whole = self.gain + max(self.remaining, 0.0)
        return min(max(self.gain / whole, 0.0), 1.0) if self.gain > 0.0 and whole > 0.0 else None


def look_at(bins: Bins) -> NDArray[np.intp]:
    """Last bins of the looks: all of the trailing window, every tenth before it, from the fourth bin on."""
    last = len(bins) - 1
    window = max(int(np.searchsorted(bins.steps, (1.0 - WINDOW) * bins.steps[-1])), 3)
    stride = max(1, (last - window) // 12)
    return np.unique(np.concatenate((np.arange(3, window, 10), np.arange(last, window - 1, -stride)[::-1])))
