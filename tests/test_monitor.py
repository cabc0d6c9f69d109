import json
import logging

import numpy as np
import pytest

from scale_callbacks import (
    Decision,
    JsonlSink,
    LossForecaster,
    MemorySink,
    Monitor,
    RewardForecaster,
    Schedule,
)
from scale_callbacks.due import REWARDS, forecast_steps
from scale_callbacks.monitor import STATE_VERSION


class Broken:
    """A sink and a rule that always fail: faults of this kind cannot be caused with the real ones."""

    def write(self, record, summary):
        raise OSError("disk full")

    def close(self, summary):
        raise OSError("disk full")

    def decide(self, forecaster):
        raise ZeroDivisionError("no data")


class StopAt:
    def __init__(self, step):
        self.step = step

    def decide(self, forecaster):
        seen = forecaster.curve.last_step or 0
        if seen < self.step:
            return Decision(reason=f"not yet: {seen} of {self.step} steps")
        return Decision(True, f"{self.step} steps are enough", {"seen": float(seen)})


def watch(schedule, losses, *, until=None, monitor=None, **options):
    monitor = monitor or Monitor(LossForecaster(schedule), **options)
    for step, loss in enumerate(losses[:until], start=1):
        monitor.observe(step, loss)
    return monitor


@pytest.mark.parametrize("horizon", [1, 7, 60, 1000, 123_457, 10**7, 10**9])
def test_forecasts_are_due_at_most_a_hundred_times_and_at_the_end(horizon):
    steps = forecast_steps(horizon)
    assert len(steps) <= 100
    assert steps[-1] == horizon
    assert steps[0] >= 1
    assert np.all(np.diff(steps) > 0)


def test_what_was_measured_is_the_last_mean_logged_where_that_spans_more_than_the_last_1_percent():
    monitor = Monitor(LossForecaster(Schedule.cosine(1e-3, 600, warmup=30)))
    for step in range(20, 601, 20):
        monitor.observe(step, 2.0 + 10.0 / step, span=20)
    assert monitor.forecaster.measured() is None  # of a last step of 590.5 the forecaster knows no more
    assert monitor.summary().measured == 2.0 + 10.0 / 600


def test_every_due_forecast_reaches_the_sinks_in_order(schedule, losses):
    memory = MemorySink()
    monitor = watch(schedule, losses, sinks=[memory], name="train_loss")
    steps = [record.step for record in memory.records]
    assert steps == forecast_steps(1000).tolist()
    last = memory.records[-1]
    assert last.forecast is monitor.forecast
    assert last.metrics["forecast/train_loss"] == monitor.forecast.value
    assert last.metrics["forecast/train_loss_low"] < last.metrics["forecast/train_loss_high"]
    assert last.metrics["lr_area"] == schedule.area(1000)
    assert last.metrics["lr_annealing_area"] == schedule.annealing_area(1000)
    assert memory.summary is None
    monitor.close()
    assert memory.summary.finished
    assert len(memory.summary.history) == len([r for r in memory.records if r.forecast])


def test_due_tells_the_steps_that_forecast(schedule, losses):
    monitor = Monitor(LossForecaster(schedule))
    announced = []
    for step, loss in enumerate(losses, start=1):
        if monitor.due(step):
            announced.append(step)
        monitor.observe(step, loss)
    assert announced == forecast_steps(1000).tolist()


def test_rewards_are_forecast_more_often_than_losses_since_stopping_waits_for_it(losses):
    memory = MemorySink()
    monitor = Monitor(RewardForecaster(1000), sinks=[memory])
    for step, loss in enumerate(losses, start=1):
        monitor.observe(step, -loss)
    assert [record.step for record in memory.records] == forecast_steps(1000, REWARDS).tolist()
    assert len(memory.records) == 55
    assert len(forecast_steps(1000)) == 45


def test_a_resumed_run_repeats_the_uninterrupted_one_to_the_last_bit(schedule, losses):
    whole = watch(schedule, losses)
    first = watch(schedule, losses, until=437)
    state = json.loads(json.dumps(first.state_dict(), allow_nan=False))
    resumed = Monitor(LossForecaster(schedule))
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    for step in range(438, 1001):
        resumed.observe(step, losses[step - 1])
    assert resumed.history == whole.history
    assert resumed.state_dict() == whole.state_dict()


def test_a_restart_from_an_earlier_step_replaces_what_came_after(schedule, losses):
    whole = watch(schedule, losses)
    monitor = watch(schedule, losses, until=437)
    for step in range(401, 1001):
        monitor.observe(step, losses[step - 1])
    assert monitor.history == whole.history
    assert monitor.forecast.value == pytest.approx(whole.forecast.value, rel=1e-12)


def test_means_over_windows_are_placed_at_their_middle_and_forecast_to_the_end(schedule, losses):
    monitor = Monitor(LossForecaster(schedule))
    for end in range(10, 1001, 10):
        monitor.observe(end, losses[end - 10 : end].mean(), span=10)
    assert monitor.forecaster.curve.last_step == 995.5
    assert monitor.history[-1].step == 1000
    single = watch(schedule, losses)
    assert monitor.forecast.value == pytest.approx(single.forecast.value, rel=0.01)


