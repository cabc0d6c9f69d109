"""TargetRule: will this run end as well as it must?"""

from __future__ import annotations

import math
from typing import Any

from scale_callbacks.forecast import Forecast, Status
from scale_callbacks.measure import Measure
from scale_callbacks.mixture import normal_quantile
from scale_callbacks.stopping import Decision


class TargetRule:
    """Says when a run will probably not reach a final value: that of the best run before it, for instance.

    It keeps no memory: what it says follows from the forecast alone. Nothing is said of a run that is like
    none the prior knows (`Status.UNFAMILIAR`) or that has gone past its plan.

    Args:
        target: final value to be reached, from above by a loss, from below by a score or a reward.
        confidence: probability of missing it from which on the run is to stop.
        earliest: share of the plan before which nothing is decided.
        stop: end the run; else the rule only advises.

    Raises:
        ValueError: a target that is not finite, a confidence outside 0.5 to 1, an earliest outside 0 to 1.
    """

    def __init__(
        self, target: float, *, confidence: float = 0.95, earliest: float = 0.1, stop: bool = True
    ) -> None:
        if not math.isfinite(target):
            raise ValueError(f"target={target!r} must be a finite number")
        if not 0.5 <= confidence < 1.0:
            raise ValueError(f"confidence={confidence!r} must lie between 0.5 and 1, for instance 0.95")
        if not 0.0 <= earliest < 1.0:
            raise ValueError(f"earliest={earliest!r} must be a share of the plan, for instance 0.1")
        self.target, self.confidence, self.earliest = float(target), float(confidence), float(earliest)
        self.stop = bool(stop)

    def decide(self, forecaster: Any) -> Decision:
        """Say whether the target will probably be missed."""
        seen = float(forecaster.curve.last_step or 0) / forecaster.horizon
        forecast = forecaster.forecast() if seen >= self.earliest else None
        if forecast is None:
            return Decision(reason=f"not yet: {seen:.0%} of the plan seen")
        if forecast.status in (Status.UNFAMILIAR, Status.PAST_HORIZON):
            return Decision(reason=f"not decided: the run is {forecast.status.replace('_', ' ')}")
        chance = chance_of(self.target, forecast, rises=rises(forecaster))
        missed = chance <= 1.0 - self.confidence
        reason = (
            f"{'will not' if missed else 'may'} reach {self.target:.4g}: {forecast.value:.4g} "
            f"({forecast.low:.4g} to {forecast.high:.4g}) is forecast for step {forecast.horizon:,}, "
            f"the chance is {chance:.0%}"
        )
        evidence = {"target": self.target, "chance": chance, "value": forecast.value}
        return Decision(
            self.stop and missed, reason, {**evidence, "low": forecast.low, "high": forecast.high}
        )


def rises(forecaster: Any) -> bool:
    """Whether higher is better for what is forecast."""
    return getattr(forecaster, "measure", None) is Measure.SCORE or (
        getattr(forecaster, "direction", "min") == "max"
    )


def chance_of(target: float, forecast: Forecast, *, rises: bool) -> float:
    """Probability that a run ends at a target or better.

    The forecast is taken for a normal distribution on either side of its median, as wide as its interval.

    Args:
        target: final value to be reached.
        forecast: of the final value.
        rises: higher is better.
    """
    half = forecast.value - forecast.low if target < forecast.value else forecast.high - forecast.value
    z = (target - forecast.value) / half * normal_quantile(0.5 * (1.0 + forecast.level))
    return 0.5 * math.erfc((z if rises else -z) / math.sqrt(2.0))
