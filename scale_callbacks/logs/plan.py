"""The learning-rate plan of a logged run: named on the command line, or read off the logged rates."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from scale_callbacks.logs.log import Floats, Log, Series
from scale_callbacks.schedule import Schedule

FINISHED = 0.98  # share of the plan from which on logged rates tell all of it
ALIKE = 0.005  # of the peak: rates this close to a named shape are taken for it
FALLEN = 0.02  # of the peak: rates that have fallen less do not tell a shape
FLOORS = (0.0, 0.1)  # of the peak, tried for shapes that fall
SHAPES = ("constant", "linear", "cosine", "wsd")
NUMBERS = ("warmup", "cooldown", "rate", "floor")


def parse_schedule(text: str, horizon: int) -> Schedule:
    """Read a plan as it is written on the command line.

    Args:
        text: a name (constant, linear, cosine, wsd), then settings: "wsd:warmup=500,cooldown=20%,rate=3e-4".
            Steps may be given in percent of the horizon; `rate` is the highest one, 1 where not given;
            `floor` the rate at the end; `shape` that of a cooldown (linear, 1-sqrt, cosine, exponential).
        horizon: last step of the plan.

    Raises:
        ValueError: an unknown name or setting, or a value out of its range.

    >>> parse_schedule("wsd:warmup=1%,cooldown=200,rate=3e-4", 1000)
    Schedule(horizon=1000, peak=0.0003, warmup=10, knots=4)
    """
    name, _, rest = text.partition(":")
    if name not in SHAPES:
        raise ValueError(f"--schedule {name!r} is none of {', '.join(SHAPES)}: for instance cosine:warmup=1%")
    settings: dict[str, float | str] = {}
    for item in filter(None, rest.split(",")):
        key, sign, value = (part.strip() for part in item.partition("="))
        allowed = NUMBERS if key != "shape" else ("shape",)
        if not sign or key not in allowed:
            raise ValueError(f"--schedule: {item!r} is none of {', '.join((*NUMBERS, 'shape'))}=VALUE")
        settings[key] = value if key == "shape" else _amount(key, value, horizon)
    if name == "wsd" and "cooldown" not in settings:
        raise ValueError("--schedule wsd needs the steps of its cooldown: wsd:cooldown=20%")
    rate = settings.pop("rate", 1.0)
    try:
        return getattr(Schedule, name)(rate, horizon, **settings)  # type: ignore[no-any-return]
    except TypeError as fault:
        raise ValueError(f"--schedule {name} does not take {str(fault).split()[-1]}") from None


def plan_of(log: Log, horizon: int) -> tuple[Schedule | None, str]:
    """Find the plan in the logged rates.

    Rates that reach the horizon are the plan. Rates of a run under way are continued as the named shape they
    follow so far (linear or cosine, to zero or a tenth); where they follow none the last rate is held.

    Args:
        log: the run.
        horizon: last step of the plan.

    Returns:
        The plan, None where no rate was logged; and what was guessed, in words, empty where nothing was.
    """
    if log.rates is None:
        return None, ""
    steps, rates = _usable(log.rates, horizon)
    if len(steps) == 0 or not rates.max() > 0.0:
        return None, ""
    if steps[-1] >= FINISHED * horizon or (
        len(steps) > 1 and steps[-1] + 2 * (steps[-1] - steps[-2]) > horizon
    ):
        return _drawn(steps, rates, horizon), ""
    for words, shape in _candidates(rates, steps, horizon):
        plan = shape()
        if float(np.abs(np.asarray(plan.lr(steps)) - rates).max()) <= ALIKE * float(rates.max()):
            return plan, f"the learning rate follows {words} so far and is taken to go on so"
    fell = rates[-1] < (1.0 - FALLEN) * rates.max()
    what = "the learning rate after" if fell else "the learning rate was constant; its course after"
    return (
        _drawn(steps, rates, horizon),
        f"{what} step {steps[-1]:,.0f} is not known and was taken for constant; a cooldown lowers the loss: "
        "give --schedule",
    )


def _usable(series: Series, horizon: int) -> Series:
    steps, rates = series
    inside = (steps >= 1.0) & (steps <= horizon)
    return steps[inside], rates[inside]


def _drawn(steps: Floats, rates: Floats, horizon: int) -> Schedule:
    """The logged rates, the last one held; drawn with no more knots than are needed."""
    if len(steps) <= 2000:
        end = ([*steps, float(horizon)], [*rates, rates[-1]]) if steps[-1] < horizon else (steps, rates)
        return Schedule.from_points(*end)
    x, y = np.concatenate(([0.0], steps)), np.concatenate(([0.0], rates))
    return Schedule.from_function(lambda step: float(np.interp(step, x, y)), horizon)


def _candidates(rates: Floats, steps: Floats, horizon: int) -> list[tuple[str, Callable[[], Schedule]]]:
    peak = float(rates.max())
    top = int(np.argmax(rates >= (1.0 - 1e-6) * peak))
    if rates[-1] >= (1.0 - FALLEN) * peak:
        return []
    found: list[tuple[str, Callable[[], Schedule]]] = []
    # The peak was reached between the logged step before it and its own.
    ends = {int(steps[top]), int(steps[top - 1]) if top else 0}
    for floor in FLOORS:
        for warmup in sorted(ends):
            for name, make in (("a straight line", Schedule.linear), ("half a cosine", Schedule.cosine)):
                words = f"{name} to {floor:.0%} of its peak"
                settled = _settled(make, peak, horizon, warmup, floor)
                found.append((words, settled))
    return found


def _settled(
    make: Callable[..., Schedule], peak: float, horizon: int, warmup: int, floor: float
) -> Callable[[], Schedule]:
    return lambda: make(peak, horizon, warmup=min(warmup, horizon - 1), floor=floor * peak)


def _amount(key: str, value: str, horizon: int) -> float:
    try:
        number = float(value.removesuffix("%")) * (0.01 if value.endswith("%") else 1.0)
    except ValueError:
        raise ValueError(f"--schedule: {key}={value!r} is no number") from None
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"--schedule: {key}={value} must be finite and not negative")
    if key in ("warmup", "cooldown"):
        return round(number * horizon) if value.endswith("%") else round(number)
    return number
