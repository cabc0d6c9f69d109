"""Deviation: has the loss left the band that was forecast for it? The early sign of a broken run.

"Scaling with Collapse" (Bergsma et al., arXiv 2509.25087) compares a run with the curve that earlier runs
agree on, and finds broken ones early. Here the run is compared with what was forecast of it a little while
ago: the forecasts made since may already have followed the loss to where it should not be.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Protocol, Self

import numpy as np

from scale_callbacks._state import finite, natural
from scale_callbacks.curve import Bins, Curve
from scale_callbacks.forecast import Forecast
from scale_callbacks.measure import Measure
from scale_callbacks.stopping import Decision

WINDOW = 0.03  # share of the plan whose mean loss is judged
FEWEST = 4  # bins in it, 90% of them on one side of what was forecast
SAME_SIDE = 0.9
STILL = 20  # equal values in a row that are no chance
EARLIEST = 0.15  # share of the plan before which no forecast is worth being judged by
LIMIT = 3.3  # standard deviations; beyond them the loss has left the band
CLUSTERED = 1.5  # factor on the noise of a mean: neighbouring losses err together
FLOOR = 1e-3  # of the loss: what is closer to the forecast is no deviation, however sure the forecast was
_REACH = 0.2  # share of the plan that an expectation looks ahead


@dataclass(frozen=True)
class Expectation:
    """What a forecast said of the steps that came right after it.

    Attributes:
        step: when it was made.
        steps: steps it speaks of, increasing.
        value: the loss expected there.
        below: standard deviation towards lower losses, at each of them.
        above: towards higher ones.
    """

    step: int
    steps: tuple[float, ...]
    value: tuple[float, ...]
    below: tuple[float, ...]
    above: tuple[float, ...]

    @classmethod
    def of(cls, forecast: Forecast) -> Self:
        """Keep the part of a forecast's path that will be compared with the losses to come."""
        far = _deviations(forecast.level)
        last = min(forecast.step + _REACH * forecast.horizon, float(forecast.horizon))
        inside = [step for step in forecast.path_steps if forecast.step < step < last]
        steps = (float(forecast.step), *inside, *([last] if last > forecast.step else ()))
        value, low, high = forecast.at(steps)
        columns = (value, (value - low) / far, (high - value) / far)
        return cls(forecast.step, steps, *(tuple(column.tolist()) for column in columns))

    def to_list(self) -> list[Any]:
        """Plain JSON data that `from_list` turns back into the same expectation."""
        return [self.step, *(list(column) for column in (self.steps, self.value, self.below, self.above))]

    @classmethod
    def from_list(cls, data: Sequence[Any]) -> Self:
        """Rebuild an expectation from `to_list`; ValueError for a damaged one."""
        step, *columns = data
        steps, value, below, above = (tuple(finite(column)) for column in columns)
        if not len(steps) == len(value) == len(below) == len(above):
            raise ValueError("the columns of an expectation are not equally long")
        return cls(natural(step), steps, value, below, above)


@dataclass(frozen=True)
class Deviation:
    """How far the loss of late is from what was forecast for it.

    Attributes:
        score: distance in standard deviations, those of the forecast and of the loss's own noise together;
            positive when the loss is higher than forecast.
        since: step from which the loss is judged.
        reference: step of the forecast it is judged by.
        observed: mean loss since then.
        expected: what was forecast for it.
    """

    score: float
    since: int
    reference: int
    observed: float
    expected: float

    @property
    def outside(self) -> bool:
        """Whether the loss has left the band."""
        return abs(self.score) > LIMIT

    def sentence(self, name: str = "the loss") -> str:
        """Say it in one line."""
        side = "above" if self.score > 0 else "below"
        place = f"has left its forecast band {side}" if self.outside else "is inside its forecast band"
        return (
            f"{name} {place}: {self.observed:.4g} since step {self.since:,}, where {self.expected:.4g} was "
            f"forecast at step {self.reference:,} ({abs(self.score):.1f} standard deviations)"
        )

    def to_dict(self) -> dict[str, float]:
        """Plain data that `from_dict` turns back into an equal deviation."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a deviation from `to_dict`."""
        score, observed, expected = finite([data["score"], data["observed"], data["expected"]])
        return cls(score, natural(data["since"]), natural(data["reference"]), observed, expected)


