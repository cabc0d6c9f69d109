"""When windows end and are read hangs on the plan alone."""

import pytest

from scale_callbacks import LossForecaster, Monitor, Schedule
from scale_callbacks.integrations._rhythm import NEVER, Rhythm


@pytest.mark.parametrize(("horizon", "every"), [(60, 1), (60, 7), (2000, 4), (2001, 4), (100_000, 200)])
def test_windows_are_read_where_a_monitor_that_heard_them_all_forecasts(horizon: int, every: int) -> None:
    monitor = Monitor(LossForecaster(Schedule.constant(1e-3, horizon)))
    rhythm, read = Rhythm(horizon, every, 0), []
    while rhythm.began < horizon:
        step = rhythm.end
        assert rhythm.due(step) == monitor.due(step)
        monitor.observe(step, 2.0)
        read.append(step)
        rhythm.begin(step)
    assert read[-1] == horizon
    assert all(step % every == 0 for step in read[:-1])


def test_window_that_ends_late_is_read_for_the_forecast_it_passed() -> None:
    rhythm = Rhythm(100, 4, 0)
    assert not Rhythm(100, 4, 90).due(91)
    assert rhythm.due(53)


def test_each_window_past_the_horizon_is_read() -> None:
    rhythm = Rhythm(10, 4, 10)
    assert rhythm.end == 12
    assert rhythm.due(12)


def test_another_plan_leaves_the_window_at_hand_where_it_began() -> None:
    rhythm = Rhythm(100, 4, 20)
    rhythm.follow(1000, 10, 22)
    assert (rhythm.began, rhythm.end, rhythm.every) == (20, 30, 10)


def test_windows_that_were_stopped_do_not_come_back_with_another_plan() -> None:
    rhythm = Rhythm(100, 4, 20)
    rhythm.stop()
    rhythm.follow(1000, 10, 22)
    assert rhythm.end == NEVER
