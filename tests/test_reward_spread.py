import itertools
import json

import numpy as np
import pytest

from scale_callbacks import RewardForecaster, SaturationRule, Schedule
from scale_callbacks.curve import Curve
from scale_callbacks.reward_spread import FALLEN, FOLLOWS, signal_of, weigh
from scale_callbacks.saturation import Reason

HORIZON = 400
STEPS = np.arange(1, HORIZON + 1)
SHARE = STEPS / HORIZON
FALLING = Schedule.linear(1e-3, HORIZON)
RIGHT = 0.95 * -np.expm1(-SHARE / 0.08)  # chance of a right answer
OUTAGE = (SHARE > 0.42) & (SHARE <= 0.5)


def curve(values, horizon=HORIZON, steps=STEPS):
    seen = Curve(horizon, bins=128, robust=False)
    seen.observe(steps[: len(values)], values)
    return seen


def graded(right, seed, groups=4, answers=8):
    """Rewards of 0 and 1 in groups: (mean, mean spread within groups) of each step."""
    given = np.random.default_rng(seed).random((len(right), groups, answers)) < right[:, None, None]
    return given.mean((1, 2)), given.std(2, ddof=1).mean(1)


def fed(rewards, spread=None, until=None, every=1, **options):
    forecaster = RewardForecaster(HORIZON, **options)
    n = len(rewards) if until is None else until
    told = np.where(STEPS % every == 0, spread, np.nan)[:n] if spread is not None else None
    forecaster.observe(STEPS[:n], rewards[:n], extra={} if told is None else {"reward_std": told})
    return forecaster


# --- how noisy a step is


def test_step_of_large_spread_counts_for_less():
    spread = np.where(OUTAGE, 0.5, 0.1)
    rewards = curve(RIGHT)
    bins = rewards.bins()
    weight = weigh(bins, curve(spread), horizon=HORIZON)
    inside = (bins.steps > 0.45 * HORIZON) & (bins.steps < 0.47 * HORIZON)
    before = bins.steps < 0.3 * HORIZON
    per_step = weight / bins.count
    assert per_step[inside].max() < 0.4 < 1.0 < per_step[before].min()
    # As an observation's variance follows half of the squared spread, it can count at most twice.
    assert per_step.max() <= 1.0 / (1.0 - FOLLOWS)


def test_outage_of_the_checker_drags_the_level_along_less_where_the_spread_tells_of_it():
    plain, told = [], []
    for seed in range(20):
        rewards, spread = graded(np.where(OUTAGE, 0.65, 1.0) * RIGHT, seed)
        for errors, known in ((plain, None), (told, spread)):
            errors.append(fed(rewards, known, until=210).outlook().level - RIGHT[209])
    assert np.mean(plain) < np.mean(told) < 0.0
    assert np.mean(np.square(told)) < 0.8 * np.mean(np.square(plain))


@pytest.mark.parametrize("spread", [np.full(HORIZON, 0.3), np.zeros(HORIZON), np.full(HORIZON, 1e-200)])
def test_spread_that_never_changes_changes_nothing(spread):
    rewards = RIGHT + np.random.default_rng(0).normal(0, 0.1, HORIZON)
    plain, told = fed(rewards, until=240), fed(rewards, spread, until=240)
    assert told.forecast().value == pytest.approx(plain.forecast().value, rel=1e-9)
    one, two = SaturationRule().decide(plain), SaturationRule().decide(told)
    assert (one.stop, one.evidence["probability"]) == (two.stop, pytest.approx(two.evidence["probability"]))


def test_without_a_spread_observations_are_counted():
    bins = curve(RIGHT).bins()
    assert weigh(bins, None, horizon=HORIZON) is bins.count
    assert weigh(bins, curve(np.full(5, 0.1)), horizon=HORIZON) is bins.count


@pytest.mark.parametrize("logged", [slice(0, 300), slice(100, None)])
def test_spread_of_a_part_of_the_run_is_left_alone(logged):
    rewards, spread = graded(RIGHT, 3)
    part = np.full(HORIZON, np.nan)
    part[logged] = spread[logged]
    plain, told = fed(rewards, until=380), fed(rewards, part, until=380)
    assert SaturationRule().decide(told).evidence == pytest.approx(SaturationRule().decide(plain).evidence)


