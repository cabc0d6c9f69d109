"""For people who write sinks, rules or forecasters: contracts to be tested against, made-up runs, and faults.

A contract is a class to be inherited in a test module; pytest then runs its tests on what `make` returns:

    from scale_callbacks.testing import SinkContract

    class TestMySink(SinkContract):
        def make(self):
            return MySink("somewhere")

`FAULTS` and `check_survives` drive a training through all that may go wrong around it.
"""

from __future__ import annotations

import copy
import json
import math
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scale_callbacks._faults import FAULTS, Fault, Trained, check_survives
from scale_callbacks.forecast import Forecast
from scale_callbacks.forecaster import LossForecaster
from scale_callbacks.monitor import Forecaster, Monitor
from scale_callbacks.schedule import Schedule
from scale_callbacks.sinks import Sink
from scale_callbacks.stopping import Decision, Rule

__all__ = [
    "FAULTS",
    "Fault",
    "ForecasterContract",
    "RuleContract",
    "SinkContract",
    "Trained",
    "check_survives",
    "losses_of",
    "rewards_of",
]

Floats = NDArray[np.float64]

STEPS = 300
TOO_LONG = 5.0  # seconds; machines that run tests are busy


def losses_of(schedule: Schedule, *, noise: float = 0.02, seed: int = 0) -> Floats:
    """Losses of a made-up run at steps 1 to the horizon: a power of the area, a drop with the rate, noise."""
    steps = np.arange(1, schedule.horizon + 1)
    share = schedule.area(steps) / schedule.area(schedule.horizon)
    drop = 0.1 * (1.0 - schedule.lr(steps) / schedule.peak) * (steps > schedule.warmup)
    white = np.random.default_rng(seed).standard_normal(len(steps))
    return np.asarray(2.0 + 0.5 * (share + 0.01) ** -0.4 - drop + noise * white, dtype=np.float64)


def rewards_of(horizon: int, *, saturates: float = 0.2, noise: float = 0.1, seed: int = 0) -> Floats:
    """Rewards of a made-up run at steps 1 to the horizon, that saturate after a share of it."""
    steps = np.arange(1, horizon + 1)
    white = np.random.default_rng(seed).standard_normal(horizon)
    return np.asarray(1.0 - np.exp(-3.0 * steps / (saturates * horizon)) + noise * white, dtype=np.float64)


class SinkContract:
    """What a sink must bear; inherit, and say how one is made."""

    def make(self) -> Sink:
        """A new sink."""
        raise NotImplementedError

    def test_it_takes_a_whole_run(self) -> None:
        """Records without a forecast at first, some fifty with one, and the summary at the end."""
        _without_faults(self.make(), range(1, STEPS + 1))

    def test_it_takes_a_run_that_ends_before_it_has_begun(self) -> None:
        """Closed without a single record."""
        _without_faults(self.make(), ())

    def test_it_takes_a_run_that_is_started_again_from_a_checkpoint(self) -> None:
        """Steps that come twice."""
        _without_faults(self.make(), [*range(1, 200), *range(150, STEPS + 1)])

    def test_it_takes_a_loss_that_is_not_finite(self) -> None:
        """Metrics stay finite; the warnings of the summary are not empty."""
        losses = _losses()
        losses[50:60] = np.nan
        _without_faults(self.make(), range(1, STEPS + 1), losses)

    def test_it_may_be_closed_twice(self) -> None:
        """As an adapter may have to, after a failure."""
        sink = self.make()
        monitor = _without_faults(sink, range(1, 50))
        sink.close(monitor.summary())

    def test_two_of_it_do_not_disturb_each_other(self) -> None:
        """Two metrics of one run."""
        first, second = self.make(), self.make()
        _without_faults(first, range(1, 100))
        _without_faults(second, range(1, 100))


class RuleContract:
    """What a rule must keep to; inherit, and say how one is made. The forecaster is of losses by default."""

    def make(self) -> Rule:
        """A new rule."""
        raise NotImplementedError

    def make_forecaster(self) -> Forecaster:
        """A forecaster with nothing seen, of the kind that the rule reads, over 300 steps."""
        return LossForecaster(_plan())

    def values(self) -> Floats:
        """What is observed at steps 1 to 300."""
        return _losses()

    def test_it_does_not_stop_before_there_is_data(self) -> None:
        """No data, no decision; and it says why."""
        decision = self.make().decide(self.make_forecaster())
        _expect(not decision.stop, f"stopped with no data: {decision}")
        _expect(bool(decision.reason), "gives no reason for going on: say 'not yet: ...'")

    def test_it_says_the_same_when_asked_again(self) -> None:
        """Neither asking twice nor asking often changes the answer."""
        often, once = self.make(), self.make()
        forecaster = self.make_forecaster()
        for step, value in enumerate(self.values(), start=1):
            forecaster.observe(step, value)
            if step % 20 == 0:
                first, second, fresh = (rule.decide(forecaster) for rule in (often, often, once))
                _expect(first == second, f"says {first}, then {second}, at step {step}")
                _expect(first == fresh, f"says {first} where a new one says {fresh}, at step {step}")
                once = self.make()

    def test_it_leaves_the_forecaster_as_it_was(self) -> None:
        """A rule reads."""
        forecaster = self._fed()
        before = json.dumps(forecaster.state_dict(), sort_keys=True)
        self.make().decide(forecaster)
        _expect(json.dumps(forecaster.state_dict(), sort_keys=True) == before, "changed the forecaster")

    def test_its_decision_is_plain_data(self) -> None:
        """It goes into checkpoints, logs and MLflow."""
        decision = self.make().decide(self._fed())
        plain = json.loads(json.dumps(decision.to_dict(), allow_nan=False))
        _expect(Decision.from_dict(plain) == decision, "the evidence is no mapping of names to finite floats")

    def _fed(self) -> Forecaster:
        forecaster = self.make_forecaster()
        forecaster.observe(np.arange(1, STEPS + 1), self.values())
        return forecaster


