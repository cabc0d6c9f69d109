"""Sampling a learning-rate function finely where it bends and sparsely where it is straight."""

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

DENSE = 4096  # plans of so many steps or fewer are taken step by step
BUDGET = 16384  # most evaluations of a longer plan
TOLERANCE = 1e-5  # of the highest rate: how far straight lines may be off


def sample(
    function: Callable[[int], float], horizon: int, *, first: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points between which straight lines follow the function.

    Args:
        function: whole step to learning rate.
        horizon: last step to take.
        first: first step to take.

    Returns:
        Whole steps, increasing from `first` to `horizon`, and the rates there.
    """
    if horizon - first < DENSE:
        steps = np.arange(first, horizon + 1)
        return steps.astype(np.float64), np.array([float(function(int(t))) for t in steps])
    grid = np.unique(np.linspace(first, horizon, DENSE // 4).astype(np.int64))
    known = {int(t): float(function(int(t))) for t in grid}
    scale = max(map(abs, known.values())) or 1.0
    active = [(0.0, int(a), int(b)) for a, b in itertools.pairwise(grid) if b - a > 1]
    while active and len(known) < BUDGET:
        active.sort(reverse=True)  # the budget goes to the worst bends first
        bent = []
        for _, a, b in active[: BUDGET - len(known)]:
            middle = (a + b) // 2
            known[middle] = rate = float(function(middle))
            straight = known[a] + (known[b] - known[a]) * (middle - a) / (b - a)
            error = abs(rate - straight)
            if not error <= TOLERANCE * scale:
                bent += [(error, u, v) for u, v in ((a, middle), (middle, b)) if v - u > 1]
        active = bent
    steps = np.array(sorted(known))
    return steps.astype(np.float64), np.array([known[int(t)] for t in steps])