def test_the_first_rule_that_wants_to_stop_is_heard(schedule, losses):
    monitor = watch(schedule, losses, until=300, rules=[StopAt(900), StopAt(200), StopAt(100)])
    assert (
        monitor.decision == Decision(True, "200 steps are enough", {"seen": 300.0}) or monitor.decision.stop
    )
    assert monitor.decision.reason == "200 steps are enough"
    early = watch(schedule, losses, until=50, rules=[StopAt(900)])
    assert not early.decision.stop
    assert early.decision.reason.startswith("not yet")


def test_faults_of_sinks_and_rules_are_logged_once_and_counted_and_the_run_goes_on(schedule, losses, caplog):
    broken, memory = Broken(), MemorySink()
    with caplog.at_level(logging.WARNING, "scale_callbacks"):
        monitor = watch(schedule, losses, sinks=[broken, memory], rules=[broken])
        monitor.close()
        monitor.close()
    assert len(memory.records) == len(forecast_steps(1000))
    assert memory.summary.warnings["Broken failed to write"] == len(forecast_steps(1000))
    assert monitor.warnings["Broken failed to decide"] == len(forecast_steps(1000))
    assert monitor.warnings["Broken failed to close"] == 1
    assert len([r for r in caplog.records if "failed to write" in r.message]) == 1


def test_losses_that_are_not_finite_are_left_out_and_counted(schedule, losses):
    losses = losses.copy()
    losses[[100, 500]] = np.nan, np.inf
    monitor = watch(schedule, losses, name="train_loss")
    assert monitor.warnings == {"train_loss was not finite and left out": 2}
    assert monitor.forecast.low < monitor.forecast.value < monitor.forecast.high


@pytest.mark.parametrize("bad", ["2.5 nats", None, [1.0, 2.0]])
def test_what_is_no_loss_is_refused_at_first_use_and_only_counted_later(schedule, losses, bad):
    with pytest.raises((TypeError, ValueError)):
        Monitor(LossForecaster(schedule)).observe(1, bad)
    monitor = watch(schedule, losses, until=20)
    monitor.observe(21, bad)
    assert monitor.warnings["observation left out"] == 1
    assert monitor.forecaster.curve.n == 20


@pytest.mark.parametrize("wrong", ["a lot", None, [1.0, 2.0]])
def test_forecasts_are_due_at_the_same_steps_whatever_became_of_an_observation(schedule, losses, wrong):
    sound, deaf = Monitor(LossForecaster(schedule)), Monitor(LossForecaster(schedule))
    for step, loss in enumerate(losses[:300], start=1):
        assert deaf.due(step) == sound.due(step)
        sound.observe(step, loss)
        deaf.observe(step, wrong if step in (100, 120, 200) else loss)
    assert deaf.warnings["observation left out"] == 3
    assert [point.step for point in deaf.history] == [point.step for point in sound.history]


@pytest.mark.parametrize("step", [float("inf"), float("nan"), -3, "next", 10**9])
def test_a_step_that_is_none_makes_no_forecast(schedule, losses, step):
    monitor = watch(schedule, losses, until=99)
    made = list(monitor.history)
    monitor.observe(step, "wrong")
    assert monitor.warnings["observation left out"] == 1
    assert monitor.history == made
    assert monitor.due(100)
    assert not monitor.due(99)


def test_a_run_of_one_step_and_a_run_that_ends_early_close_in_silence(schedule, losses):
    for until in (0, 1, 30):
        memory = MemorySink()
        monitor = watch(schedule, losses, until=until, sinks=[memory])
        monitor.close()
        assert memory.summary.last_step == until
        assert not memory.summary.finished
        assert monitor.warnings == {}


def test_a_run_past_its_horizon_goes_on_with_ever_rarer_forecasts(schedule, losses):
    monitor = watch(schedule, np.concatenate((losses, losses[-1:].repeat(1000))))
    late = [point.step for point in monitor.history if point.step > 1000]
    assert 0 < len(late) < 10
    assert monitor.forecast.horizon == late[-1]
    assert monitor.forecast.status == "past_horizon"
    assert monitor.forecast.low < monitor.forecast.value < monitor.forecast.high


def test_what_is_no_sink_or_rule_is_refused_at_set_up(schedule):
    with pytest.raises(TypeError, match="no methods write"):
        Monitor(LossForecaster(schedule), sinks=[print])
    with pytest.raises(TypeError, match="no method decide"):
        Monitor(LossForecaster(schedule), rules=[print])


def test_a_state_from_a_newer_version_is_refused_with_the_remedy(schedule):
    monitor = Monitor(LossForecaster(schedule))
    with pytest.raises(ValueError, match="update scale-callbacks"):
        monitor.load_state_dict({**monitor.state_dict(), "version": STATE_VERSION + 1})


def test_state_stays_small_whatever_the_length_of_the_run():
    horizon = 200_000
    monitor = Monitor(LossForecaster(Schedule.constant(1e-3, horizon)))
    for step in range(1, horizon + 1):
        monitor.observe(step, 2.0 + step**-0.5)
    assert len(json.dumps(monitor.state_dict())) < 1_000_000
    assert len(monitor.history) <= 100


def test_forecasts_are_written_as_json_lines_that_a_killed_run_keeps(schedule, losses, tmp_path):
    path = tmp_path / "new" / "forecasts.jsonl"
    monitor = watch(schedule, losses, sinks=[JsonlSink(path)])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == forecast_steps(1000).tolist()
    assert lines[-1]["value"] == monitor.forecast.value
    monitor.close()
