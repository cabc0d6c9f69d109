"""Replaying finished RL runs: what a rule would have saved, harmed and rescued, beside today's rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scale_callbacks.reward import FEWEST, LAST, RewardForecaster
from scale_callbacks.reward_runs import RewardRun
from scale_callbacks.saturation import Reason, SaturationRule

Floats = NDArray[np.float64]

HARM = 0.10  # share of the gain
SMOOTHED = 0.06  # bandwidth of the curve that the gain is read off, in shares of the run
EVERY = 0.01  # share of the budget between two decisions
SHARES = (0.3, 0.5, 0.7)  # at which the forecast is scored
RESAMPLES = 1000


@dataclass(frozen=True)
class Outcome:
    """What stopping a run did.

    Attributes:
        saved: share of the steps not run.
        harmed: the rest would have brought more than 10% of the gain, and more than twice the standard error.
        rescued: the rest lost that much.
        stopped: whether it was stopped at all.
    """

    saved: float
    harmed: bool
    rescued: bool
    stopped: bool


@dataclass(frozen=True)
class Stop:
    """What one rule did to one run."""

    run: str
    source: str
    kind: str
    rule: str
    step: float
    reason: str
    outcome: Outcome


def smoothed(steps: Floats, rewards: Floats) -> Floats:
    """Local linear fit with a Gaussian kernel of 6% of the run (at least two steps of it)."""
    width = max(SMOOTHED * (steps[-1] - steps[0]), 2.0 * float(np.median(np.diff(steps))))
    fitted = np.empty(len(steps))
    for i, step in enumerate(steps):
        away = steps - step
        weight = np.exp(-0.5 * (away / width) ** 2)
        weight /= weight.sum()
        middle = float(weight @ away)
        slope = float(weight @ ((away - middle) * rewards)) / max(float(weight @ (away - middle) ** 2), 1e-9)
        fitted[i] = weight @ rewards - slope * middle
    return fitted


def judge(run: RewardRun, at: int, *, clean: Floats | None = None) -> Outcome:
    """What stopping after observation `at` did, by the truth where it is known.

    Args:
        run: the finished run.
        at: index of the last observation before the stop.
        clean: `smoothed` of the run, where it is at hand.
    """
    n = len(run.steps)
    last = max(3, n // 10)
    if run.truth is not None:
        curve, end, noise = run.truth, float(run.truth[-last:].mean()), 0.0
    else:
        curve = smoothed(run.steps, run.rewards) if clean is None else clean
        end = float(run.rewards[-last:].mean())
        noise = math.sqrt(float(np.mean(np.diff(run.rewards) ** 2)) / last)
    top = int(curve.argmax())
    gain = float(curve[top] - curve[: top + 1].min())
    stopped = at < n - 1
    lost = end - float(curve[at])
    least = max(HARM * gain, 2.0 * noise)
    matters = stopped and gain > 0.0
    return Outcome(
        saved=1.0 - float((run.steps[at] - run.steps[0]) / (run.steps[-1] - run.steps[0])),
        harmed=matters and lost > least,
        rescued=matters and -lost > least,
        stopped=stopped,
    )


def stop_live(run: RewardRun, rule: SaturationRule, *, scheduled: bool = True) -> tuple[int, str]:
    """Feed a run to the rule as if it were live: (last observation before the stop, reason)."""
    forecaster = forecaster_of(run, scheduled=scheduled)
    due, fed = EVERY, 0
    for i in range(len(run.steps) - 1):
        if run.steps[i] < due * run.horizon:
            continue
        due = math.floor(run.steps[i] / run.horizon / EVERY + 1.0 + 1e-9) * EVERY
        _feed(forecaster, run, fed, i + 1)
        fed = i + 1
        decision = rule.decide(forecaster)
        if decision.stop:
            return i, str(Reason.of(decision))
    return len(run.steps) - 1, ""


def forecaster_of(run: RewardRun, *, scheduled: bool = True, level: float = 0.9) -> RewardForecaster:
    """The forecaster a live run would have had."""
    schedule = run.schedule() if scheduled else None
    return RewardForecaster(run.horizon, level=level, schedule=schedule)


def patience(looks: int) -> Callable[[RewardRun], int]:
    """Early stopping in use today: no new best reward for so many observations."""

    def stop(run: RewardRun) -> int:
        best, since = -math.inf, 0
        for i, reward in enumerate(run.rewards):
            best, since = (reward, 0) if reward > best else (best, since + 1)
            if since >= looks:
                return i
        return len(run.rewards) - 1

    return stop


def plateau(run: RewardRun, *, spread: float = 0.01, count: int = 4) -> int:
    """Ray Tune's plateau stopper with its defaults: standard deviation of the last 4 below 0.01."""
    for i in range(count, len(run.rewards)):
        if np.std(run.rewards[i - count + 1 : i + 1]) < spread:
            return i
    return len(run.rewards) - 1


