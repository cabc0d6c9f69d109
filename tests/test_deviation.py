import json
import logging

import numpy as np
import pytest

from scale_callbacks import LossForecaster, MemorySink, Monitor, RewardForecaster, Schedule
from scale_callbacks.curve import Curve
from scale_callbacks.deviation import LIMIT, Deviation, DivergenceRule, Expectation, deviation, frozen
from scale_callbacks.testing import losses_of

T = 1000
PLAN = Schedule.wsd(1e-3, T, warmup=50, cooldown=200)


def lossy(seed=0, noise=0.02, horizon=T):
    steps = np.arange(1, horizon + 1)
    losses = 2.0 + 0.5 * (steps / horizon + 0.01) ** -0.4
    return losses + np.random.default_rng(seed).normal(0, noise, horizon)


def broken(share=0.2, at=500, **options):
    losses = lossy(**options)
    losses[at:] *= 1.0 + share
    return losses


def watch(losses, *, monitor=None, start=1, **options):
    monitor = monitor or Monitor(LossForecaster(PLAN), name="train_loss", **options)
    for step, loss in enumerate(losses[start - 1 :], start=start):
        monitor.observe(step, loss)
    return monitor


def fed(losses):
    forecaster = LossForecaster(PLAN)
    forecaster.observe(np.arange(1, len(losses) + 1), losses)
    return forecaster


def scores(memory):
    found = {record.step: record.metrics.get("forecast/deviation") for record in memory.records}
    return {step: score for step, score in found.items() if score is not None}


@pytest.mark.parametrize("seed", range(5))
def test_a_lawful_run_stays_in_its_band(seed):
    memory = MemorySink()
    monitor = watch(losses_of(PLAN, seed=seed), sinks=[memory])
    assert len(scores(memory)) > 20
    assert max(map(abs, scores(memory).values())) < LIMIT
    assert monitor.warnings == {}


@pytest.mark.parametrize(("share", "side"), [(0.2, "above"), (-0.2, "below"), (4.0, "above")])
def test_a_loss_that_jumps_is_told_within_a_twentieth_of_the_plan_and_once(share, side, caplog):
    memory = MemorySink()
    with caplog.at_level(logging.WARNING, "scale_callbacks"):
        monitor = watch(broken(share), sinks=[memory])
    out = [step for step, score in scores(memory).items() if abs(score) > LIMIT]
    assert 500 < out[0] <= 550
    assert monitor.warnings == {"train_loss left its forecast band": len(out)}
    assert len(caplog.records) == 1
    assert f"has left its forecast band {side}" in caplog.records[0].message
    assert not memory.records[-1].decision.stop


def test_a_loss_that_creeps_up_is_told():
    losses = lossy()
    losses[500:] += np.linspace(0.0, 1.5, 500)
    memory = MemorySink()
    watch(losses, sinks=[memory])
    assert any(score > LIMIT for step, score in scores(memory).items() if 500 < step <= 650)


def test_a_reward_that_rises_late_is_measured_but_no_warning():
    steps = np.arange(1, T + 1)
    noise = np.random.default_rng(0).normal(0, 0.01, T)
    memory = MemorySink()
    monitor = Monitor(RewardForecaster(T), sinks=[memory], name="reward")
    watch(1.0 / (1.0 + np.exp(-(steps - 400) / 30)) + noise, monitor=monitor)
    assert max(scores(memory).values()) > LIMIT
    assert monitor.warnings == {}


def test_an_isolated_spike_is_no_deviation():
    losses = lossy()
    losses[500:502] = 50.0
    assert watch(losses).warnings == {}


def test_the_interval_widens_when_the_loss_has_left_its_band():
    calm, jumped = watch(lossy()[:560]).forecast, watch(broken(0.3)[:560]).forecast
    assert jumped.high - jumped.low > 1.5 * (calm.high - calm.low)


def test_an_interrupted_run_says_what_an_uninterrupted_one_says():
    losses = broken()
    whole, first = MemorySink(), watch(losses[:525])
    watch(losses, sinks=[whole])
    rest = MemorySink()
    resumed = Monitor(LossForecaster(PLAN), name="train_loss", sinks=[rest])
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert resumed.deviation == first.deviation
    watch(losses, monitor=resumed, start=526)
    late = {step: score for step, score in scores(whole).items() if step > 525}
    assert scores(rest) == late


