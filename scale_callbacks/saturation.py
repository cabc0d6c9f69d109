"""SaturationRule: stops RL post-training when the rest of the budget is not worth its steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scale_callbacks.outlook import WINDOW, Outlook
from scale_callbacks.reward import LAST, RewardForecaster
from scale_callbacks.stopping import Decision

Floats = NDArray[np.float64]

FEWEST_BINS = 9  # before which no shape can be told
HAZARD = 0.06  # of a stage of learning that has not begun: 1 - (x / x_end) ** HAZARD
LAG = 2.0 / 3.0  # the mean over the last looks lags behind: truth came in about half the cases it said
CARRY = 0.3  # share of the trend of the last half that would carry on to the end
POWER = 1.25  # most standard errors of such a carried trend, in units of the gain looked for
LEARNED = 1.0  # standard deviations of the gain that count as learning
FALL = 5.0  # standard errors that make a fall
FALLEN = 0.5  # and share of the gain
ROUGH = 1.5  # most that autocorrelation may add to the noise of neighbours when a fall is judged
LEVEL = 0.05  # share of the run whose mean is a level
SILENT = 0.95  # share of groups without spread that leaves no learning signal
SILENCE = 0.10  # share of the budget over which it must hold

_ADVICE = "more rollouts per prompt (as in BroRL) or harder prompts may still bring more"


class Reason(StrEnum):
    """Why a run should stop, or why not yet; the first word of every decision's sentence."""

    SATURATED = "saturated"
    COLLAPSED = "collapsed"
    NO_LEARNING_SIGNAL = "no_learning_signal"
    NO_DATA = "no_data"  # not yet: too few observations
    TOO_EARLY = "too_early"  # not yet: the first part of the run
    NOT_LEARNED = "not_learned"  # not yet: a flat start is not saturation
    STILL_RISING = "still_rising"  # not yet: the rest probably brings more
    NOT_SEEN_LONG_ENOUGH = "not_seen_long_enough"  # not yet: such a rise could have been missed
    BUDGET_SPENT = "budget_spent"  # nothing left to save

    @classmethod
    def of(cls, decision: Decision) -> Reason:
        """The reason a decision of `SaturationRule` was made for."""
        return cls(decision.reason.split(":", 1)[0])


@dataclass(frozen=True)
class _Fall:
    """How far the level lies below its best."""

    drop: float
    errors: float
    best: float
    best_step: float
    fallen: bool


