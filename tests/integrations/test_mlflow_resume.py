"""The same run after a restart: no second run, no point twice."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from scale_callbacks import LossForecaster, Monitor, Schedule
from scale_callbacks.integrations._mlflow_open import RunOpener, Target
from scale_callbacks.integrations.mlflow import resolve_sink

STEPS = 200
LOSSES = 2.0 + (np.arange(1, STEPS + 1) / STEPS) ** -0.4


@pytest.fixture(autouse=True)
def _no_rank(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)


@pytest.fixture
def experiment(store, tmp_path):
    """Name and id of an experiment of the test's own, its artifacts in the test's folder."""
    name = f"resume {tmp_path.name}"
    return name, store.create_experiment(name, artifact_location=(tmp_path / "artifacts").as_uri())


@pytest.fixture
def environ(store_uri, experiment):
    return {"MLFLOW_TRACKING_URI": store_uri, "MLFLOW_EXPERIMENT_NAME": experiment[0]}


class Training:
    """A training that can be left without a word and resumed from a checkpoint."""

    def __init__(self, environ, checkpoint=None):
        checkpoint = None if checkpoint is None else json.loads(checkpoint)
        self.sink = resolve_sink(environ=environ, resume=checkpoint and checkpoint["sink"])
        forecaster = LossForecaster(Schedule.constant(1e-3, STEPS))
        self.monitor = Monitor(forecaster, sinks=[self.sink], name="train_loss")
        self.step = 0
        if checkpoint is not None:
            self.monitor.load_state_dict(checkpoint["monitor"])
            self.step = checkpoint["step"]

    def to(self, step):
        while self.step < step:
            self.step += 1
            self.monitor.observe(self.step, float(LOSSES[self.step - 1]))
        return self

    def checkpoint(self):
        state = {"step": self.step, "monitor": self.monitor.state_dict(), "sink": self.sink.state_dict()}
        return json.dumps(state)


def steps_of(store, run_id, key="forecast/train_loss"):
    return [point.step for point in store.get_metric_history(run_id, key)]


def test_a_run_that_the_sink_started_goes_on_after_a_restart(store, experiment, environ):
    first = Training(environ).to(100)
    checkpoint = first.checkpoint()
    first.to(130).monitor.close()  # it went on for a while, and ended
    assert store.get_run(first.sink.run_id).info.status == "FINISHED"

    second = Training(environ, checkpoint)
    assert second.sink.run_id == first.sink.run_id
    assert store.get_run(first.sink.run_id).info.status == "RUNNING"
    second.to(STEPS).monitor.close()

    (run,) = store.search_runs([experiment[1]])
    assert run.info.status == "FINISHED"
    expected = [point.step for point in second.monitor.history]
    assert len(expected) > 20
    assert run.data.metrics["forecast/train_loss"] == second.monitor.forecast.value
    for key in ("forecast/train_loss", "forecast/train_loss_high", "forecast/final"):
        assert steps_of(store, run.info.run_id, key) == expected, key
    for key in run.data.metrics:
        assert len(steps_of(store, run.info.run_id, key)) == len(set(steps_of(store, run.info.run_id, key)))
    assert steps_of(store, run.info.run_id, "forecast/measured") == [STEPS]
    assert (second.sink.faults, second.sink.dropped) == (0, 0)


def test_a_run_that_is_gone_is_replaced_by_a_new_one(store, experiment, environ, caplog):
    first = Training(environ).to(60)
    first.monitor.close()
    checkpoint = first.checkpoint()
    store.delete_run(first.sink.run_id)
    second = Training(environ, checkpoint).to(STEPS)
    second.monitor.close()
    (run,) = store.search_runs([experiment[1]])
    assert run.info.run_id == second.sink.run_id != first.sink.run_id
    assert run.info.status == "FINISHED"
    assert f"run {first.sink.run_id} of the checkpoint is not in this store" in caplog.text


def test_a_run_that_somebody_else_started_is_gone_on_with_and_left_open(store, experiment, environ):
    run_id = store.create_run(experiment[1]).info.run_id
    first = Training({**environ, "MLFLOW_RUN_ID": run_id}).to(60)
    checkpoint = first.checkpoint()
    first.monitor.close()
    second = Training(environ, checkpoint).to(STEPS)
    second.monitor.close()
    assert second.sink.run_id == run_id
    assert store.get_run(run_id).info.status == "RUNNING"
    steps = steps_of(store, run_id)
    assert steps == sorted(set(steps))


@pytest.mark.parametrize(
    "resume", [None, {}, "x", {"run_id": None}, {"run_id": "../x"}, {"run_id": 5}, {"run_id": "0" * 32}]
)
def test_a_state_that_names_no_run_starts_a_new_one(store, experiment, environ, resume):
    sink = resolve_sink(environ=environ, resume=resume)
    assert [run.info.run_id for run in store.search_runs([experiment[1]])] == [sink.run_id]
    assert sink.faults == 0


def test_two_sinks_that_ask_for_the_same_new_run_get_one(store, store_uri, experiment):
    """As two callbacks of a trainer do, while the tracking server has not yet answered the first."""
    first = Target(store_uri, experiment=experiment[0])
    state = {"run_id": None, "token": first.token, "created": first.created, "own": False}
    openers = [RunOpener(first), RunOpener(Target(store_uri, experiment=experiment[0]).resuming(state))]
    with ThreadPoolExecutor() as pool:
        opened = list(pool.map(lambda opener: opener(), reversed(openers)))
    (run,) = store.search_runs([experiment[1]])
    assert {one.run_id for one in opened} == {run.info.run_id}
    assert any(one.own for one in opened)