def test_spread_logged_on_some_rows_tells_much_the_same():
    rewards, spread = graded(np.where(OUTAGE, 0.65, 1.0) * RIGHT, 4)
    every, some = (fed(rewards, spread, until=240, every=n, schedule=FALLING) for n in (1, 5))
    assert some.outlook().level == pytest.approx(every.outlook().level, abs=0.01)
    two, one = (SaturationRule().decide(told).evidence["signal_left"] for told in (some, every))
    assert two == pytest.approx(one, rel=0.3)


# --- what learning signal is left


def left(spread, schedule, until, horizon=HORIZON):
    return signal_of(curve(spread[:until]), schedule, horizon=horizon, last=until)


def test_account_is_the_area_under_rate_times_squared_spread():
    same = np.full(HORIZON, 0.3)
    half = left(same, Schedule.constant(1.0, HORIZON), 200)
    assert (half.level, half.left) == (pytest.approx(1.0), pytest.approx(1.0, abs=0.02))
    # A rate that falls linearly leaves a quarter of its area at half-way.
    assert left(same, FALLING, 200).left == pytest.approx(1 / 3, rel=0.05)
    fallen = np.where(STEPS > 100, 0.1, 0.3)
    told = left(fallen, FALLING, 200)
    assert told.level == pytest.approx(1 / 9, rel=0.01)
    assert told.left == pytest.approx(0.25 / 9 / (0.4375 + 0.3125 / 9), rel=0.25)
    assert left(10.0 * fallen, FALLING, 200).left == pytest.approx(told.left)
    assert left(fallen, FALLING, HORIZON).left == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize(
    ("spread", "schedule", "closing"),
    [
        (np.where(STEPS > 100, 0.1, 0.3), FALLING, True),
        (np.where(STEPS > 100, 0.1, 0.3), Schedule.cosine(1.0, HORIZON), True),
        (np.where(STEPS > 100, 0.1, 0.3), Schedule.constant(1.0, HORIZON), False),
        (np.where(STEPS > 100, 0.28, 0.3), FALLING, False),  # a stochastic environment
        (np.where(STEPS > 100, 0.3, 0.1), FALLING, False),  # a second stage
    ],
)
def test_account_closes_where_spread_and_rate_have_fallen(spread, schedule, closing):
    told = left(spread, schedule, 200)
    assert told.closing == closing
    assert (told.level < FALLEN) == (spread[199] < 0.2 < spread[0])


@pytest.mark.parametrize(
    ("spread", "schedule"),
    [
        (None, FALLING),
        (curve(np.full(200, 0.3)), None),
        (curve(np.full(7, 0.3)), FALLING),
        (curve(np.full(120, 0.3)), FALLING),  # no longer logged
        (curve(np.zeros(200)), FALLING),
    ],
)
def test_account_that_cannot_be_drawn_up_is_none(spread, schedule):
    assert signal_of(spread, schedule, horizon=HORIZON, last=200) is None


# --- in a decision


def decided(floor, *, until=220, schedule=FALLING, rule=None, direction="max"):
    """A saturated reward, the spread of which has fallen from 0.5 to a floor."""
    rewards = RIGHT + np.random.default_rng(1).normal(0, 0.03, HORIZON)
    spread = floor + (0.5 - floor) * np.exp(-SHARE / 0.2)
    sign = 1.0 if direction == "max" else -1.0
    told = fed(sign * rewards, spread, until=until, schedule=schedule, direction=direction)
    return (rule or SaturationRule()).decide(told)


@pytest.mark.parametrize(
    ("floor", "settings", "expected"),
    [
        (0.50, {}, Reason.SATURATED),  # the task's own spread
        (0.25, {}, Reason.SIGNAL_LEFT),
        (0.25, {"schedule": None}, Reason.SATURATED),
        (0.25, {"schedule": Schedule.constant(1e-3, HORIZON)}, Reason.SATURATED),
        (0.25, {"direction": "min"}, Reason.SIGNAL_LEFT),
        (0.25, {"until": 360}, Reason.SATURATED),  # hardly any rate is left
        (0.25, {"rule": SaturationRule(min_absolute_gain=0.05)}, Reason.SIGNAL_LEFT),
        (0.25, {"rule": SaturationRule(min_absolute_gain=0.5)}, Reason.SATURATED),
        (0.05, {}, Reason.SATURATED),
    ],
)
def test_run_goes_on_while_the_signal_left_may_bring_a_gain_worth_having(floor, settings, expected):
    decision = decided(floor, **settings)
    assert Reason.of(decision) is expected, decision.reason
    assert decision.stop == (expected is Reason.SATURATED)


