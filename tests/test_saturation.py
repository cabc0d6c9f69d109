import numpy as np
import pytest

from scale_callbacks import LossForecaster, Monitor, RewardForecaster, SaturationRule, Schedule
from scale_callbacks.saturation import Reason
from scale_callbacks.simulate import simulate

HORIZON = 1000
STEPS = np.arange(1, HORIZON + 1)
SHARE = STEPS / HORIZON


def noisy(curve, sd, seed=0):
    return curve + np.random.default_rng(seed).normal(0, sd, HORIZON)


SATURATING = noisy(1 - np.exp(-SHARE / 0.05), 0.2)
CURVES = {
    "saturating": SATURATING,
    "linear": noisy(SHARE, 0.1),
    "flat": noisy(0 * SHARE, 0.3),
    "collapsing": noisy(1 - np.exp(-SHARE / 0.05) - 0.9 * (SHARE > 0.45), 0.2),
    "high start, then collapse": noisy(0.9 - 0.8 * (SHARE > 0.45), 0.1),
    "late sigmoid": noisy(1 / (1 + np.exp(-(SHARE - 0.7) / 0.05)), 0.05),
}


def after(curve, share, *, extra=None, **options):
    forecaster = RewardForecaster(HORIZON, **options)
    n = round(share * HORIZON)
    forecaster.observe(
        STEPS[:n], CURVES[curve][:n], extra={k: np.full(n, v) for k, v in (extra or {}).items()}
    )
    return forecaster


def reason(curve, share, rule=None, **options):
    decision = (rule or SaturationRule()).decide(after(curve, share, **options))
    return Reason.of(decision), decision


@pytest.mark.parametrize(
    ("curve", "share", "settings", "expected", "stops"),
    [
        ("saturating", 0.005, {}, Reason.NO_DATA, False),
        ("saturating", 0.08, {}, Reason.TOO_EARLY, False),
        ("saturating", 0.12, {}, Reason.STILL_RISING, False),
        ("saturating", 0.50, {}, Reason.SATURATED, True),
        ("saturating", 0.50, {"stop_on": ()}, Reason.SATURATED, False),
        ("saturating", 0.50, {"earliest": 0.6}, Reason.TOO_EARLY, False),
        ("saturating", 0.50, {"min_absolute_gain": 1e-3}, Reason.STILL_RISING, False),
        ("saturating", 1.00, {}, Reason.BUDGET_SPENT, False),
        ("linear", 0.50, {}, Reason.STILL_RISING, False),
        ("linear", 0.50, {"min_absolute_gain": 0.9}, Reason.SATURATED, True),
        ("late sigmoid", 0.40, {}, Reason.NOT_LEARNED, False),
        ("flat", 0.40, {}, Reason.NOT_LEARNED, False),
        ("collapsing", 0.60, {}, Reason.COLLAPSED, True),
        ("collapsing", 0.60, {"stop_on": ["saturated"]}, Reason.COLLAPSED, False),
        ("high start, then collapse", 0.60, {}, Reason.COLLAPSED, True),
    ],
)
def test_decision_table(curve, share, settings, expected, stops):
    found, decision = reason(curve, share, SaturationRule(**settings))
    assert (found, decision.stop) == (expected, stops), decision.reason
    assert all(isinstance(value, float) and np.isfinite(value) for value in decision.evidence.values())


def test_noise_that_could_hide_a_rise_is_not_saturation():
    # The laws are sure of a plateau, but the last half alone could not have shown a rise of that size.
    found, decision = reason("saturating", 0.6, SaturationRule(min_absolute_gain=0.012, confidence=0.01))
    assert found is Reason.NOT_SEEN_LONG_ENOUGH, decision.reason
    assert decision.evidence["trend_error"] > 1.25 * 0.012


def test_chance_is_asked_of_the_gain_worth_having_however_much_noise_there_is():
    # A line under noise of its own size: 30% of the gain is still to come, and nobody could measure it.
    run = simulate(90, seed=1)[89]
    forecaster = RewardForecaster(len(run.steps))
    forecaster.observe(run.steps[:140], run.rewards[:140])
    decision = SaturationRule().decide(forecaster)
    assert decision.evidence["wanted"] < decision.evidence["measurable"]
    assert decision.evidence["probability"] > 0.2
    assert Reason.of(decision) is Reason.STILL_RISING


def test_last_percent_that_are_sure_to_come_are_waited_for():
    # Hardly any noise: nobody doubts that less than 10% of the gain is left, nor that more than 5% is.
    rewards = noisy(1 - np.exp(-SHARE / 0.25), 0.01)
    forecaster, seen = RewardForecaster(HORIZON), {}
    for end in range(10, HORIZON, 10):
        forecaster.observe(STEPS[end - 10 : end], rewards[end - 10 : end])
        decision = SaturationRule().decide(forecaster)
        seen[end] = Reason.of(decision), decision.evidence
        if decision.stop:
            break
    sure = [e for r, e in seen.values() if r is Reason.STILL_RISING and e["probability"] < 0.1]
    assert len(sure) >= 3
    assert all(e["expected"] > 0.045 * e["gain"] for e in sure)
    left = rewards[-100:].mean() - (1 - np.exp(-end / 250))
    assert 0.0 < left < 0.055
    assert end < 800


