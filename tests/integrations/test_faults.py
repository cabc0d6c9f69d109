"""Every callback goes through every fault: no training is ended or held up, and each fault is told once."""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException

from scale_callbacks import (
    LossForecast,
    LossForecaster,
    MemorySink,
    MlflowSink,
    Monitor,
    RewardForecaster,
    SaturationRule,
    SaturationStopping,
    Schedule,
    delivery,
)
from scale_callbacks.integrations.transformers import LossForecastCallback, SaturationStoppingCallback
from scale_callbacks.sinks import Sink
from scale_callbacks.testing import FAULTS, Fault, Trained, check_survives, losses_of, rewards_of
from tests.integrations import hf_runs, lightning_runs
from tests.integrations.test_saturation_stopping import Rewarded

pytestmark = [*lightning_runs.QUIET, *hf_runs.QUIET]

STEPS = 40
ADVICE = SaturationRule(stop_on=())
Train = Callable[[Sequence[Sink]], Trained]


class NoServer:
    """An MLflow client whose server is gone."""

    tracking_uri = "http://127.0.0.1:9"

    def log_batch(self, *args: Any, **kwargs: Any) -> None:
        raise ConnectionError("made to fail: http://ann:secret@127.0.0.1:9/api?token=abc")

    log_artifact = set_terminated = log_batch


class NoAnswer(NoServer):
    """One whose server takes calls and does not answer."""

    def log_batch(self, *args: Any, **kwargs: Any) -> None:
        threading.Event().wait(20.0)

    log_artifact = set_terminated = log_batch


def mlflow(client: type[NoServer]) -> Callable[[], Sequence[Sink]]:
    return lambda: [MlflowSink(client(), "0" * 32, batch_seconds=0.1, flush_seconds=0.3)]  # type: ignore[arg-type]


ALL = {
    **FAULTS,
    "MLflow is gone": Fault("", mlflow(NoServer)),
    "MLflow does not answer": Fault("", mlflow(NoAnswer)),
}


def watch_losses(sinks: Sequence[Sink]) -> Trained:
    plan = Schedule.cosine(1e-3, STEPS, warmup=4)
    return watched(Monitor(LossForecaster(plan), sinks=sinks), losses_of(plan))


def watch_rewards(sinks: Sequence[Sink]) -> Trained:
    monitor = Monitor(RewardForecaster(STEPS), rules=[ADVICE], sinks=sinks, name="reward")
    return watched(monitor, rewards_of(STEPS))


def watched(monitor: Monitor, values: Any) -> Trained:
    for step, value in enumerate(values, start=1):
        monitor.observe(step, value)
    monitor.close()
    return Trained(monitor.summary().last_step, monitor.warnings)


def lightning_losses(sinks: Sequence[Sink]) -> Trained:
    return lit(LossForecast(sinks=sinks, mlflow=False), lightning_runs.Net())


def lightning_rewards(sinks: Sequence[Sink]) -> Trained:
    return lit(SaturationStopping(rule=ADVICE, sinks=sinks), Rewarded())


def lit(callback: LossForecast, module: Any) -> Trained:
    run = lightning_runs.trainer(callback, max_steps=STEPS, log_every_n_steps=1)
    run.fit(module, lightning_runs.data())
    return Trained(run.global_step, callback.warnings)


def transformers_losses(sinks: Sequence[Sink], folder: Any = "runs") -> Trained:
    return hugged(LossForecastCallback(sinks=sinks, mlflow=False), hf_runs.Trainer)


def transformers_rewards(sinks: Sequence[Sink]) -> Trained:
    return hugged(SaturationStoppingCallback(rule=ADVICE, sinks=sinks, mlflow=False), hf_runs.Rewarded)


def hugged(callback: Any, kind: Any) -> Trained:
    run = hf_runs.trainer("unused", callback, kind=kind, max_steps=STEPS)
    run.train()
    return Trained(run.state.global_step, callback.warnings)


LOSSES: list[Train] = [watch_losses, lightning_losses, transformers_losses]
REWARDS: list[Train] = [watch_rewards, lightning_rewards, transformers_rewards]
ENDED_BY_SIGTERM = (lightning_losses, lightning_rewards)  # by Lightning itself, after the batch
SHORT = {"a sink hangs", "a law raises", "the disk is full", "MLflow does not answer"}
CASES = [
    pytest.param(train, name, marks=[] if name in SHORT or train is watch_losses else pytest.mark.slow)
    for train in LOSSES + REWARDS
    for name in ALL
    if not (name.startswith("SIGTERM") and train in ENDED_BY_SIGTERM)
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(delivery, "CLOSING", 0.2)  # seconds; the end of a run is not a step of it
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("train", "name"), CASES)
def test_a_fault_neither_ends_nor_holds_up_a_training_and_is_told_once(train: Train, name: str) -> None:
    fault = ALL[name]
    if name == "a rule raises" and train in REWARDS:
        fault = dataclasses.replace(fault, told="SaturationRule failed to decide")
    trained = check_survives(fault, train, steps=STEPS)
    if not fault.told:
        assert trained.warnings == {}


@pytest.mark.parametrize("train", ENDED_BY_SIGTERM)
def test_sigterm_during_a_forecast_ends_lightning_s_training_as_lightning_does_it(train: Train) -> None:
    witness = MemorySink()
    with ALL["SIGTERM during a forecast"].inject(), pytest.raises(SIGTERMException):
        train([witness])
    assert witness.summary is not None
    assert witness.summary.warnings == {}
    assert witness.records[-1].step == witness.summary.last_step


def test_a_forecast_that_a_signal_interrupts_is_made_at_the_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = Schedule.cosine(1e-3, STEPS, warmup=4)
    forecaster, losses = LossForecaster(plan), losses_of(plan).tolist()
    monitor = Monitor(forecaster)
    for step in range(1, 20):
        monitor.observe(step, losses[step - 1])
    assert monitor.due(20)

    def interrupted() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(forecaster, "forecast", interrupted)
        with pytest.raises(KeyboardInterrupt):
            monitor.observe(20, losses[19])
    state = monitor.state_dict()
    monitor.observe(21, losses[20])
    assert monitor.history[-1].step == 21
    resumed = Monitor(LossForecaster(plan))
    resumed.load_state_dict(state)
    resumed.observe(21, losses[20])
    assert resumed.history == monitor.history


@pytest.mark.parametrize(
    ("words", "fault", "train"),
    [
        ("steps", Fault(""), lambda sinks: Trained(STEPS - 1)),
        ("not closed", Fault(""), lambda sinks: Trained(STEPS)),
        (
            "not counted",
            FAULTS["a sink raises"],
            lambda sinks: Trained(STEPS, watch_losses(sinks[1:]).warnings),
        ),
    ],
)
def test_the_suite_finds_a_training_that_does_not_survive(words: str, fault: Fault, train: Train) -> None:
    with pytest.raises(AssertionError, match=words):
        check_survives(fault, train, steps=STEPS)
