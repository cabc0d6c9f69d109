"""The members of a bank that carry weight, once a curve is known."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from scale_callbacks.laws.base import Floats
from scale_callbacks.regression import Indices


@dataclass(frozen=True)
class Found:
    """Members that carry weight.

    Attributes:
        weights: posterior weights.
        walk: index of the variance of the random walk.
        member: flat index into (drops, depths, decays and slopes).
        shape: how many depths, decays and slopes there are.
    """

    weights: Floats
    walk: Indices
    member: Indices
    shape: tuple[int, int]

    @cached_property
    def indices(self) -> tuple[Indices, Indices, Indices, Indices]:
        """Indices of walk, decay and slope, drop, depth."""
        depths, rows = self.shape
        cell = self.member // rows
        drop = cell // depths
        return self.walk, self.member - cell * rows, drop, cell - drop * depths

    def heaviest(self, most: int) -> Found:
        """The `most` that carry the largest weights, as if there were no others."""
        kept = heaviest(self.weights, most)
        weights = self.weights[kept]
        return Found(weights / weights.sum(), self.walk[kept], self.member[kept], self.shape)


def heaviest(weights: Floats, most: int) -> Indices:
    """Indices, in order, of the `most` largest weights."""
    if len(weights) <= most:
        return np.arange(len(weights))
    kept = (-weights).argpartition(most)[:most]
    kept.sort()
    return kept
