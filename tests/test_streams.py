"""Whatever a run shows: nothing is raised, forecasts are finite, and the split over calls changes nothing."""

import json
import math
import os
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scale_callbacks import LossForecaster, MemorySink, Monitor, RewardForecaster, Status
from scale_callbacks._stream import LARGEST
from tests.strategies import Stream, streams

FEW = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
# One forecaster a stream is asked once; a monitor may be asked at every observation.
# The 10,000 of the evidence: STREAMS=10000 python -m pytest -m slow tests/test_streams.py
STREAMS = int(os.environ.get("STREAMS", "1500"))
MANY = settings(max_examples=STREAMS, deadline=None, suppress_health_check=list(HealthCheck), database=None)


def assert_sound(forecast) -> None:
    if forecast is None:
        return
    numbers = (forecast.low, forecast.value, forecast.high)
    assert all(type(number) is float and math.isfinite(number) for number in numbers)
    assert forecast.low <= forecast.value <= forecast.high
    path = np.array([forecast.path_low, forecast.path_value, forecast.path_high])
    assert np.isfinite(path).all()
    assert (np.diff(path, axis=0) >= 0.0).all()
    assert np.all(np.diff(forecast.path_steps) > 0)
    assert sum(forecast.weights.values()) == pytest.approx(1.0)
    assert forecast.status in Status


def watcher(stream: Stream) -> LossForecaster:
    told = {"steps_per_epoch": stream.steps_per_epoch, "measure": stream.measure}
    return LossForecaster(stream.schedule, **told)


def fed(forecaster, stream: Stream, parts: list[slice]):
    for part in parts:
        forecaster.observe(stream.steps[part], stream.values[part])
    return forecaster


def halves(stream: Stream) -> list[slice]:
    """The stream's pieces, each cut in two."""
    return [
        slice(a, b) for p in stream.pieces for a, b in pairwise([p.start, (p.start + p.stop) // 2, p.stop])
    ]


def check_forecaster(stream: Stream) -> None:
    whole = fed(watcher(stream), stream, stream.pieces)
    forecast = whole.forecast()
    assert_sound(forecast)
    split = fed(watcher(stream), stream, halves(stream))
    assert split.state_dict() == whole.state_dict()
    finite = sum(-LARGEST < value < LARGEST for value in stream.values)
    assert whole.curve.nonfinite == len(stream.values) - finite


def check_monitor(forecaster, twin, stream: Stream, cut: int) -> None:
    memory = MemorySink()
    monitor = Monitor(forecaster, sinks=[memory])
    resumed = None
    for i, (step, value) in enumerate(zip(stream.steps, stream.values, strict=True)):
        if i == cut:
            resumed = Monitor(twin)
            resumed.load_state_dict(json.loads(json.dumps(monitor.state_dict(), allow_nan=False)))
        for watch in filter(None, (monitor, resumed)):
            watch.observe(step, value)
        assert_sound(monitor.forecast)
    monitor.close()
    if resumed is not None:
        assert resumed.state_dict() == monitor.state_dict()
    assert not any(
        "failed" in fault or "left out" in fault for fault in monitor.warnings if "finite" not in fault
    )
    assert all(math.isfinite(x) for record in memory.records for x in record.metrics.values())
    assert memory.summary is not None
    assert memory.summary.measured is None or math.isfinite(memory.summary.measured)


@FEW
@given(streams())
def test_any_stream_gets_a_finite_forecast_inside_its_interval_however_it_is_split(stream: Stream) -> None:
    check_forecaster(stream)


@settings(FEW, max_examples=15)
@given(streams(longest=40), st.integers(0, 60))
def test_any_stream_can_be_watched_and_gone_on_with(stream: Stream, cut: int) -> None:
    check_monitor(watcher(stream), watcher(stream), stream, cut)


@settings(FEW, max_examples=15)
@given(streams(longest=40), st.integers(0, 60), st.sampled_from(["max", "min"]))
def test_any_stream_of_rewards_can_be_watched_and_gone_on_with(
    stream: Stream, cut: int, direction: str
) -> None:
    def reward() -> RewardForecaster:
        return RewardForecaster(stream.schedule.horizon, direction=direction)

    check_monitor(reward(), reward(), stream, cut)


@pytest.mark.slow
@MANY
@given(streams())
def test_thousands_of_streams_get_finite_forecasts(stream: Stream) -> None:
    check_forecaster(stream)


@pytest.mark.slow
@settings(MANY, max_examples=STREAMS // 15)
@given(streams(longest=60), st.integers(0, 80))
def test_hundreds_of_streams_can_be_watched_and_gone_on_with(stream: Stream, cut: int) -> None:
    check_monitor(watcher(stream), watcher(stream), stream, cut)
