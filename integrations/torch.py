"""PyTorch: the learning-rate plan of a live optimizer and scheduler, and a loss window kept on the device."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scale_callbacks.integrations import _lookahead
from scale_callbacks.integrations._agreement import Agreement as Agreement
from scale_callbacks.integrations._window import LossWindow as LossWindow
from scale_callbacks.schedule import Schedule

EXACT = 16384  # scheduler updates up to which a plan is simulated one by one
LONGEST = 200_000  # updates after which a scheduler that can only be simulated is taken to hold its rate
CHECKED = 2048  # first updates at which a closed form must agree with the simulation
SAME = 1e-3  # of the peak: closed form and simulation agree, two groups have one shape


def schedule_of(
    optimizer: Any, scheduler: Any = None, horizon: int = 0, *, steps_per_update: float = 1, step: int = 0
) -> Schedule:
    """Find the learning-rate plan of a whole run from its live optimizer and scheduler.

    Neither is disturbed, and no tensor of the optimizer is copied: a copy of the scheduler runs on a stand-in
    that has the same parameter groups without parameters. Plans of up to 16,384 scheduler updates are
    simulated one by one. Longer ones are read off the scheduler's closed form or lambda at steps chosen by
    bisection (straight lines between them are within 1e-5 of the peak), so that 10 million steps take a
    fraction of a second; where there is none, 200,000 updates are simulated and the rate held after them. In
    mid-training the past is recomputed; a rate that was changed by hand is carried on from where it is.

    With several parameter groups the plan follows the one that holds the most parameters. What reacts to the
    run (`ReduceLROnPlateau`, schedule-free optimizers) is taken to hold its present rate, with a warning.

    Args:
        optimizer: the optimizer, or a wrapper that has its `param_groups`.
        scheduler: its scheduler; None when the rate is constant.
        horizon: the optimizer step at which the run ends, 1 or more.
        steps_per_update: optimizer steps between two updates of the scheduler (steps per epoch for one that
            is stepped at each epoch's end).
        step: optimizer steps taken so far.

    Raises:
        ValueError: the horizon or `steps_per_update` is below 1, the optimizer has no parameter group, or the
            rates are negative or not finite.
    """
    if int(horizon) != horizon or horizon < 1:
        raise ValueError(f"horizon={horizon!r} must be a whole number of optimizer steps, 1 or more")
    if not steps_per_update >= 1:
        raise ValueError(f"steps_per_update={steps_per_update!r} must be 1 or more")
    if not getattr(optimizer, "param_groups", None):
        raise ValueError(f"optimizer={optimizer!r} has no parameter groups")
    while hasattr(scheduler, "scheduler") and not hasattr(scheduler, "last_epoch"):
        scheduler = scheduler.scheduler  # a wrapper, such as Accelerate's
    main = _main_group(optimizer)
    reason = _lookahead.unknowable(optimizer, scheduler)
    if reason is not None:
        _say(f"the learning rate cannot be known ahead ({reason}): taken to stay as it is")
    if scheduler is None or reason is not None:
        return _held(optimizer.param_groups[main].get("lr"), int(horizon))
    updates = int((horizon - 1) // steps_per_update)
    late = max(int(step // steps_per_update) - _lookahead.position(scheduler), 0)
    late = late if late > 1 else 0  # one update is how far the two may be apart inside a step
    try:
        rates = _rates(optimizer, scheduler, max(updates - late, 0))
    except Exception as fault:
        _say(
            f"{type(scheduler).__name__} cannot be looked ahead ({fault}): its rate is taken to stay as it is"
        )
        return _held(optimizer.param_groups[main].get("lr"), int(horizon))

    def all_rates(t: int) -> NDArray[np.float64]:
        return rates(max(int((t - 1) // steps_per_update) - late, 0))

    _compare_groups(all_rates, int(horizon), main)
    peak = max(abs(float(all_rates(t)[main])) for t in _spread(int(horizon)))

    def rate(t: int) -> float:
        value = float(all_rates(t)[main])
        return 0.0 if -1e-9 * peak <= value < 0 else value  # recursions end a rounding below zero

    return Schedule.from_function(rate, int(horizon))


def _rates(optimizer: Any, scheduler: Any, updates: int) -> Callable[[int], NDArray[np.float64]]:
    """Rates of all groups after a number of scheduler updates."""

    def fresh() -> Any:
        return _lookahead.detach(scheduler, _lookahead.stand_in(optimizer))

    start, now = fresh(), _lookahead.position(scheduler)
    known = now == 0 or _lookahead.rewind(start)
    if updates <= EXACT:
        past = _simulated(start, updates)
    else:
        form, first = _lookahead.formula(fresh()), _simulated(start, CHECKED)
        head = [] if form is None else [form(update) for update in range(len(first))]
        if form is not None and _lookahead.agree(first.tolist(), head, SAME):
            return _anchored(form, optimizer, scheduler)
        past = np.concatenate((first, _simulated(start, min(updates, LONGEST) - CHECKED)[1:]))
    table = past
    live = np.array(_lookahead.rates_now(optimizer))
    if not known:
        past[:now] = live  # its past cannot be had by winding it back
    if now < len(past) and not np.allclose(past[now], live, rtol=1e-6, atol=1e-9 * past.max()):
        # Somebody set the rate by hand, or resumed with another one: go on from what is applied now.
        table = np.concatenate((past[:now], _simulated(fresh(), len(past) - 1 - now)))
    if len(table) <= updates:
        _say(
            f"{type(scheduler).__name__} was followed for {len(table):,} of {updates + 1:,} updates: "
            "its rate is taken to stay as it is after them"
        )
    return lambda update: table[min(update, len(table) - 1)]


def _anchored(
    form: Callable[[int], list[float]], optimizer: Any, scheduler: Any
) -> Callable[[int], NDArray[np.float64]]:
    """Scale what is to come where the rate was changed by hand and the scheduler builds on it."""
    now, ratio = _lookahead.position(scheduler), np.ones(len(optimizer.param_groups))
    planned, live = np.array(form(now)), np.array(_lookahead.rates_now(optimizer))
    if not np.allclose(planned, live, rtol=SAME) and _lookahead.depends_on_rate(scheduler):
        ratio = np.where(planned > 0, live / np.where(planned > 0, planned, 1.0), 1.0)
    return lambda update: np.array(form(update)) * (ratio if update >= now else 1.0)


def _simulated(scheduler: Any, updates: int) -> NDArray[np.float64]:
    rows: list[list[float]] = []
    try:
        rows.extend(_lookahead.simulate(scheduler, updates))
    except Exception:  # OneCycleLR refuses to be stepped beyond its end: so would the run
        if not rows:
            raise
    return np.array(rows)


def _main_group(optimizer: Any) -> int:
    sizes = [sum(p.numel() for p in group.get("params", ())) for group in optimizer.param_groups]
    return int(np.argmax(sizes))


def _compare_groups(rates: Callable[[int], NDArray[np.float64]], horizon: int, main: int) -> None:
    table = np.array([rates(t) for t in _spread(horizon)])
    peaks = table.max(axis=0)
    shapes = table / np.where(peaks > 0, peaks, 1.0)
    apart = np.abs(shapes - shapes[:, [main]]).max(axis=0)
    others = np.flatnonzero((apart > SAME) & (peaks > 0))
    if peaks[main] > 0 and len(others):
        _say(
            f"the plan follows parameter group {main}, which has the most parameters; the learning rate of "
            f"group {', '.join(map(str, others[:5]))} has another shape"
        )


def _spread(horizon: int) -> Iterable[int]:
    return (int(t) for t in np.unique(np.linspace(1, horizon, 257).astype(np.int64)))


def _held(rate: Any, horizon: int) -> Schedule:
    # Only the shape of a plan matters, so a rate that is not known or still zero may be any.
    value = 1.0 if rate is None else float(rate)
    return Schedule.constant(value if value > 0 else 1.0, horizon)


def _say(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=3)
