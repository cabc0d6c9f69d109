"""Power-law decay of the area under the learning rate or of the steps, down to a straight line in the log."""

from __future__ import annotations

import numpy as np

from scale_callbacks.laws.base import Floats, Plan, Shapes

_CLOSEST = 0.004  # share of the plan below which a decay is held: the first steps follow no law


def decay(clock: Floats, exponent: float, offset: float) -> Floats:
    """Box-Cox form of a power law: ((x + o)/(1 + o))^-α, shifted to 0 at x = 1, slope -1 in log x.

    In these units the coefficient is the loss that one more e-fold of training brings at the horizon, which
    means the same for every exponent; α = 0 is a straight line in the log, α < 0 falls faster still.

    Source: L = L0 + A·N^-α, Kaplan et al. 2020, arXiv 2001.08361, equation 1.1, and Hoffmann et al. 2022,
    arXiv 2203.15556, equation 2; the shift of the origin is S_W of Luo et al. 2025, arXiv 2503.12811,
    equation 2.

    Args:
        clock: share of the plan's area or steps, 1 at the horizon.
        exponent: α.
        offset: o, in shares of the plan; negative where the law sets in late.
    """
    log = np.log(np.maximum(clock + offset, _CLOSEST) / (1.0 + offset))
    unit = 1.0 + offset  # d log((x + o)/(1 + o)) / d log x at x = 1 is 1 / (1 + o)
    if abs(exponent) < 1e-9:
        return np.asarray(-log * unit, dtype=np.float64)
    return np.asarray(np.expm1(-exponent * log) * (unit / exponent), dtype=np.float64)


class PowerOfArea:
    """Members ((S1 + o)/(1 + o))^-α: the first two terms of the annealing and the multi-power law.

    Args:
        exponents: values of α.
        offsets: values of o.
    """

    def __init__(self, exponents: tuple[float, ...], offsets: tuple[float, ...]) -> None:
        self.pairs = [(a, o) for o in offsets for a in exponents]

    def __call__(self, plan: Plan) -> Shapes:
        """Tabulate the members over a plan."""
        return _table("area", plan.area, self.pairs)


class PowerOfSteps:
    """Members (t/T)^-α: the power law in steps, blind to the learning rate.

    Args:
        exponents: values of α.
    """

    def __init__(self, exponents: tuple[float, ...]) -> None:
        self.pairs = [(a, 0.0) for a in exponents]

    def __call__(self, plan: Plan) -> Shapes:
        """Tabulate the members over a plan."""
        return _table("steps", plan.time, self.pairs)


def _table(law: str, clock: Floats, pairs: list[tuple[float, float]]) -> Shapes:
    features = np.stack([decay(clock, a, o) for a, o in pairs])
    exponents, offsets = np.array(pairs, dtype=np.float64).T
    return Shapes(law, features, {"exponent": exponents, "offset": offsets})
