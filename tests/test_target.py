from dataclasses import replace

import numpy as np
import pytest

from scale_callbacks import LossForecaster, MemorySink, Monitor, RewardForecaster, Schedule, TargetRule
from scale_callbacks.forecast import Status
from scale_callbacks.target import chance_of
from scale_callbacks.testing import RuleContract

T = 1000
PLAN = Schedule.cosine(1e-3, T, warmup=20)
STEPS = np.arange(1, T + 1)


def losses(seed: int = 0) -> np.ndarray:
    area = PLAN.area(STEPS) / PLAN.area(T)
    shape = 2.0 + 0.6 * (area + 0.005) ** -0.4 + 0.1 * PLAN.lr(STEPS) / PLAN.peak
    return shape * (1.0 + 0.005 * np.random.default_rng(seed).standard_normal(T))


def fed(share: float, measure: str = "loss") -> LossForecaster:
    values = losses() if measure == "loss" else 1.0 - 0.1 * losses()
    forecaster = LossForecaster(PLAN, measure=measure)
    forecaster.observe(STEPS[: int(share * T)], values[: int(share * T)])
    return forecaster


class TestTargetRuleKeepsTheContract(RuleContract):
    def make(self):
        return TargetRule(2.0)


@pytest.mark.parametrize(
    ("measure", "target", "share", "stops"),
    [
        ("loss", 2.3, 0.3, True),
        ("loss", 2.3, 0.05, False),
        ("loss", 2.8, 0.3, False),
        ("loss", 2.595, 0.6, False),
        ("score", 0.77, 0.3, True),
        ("score", 0.70, 0.3, False),
    ],
)
def test_a_run_is_stopped_where_its_target_is_out_of_reach(measure, target, share, stops) -> None:
    decision = TargetRule(target).decide(fed(share, measure))
    assert decision.stop is stops
    if share > 0.1:
        assert decision.reason.startswith("will not reach" if stops else "may reach")
        assert decision.evidence["target"] == target
        assert (decision.evidence["chance"] <= 0.05) is stops


def test_a_reward_is_to_be_reached_from_below() -> None:
    forecaster = RewardForecaster(400)
    steps = np.arange(1, 201)
    noise = 0.02 * np.random.default_rng(0).standard_normal(200)
    forecaster.observe(steps, 1.0 - np.exp(-steps / 20) + noise)
    assert TargetRule(2.0).decide(forecaster).stop
    assert not TargetRule(0.9).decide(forecaster).stop


def test_it_may_only_advise() -> None:
    decision = TargetRule(2.0, stop=False).decide(fed(0.5))
    assert not decision.stop
    assert decision.reason.startswith("will not reach 2: ")


def test_a_run_unlike_any_other_is_not_judged() -> None:
    forecaster = LossForecaster(PLAN)
    forecaster.observe(STEPS[:500], 1.0 - 0.1 * losses()[:500])  # rises
    assert forecaster.forecast().status is Status.UNFAMILIAR
    decision = TargetRule(0.1).decide(forecaster)
    assert decision == TargetRule(0.1).decide(forecaster)
    assert not decision.stop
    assert decision.reason == "not decided: the run is unfamiliar"


def test_a_run_past_its_plan_is_not_judged() -> None:
    forecaster = fed(1.0)
    forecaster.observe([T + 50], [2.6])
    assert TargetRule(2.0).decide(forecaster).reason == "not decided: the run is past horizon"


def test_a_monitor_hears_it() -> None:
    monitor = Monitor(LossForecaster(PLAN), rules=[TargetRule(2.3)], sinks=[sink := MemorySink()])
    stopped = [
        s for s, v in zip(STEPS.tolist(), losses().tolist(), strict=True) if monitor.observe(s, v).stop
    ]
    assert 100 <= stopped[0] <= 300
    assert stopped[0] == next(record.step for record in sink.records if record.decision.stop)
    assert not monitor.warnings


def test_the_chance_is_that_of_a_normal_distribution_on_either_side() -> None:
    forecast = replace(fed(0.5).forecast(), value=2.0, low=1.9, high=2.4)
    assert chance_of(2.0, forecast, rises=False) == pytest.approx(0.5)
    assert chance_of(1.9, forecast, rises=False) == pytest.approx(0.05, abs=1e-3)
    assert chance_of(2.4, forecast, rises=False) == pytest.approx(0.95, abs=1e-3)
    assert chance_of(1.9, forecast, rises=True) == pytest.approx(0.95, abs=1e-3)
    assert chance_of(2.4, forecast, rises=True) == pytest.approx(0.05, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": float("nan")}, "target=nan must be a finite number"),
        ({"target": 2.0, "confidence": 0.3}, "confidence=0.3 must lie between 0.5 and 1"),
        ({"target": 2.0, "earliest": 1.0}, "earliest=1.0 must be a share of the plan"),
    ],
)
def test_wrong_settings_are_refused(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        TargetRule(**arguments)
