"""Faults around a training, to be put into it on purpose; part of `scale_callbacks.testing`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from scale_callbacks.forecaster import LossForecaster
from scale_callbacks.monitor import Monitor
from scale_callbacks.reward import RewardForecaster
from scale_callbacks.saturation import SaturationRule
from scale_callbacks.sinks import JsonlSink, MemorySink, Record, Sink, Summary

Injection = Callable[[], AbstractContextManager[None]]

DELAY = 0.1  # seconds that a fault may hold a training up
BUSY = 0.4  # seconds that a busy machine may add to that; a hang that is not caught takes far longer
HANG = 30.0  # seconds after which a hanging sink lets go in any case


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong around a training.

    Attributes:
        told: words that the warnings must hold; empty where nothing is to be told.
        sinks: makes the sinks that bring it about.
        inject: brings it about while the training runs.
    """

    told: str
    sinks: Callable[[], Sequence[Sink]] = tuple
    inject: Injection = nullcontext


@dataclass(frozen=True)
class Trained:
    """How a training went.

    Attributes:
        steps: optimizer steps taken.
        warnings: what the callback or monitor has counted.
    """

    steps: int
    warnings: Mapping[str, int] = field(default_factory=dict)


def check_survives(fault: Fault, train: Callable[[Sequence[Sink]], Trained], *, steps: int) -> Trained:
    """Run a training through a fault, and see that it is neither ended nor held up, and the fault told once.

    Args:
        fault: one of `FAULTS`, or one of your own.
        train: runs a training whose callback is given these sinks, on this thread.
        steps: optimizer steps it must have taken.

    Raises:
        AssertionError: the training ended early or was held up, the fault was not told, told twice or not
            counted, or the other sinks missed something.
    """
    witness, log = MemorySink(), _Log()
    logger = logging.getLogger("scale_callbacks")
    logger.addHandler(log)
    sinks = list(fault.sinks())
    try:
        with _longest_call() as longest, fault.inject():
            trained = train([*sinks, witness])
    finally:
        logger.removeHandler(log)
        for sink in sinks:
            if isinstance(sink, HangingSink):
                sink.release.set()
    _expect(trained.steps == steps, f"the training took {trained.steps} of {steps} steps")
    _expect(longest[0] < DELAY + BUSY, f"a step was held up for {longest[0]:.3f} s")
    _expect(witness.summary is not None, "the other sinks were not closed")
    if fault.told:
        counted = {what: count for what, count in trained.warnings.items() if fault.told in what}
        said = [text for text in log.texts if fault.told in text]
        _expect(sum(counted.values()) > 0, f"{fault.told!r} was not counted: {dict(trained.warnings)}")
        _expect(len(said) == len(counted), f"{fault.told!r} was told {len(said)} times: {log.texts}")
    return trained


class RaisingSink:
    """Fails whenever it is called."""

    def __init__(self, fault: BaseException | None = None) -> None:
        self.fault = fault or RuntimeError("made to fail")

    def write(self, record: Record, summary: Summary) -> None:
        """Fail."""
        raise self.fault

    def close(self, summary: Summary) -> None:
        """Fail."""
        raise self.fault


class HangingSink:
    """Does not come back from its first record before `release` is set."""

    def __init__(self) -> None:
        self.release = threading.Event()

    def write(self, record: Record, summary: Summary) -> None:
        """Hang."""
        self.release.wait(HANG)

    def close(self, summary: Summary) -> None:
        """Hang."""
        self.release.wait(HANG)


class _Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextmanager
def _longest_call() -> Iterator[list[float]]:
    """The longest time that any monitor has taken over an observation, so far."""
    longest, observe = [0.0], Monitor.observe

    def timed(self: Monitor, *args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        try:
            return observe(self, *args, **kwargs)
        finally:
            longest[0] = max(longest[0], time.perf_counter() - begun)

    with patch.object(Monitor, "observe", timed):
        yield longest


@contextmanager
def _in_forecasts(act: Callable[[], None]) -> Iterator[None]:
    """Do something in the middle of each forecast, of losses and of rewards."""

    def acting(forecast: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def acts(self: Any) -> Any:
            act()
            return forecast(self)

        return acts

    loss, reward = acting(LossForecaster.forecast), acting(RewardForecaster.forecast)
    with patch.object(LossForecaster, "forecast", loss), patch.object(RewardForecaster, "forecast", reward):
        yield


def _fail() -> None:
    raise ZeroDivisionError("made to fail")


@contextmanager
def _failing_rules() -> Iterator[None]:
    def decide(self: Any, forecaster: Any) -> Any:
        raise ZeroDivisionError("made to fail")

    with patch.object(SaturationRule, "decide", decide):
        yield


@contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM in the middle of forecasts, with a handler that only takes note of it, as trainers have."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with _in_forecasts(lambda: os.kill(os.getpid(), signal.SIGTERM)):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _clock_set_back() -> Iterator[None]:
    """The wall clock goes back an hour a second."""
    seconds, nanoseconds, start = time.time, time.time_ns, time.time()
    with (
        patch.object(time, "time", lambda: start - 3600.0 * (seconds() - start)),
        patch.object(time, "time_ns", lambda: int(1e9 * start) - 3600 * (nanoseconds() - int(1e9 * start))),
    ):
        yield


@contextmanager
def _without(module: str) -> Iterator[None]:
    """A module that cannot be imported."""
    hidden = {name: None for name in [module, *sys.modules] if name.partition(".")[0] == module}
    with patch.dict(sys.modules, hidden):
        yield


def _full_disk() -> Sequence[Sink]:
    return [JsonlSink("/dev/full")]


FAULTS: Mapping[str, Fault] = {
    "no fault": Fault(""),
    "a sink raises": Fault("RaisingSink failed to write", lambda: [RaisingSink()]),
    "a sink exits": Fault("RaisingSink failed to write", lambda: [RaisingSink(SystemExit(1))]),
    "a sink hangs": Fault("HangingSink hangs", lambda: [HangingSink()]),
    "the disk is full": Fault("JsonlSink failed to write", _full_disk),
    "a law raises": Fault("forecast failed", inject=lambda: _in_forecasts(_fail)),
    "a rule raises": Fault("", inject=_failing_rules),
    "SIGTERM during a forecast": Fault("", inject=_terminated),
    "the clock is set back": Fault("", inject=_clock_set_back),
    "no matplotlib": Fault("", inject=lambda: _without("matplotlib")),
}


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise AssertionError(otherwise)
