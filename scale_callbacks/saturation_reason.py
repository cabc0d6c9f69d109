"""Why SaturationRule stops a run, or does not, and how it says so."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from scale_callbacks.stopping import Decision

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
    SIGNAL_LEFT = "signal_left"  # not yet: what spread the rewards still have may bring more
    DIPPED = "dipped"  # not yet: below its own level now, an outage or the start of a fall

    @classmethod
    def of(cls, decision: Decision) -> Reason:
        """The reason a decision of `SaturationRule` was made for."""
        return cls(decision.reason.split(":", 1)[0])


def told(reason: Reason, e: Mapping[str, float], earliest: float) -> str:
    """The sentence behind a reason, with its numbers."""
    left = e["steps_saved"] / e["horizon"]
    odds = f"the chance of more than {e['wanted']:.3g} is {e['probability']:.0%}"
    if reason is Reason.SATURATED:
        return (
            f"in the last {left:.0%} of the budget {odds} (gained so far {e['gain']:.3g}, "
            f"expected {e['expected']:+.2g}{_by_signal(e)}); stopping saves {_saving(e)}; {_ADVICE}"
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
        Reason.TOO_EARLY: f"step {e['step']:,.0f} lies in the first {earliest:.0%} of the budget",
        Reason.NOT_LEARNED: f"a gain of {e['gain']:.3g} +- {e['gain_sd']:.2g} is not told from none",
        Reason.STILL_RISING: f"{odds}, expected {e['expected']:+.2g}, the trend alone {e['trend']:+.2g}",
        Reason.NOT_SEEN_LONG_ENOUGH: (
            f"a rise of {e['wanted']:.3g} could have been missed, its error is {e['trend_error']:.2g}"
        ),
        Reason.DIPPED: (
            f"the last steps lie {e['dip']:.3g} +- {e['level_error']:.2g} below the level they should have"
        ),
        Reason.SIGNAL_LEFT: (
            f"the rewards still have {e.get('signal_level', 0.0):.0%} of their highest variance, which may "
            f"bring up to {e.get('signal_gain', 0.0):.2g}; {e['wanted']:.3g} is worth having"
        ),
        Reason.BUDGET_SPENT: "the budget is spent, there is nothing left to save",
    }.get(reason, "")


def _by_signal(e: Mapping[str, float]) -> str:
    return f", at most {e['signal_gain']:.2g} by the spread of the rewards" if "signal_gain" in e else ""


def _saving(e: Mapping[str, float]) -> str:
    seconds = 3600.0 * e.get("hours_saved", 0.0)
    if seconds >= 3600.0:
        time = f" ({seconds / 3600.0:.1f} hours)"
    elif seconds >= 120.0:
        time = f" ({seconds / 60.0:.0f} minutes)"
    else:
        time = f" ({seconds:.0f} seconds)" if seconds > 0.0 else ""
    known = "" if e["horizon_known"] else ", were it to run as long again"
    return f"{e['steps_saved']:,.0f} steps{time}{known}"