def test_run_is_not_left_in_a_dip():
    rewards = noisy(1 - np.exp(-SHARE / 0.05), 0.05)
    rewards[450:480] -= 0.3
    forecaster, found = RewardForecaster(HORIZON), {}
    forecaster.observe(STEPS[:400], rewards[:400])
    assert SaturationRule().decide(forecaster).stop
    for end in range(410, 601, 10):
        forecaster.observe(STEPS[end - 10 : end], rewards[end - 10 : end])
        decision = SaturationRule().decide(forecaster)
        found[end] = Reason.of(decision)
    assert found[440] is Reason.SATURATED
    assert found[480] is Reason.DIPPED
    assert found[600] is Reason.SATURATED


@pytest.mark.parametrize(("zero", "expected"), [(0.99, Reason.NO_LEARNING_SIGNAL), (0.5, Reason.NOT_LEARNED)])
def test_groups_without_spread_are_advice_unless_asked(zero, expected):
    signal = {"frac_reward_zero_std": zero}
    found, decision = reason("flat", 0.4, extra=signal)
    assert (found, decision.stop) == (expected, False)
    asked = SaturationRule(stop_on=list(Reason)[:3])
    assert reason("flat", 0.4, asked, extra=signal)[1].stop == (expected is Reason.NO_LEARNING_SIGNAL)


def test_saturation_says_what_it_saves_and_what_else_could_be_done():
    _, decision = reason("saturating", 0.5, extra={"step_time": 36.0})
    assert "500 steps (5.0 hours)" in decision.reason
    assert "more rollouts per prompt" in decision.reason
    assert "harder prompts" in decision.reason
    assert decision.evidence["steps_saved"] == 500
    assert decision.evidence["hours_saved"] == pytest.approx(5.0)
    assert decision.evidence["probability"] < 0.2
    assert "hours" not in reason("saturating", 0.5)[1].reason


@pytest.mark.parametrize(
    ("pace", "told"), [(0.1, "(50 seconds)"), (1.0, "(8 minutes)"), (7.2, "(1.0 hours)")]
)
def test_saving_is_told_in_a_unit_that_fits(pace, told):
    assert (
        f"stopping saves 500 steps {told}" in reason("saturating", 0.5, extra={"step_time": pace})[1].reason
    )


def test_collapse_names_the_best_step():
    _, decision = reason("collapsing", 0.6)
    assert 100 < decision.evidence["best_step"] < 460
    assert f"{decision.evidence['best_step']:,.0f}" in decision.reason
    assert decision.evidence["drop"] == pytest.approx(0.9, abs=0.2)


def test_known_ceiling_that_is_reached_leaves_nothing_to_wait_for():
    found, decision = reason("saturating", 0.3, ceiling=0.5 + float(SATURATING[:300].max()) / 2)
    assert found is Reason.SATURATED, decision.reason


def test_asking_often_changes_nothing():
    often, once, rule = RewardForecaster(HORIZON), RewardForecaster(HORIZON), SaturationRule()
    for step, value in zip(STEPS[:300], SATURATING, strict=False):
        often.observe(step, value)
        rule.decide(often)
        often.forecast()
    once.observe(STEPS[:300], SATURATING[:300])
    assert rule.decide(often) == rule.decide(once) == rule.decide(once)
    assert rule.decide(often) == SaturationRule().decide(once)


def test_more_confidence_never_stops_earlier():
    stops = []
    for confidence in (0.6, 0.8, 0.95):
        rule, forecaster = SaturationRule(confidence=confidence), RewardForecaster(HORIZON)
        for end in range(10, HORIZON + 1, 10):
            forecaster.observe(STEPS[end - 10 : end], SATURATING[end - 10 : end])
            if rule.decide(forecaster).stop:
                break
        stops.append(end)
    assert stops == sorted(stops)
    assert stops[0] < 500


def test_monitor_stops_by_the_rule():
    monitor = Monitor(RewardForecaster(HORIZON), rules=[SaturationRule()], name="reward")
    for step, value in zip(STEPS, SATURATING, strict=True):
        if monitor.observe(int(step), float(value)).stop:
            break
    assert 100 < step < 600
    assert Reason.of(monitor.decision) is Reason.SATURATED


def test_other_forecasters_are_refused():
    with pytest.raises(TypeError, match="LossForecaster"):
        SaturationRule().decide(LossForecaster(Schedule.constant(1.0, 10)))


@pytest.mark.parametrize(
    "settings",
    [
        {"min_gain": 0.0},
        {"confidence": 1.0},
        {"min_absolute_gain": -1.0},
        {"earliest": 1.0},
        {"stop_on": ["still_rising"]},
        {"stop_on": ["tired"]},
    ],
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ValueError):  # noqa: PT011 (one message each, and the enum's own)
        SaturationRule(**settings)
