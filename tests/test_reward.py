import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scale_callbacks import Monitor, RewardForecaster, SaturationRule, Schedule
from scale_callbacks.laws.saturation import exponential, line, overdamped
from scale_callbacks.laws.sigmoid import sigmoid, stage
from scale_callbacks.reward import BINS, EXTRAS

HORIZON = 400
STEPS = np.arange(1, HORIZON + 1)


def rewards(seed=0, noise=0.2, tau=40.0):
    return 1.0 - np.exp(-STEPS / tau) + np.random.default_rng(seed).normal(0, noise, HORIZON)


def fed(values, until=200, **options):
    forecaster = RewardForecaster(HORIZON, **options)
    forecaster.observe(STEPS[:until], values[:until])
    return forecaster


def numbers(forecast):
    return forecast.value, forecast.low, forecast.high


def test_laws_say_what_their_papers_say():
    t, one = np.array([0.0, 0.1, 0.3]), np.array([0.1])
    np.testing.assert_allclose(exponential(t, one, one)[:, 0], [0.0, 0.0, 1 - math.exp(-2)], atol=1e-12)
    np.testing.assert_allclose(
        sigmoid(t, one, np.array([3.0]))[:, 0], [0.0, 0.5, 1 / (1 + (1 / 3) ** 3)], atol=1e-12
    )
    # the middle of a stage; the oscillator starts with slope zero and ends at 1; a line is a line
    assert stage(one, one, one)[0, 0] == 0.5
    slow = overdamped(np.array([0.0, 1e-4, 50.0]), one, np.array([0.02]))[:, 0]
    assert slow[0] == pytest.approx(0.0, abs=1e-12)
    assert 0 < slow[1] < 1e-5
    assert slow[2] == pytest.approx(1.0)
    np.testing.assert_array_equal(line(t)[:, 0], t)


def test_flattened_reward_has_little_to_come_and_a_line_as_much_as_it_has_left():
    flat, rising = fed(rewards()).outlook(), fed(STEPS / HORIZON + rewards() * 0.0).outlook()
    assert abs(flat.remaining) < 0.1
    assert flat.share_reached > 0.9
    assert flat.probability(0.1) < 0.1
    assert rising.remaining == pytest.approx(0.95 - 0.5, abs=0.05)
    assert rising.probability(0.2) > 0.9


def test_time_constant_is_that_of_the_exponential():
    assert fed(rewards(noise=0.02)).time_constant() == pytest.approx(40, rel=0.35)
    assert RewardForecaster(10).time_constant() is None


def test_interval_holds_the_mean_of_the_last_tenth():
    held = []
    for seed in range(20):
        values = rewards(seed)
        forecast = fed(values).forecast()
        held.append(forecast.low <= values[-40:].mean() <= forecast.high)
    assert np.mean(held) >= 0.9


def test_finished_run_is_forecast_as_measured():
    values = rewards()
    forecast = fed(values, until=HORIZON).forecast()
    assert forecast.value == pytest.approx(values[-40:].mean(), abs=0.03)
    assert forecast.high - forecast.low < 0.1


def test_path_leads_from_the_first_step_to_the_forecast():
    forecast = fed(rewards()).forecast()
    assert forecast.path_steps[-1] == HORIZON
    assert (forecast.path_value[-1], forecast.path_low[-1], forecast.path_high[-1]) == numbers(forecast)
    low, high = np.array(forecast.path_low), np.array(forecast.path_high)
    assert (low <= high).all()
    assert sum(forecast.weights.values()) == pytest.approx(1.0)


def test_known_plan_tells_that_a_lowered_rate_leaves_less_to_come():
    plan = Schedule.cosine(1.0, HORIZON)
    rising = plan.area(STEPS) / plan.area(HORIZON)  # what each step brings is its learning rate
    left = rising[-40:].mean() - rising[99]
    blind, told = fed(rising, until=100).outlook(), fed(rising, until=100, schedule=plan).outlook()
    assert told.remaining < blind.remaining
    assert abs(told.remaining - left) < abs(blind.remaining - left)


def test_ceiling_bounds_what_is_to_come_and_one_that_was_passed_is_none():
    rising = STEPS / HORIZON
    assert fed(rising).outlook().probability(0.2) > 0.9
    near = fed(rising, ceiling=0.6)
    assert near.outlook().probability(0.2) == 0.0
    assert near.forecast().high <= 0.6
    passed = fed(rising, ceiling=0.3)
    assert passed.outlook().probability(0.2) > 0.9
    assert math.isfinite(passed.forecast().value)


def test_direction_min_mirrors_direction_max():
    values = rewards()
    up, down = fed(values), fed(-values, direction="min")
    assert up.outlook().gain == pytest.approx(down.outlook().gain)
    a, b = up.forecast(), down.forecast()
    np.testing.assert_allclose(numbers(a), (-b.value, -b.high, -b.low))


