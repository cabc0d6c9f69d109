"""SaturationRule: stops RL post-training when the rest of the budget is not worth its steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scale_callbacks.outlook import WINDOW, Outlook
from scale_callbacks.reward import LAST, RewardForecaster
from scale_callbacks.reward_level import Level, level_now, trend
from scale_callbacks.reward_spread import signal_of
from scale_callbacks.saturation_reason import Reason as Reason
from scale_callbacks.saturation_reason import told
from scale_callbacks.stopping import Decision

Floats = NDArray[np.float64]

FEWEST_BINS = 9  # before which no shape can be told
HAZARD = 0.06  # of a stage of learning that has not begun: 1 - (x / x_end) ** HAZARD
LAG = 2.0 / 3.0  # the mean over the last looks lags behind: truth came in about half the cases it said
CARRY = 0.3  # share of the trend of the last half that would carry on to the end
POWER = 1.25  # most standard errors of such a carried trend, in units of the gain looked for
LEARNED = 1.0  # standard deviations of the gain that count as learning
# Share of what is worth having that may still be expected: about half, on GRPO streams made to choose it
# (seeds 20 to 23 of examples/grpo_saturation.py; none that a figure is quoted on).
BANKED = 0.45
DIP = 2.0  # standard errors below the level of the laws that make a dip
SILENT = 0.95  # share of groups without spread that leaves no learning signal
SILENCE = 0.10  # share of the budget over which it must hold


class SaturationRule:
    """Stops when the rest of the budget will probably not bring a gain worth having.

    It stops for `saturated` when all of this holds. The probability that the reward still gains more than
    `min_gain` of the gain so far is below 1 - `confidence`; it is averaged over the last looks and holds a
    hazard for a stage of learning that has not begun. The gain is banked: less than about half of `min_gain`
    is expected, or less than could be measured at the end of the run, but never more than `min_gain`. The
    trend of the last half agrees, and the noise is low enough that such a rise would have been seen. The last
    steps do not lie below the level they should have: a run is not left in a dip. It stops for `collapsed`
    when the level has fallen below its best by more than noise explains. What it says depends on the
    forecaster's state alone.

    Where the run logs the spread of its rewards (`reward_std`), its square has fallen to less than half and
    the planned rate falls too, the gain is banked when the learning signal that is left could not bring
    `min_gain` even if it went on to bring as much as it did so far.

    Args:
        min_gain: share of the gain so far that makes going on worthwhile.
        confidence: how sure to be that it does not come.
        min_absolute_gain: the same in the reward's own units; replaces `min_gain`, and up to
            it may be expected.
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
            why = f"not yet, {forecaster.curve.n} observations tell no shape"
            return Decision(False, f"{Reason.NO_DATA}: {why}", {"observations": float(forecaster.curve.n)})
        evidence = self._evidence(forecaster, outlook)
        level = level_now(outlook, forecaster.horizon)
        evidence |= {
            "drop": level.drop,
            "drop_errors": level.errors,
            "best_level": forecaster.sign * level.best,
            "best_step": level.best_step,
            "dip": level.dip,
            "level_error": level.error,
        }
        reason = self._reason(evidence, level)
        sentence = told(reason, evidence, self.earliest)
        return Decision(reason in self.stop_on, f"{reason}: {sentence}", evidence)

    def _evidence(self, forecaster: RewardForecaster, outlook: Outlook) -> dict[str, float]:
        step, horizon = float(forecaster.curve.last_step or 0), float(forecaster.horizon)
        threshold = self._threshold(outlook)
        end = 1.0 - LAST / 2.0
        seen = float(outlook.steps[-1]) / horizon
        probability = _probability(outlook, threshold, 1.0 - min(seen / end, 1.0) ** HAZARD)
        wanted = float(threshold[-1]) * outlook.scale
        slope, error = trend(outlook, horizon)
        carried = CARRY * max(end - seen, 0.0)
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
            "measurable": _measurable(outlook, horizon),
            "expected": outlook.remaining,
            "probability": 0.0 if wanted >= outlook.room else probability,
            "trend": carried * slope,
            "trend_error": carried * error,
            "steps_saved": saved,
        }
        if zero is not None:
            evidence["zero_spread"] = zero[0]
            evidence["zero_spread_lowest"] = zero[1]
        evidence |= _signal(forecaster, outlook.gain)
        if pace is not None and pace[0] > 0.0:
            evidence["hours_saved"] = saved * pace[0] / 3600.0
        return {name: float(value) for name, value in evidence.items()}

    def _threshold(self, outlook: Outlook) -> Floats:
        """(looks) the gain worth having, in units of the outlook's scale."""
        if self.min_absolute_gain is not None:
            return np.full(len(outlook.steps), self.min_absolute_gain / outlook.scale)
        best = np.maximum.accumulate(np.maximum(outlook.looks.gain()[0], 0.0))
        return np.asarray(self.min_gain * best + 1e-12, dtype=np.float64)

    def _reason(self, evidence: dict[str, float], level: Level) -> Reason:
        share = evidence["step"] / evidence["horizon"]
        if evidence["steps_saved"] <= 0.0:
            return Reason.BUDGET_SPENT
        if share < self.earliest:
            return Reason.TOO_EARLY
        if level.fallen:
            return Reason.COLLAPSED
        learned = evidence["gain"] > LEARNED * evidence["gain_sd"]
        wanted, measurable = evidence["wanted"], evidence["measurable"]
        signal_gain = evidence.get("signal_gain")
        more = signal_gain is not None and signal_gain >= wanted
        if self.min_absolute_gain is not None:
            least, seen = wanted, wanted
        elif signal_gain is not None:  # it tells of the last few percent, better than a fixed share does
            least, seen = wanted, max(wanted, measurable)
        else:  # the last few percent must have come, and a rise be seen, where noise lets them be measured
            least, seen = min(max(BANKED * wanted, measurable), wanted), max(wanted, measurable)
        rising = evidence["probability"] >= 1.0 - self.confidence or evidence["expected"] >= least
        rising = rising or evidence["trend"] >= seen
        unseen = evidence["trend_error"] >= POWER * seen
        dipped = evidence["dip"] > max(BANKED * wanted, DIP * evidence["level_error"])
        if learned and not (rising or unseen or dipped or more):
            return Reason.SATURATED
        if evidence.get("zero_spread_lowest", 0.0) >= SILENT:
            return Reason.NO_LEARNING_SIGNAL
        if not learned:
            return Reason.NOT_LEARNED
        if rising:
            return Reason.STILL_RISING
        if unseen:
            return Reason.NOT_SEEN_LONG_ENOUGH
        return Reason.DIPPED if dipped else Reason.SIGNAL_LEFT