def test_decision_names_the_signal_and_the_sentence_says_what_it_may_bring():
    wait, stop, stays = decided(0.25), decided(0.05), decided(0.50)
    for decision in (wait, stop):
        e = decision.evidence
        assert e["signal_gain"] == pytest.approx(e["signal_left"] * e["gain"])
        assert f"{e['signal_gain']:.2g}" in decision.reason
    assert wait.evidence["signal_gain"] > wait.evidence["wanted"]
    assert f"{wait.evidence['signal_level']:.0%} of their highest variance" in wait.reason
    assert "at most" in stop.reason
    # A spread that stays is told, and not heeded.
    assert stays.evidence["signal_level"] == pytest.approx(1.0, abs=0.01)
    assert "signal_gain" not in stays.evidence
    assert "at most" not in stays.reason


def test_last_percent_are_waited_for_by_the_signal_where_it_tells():
    # The laws still expect more than half of what is worth having; the spread says that it cannot come.
    rewards = 1.0 - np.exp(-SHARE / 0.25) + np.random.default_rng(0).normal(0, 0.01, HORIZON)
    spread = np.where(SHARE < 0.55, 0.5, 0.02)
    plain, told = (fed(rewards, known, until=290, schedule=FALLING) for known in (None, spread))
    waiting, stop = SaturationRule().decide(plain), SaturationRule().decide(told)
    assert 0.5 * waiting.evidence["wanted"] < waiting.evidence["expected"] < waiting.evidence["wanted"]
    assert Reason.of(waiting) is Reason.STILL_RISING
    assert Reason.of(stop) is Reason.SATURATED, stop.reason


def test_spread_of_steps_that_a_restart_took_back_is_forgotten():
    rewards, spread = graded(RIGHT, 5)
    straight = fed(rewards, spread, until=200, schedule=FALLING)
    again = fed(rewards, spread, until=200, schedule=FALLING)
    again.observe(STEPS[200:300], rewards[200:300], extra={"reward_std": np.full(100, 5.0)})
    again.observe(STEPS[190:200], rewards[190:200], extra={"reward_std": spread[190:200]})
    assert SaturationRule().decide(again) == SaturationRule().decide(straight)
    # Rows without the signal leave those taken back in its curve; nobody looks past the last row.
    silent = fed(rewards, spread, until=300, schedule=FALLING)
    silent.observe(STEPS[190:200], rewards[190:200])
    assert SaturationRule().decide(silent).evidence["signal_left"] == pytest.approx(
        SaturationRule().decide(straight).evidence["signal_left"], rel=0.2
    )


def test_resume_and_the_split_over_calls_change_nothing():
    rewards, spread = graded(RIGHT, 6)
    whole, parts = (
        fed(rewards, spread, until=280, schedule=FALLING),
        RewardForecaster(HORIZON, schedule=FALLING),
    )
    for a, b in itertools.pairwise([0, 3, 90, 200, 280]):
        other = RewardForecaster(HORIZON, schedule=FALLING)
        other.load_state_dict(json.loads(json.dumps(parts.state_dict())))
        other.observe(STEPS[a:b], rewards[a:b], extra={"reward_std": spread[a:b]})
        parts = other
    assert parts.forecast() == whole.forecast()
    assert SaturationRule().decide(parts) == SaturationRule().decide(whole)


@pytest.mark.parametrize("odd", [1e99, -1.0, 0.0, 1e-300])
def test_odd_spreads_give_finite_numbers(odd):
    rewards, spread = graded(RIGHT, 7)
    spread[50:60] = odd
    told = fed(rewards, spread, until=250, schedule=FALLING)
    assert np.isfinite([told.forecast().low, told.forecast().high]).all()
    assert all(np.isfinite(value) for value in SaturationRule().decide(told).evidence.values())