@settings(max_examples=15, deadline=None)
@given(
    scale=st.floats(1e-3, 1e4), shift=st.floats(-10, 10), seed=st.integers(0, 50), until=st.integers(40, 300)
)
def test_units_of_the_reward_do_not_matter(scale, shift, seed, until):
    values = rewards(seed)
    plain, other = fed(values, until), fed(scale * (values + shift), until)
    moved = scale * (np.array(numbers(plain.forecast())) + shift)
    np.testing.assert_allclose(numbers(other.forecast()), moved, rtol=1e-5, atol=1e-5 * scale)
    one, two = SaturationRule().decide(plain), SaturationRule().decide(other)
    assert one.evidence["probability"] == pytest.approx(two.evidence["probability"], abs=1e-6)
    assert two.evidence["gain"] == pytest.approx(scale * one.evidence["gain"], rel=1e-5, abs=1e-6 * scale)


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(1, 199), max_size=6, unique=True))
def test_split_of_the_observations_over_calls_changes_nothing(cuts):
    values = rewards()
    whole, parts = RewardForecaster(HORIZON), RewardForecaster(HORIZON)
    whole.observe(STEPS[:200], values[:200], extra={"reward_std": values[:200]})
    edges = [0, *sorted(cuts), 200]
    for a, b in itertools.pairwise(edges):
        parts.observe(STEPS[a:b], values[a:b], extra={"reward_std": values[a:b]})
    assert parts.forecast() == whole.forecast()
    assert parts.state_dict() == whole.state_dict()
    assert SaturationRule().decide(parts) == SaturationRule().decide(whole)


def test_resumed_run_forecasts_and_decides_bit_for_bit_the_same():
    values, first = rewards(), RewardForecaster(HORIZON)
    first.observe(STEPS[:150], values[:150], extra={"frac_reward_zero_std": values[:150]})
    second = RewardForecaster(HORIZON)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for one in (first, second):
        one.observe(STEPS[150:250], values[150:250], extra={"frac_reward_zero_std": values[150:250]})
    assert first.forecast() == second.forecast()
    assert SaturationRule().decide(first) == SaturationRule().decide(second)


def test_restart_from_a_checkpoint_replaces_what_came_after():
    values = rewards()
    straight, again = fed(values, until=120), fed(np.where(STEPS > 100, 9.0, values), until=150)
    again.observe(STEPS[100:120], values[100:120])
    assert again.forecast() == straight.forecast()


def test_state_is_bounded_whatever_the_length():
    forecaster = RewardForecaster(100_000)
    steps = np.arange(1, 50_001)
    extra = {f"signal {i}": np.ones(50_000) for i in range(EXTRAS + 5)}
    forecaster.observe(steps, np.sin(steps), extra=extra)
    assert len(forecaster.extra) == EXTRAS
    assert len(forecaster.curve.bins()) <= BINS


# --- bad input


def test_missing_and_non_finite_rewards_are_left_out():
    values = rewards()
    holes = values.copy()
    holes[::3] = np.nan
    holes[1::7] = np.inf
    kept = np.isfinite(holes)
    forecaster, clean = fed(holes), RewardForecaster(HORIZON)
    clean.observe(STEPS[:200][kept[:200]], values[:200][kept[:200]])
    assert forecaster.forecast() == clean.forecast()
    assert forecaster.curve.nonfinite == 200 - kept[:200].sum()
    assert fed(np.full(HORIZON, np.nan)).forecast() is None


def test_constant_reward_is_forecast_to_stay_and_is_not_saturation():
    forecaster = fed(np.full(HORIZON, 0.25))
    assert forecaster.forecast().value == pytest.approx(0.25, abs=1e-3)
    decision = SaturationRule().decide(forecaster)
    assert not decision.stop
    assert all(map(math.isfinite, decision.evidence.values()))


@pytest.mark.parametrize("values", [np.zeros(HORIZON), np.r_[np.zeros(HORIZON - 1), 1e90], 1e-90 * rewards()])
def test_odd_magnitudes_give_finite_forecasts(values):
    forecaster = fed(values, until=HORIZON - 1)
    assert np.isfinite(numbers(forecaster.forecast())).all()
    forecaster.observe(HORIZON, values[-1])
    assert np.isfinite(numbers(forecaster.forecast())).all()


def test_horizon_already_passed_moves_along():
    forecaster = RewardForecaster(100)
    forecaster.observe(STEPS[:200], rewards()[:200])
    assert forecaster.horizon == 200
    assert forecaster.forecast().status == "past_horizon"
    assert not SaturationRule().decide(forecaster).stop


def test_unknown_horizon_takes_as_many_steps_again_to_come():
    forecaster = RewardForecaster(None)
    forecaster.observe(STEPS[:300], rewards(noise=0.1)[:300])
    assert forecaster.horizon == 600
    assert forecaster.forecast().status == "unfamiliar"
    decision = SaturationRule().decide(forecaster)
    assert decision.stop
    assert "run as long again" in decision.reason


def test_monitor_never_raises_on_any_of_it():
    monitor = Monitor(RewardForecaster(HORIZON), rules=[SaturationRule()], name="reward")
    values = rewards()
    monitor.observe(1, values[0])
    for step in [*range(2, 150), 150, 150, 140, 141, *range(142, 420)]:
        value = math.nan if step % 5 == 0 else values[min(step, HORIZON) - 1]
        monitor.observe(step, value, extra={"reward_std": math.nan})
    assert monitor.forecast is not None
    assert "observation left out" not in monitor.warnings
    assert monitor.summary().finished


@pytest.mark.parametrize(
    ("horizon", "options", "words"),
    [
        (0, {}, "horizon=0"),
        (1.5, {}, "horizon=1.5"),
        (10, {"level": 1.0}, "level"),
        (10, {"direction": "up"}, "direction='up'"),
        (10, {"ceiling": math.nan}, "ceiling"),
        (10, {"schedule": Schedule.constant(1.0, 20)}, "schedule's 20"),
    ],
)
def test_wrong_settings_are_refused_by_name(horizon, options, words):
    with pytest.raises(ValueError, match=words):
        RewardForecaster(horizon, **options)


def test_extra_of_another_length_is_refused():
    with pytest.raises(ValueError, match="reward_std"):
        RewardForecaster(10).observe([1, 2], [0.0, 1.0], extra={"reward_std": [1.0]})
