"""A real tracking server that asks for a password, and a door before it that a test can shut."""

import json
import logging
import os
import time
import urllib.request
from pathlib import Path

import mlflow
import pytest
from typer.testing import CliRunner

from scale_callbacks import LossForecaster, Monitor, Schedule
from scale_callbacks.cli import app
from scale_callbacks.integrations.mlflow import resolve_sink, run_page

from .gate import Gate

pytestmark = pytest.mark.slow

STEPS = 300


@pytest.fixture
def gate(server):
    gate = Gate(server.address)
    yield gate
    gate.close()


@pytest.fixture
def environ(gate, tmp_path, monkeypatch):
    """The gate as the tracking server, an experiment of the test's own, MLflow less patient than usual."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    return {"MLFLOW_TRACKING_URI": gate.address, "MLFLOW_EXPERIMENT_NAME": tmp_path.name}


class Training:
    def __init__(self, environ, resume=None, *, wait=60.0, flush=60.0):
        resume = json.loads(resume) if resume else {}
        self.sink = resolve_sink(environ=environ, resume=resume.get("sink"))
        self.sink._batch_seconds, self.sink._flush_seconds = 0.3, flush
        self.sink.open(wait=wait)  # the machine may be busy
        self.monitor = Monitor(LossForecaster(Schedule.constant(1e-3, STEPS)), sinks=[self.sink], name="loss")
        self.step = 0
        if resume:
            self.monitor.load_state_dict(resume["monitor"])
            self.step = resume["step"]

    def to(self, step):
        while self.step < step:
            self.step += 1
            begun = time.monotonic()
            self.monitor.observe(self.step, 2.0 + (self.step / STEPS) ** -0.5)
            assert time.monotonic() - begun < 2.0
        return self

    def checkpoint(self):
        state = {"step": self.step, "monitor": self.monitor.state_dict(), "sink": self.sink.state_dict()}
        return json.dumps(state)

    def await_sent(self):
        deadline = time.monotonic() + 60
        while len(self.sink._outbox) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not len(self.sink._outbox)
        return self

    def steps(self):
        return [point.step for point in self.monitor.history]


def the_run(server, environ):
    """The only run of the experiment."""
    client = server.client()
    experiment = client.get_experiment_by_name(environ["MLFLOW_EXPERIMENT_NAME"])
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def assert_whole(server, environ, steps, status="FINISHED"):
    run = the_run(server, environ)
    for key in ("forecast/loss", "forecast/loss_low", "forecast/final"):
        points = server.client().get_metric_history(run.info.run_id, key)
        assert [point.step for point in points] == steps
        assert [point.timestamp for point in points] == sorted(point.timestamp for point in points)
    assert run.info.status == status
    return run


def sync(*args):
    return CliRunner().invoke(app, ["sync", *map(str, args)], env={"COLUMNS": "200"})


def test_a_tracking_server_gets_the_whole_story(server, environ, journals, tmp_path):
    training = Training(environ).to(STEPS)
    training.monitor.close()
    assert (training.sink.faults, training.sink.dropped) == (0, 0)
    run = assert_whole(server, environ, training.steps())
    assert run.data.params["forecast.monitor"] == "loss"
    assert run.data.tags["forecast.finished"] == "true"
    assert run.data.metrics["forecast/measured"] == pytest.approx(3.0, abs=0.01)
    client = server.client()
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"forecast.png", "report.html"}
    assert os.path.getsize(client.download_artifacts(run.info.run_id, "forecast.png", tmp_path)) > 10_000
    page = urllib.request.Request(f"{server.address}/{run_page(client, run.info.run_id)}")
    assert urllib.request.urlopen(f"{server.address}/health", timeout=10).status == 200
    assert page.full_url.startswith(server.address)
    assert list(journals.iterdir()) == []


def test_experiments_can_be_searched_by_status_and_final_value(server, environ):
    for _ in range(2):
        Training(environ).to(STEPS).monitor.close()
    Training(environ).to(3).monitor.close()  # too short for a forecast
    client = server.client()
    place = [client.get_experiment_by_name(environ["MLFLOW_EXPERIMENT_NAME"]).experiment_id]
    everything = client.search_runs(place)
    assert len(everything) == 3
    (status,) = {run.data.tags["forecast.status"] for run in everything if "forecast.status" in run.data.tags}
    for name in ("tags.forecast.status", 'tags."forecast.status"', "tags.`forecast.status`"):
        assert len(client.search_runs(place, f"{name} = '{status}'")) == 2
        assert client.search_runs(place, f"{name} = 'other'") == []
    final = everything[-1].data.metrics.get("forecast/final") or everything[0].data.metrics["forecast/final"]
    assert len(client.search_runs(place, f'metrics."forecast/final" < {final + 1}')) == 2
    assert len(client.search_runs(place, "metrics.`forecast/final` < 0")) == 0
    assert len(client.search_runs(place, "tags.forecast.finished = 'true'")) == 2
    best = client.search_runs(place, order_by=['metrics."forecast/final" ASC'])
    assert "forecast/final" in best[0].data.metrics


def test_a_server_that_comes_up_late_gets_everything_with_its_own_times(server, environ, gate):
    gate.shut()
    begun = time.time() * 1000
    training = Training(environ, wait=0.0).to(150)
    late = time.time() * 1000
    assert training.sink.run_id is None
    gate.open()
    training.await_sent().to(STEPS).monitor.close()
    run = assert_whole(server, environ, training.steps())
    points = server.client().get_metric_history(run.info.run_id, "forecast/loss")
    assert all(begun - 1 <= point.timestamp <= late for point in points if point.step <= 150)
    assert begun - 1 <= run.info.start_time <= late


@pytest.mark.parametrize("mode", ["shut", "failing", "lossy"])
def test_a_server_that_fails_in_the_middle_gets_everything_once(
    server, environ, gate, journals, mode, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    training = Training(environ).to(100).await_sent()
    gate.shut() if mode == "shut" else gate.open(mode)
    training.to(200)
    time.sleep(1.0)
    gate.open()
    training.await_sent().to(STEPS).monitor.close()
    if mode in ("shut", "failing"):  # else MLflow's own second try may do
        assert training.sink.faults > 0
    assert training.sink.dropped == 0
    assert_whole(server, environ, training.steps())
    assert list(journals.iterdir()) == []


def test_a_server_that_dies_for_good_gets_the_rest_by_sync(server, environ, gate, journals):
    training = Training(environ).to(150).await_sent()
    gate.shut()
    begun = time.monotonic()
    training.to(STEPS).monitor.close()
    assert time.monotonic() - begun < 20.0
    assert training.sink.dropped > 0
    assert the_run(server, environ).info.status == "RUNNING"
    done = sync(training.sink.run_id)
    assert done.exit_code == 1
    assert "no server answers at" in done.output
    gate.open()
    done = sync(training.sink.run_id)
    assert done.exit_code == 0, done.output
    assert f"forecasts sent to run {training.sink.run_id}" in done.output
    assert_whole(server, environ, training.steps())
    assert list(journals.iterdir()) == []


def test_sync_without_the_password_says_so(server, environ, gate, journals, monkeypatch):
    gate.shut()
    training = Training(environ, wait=0.0).to(STEPS)
    training.monitor.close()
    gate.open()
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    (path,) = journals.iterdir()
    done = sync(path)
    assert done.exit_code == 1
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in done.output
    assert path.exists()
    # The other way that MLflow knows: in the address.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", with_password(server, gate.address))
    done = sync(path)
    assert done.exit_code == 0, done.output
    assert server.password not in done.output
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", server.user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", server.password)
    assert_whole(server, environ, training.steps())


def with_password(server, address, password=None):
    return address.replace("://", f"://{server.user}:{password or server.password}@")


def test_a_lost_answer_to_the_first_call_makes_no_second_run(server, environ, gate, monkeypatch):
    """The run is created, the answer is lost: it is found by its tag."""
    from mlflow import MlflowClient

    real, lost = MlflowClient.create_run, []

    def create_run(self, *args, **options):
        run = real(self, *args, **options)
        if not lost:
            lost.append(run.info.run_id)
            raise ConnectionError("the answer was lost")
        return run

    monkeypatch.setattr(MlflowClient, "create_run", create_run)
    training = Training(environ).to(STEPS)
    training.await_sent().monitor.close()
    assert assert_whole(server, environ, training.steps()).info.run_id == lost[0]


def test_a_resumed_training_goes_on_in_its_run(server, environ, journals):
    first = Training(environ).to(100)
    checkpoint = first.checkpoint()
    first.to(140).await_sent().monitor.close()
    second = Training(environ, checkpoint).to(STEPS)
    second.monitor.close()
    assert_whole(server, environ, second.steps())
    assert list(journals.iterdir()) == []


def test_the_innermost_of_nested_runs_gets_the_forecasts(server, environ, monkeypatch):
    mlflow.set_tracking_uri(environ["MLFLOW_TRACKING_URI"])
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", environ["MLFLOW_EXPERIMENT_NAME"])
    with mlflow.start_run() as parent, mlflow.start_run(nested=True) as child:
        training = Training({}).to(STEPS)
        training.monitor.close()
        assert training.sink.run_id == child.info.run_id
    client = server.client()
    assert "forecast/final" in client.get_run(child.info.run_id).data.metrics
    assert client.get_run(child.info.run_id).data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert client.get_run(parent.info.run_id).data.metrics == {}


@pytest.mark.parametrize("right", [True, False])
def test_the_password_is_nowhere_in_what_is_written(
    server, environ, gate, journals, tmp_path, caplog, capfd, right
):
    """Given in the address, where it gets into most messages; and when it is wrong."""
    password = server.password if right else "hunter2-is-wrong"
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        os.environ.pop(name)  # put back by the fixture's monkeypatch
    environ = {**environ, "MLFLOW_TRACKING_URI": with_password(server, gate.address, password)}
    with caplog.at_level(logging.DEBUG):
        training = Training(environ, flush=5.0).to(100)
        checkpoint = training.checkpoint()
        training.to(150)
        gate.open("failing")
        training.to(200)
        time.sleep(1.0)
        gate.shut()
        training.to(STEPS).monitor.close()
        assert training.sink.dropped > 0
        (path,) = journals.iterdir()
        said = sync(path, "--tracking-uri", environ["MLFLOW_TRACKING_URI"]).output
        gate.open()
        said += sync(path).output
    ours = [record.getMessage() for record in caplog.records if record.name == "scale_callbacks"]
    assert len(ours) > 1
    written = [said, checkpoint, caplog.text, *capfd.readouterr(), path.read_text(errors="replace")]
    written += [file.read_bytes().decode("latin-1") for file in everything_below(tmp_path)]
    if right:
        written += [
            file.read_bytes().decode("latin-1") for file in everything_below(server.folder / "artifacts")
        ]
        written += [(server.folder / "server.db").read_bytes().decode("latin-1")]
    assert sum(map(len, written)) > 1000
    assert not any(password in text for text in written)


def everything_below(folder):
    return [path for path in Path(folder).rglob("*") if path.is_file()]