class SaturationRule:
    """Stops when the rest of the budget will probably not bring a gain worth having.

    It stops for `saturated` when the probability that the reward still gains more than `min_gain` of the gain
    so far (but at least one standard error of the final mean) is below 1 - `confidence`, no more than
    `min_gain` is expected however uncertain it is, the trend of the last half agrees, and the noise is low
    enough that such a rise would have been seen. The probability is averaged over the last looks and holds a
    hazard for a stage of learning that has not begun. It stops for `collapsed` when the level has fallen
    below its best by more than noise explains. What it says depends on the forecaster's state alone.

    Args:
        min_gain: share of the gain so far that makes going on worthwhile.
        confidence: how sure to be that it does not come.
        min_absolute_gain: the same in the reward's own units; replaces `min_gain`.
        earliest: share of the budget before which it never stops.
        stop_on: reasons that stop; the others, and all of them for (), are advice only.

    Raises:
        ValueError: a share outside its range, a reason that cannot stop.
    """

    def __init__(
        self,
        *,
        min_gain: float = 0.10,
        confidence: float = 0.8,
        min_absolute_gain: float | None = None,
        earliest: float = 0.10,
        stop_on: Iterable[str] = (Reason.SATURATED, Reason.COLLAPSED),
    ) -> None:
        if not 0.0 < min_gain < math.inf:
            raise ValueError(f"min_gain={min_gain!r} must be positive, for instance 0.1")
        if not 0.0 < confidence < 1.0:
            raise ValueError(f"confidence={confidence!r} must lie between 0 and 1, for instance 0.8")
        if min_absolute_gain is not None and not 0.0 < min_absolute_gain < math.inf:
            raise ValueError(f"min_absolute_gain={min_absolute_gain!r} must be positive, or None")
        if not 0.0 <= earliest < 1.0:
            raise ValueError(f"earliest={earliest!r} must lie between 0 and 1")
        self.min_gain, self.confidence = float(min_gain), float(confidence)
        self.min_absolute_gain, self.earliest = min_absolute_gain, float(earliest)
        self.stop_on = frozenset(Reason(reason) for reason in stop_on)
        if not self.stop_on <= {Reason.SATURATED, Reason.COLLAPSED, Reason.NO_LEARNING_SIGNAL}:
            raise ValueError(f"stop_on={sorted(self.stop_on)} holds a reason to go on")

    def decide(self, forecaster: Any) -> Decision:
        """Say whether the run should stop now, and why.

        Raises:
            TypeError: a forecaster that is no `RewardForecaster`.
        """
        if not isinstance(forecaster, RewardForecaster):
            raise TypeError(f"SaturationRule reads a RewardForecaster, got {type(forecaster).__name__}")
        outlook = forecaster.outlook()
        if outlook is None or len(outlook.at) < FEWEST_BINS:
            told = f"not yet, {forecaster.curve.n} observations tell no shape"
            return Decision(False, f"{Reason.NO_DATA}: {told}", {"observations": float(forecaster.curve.n)})
        evidence = self._evidence(forecaster, outlook)
        fall = _fall(outlook, forecaster.horizon)
        evidence |= {
            "drop": fall.drop,
            "drop_errors": fall.errors,
            "best_level": forecaster.sign * fall.best,
            "best_step": fall.best_step,
        }
        reason = self._reason(evidence, fall)
        told = _told(reason, evidence, self)
        return Decision(reason in self.stop_on, f"{reason}: {told}", evidence)

    def _evidence(self, forecaster: RewardForecaster, outlook: Outlook) -> dict[str, float]:
        step, horizon = float(forecaster.curve.last_step or 0), float(forecaster.horizon)
        threshold = self._threshold(outlook, horizon)
        law, latest = _probability(outlook, threshold)
        end = 1.0 - LAST / 2.0
        left = max(end - float(outlook.steps[-1]) / horizon, 0.0)
        hazard = 1.0 - min(float(outlook.steps[-1]) / horizon / end, 1.0) ** HAZARD
        wanted = float(threshold[-1]) * outlook.scale
        if wanted >= outlook.room:
            law = latest = hazard = 0.0
        slope, error = _trend(outlook, horizon)
        zero = forecaster.recent("frac_reward_zero_std", SILENCE)
        pace = forecaster.recent("step_time", 1.0)
        saved = max(horizon - step, 0.0)
        evidence = {
            "step": step,
            "horizon": horizon,
            "horizon_known": float(forecaster.horizon_known),
            "gain": outlook.gain,
            "gain_sd": outlook.gain_sd,
            "wanted": wanted,
            "expected": outlook.remaining,
            "probability": LAG * (1.0 - (1.0 - law) * (1.0 - hazard)),
            "probability_latest": LAG * latest,
            "trend": CARRY * left * slope,
            "trend_error": CARRY * left * error,
            "steps_saved": saved,
        }
        if zero is not None:
            evidence["zero_spread"] = zero[0]
            evidence["zero_spread_lowest"] = zero[1]
        if pace is not None and pace[0] > 0.0:
            evidence["hours_saved"] = saved * pace[0] / 3600.0
        return {name: float(value) for name, value in evidence.items()}

    def _threshold(self, outlook: Outlook, horizon: float) -> Floats:
        """(looks) the gain looked for, in units of the outlook's scale."""
        if self.min_absolute_gain is not None:
            return np.full(len(outlook.steps), self.min_absolute_gain / outlook.scale)
        best = np.maximum.accumulate(np.maximum(outlook.looks.gain()[0], 0.0))
        count = np.cumsum(outlook.seen.count)[outlook.ends]
        tenth = np.maximum(3.0, LAST * count * horizon / np.maximum(outlook.steps, 1.0))
        # Less than this nobody could measure at the end of the run.
        error = outlook.looks.local * np.sqrt(2.0 / tenth)
        return np.asarray(np.maximum(self.min_gain * best, error) + 1e-12, dtype=np.float64)

    def _reason(self, evidence: dict[str, float], fall: _Fall) -> Reason:
        share = evidence["step"] / evidence["horizon"]
        doubt = 1.0 - self.confidence
        if evidence["steps_saved"] <= 0.0:
            return Reason.BUDGET_SPENT
        if share < self.earliest:
            return Reason.TOO_EARLY
        if fall.fallen:
            return Reason.COLLAPSED
        learned = evidence["gain"] > LEARNED * evidence["gain_sd"]
        rising = max(evidence["probability"], evidence["probability_latest"]) >= doubt
        unseen = evidence["trend_error"] >= POWER * evidence["wanted"]
        rising = rising or evidence["trend"] >= evidence["wanted"]
        # Under much noise `wanted` is what could be measured; what is worth having may be less.
        least = self.min_gain * evidence["gain"] if self.min_absolute_gain is None else self.min_absolute_gain
        rising = rising or evidence["expected"] >= least
        if learned and not rising and not unseen:
            return Reason.SATURATED
        if evidence.get("zero_spread_lowest", 0.0) >= SILENT:
            return Reason.NO_LEARNING_SIGNAL
        if not learned:
            return Reason.NOT_LEARNED
        return Reason.STILL_RISING if rising else Reason.NOT_SEEN_LONG_ENOUGH