def deviation(
    expectations: Sequence[Expectation], curve: Curve, horizon: int, *, patience: float = WINDOW
) -> Deviation | None:
    """Compare the latest losses with what an earlier forecast said of them.

    The mean loss over the last `patience` (a share of the plan) is judged by the latest forecast made at
    least 3% of the plan before that: it has not seen a break that is only as old as `patience`. Nothing is
    said before 15% of the plan or of fewer than four bins.

    Args:
        expectations: of earlier forecasts, in order of steps.
        curve: what was seen.
        horizon: optimizer steps of the plan.
        patience: how long the loss must have been away, a share of the plan.

    Returns:
        None where nothing can be said; a score of 0 where the losses lie on both sides of the forecast.
    """
    last = float(curve.last_step or 0)
    start = last - patience * horizon
    earlier = (e for e in reversed(expectations) if e.step <= start - WINDOW * horizon)
    reference = next(earlier, None)
    if reference is None or last < EARLIEST * horizon:
        return None
    return _judged(reference, curve.bins(), start, curve.noise)


@cache
def _deviations(level: float) -> float:
    """How many standard deviations of a normal distribution an interval of this level reaches."""
    from statistics import NormalDist  # takes milliseconds to load, and not every run is forecast

    return NormalDist().inv_cdf(0.5 + 0.5 * level)


def _judged(reference: Expectation, bins: Bins, start: float, noise: float) -> Deviation | None:
    first = int(bins.steps.searchsorted(start, side="right"))
    count = len(bins) - first
    if count < FEWEST:
        return None
    steps, losses = bins.steps[first:], bins.robust[first:]
    columns = (reference.value, reference.below, reference.above)
    value, below, above = (np.interp(steps, reference.steps, column) for column in columns)
    off = losses - value
    distance, expected = float(off.sum()) / count, float(value.sum()) / count
    one_sided = max((off > 0).sum(), (off < 0).sum()) / count >= SAME_SIDE
    spread = float((above if distance > 0 else below).sum()) / count
    each = CLUSTERED * noise / math.sqrt(bins.count[first:].sum())
    error = math.hypot(spread, each, FLOOR * abs(expected))
    score = distance / error if one_sided and error > 0.0 else 0.0
    return Deviation(score, math.ceil(start), reference.step, expected + distance, expected)


def frozen(bins: Bins) -> bool:
    """Tell a loss whose last 20 values and 4 bins are all the same: the run, or its log, stands still."""
    if len(bins) < FEWEST or bins.mean[-1] != bins.mean[-2]:
        return False
    seen = np.cumsum(bins.count[::-1])
    if seen[-1] < STILL:
        return False
    late = slice(-max(FEWEST, int(np.searchsorted(seen, STILL)) + 1), None)
    return not bins.spread[late].any() and float(np.ptp(bins.mean[late])) == 0.0


class Cuttable(Protocol):
    """What `DivergenceRule` needs of a forecaster, beside a `curve` (and `train`) to be cut."""

    curve: Curve

    @property
    def horizon(self) -> int: ...  # noqa: D102
    def forecast(self) -> Forecast | None: ...  # noqa: D102


class DivergenceRule:
    """Says when the loss has left its forecast band upwards for good; stops the run only when asked to.

    For a score that is downwards.

    It makes the forecast of a while ago anew, from the losses until then, so that it needs no memory.

    Args:
        patience: how long the loss must have been above the band, a share of the plan.
        stop: end the run; by default the rule only advises.

    Raises:
        ValueError: a patience outside 0.01 to 0.5.
    """

    def __init__(self, *, patience: float = 0.05, stop: bool = False) -> None:
        if not 0.01 <= patience <= 0.5:
            raise ValueError(f"patience={patience!r} must be a share of the plan, 0.01 to 0.5, such as 0.05")
        self.patience = float(patience)
        self.stop = bool(stop)

    def decide(self, forecaster: Cuttable) -> Decision:
        """Say whether the loss has left the band."""
        last = float(forecaster.curve.last_step or 0)
        horizon = forecaster.horizon
        if last < EARLIEST * horizon:
            return Decision(reason=f"not yet: {last / horizon:.0%} of the plan seen")
        earlier = _as_of(forecaster, last - (self.patience + WINDOW) * horizon)
        if earlier is None:
            return Decision(reason="not yet: no earlier forecast to judge by")
        found = deviation([earlier], forecaster.curve, horizon, patience=self.patience)
        if found is None:
            return Decision(reason="not yet: too few losses since the earlier forecast")
        worse = -found.score if getattr(forecaster, "measure", "") == Measure.SCORE else found.score
        return Decision(self.stop and worse > LIMIT, found.sentence(), found.to_dict())


def _as_of(forecaster: Cuttable, step: float) -> Expectation | None:
    """What the forecaster would have said when it had seen no more than this step."""
    twin = copy.copy(forecaster)
    for name in ("curve", "train"):
        if hasattr(twin, name):
            setattr(twin, name, getattr(twin, name).until(step))
    forecast = twin.forecast()
    return None if forecast is None else Expectation.of(forecast)
