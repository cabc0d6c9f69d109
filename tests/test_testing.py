"""The contracts that are shipped hold for what is in the package, and find what does not keep to them."""

import io
import time

import numpy as np
import pytest
from rich.console import Console

from scale_callbacks import (
    ConsoleSink,
    Decision,
    DivergenceRule,
    JsonlSink,
    LossForecaster,
    MemorySink,
    RewardForecaster,
    SaturationRule,
    Schedule,
    testing,
)
from scale_callbacks.testing import ForecasterContract, RuleContract, SinkContract, losses_of, rewards_of

PLAN = Schedule.wsd(1e-3, testing.STEPS, warmup=10, cooldown=60)


class TestMemorySink(SinkContract):
    make = MemorySink


class TestConsoleSink(SinkContract):
    def make(self):
        return ConsoleSink(Console(file=io.StringIO()))


class TestJsonlSink(SinkContract):
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path):
        self.path = tmp_path / "forecasts.jsonl"

    def make(self):
        return JsonlSink(self.path)


class TestDivergenceRule(RuleContract):
    make = DivergenceRule


class TestSaturationRule(RuleContract):
    make = SaturationRule

    def make_forecaster(self):
        return RewardForecaster(testing.STEPS)

    def values(self):
        return rewards_of(testing.STEPS)


class TestLossForecaster(ForecasterContract):
    def make(self):
        return LossForecaster(PLAN)


class TestRewardForecaster(ForecasterContract):
    def make(self):
        return RewardForecaster(testing.STEPS)


class Careless:
    """A sink, a rule and a forecaster that keep to nothing."""

    asked = 0

    def __init__(self):
        self.inner = LossForecaster(PLAN)
        self.curve, self.schedule, self.horizon = self.inner.curve, PLAN, testing.STEPS

    def write(self, record, summary):
        raise RuntimeError(record.forecast.value)

    def close(self, summary):
        pass

    def decide(self, forecaster):
        Careless.asked += 1
        forecaster.observe(1000 + Careless.asked, 1.0)
        return Decision(Careless.asked % 2 == 1, "", {"odd": float("nan")})

    def observe(self, steps, values, *, extra=None):
        values = np.nan_to_num(np.atleast_1d(values), posinf=9.0)
        self.inner.observe(np.atleast_1d(steps), values + (len(values) > 1))

    def forecast(self):
        self.asked += 1
        return self.inner.forecast() if self.asked % 2 else None

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def breaches(contract):
    """The contract's tests that fail for the careless one."""
    contract.make = Careless
    failed = []
    for name in sorted(name for name in dir(contract) if name.startswith("test_")):
        try:
            getattr(contract, name)()
        except (AssertionError, ValueError, TypeError):
            failed.append(name)
    return failed


def test_contracts_find_what_does_not_keep_to_them():
    assert len(breaches(SinkContract())) >= 4
    assert len(breaches(RuleContract())) == 4
    assert len(breaches(ForecasterContract())) >= 4


def test_a_sink_that_does_not_come_back_breaks_the_contract(monkeypatch):
    class Sleepy(MemorySink):
        inline = False

        def write(self, record, summary):
            time.sleep(0.3)

    class Contract(SinkContract):
        make = Sleepy

    monkeypatch.setattr(testing, "TOO_LONG", 0.2)
    with pytest.raises(AssertionError, match="has not taken its records"):
        Contract().test_it_takes_a_whole_run()


def test_made_up_runs_are_finite_and_do_what_they_say():
    losses, rewards = losses_of(PLAN, noise=0.0), rewards_of(100, noise=0.0)
    assert losses.shape == (testing.STEPS,)
    assert (np.diff(losses) < 0).all()
    assert rewards[20] > 0.9
    assert (losses_of(PLAN, seed=1) != losses_of(PLAN, seed=2)).all()
