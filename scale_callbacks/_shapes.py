"""Knots of the learning-rate plans that have names."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

from scale_callbacks import _sampling

Points = tuple[list[float], list[float]]

# Share of the fall still to come, given the share of the cooldown done and the ratio of last to first rate.
_COOLDOWNS: Mapping[str, Callable[[float, float], float]] = {
    "linear": lambda done, _: 1.0 - done,
    "1-sqrt": lambda done, _: 1.0 - math.sqrt(done),
    "cosine": lambda done, _: 0.5 * (1.0 + math.cos(math.pi * done)),
    "exponential": lambda done, ratio: (ratio**done - ratio) / (1.0 - ratio),
}


def check_horizon(horizon: float) -> int:
    """Return the horizon as a whole number of optimizer steps.

    Raises:
        ValueError: not a whole number of 1 or more.
    """
    if isinstance(horizon, bool) or not math.isfinite(horizon) or horizon != int(horizon) or horizon < 1:
        raise ValueError(f"horizon={horizon!r} must be a whole number of optimizer steps, 1 or more")
    return int(horizon)


def cooled(rate: float, horizon: int, warmup: int, cooldown: int | None, shape: str, floor: float) -> Points:
    """Warm-up, stable phase and cooldown; without a length the cooldown takes all after the warm-up."""
    _check(rate, horizon, warmup, floor)
    longest = horizon - warmup
    cooldown = longest if cooldown is None else cooldown
    if not 0 <= cooldown <= longest:
        raise ValueError(f"cooldown={cooldown} must lie between 0 and horizon - warmup = {longest}")
    if shape not in _COOLDOWNS:
        raise ValueError(f"unknown cooldown shape {shape!r}: choose one of {', '.join(_COOLDOWNS)}")
    if shape == "exponential" and not 0 < floor < rate:
        raise ValueError(f"an exponential cooldown never reaches floor={floor}: give 0 < floor < {rate}")
    start = horizon - cooldown
    left = _COOLDOWNS[shape]

    def at(step: int) -> float:
        return floor + (rate - floor) * left((step - start) / cooldown, floor / rate)

    points = _until(start, rate, warmup)
    if shape == "linear" and cooldown:
        points.append((horizon, floor))
    elif cooldown:
        steps, rates = _sampling.sample(at, horizon, first=start + 1)
        points += zip(steps.tolist(), rates.tolist(), strict=True)
    return _unique(points)


def stepped(rate: float, horizon: int, warmup: int, milestones: Sequence[int], gamma: float) -> Points:
    """A rate that is multiplied by `gamma` after each milestone step."""
    _check(rate, horizon, warmup, 0.0)
    if not (math.isfinite(gamma) and gamma > 0):
        raise ValueError(f"gamma={gamma} must be finite and positive")
    if any(b <= a for a, b in itertools.pairwise([warmup, *milestones, horizon])):
        raise ValueError(
            f"milestones={list(milestones)} must increase, between warmup={warmup} and horizon={horizon}"
        )
    points = _until(warmup, rate, warmup)
    for milestone in milestones:
        points += [(milestone, rate), (milestone + 1, rate * gamma)]
        rate *= gamma
    return _unique([*points, (horizon, rate)])


def _until(step: int, rate: float, warmup: int) -> list[tuple[float, float]]:
    return [(0, 0.0 if warmup else rate), (warmup, rate), (step, rate)]


def _unique(points: Sequence[tuple[float, float]]) -> Points:
    """Split points into steps and rates; of several at one step the first is kept."""
    first: dict[float, float] = {}
    for step, rate in points:
        first.setdefault(float(step), rate)
    return list(first), list(first.values())


def _check(rate: float, horizon: int, warmup: int, floor: float) -> None:
    check_horizon(horizon)
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"rate={rate} must be finite and positive")
    if not 0 <= warmup < horizon:
        raise ValueError(f"warmup={warmup} must lie between 0 and horizon - 1 = {horizon - 1}")
    if not (math.isfinite(floor) and 0 <= floor <= rate):
        raise ValueError(f"floor={floor} must lie between 0 and rate={rate}")