def _signal(forecaster: RewardForecaster, gain: float) -> dict[str, float]:
    """What the spread of the rewards tells, where logged; `signal_gain` only where that is to be heeded."""
    spread, last = forecaster.extra.get("reward_std"), float(forecaster.curve.last_step or 0)
    signal = signal_of(spread, forecaster.schedule, horizon=float(forecaster.horizon), last=last)
    if signal is None:
        return {}
    told = {"signal_level": signal.level, "signal_left": signal.left}
    return told | {"signal_gain": max(gain, 0.0) * signal.left} if signal.closing else told


def _probability(outlook: Outlook, threshold: Floats, hazard: float) -> float:
    """Probability that the laws or a stage that has not begun bring more than the threshold."""
    chances = outlook.looks.exceeds(threshold)
    recent = outlook.steps >= (1.0 - WINDOW) * outlook.steps[-1]
    laws = 0.5 * (float(chances[recent].mean()) + float(chances[-1]))
    return LAG * (1.0 - (1.0 - laws) * (1.0 - hazard))


def _measurable(outlook: Outlook, horizon: float) -> float:
    """Standard error of the final mean, as if it were compared with one of its own size."""
    count = float(outlook.seen.count.sum())
    tenth = max(3.0, LAST * count * horizon / max(float(outlook.steps[-1]), 1.0))
    return outlook.scale * float(outlook.looks.local[-1]) * math.sqrt(2.0 / tenth)
