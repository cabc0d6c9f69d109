"""The plan of a run that is resumed, or has turned out otherwise: its past stays as it was trained."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from scale_callbacks.schedule import Schedule

SAME = 1e-4  # of the peak: plans that differ by less are one


def same_from(a: Schedule, b: Schedule, step: int) -> bool:
    """Tell whether two plans end together and apply the same rates after a step."""
    if a.horizon != b.horizon:
        return False
    at = np.unique(np.concatenate((a.steps, b.steps, [step + 1.0])))
    at = at[at > step]
    return bool(np.all(np.abs(a.lr(at) - b.lr(at)) <= SAME * max(a.peak, b.peak)))


def continued(past: Schedule, plan: Schedule, step: int) -> Schedule:
    """The plan of a run that followed `past` up to a step and follows `plan` from there.

    Args:
        past: what was planned before; what was applied up to `step`.
        plan: what is planned now.
        step: optimizer steps taken so far.

    Returns:
        `past` itself where nothing has changed, so that its forecasts stay the same to the last bit.

    >>> past, plan = Schedule.constant(1.0, 100), Schedule.constant(0.1, 200)
    >>> joined = continued(past, plan, 50)
    >>> joined.horizon, joined.lr([50, 51, 200]).tolist(), joined.area(60)
    (200, [1.0, 0.1, 0.1], 51.0)
    """
    if step <= 0 or step >= plan.horizon:
        return plan
    if same_from(past, plan, step):
        return past
    before, after = past.steps < step, plan.steps > step + 1
    steps = np.concatenate((past.steps[before], [step, step + 1.0], plan.steps[after]))
    rates = (past.rates[before], [past.lr(step), plan.lr(step + 1)], plan.rates[after])
    return Schedule.from_points(steps, np.concatenate(rates))


def saved_plan(state: Mapping[str, Any] | None) -> Schedule | None:
    """The plan in a saved state; None where there is none (older versions saved none) or it is no plan."""
    data = None if state is None else state.get("plan")
    try:
        return None if data is None else Schedule.from_dict(data)
    except Exception:
        return None


def told(before: Schedule, now: Schedule) -> str:
    """Say what has changed."""
    if before.horizon != now.horizon:
        return f"the plan ends at step {now.horizon:,} instead of {before.horizon:,}"
    return "the learning rate to come is another one than was planned"