def share_of_run(run: RewardRun, *, share: float = 0.8) -> int:
    """A fixed share of the run, as Nimmaturi et al. 2025 suggest."""
    return int(np.searchsorted(run.steps, run.steps[0] + share * (run.steps[-1] - run.steps[0])))


def hindsight(run: RewardRun) -> int:
    """The earliest stop that harms nothing, known only afterwards."""
    clean = smoothed(run.steps, run.rewards) if run.truth is None else run.truth
    first = max(1, len(run.steps) // 20)
    good = (i for i in range(first, len(run.steps)) if not judge(run, i, clean=clean).harmed)
    return next(good, len(run.steps) - 1)


TODAY: Mapping[str, Callable[[RewardRun], int]] = {
    "patience 3": patience(3),
    "patience 20": patience(20),
    "patience 50": patience(50),
    "plateau of the last 4": plateau,
    "80% of the run": share_of_run,
    "hindsight": hindsight,
}


def replay(
    runs: Iterable[RewardRun], rule: SaturationRule, *, scheduled: bool = True, today: bool = True
) -> list[Stop]:
    """Stop every run with the rule and with those in use today."""
    stops = []
    for run in runs:
        at, reason = stop_live(run, rule, scheduled=scheduled)
        found = [("SaturationRule", at, reason)]
        found += [(name, stop(run), "") for name, stop in TODAY.items()] if today else []
        for name, i, why in found:
            step = float(run.steps[i])
            stops.append(Stop(run.name, run.source, run.kind, name, step, why, judge(run, i)))
    return stops


def score(stops: Sequence[Stop], *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """By rule and kind of curve: shares saved, harmed and rescued, each with a 90% interval over sources."""
    table: dict[str, dict[str, Any]] = {}
    for rule in dict.fromkeys(stop.rule for stop in stops):
        ours = [stop for stop in stops if stop.rule == rule]
        table[rule] = {}
        for kind in dict.fromkeys(stop.kind for stop in stops):
            some = [stop for stop in ours if stop.kind == kind]
            table[rule][kind] = {"runs": len(some)} | {
                what: _share(some, what, seed) for what in ("saved", "harmed", "rescued")
            }
        stopped = [stop for stop in ours if stop.outcome.stopped]
        table[rule]["stops"] = {"runs": len(stopped)} | (
            {"harmed": _share(stopped, "harmed", seed)} if stopped else {}
        )
    return table


def coverage(
    runs: Iterable[RewardRun], *, scheduled: bool = True, level: float = 0.9
) -> dict[str, dict[str, float]]:
    """How often the forecast's interval held the mean of the last tenth, by share of the run seen."""
    held: dict[str, list[tuple[bool, float]]] = {f"{share:g}": [] for share in SHARES}
    for run in runs:
        final = float(run.rewards[run.steps > (1.0 - LAST) * run.horizon].mean())
        forecaster, fed = forecaster_of(run, scheduled=scheduled, level=level), 0
        for share in SHARES:
            until = int(np.searchsorted(run.steps, share * run.horizon, side="right"))
            _feed(forecaster, run, fed, until)
            fed = until
            told = forecaster.forecast() if until >= FEWEST else None
            if told is not None:
                held[f"{share:g}"].append((told.low <= final <= told.high, abs(told.value - final)))
    return {
        share: {"runs": len(some), "held": float(np.mean([inside for inside, _ in some]))}
        for share, some in held.items()
        if some
    }


def as_json(stops: Sequence[Stop]) -> dict[str, Any]:
    """Everything a backtest found, as plain data."""
    return {"scores": score(stops), "stops": [asdict(stop) for stop in stops]}


def _feed(forecaster: RewardForecaster, run: RewardRun, start: int, end: int) -> None:
    extra = {name: values[start:end] for name, values in run.extra.items()}
    forecaster.observe(run.steps[start:end], run.rewards[start:end], extra=extra)


def _share(stops: Sequence[Stop], what: str, seed: int) -> dict[str, float]:
    values = np.array([float(getattr(stop.outcome, what)) for stop in stops])
    _, source = np.unique([stop.source for stop in stops], return_inverse=True)
    total, count = np.bincount(source, values), np.bincount(source)
    picks = np.random.default_rng(seed).integers(len(count), size=(RESAMPLES, len(count)))
    low, high = np.quantile(total[picks].sum(1) / count[picks].sum(1), (0.05, 0.95))
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}