class ForecasterContract:
    """What a forecaster, and so the laws in it, must keep to; inherit, and say how one is made."""

    def make(self) -> Forecaster:
        """A forecaster over 300 steps with nothing seen."""
        raise NotImplementedError

    def values(self) -> Floats:
        """What is observed at steps 1 to 300."""
        return _losses()

    def test_there_is_no_forecast_before_there_is_data(self) -> None:
        """None, not a guess."""
        _expect(self.make().forecast() is None, "forecasts before it has seen anything")

    def test_forecasts_are_finite_and_inside_their_interval(self) -> None:
        """At every share of the run, and for data that follow no law."""
        wild = np.exp(5.0 * np.random.default_rng(0).standard_normal(STEPS))
        for values in (self.values(), np.ones(STEPS), -self.values(), wild):
            for until in (8, 30, 150, STEPS):
                forecaster = self.make()
                forecaster.observe(np.arange(1, until + 1), values[:until])
                _sound(forecaster.forecast())

    def test_how_observations_are_split_changes_nothing(self) -> None:
        """One by one, or all at once."""
        whole, single = self.make(), self.make()
        whole.observe(np.arange(1, 101), self.values()[:100])
        for step, value in enumerate(self.values()[:100], start=1):
            single.observe(step, value)
        _expect(whole.forecast() == single.forecast(), "the split over calls changes the forecast")

    def test_a_restored_one_forecasts_the_same(self) -> None:
        """Through plain JSON, to the last bit."""
        saved, restored = self.make(), self.make()
        saved.observe(np.arange(1, 101), self.values()[:100])
        restored.load_state_dict(json.loads(json.dumps(saved.state_dict(), allow_nan=False)))
        for forecaster in (saved, restored):
            forecaster.observe(np.arange(101, 201), self.values()[100:200])
        _expect(saved.forecast() == restored.forecast(), "a restored one forecasts something else")

    def test_forecasting_changes_nothing(self) -> None:
        """Asked twice, it says the same."""
        forecaster = self.make()
        forecaster.observe(np.arange(1, 101), self.values()[:100])
        first = copy.deepcopy(forecaster.forecast())
        _expect(first == forecaster.forecast(), "says something else when asked again")

    def test_values_that_are_not_finite_are_counted_and_left_out(self) -> None:
        """They must not reach the curve."""
        forecaster = self.make()
        forecaster.observe([1, 2, 3], [1.0, math.nan, math.inf])
        _expect((forecaster.curve.n, forecaster.curve.nonfinite) == (1, 2), "takes what is not finite")


def _plan() -> Schedule:
    return Schedule.wsd(1e-3, STEPS, warmup=10, cooldown=60)


def _losses() -> Floats:
    return losses_of(_plan())


def _without_faults(sink: Sink, steps: Any, losses: Floats | None = None) -> Monitor:
    """Watch a run with this sink, and see that it raises nothing and comes back in time."""
    losses = _losses() if losses is None else losses
    monitor = Monitor(LossForecaster(_plan()), sinks=[sink], name="train_loss")
    begun = time.monotonic()
    for step in steps:
        monitor.observe(step, losses[step - 1])
    _expect(monitor.flush(TOO_LONG), f"has not taken its records {TOO_LONG:g} s after the last")
    monitor.close()
    _expect(time.monotonic() - begun < 12 * TOO_LONG, "takes far too long")
    told = {what: count for what, count in monitor.warnings.items() if type(sink).__name__ in what}
    _expect(not told, f"did not bear a run: {told}")
    return monitor


def _sound(forecast: Forecast | None) -> None:
    _expect(forecast is not None, "makes no forecast of eight observations or more")
    assert forecast is not None
    numbers = (forecast.low, forecast.value, forecast.high)
    _expect(all(math.isfinite(number) for number in numbers), f"not finite: {numbers}")
    _expect(forecast.low <= forecast.value <= forecast.high, f"outside its interval: {numbers}")


def _expect(condition: bool, otherwise: str) -> None:
    # No plain assert: outside a test module pytest does not explain it, and python -O leaves it out.
    if not condition:
        raise AssertionError(otherwise)