def test_a_restart_from_before_the_break_forgets_it():
    monitor = watch(broken()[:560])
    assert monitor.deviation.outside
    watch(lossy(), monitor=monitor, start=480)
    memory = MemorySink()
    straight = watch(lossy(), sinks=[memory])
    assert monitor.deviation.score == pytest.approx(straight.deviation.score, rel=1e-9)


def test_a_state_of_version_1_has_no_expectations_yet_and_goes_on():
    state = watch(lossy()[:300]).state_dict()
    for name in ("expected", "deviation", "seal"):
        del state[name]
    monitor = Monitor(LossForecaster(PLAN))
    monitor.load_state_dict({**state, "version": 1})
    assert monitor.deviation is None
    watch(broken(), monitor=monitor, start=280)
    assert monitor.warnings["loss left its forecast band"] > 0


def test_nothing_is_said_before_15_percent_of_the_plan_or_of_too_few_losses():
    forecaster = LossForecaster(PLAN)
    forecaster.observe(np.arange(1, 61), lossy()[:60])
    early = [Expectation.of(forecaster.forecast())]
    assert deviation([], forecaster.curve, T) is None
    forecaster.observe(np.arange(61, 150), 2.0 * lossy()[60:149])
    assert deviation(early, forecaster.curve, T) is None
    forecaster.observe(150, 2.0 * lossy()[149])
    assert deviation(early, forecaster.curve, T).outside
    sparse = Curve(T)
    sparse.observe([60, 800, 900, 1000], [2.5, 2.5, 2.5, 2.5])
    assert deviation(early, sparse, T) is None


def test_an_expectation_and_a_deviation_survive_plain_data():
    monitor = watch(lossy()[:600])
    expectation = Expectation.of(monitor.forecast)
    assert Expectation.from_list(json.loads(json.dumps(expectation.to_list()))) == expectation
    assert Deviation.from_dict(json.loads(json.dumps(monitor.deviation.to_dict()))) == monitor.deviation


def test_a_loss_that_stands_still_is_told():
    losses = lossy()
    losses[400:] = losses[400]
    monitor = watch(losses[:600])
    assert monitor.warnings["train_loss does not change"] > 0
    assert monitor.forecast.low < monitor.forecast.value < monitor.forecast.high
    constant = Curve(T)
    constant.observe(np.arange(1, 20), np.ones(19))
    assert not frozen(constant.bins())
    assert not frozen(Curve(T).bins())


@pytest.mark.parametrize("stop", [False, True])
def test_the_rule_tells_a_loss_that_stays_above_and_stops_only_when_asked(stop):
    monitor = Monitor(LossForecaster(PLAN), name="train_loss", rules=[DivergenceRule(stop=stop)])
    watch(broken()[:90], monitor=monitor)
    assert monitor.decision.reason.startswith("not yet")
    watch(broken()[:495], monitor=monitor, start=91)
    assert not monitor.decision.stop
    watch(broken()[:580], monitor=monitor, start=496)
    assert monitor.decision.stop is stop
    assert "has left its forecast band above" in monitor.decision.reason
    assert monitor.decision.evidence["score"] > LIMIT


def test_the_rule_lets_a_run_go_on_that_is_better_than_forecast():
    assert not DivergenceRule(stop=True).decide(fed(broken(-0.3)[:560])).stop
    assert not DivergenceRule(stop=True).decide(fed(lossy()[:560])).stop


def test_the_rule_says_the_same_however_often_it_is_asked_and_changes_nothing():
    forecaster = fed(broken()[:560])
    before, state = forecaster.forecast(), json.dumps(forecaster.state_dict())
    rule = DivergenceRule()
    assert rule.decide(forecaster) == rule.decide(forecaster)
    assert forecaster.forecast() == before
    assert json.dumps(forecaster.state_dict()) == state


@pytest.mark.parametrize("patience", [0.0, -1.0, 0.6, float("nan")])
def test_a_patience_that_is_no_share_of_the_plan_is_refused(patience):
    with pytest.raises(ValueError, match="patience"):
        DivergenceRule(patience=patience)


def test_a_curve_cut_at_a_step_is_the_one_seen_until_then():
    steps, losses = np.arange(1, T + 1), lossy()
    whole, part = Curve(T), Curve(T)
    whole.observe(steps, losses)
    part.observe(steps[:500], losses[:500])
    assert whole.until(500).state_dict() == part.state_dict()
    assert whole.until(T).state_dict() == whole.state_dict()
    assert whole.until(-5).n == 0
    assert whole.n == T
