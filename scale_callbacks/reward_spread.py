"""What the spread of the rewards within groups tells: how noisy a step is, and what learning signal is left.

The mean reward of a step is as noisy as the rewards it is the mean of: on runs of GRPO its variance follows
the squared spread (`reward_std`) as that rises and falls by a factor of five or more. A step of large spread,
such as one in an outage of the checker, then counts for less than one of a quiet stretch.

To first order a step of a policy gradient gains its learning rate times the squared gradient of the expected
reward, and that gradient vanishes with the spread of the rewards that the policy draws (Razin et al. 2023,
arXiv 2310.20703). In GRPO (arXiv 2402.03300) a group whose rewards are all the same has no advantage and
moves nothing; DAPO (arXiv 2503.14476) draws such groups again. So the area under rate times squared spread is
an account of what was spent on learning. On runs of GRPO (tests/bench/learning_signal.py) the gain a unit of
it falls by a factor of four to twenty, while the gain a step falls by sixty to a hundred; and since it falls,
what is left brings at most what was brought so far.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scale_callbacks.curve import Bins, Curve
from scale_callbacks.schedule import Schedule

Floats = NDArray[np.float64]

FOLLOWS = 0.5  # share of the noise's variance that follows the spread; the rest is the prompts'
SMOOTH = 0.025  # share of the budget: sd of the kernel that smooths the spread, a guess at single steps
RECENT = 0.10  # share of the budget whose mean spread is that of its end
FALLEN = 0.5  # share of what it was below which a squared spread, or a rate, has fallen
FEWEST = 8  # observations of the spread before it tells anything


@dataclass(frozen=True)
class Signal:
    """The account of learning rate times squared spread.

    Attributes:
        level: squared spread now, as a share of the highest there was.
        left: what is to come if the spread stays as it is, over what was spent.
        closing: whether the spread has fallen with learning and the planned rate falls too. A spread that
            stays is the task's own; an account at a constant rate closes only with the budget.
    """

    level: float
    left: float
    closing: bool


def weigh(bins: Bins, spread: Curve | None, *, horizon: float) -> Floats:
    """(bins) observations in each bin of rewards, weighed by how noisy its spread tells them to be.

    Args:
        bins: of the rewards.
        spread: `reward_std`; without it, or where it was logged for a part of the run only, every one counts.
        horizon: last step of the budget.
    """
    told = _told(spread, last=float(bins.steps[-1]), horizon=horizon)
    if told is None or told[0][0] > bins.steps[0] + RECENT * horizon:
        return bins.count
    variance = np.interp(bins.steps, told[0], told[2] ** 2)
    apart = (bins.steps[:, None] - bins.steps) / (SMOOTH * horizon)
    kernel = bins.count * np.exp(-0.5 * apart**2)
    variance = (kernel @ variance) / kernel.sum(axis=1)
    mean = float(variance @ bins.count) / float(bins.count.sum())
    if not mean > 0.0:
        return bins.count
    return np.asarray(bins.count / (1.0 - FOLLOWS + FOLLOWS * variance / mean), dtype=np.float64)


def signal_of(
    spread: Curve | None, schedule: Schedule | None, *, horizon: float, last: float
) -> Signal | None:
    """Draw up the account; None where spread or plan are not known, or the spread is no longer logged.

    Args:
        spread: `reward_std`.
        schedule: the learning-rate plan.
        horizon: last step of the budget.
        last: step of the last reward.
    """
    told = _told(spread, last=last, horizon=horizon)
    total = 0.0 if schedule is None else float(schedule.area(horizon))
    if told is None or schedule is None or total <= 0.0:
        return None
    at, count, mean = told
    n, sums = (np.concatenate(([0.0], np.cumsum(column))) for column in (count, count * mean))
    first = np.searchsorted(at, at - RECENT * horizon, side="right")
    variance = ((sums[1:] - sums[first]) / (n[1:] - n[first])) ** 2
    area = np.asarray(schedule.area(at), dtype=np.float64) / total
    spent = float(variance[0] * area[0] + 0.5 * (variance[1:] + variance[:-1]) @ np.diff(area))
    whole = at - at[0] >= RECENT * horizon
    whole[-1] = True
    highest = float(variance[whole].max())
    if not (spent > 0.0 and highest > 0.0):
        return None
    now, used, seen = float(variance[-1]), float(area[-1]), float(at[-1]) / horizon
    to_come = max(1.0 - used, 0.0)
    slower = to_come * seen < FALLEN * used * max(1.0 - seen, 0.0)
    return Signal(now / highest, now * to_come / spent, slower and now < FALLEN * highest)


def _told(spread: Curve | None, *, last: float, horizon: float) -> tuple[Floats, Floats, Floats] | None:
    """(steps, counts, means) of the spread up to a step; None where there is too little, or none of late."""
    if spread is None or spread.n < FEWEST:
        return None
    bins = spread.bins()
    known = bins.steps <= last
    at = bins.steps[known]
    if len(at) < 2 or at[-1] < last - RECENT * horizon:
        return None
    return at, bins.count[known], bins.mean[known]