def _probability(outlook: Outlook, threshold: Floats) -> tuple[float, float]:
    """(mean over the last looks, latest) probability that the laws bring more than the threshold."""
    told = outlook.looks.exceeds(threshold)
    recent = outlook.steps >= (1.0 - WINDOW) * outlook.steps[-1]
    return float(told[recent].mean()), float(told[-1])


def _trend(outlook: Outlook, horizon: float) -> tuple[float, float]:
    """Slope of a line through the last half, in reward a budget, and its standard error."""
    half = outlook.at >= 0.5 * outlook.at[-1]
    x, y, count = outlook.at[half] / horizon, outlook.seen.reward[half], outlook.seen.count[half]
    x = x - x @ count / count.sum()
    square = max(float(count @ x**2), 1e-12)
    return outlook.scale * float((count * x) @ y) / square, outlook.noise / math.sqrt(square)


def _fall(outlook: Outlook, horizon: float) -> _Fall:
    """Compare the level of the last few percent with the best there was."""
    count, reward, at = outlook.seen.count, outlook.seen.reward, outlook.at
    n, total, moment = (
        np.concatenate(([0.0], np.cumsum(column))) for column in (count, count * reward, count * at)
    )
    width = max(4.0, LEVEL * n[-1] * horizon / max(float(at[-1]), 1.0))
    last = np.flatnonzero(n[1:] >= width) + 1
    if len(last) < 3:
        return _Fall(0.0, 0.0, outlook.level, float(at[-1]), False)
    first = np.maximum(np.searchsorted(n, n[last] - width + 1e-9, side="right") - 1, 0)
    held = n[last] - n[first]
    level, centre = (total[last] - total[first]) / held, (moment[last] - moment[first]) / held
    best = np.maximum.accumulate(level)
    drop = best - level
    # Residuals of laws that cannot fall call a fall noise: neighbours tell better.
    noise = min(float(outlook.looks.noise[-1]), ROUGH * float(outlook.looks.local[-1]))
    errors = drop / (noise * np.sqrt(2.0 / held))
    gain = max(float(np.maximum(outlook.looks.gain()[0], 0.0).max()), 0.0)
    fallen = (errors > FALL) & (drop > FALLEN * gain)
    top = int(level.argmax())
    return _Fall(
        drop=outlook.scale * float(drop[-1]),
        errors=float(errors[-1]),
        best=outlook.start + outlook.scale * float(level[top]),
        best_step=float(round(float(centre[top]))),
        fallen=bool(fallen[-2:].all()),
    )


def _told(reason: Reason, e: dict[str, float], rule: SaturationRule) -> str:
    """The sentence behind a reason, with its numbers."""
    left = e["steps_saved"] / e["horizon"]
    odds = (
        f"the chance of more than {e['wanted']:.3g} is {max(e['probability'], e['probability_latest']):.0%}"
    )
    if reason is Reason.SATURATED:
        return (
            f"in the last {left:.0%} of the budget {odds} (gained so far {e['gain']:.3g}, "
            f"expected {e['expected']:+.2g}); stopping saves {_saving(e)}; {_ADVICE}"
        )
    if reason is Reason.COLLAPSED:
        return (
            f"the level fell {e['drop']:.3g} below its best {e['best_level']:.3g} at step "
            f"{e['best_step']:,.0f} ({e['drop_errors']:.1f} standard errors); stopping saves {_saving(e)}; "
            "go back to that checkpoint"
        )
    if reason is Reason.NO_LEARNING_SIGNAL:
        return (
            f"{e['zero_spread']:.0%} of the groups have rewards without spread: they teach nothing; "
            f"stopping would save {_saving(e)}; {_ADVICE}"
        )
    return "not yet, " + {
        Reason.TOO_EARLY: f"step {e['step']:,.0f} lies in the first {rule.earliest:.0%} of the budget",
        Reason.NOT_LEARNED: f"a gain of {e['gain']:.3g} +- {e['gain_sd']:.2g} is not told from none",
        Reason.STILL_RISING: f"{odds}, expected {e['expected']:+.2g}, the trend alone {e['trend']:+.2g}",
        Reason.NOT_SEEN_LONG_ENOUGH: (
            f"a rise of {e['wanted']:.3g} could have been missed, its error is {e['trend_error']:.2g}"
        ),
        Reason.BUDGET_SPENT: "the budget is spent, there is nothing left to save",
    }.get(reason, "")


def _saving(e: dict[str, float]) -> str:
    seconds = 3600.0 * e.get("hours_saved", 0.0)
    if seconds >= 3600.0:
        time = f" ({seconds / 3600.0:.1f} hours)"
    elif seconds >= 120.0:
        time = f" ({seconds / 60.0:.0f} minutes)"
    else:
        time = f" ({seconds:.0f} seconds)" if seconds > 0.0 else ""
    known = "" if e["horizon_known"] else ", were it to run as long again"
    return f"{e['steps_saved']:,.0f} steps{time}{known}"
