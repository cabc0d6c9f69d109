import os
import shutil
import subprocess
import sys
import time

import mlflow
import pytest
from mlflow import MlflowClient

from scale_callbacks import LossForecaster, Monitor, Schedule
from scale_callbacks.integrations import _mlflow_sink
from scale_callbacks.integrations.mlflow import resolve_sink

DEAD = "http://ann:hunter2@127.0.0.1:9"


class MLFlowLogger:
    """What the sink needs of Lightning's logger of this name."""

    def __init__(self, client, run_id):
        self.experiment, self.run_id = client, run_id


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run_id(store, tmp_path):
    experiment = store.create_experiment(tmp_path.name, artifact_location=(tmp_path / "artifacts").as_uri())
    return store.create_run(experiment).info.run_id


def train(sink, *, steps=60):
    monitor = Monitor(LossForecaster(Schedule.constant(1e-3, steps)), sinks=[sink], name="train_loss")
    for step in range(1, steps + 1):
        monitor.observe(step, 2.0 + step**-0.5)
    monitor.close()
    assert not [warning for warning in monitor.warnings if "Sink" in warning]


def test_the_run_of_lightning_s_logger_comes_first(store, run_id):
    mlflow.set_tracking_uri(DEAD)
    logger = MLFlowLogger(store, run_id)
    sink = resolve_sink([object(), logger], environ={"MLFLOW_TRACKING_URI": DEAD})
    assert sink.run_id == run_id
    assert sink.covers(logger)
    train(sink)
    assert sink.faults == 0
    assert store.get_run(run_id).info.status == "RUNNING"
    assert "forecast/train_loss" in store.get_run(run_id).data.metrics


def test_two_metrics_can_be_told_apart_in_one_run(store, run_id):
    for prefix in ("forecast", "forecast_val"):
        sink = resolve_sink([MLFlowLogger(store, run_id)], prefix=prefix)
        train(sink)
        assert sink.faults == 0
    assert {"forecast.status", "forecast_val.status"} <= set(store.get_run(run_id).data.tags)


def test_a_journal_that_was_sent_since_it_was_found_is_no_fault(store, run_id, tmp_path, monkeypatch):
    monkeypatch.setattr(_mlflow_sink, "journals_of", lambda *_: [tmp_path / f"{run_id}.gone.jsonl"])
    sink = resolve_sink([MLFlowLogger(store, run_id)])
    train(sink)
    assert sink.faults == 0
    assert "forecast/train_loss" in store.get_run(run_id).data.metrics


def test_only_the_logger_of_the_same_run_is_covered(store, run_id):
    sink = resolve_sink([MLFlowLogger(store, run_id)])
    other = store.create_run(store.get_run(run_id).info.experiment_id).info.run_id
    assert not sink.covers(MLFlowLogger(store, other))
    assert not sink.covers(object())


def test_the_logger_that_lightning_has_is_recognised(store_uri):
    from lightning.pytorch.loggers import CSVLogger, MLFlowLogger

    logger = MLFlowLogger(experiment_name="lightning", tracking_uri=store_uri)
    sink = resolve_sink([CSVLogger("."), logger], environ={})
    assert sink.run_id == logger.run_id
    assert sink.covers(logger)


def test_then_comes_the_active_run(store_uri, store, run_id):
    mlflow.set_tracking_uri(store_uri)
    with mlflow.start_run(run_id=run_id):
        sink = resolve_sink(environ={"MLFLOW_TRACKING_URI": DEAD})
        assert sink.run_id == run_id
        train(sink)
        assert store.get_run(run_id).info.status == "RUNNING"


def test_then_the_run_that_the_environment_names(store_uri, store, run_id):
    sink = resolve_sink(environ={"MLFLOW_TRACKING_URI": store_uri, "MLFLOW_RUN_ID": run_id})
    train(sink)
    assert sink.run_id == run_id
    assert sink.faults == 0
    assert store.get_run(run_id).info.status == "RUNNING"


@pytest.mark.parametrize("experiment", [None, "named in the environment"])
def test_then_a_run_of_its_own_where_the_environment_says(store_uri, store, experiment):
    environ = {"MLFLOW_TRACKING_URI": store_uri}
    if experiment is not None:
        environ["MLFLOW_EXPERIMENT_NAME"] = experiment
    sink = resolve_sink(environ=environ)
    assert sink.run_id is not None  # a local database is open before training starts
    train(sink)
    run = store.get_run(sink.run_id)
    assert run.info.status == "FINISHED"
    assert store.get_experiment(run.info.experiment_id).name == (experiment or "Default")
    assert run.data.metrics["forecast/measured"] == pytest.approx(2.0 + 60**-0.5, abs=0.01)


def test_two_runs_of_one_experiment_share_it(store_uri, store):
    environ = {"MLFLOW_TRACKING_URI": store_uri, "MLFLOW_EXPERIMENT_NAME": "shared"}
    sinks = [resolve_sink(environ=environ) for _ in range(2)]
    runs = [store.get_run(sink.run_id).info for sink in sinks]
    assert runs[0].run_id != runs[1].run_id
    assert runs[0].experiment_id == runs[1].experiment_id


def test_without_any_of_these_there_is_no_sink_unless_asked_for(store, store_uri, tmp_path):
    assert resolve_sink(environ={}) is None
    assert not os.listdir(tmp_path)
    shutil.copy(store_uri.removeprefix("sqlite:///"), tmp_path / "mlflow.db")  # spares the migrations
    sink = resolve_sink(mode=True, environ={})
    train(sink)
    run = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_run(sink.run_id)
    assert run.info.status == "FINISHED"
    assert "forecast/train_loss" in run.data.metrics


def test_false_means_never(store, run_id, store_uri):
    logger = MLFlowLogger(store, run_id)
    assert resolve_sink([logger], mode=False, environ={"MLFLOW_TRACKING_URI": store_uri}) is None


@pytest.mark.parametrize("mode", [None, True])
def test_only_the_first_process_logs(store, run_id, monkeypatch, mode):
    import lightning_utilities.core.rank_zero as rank_zero

    monkeypatch.setattr(rank_zero.rank_zero_only, "rank", 1, raising=False)
    assert resolve_sink([MLFlowLogger(store, run_id)], mode=mode) is None
    monkeypatch.delattr(rank_zero.rank_zero_only, "rank")
    assert resolve_sink([MLFlowLogger(store, run_id)], mode=mode, environ={"RANK": "3"}) is None


def test_a_dead_server_in_the_environment_delays_nothing(caplog):
    begun = time.monotonic()
    sink = resolve_sink(environ={"MLFLOW_TRACKING_URI": DEAD})
    train(sink)
    assert time.monotonic() - begun < 10.0
    assert sink.dropped > 0
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize("uri", ["file:///nowhere/mlruns", "nonsense://ann:hunter2@x"])
def test_a_store_that_cannot_be_is_said_once_and_training_goes_on(caplog, uri):
    sink = resolve_sink(environ={"MLFLOW_TRACKING_URI": uri})
    train(sink)
    assert sink.faults > 0
    lines = [line.getMessage() for line in caplog.records if line.name == "scale_callbacks"]
    assert len(lines) == 2
    assert lines[0].startswith("MLflow: the run could not be opened: ")
    assert "forecasts were not logged in time" in lines[1]
    assert "hunter2" not in caplog.text


def test_a_logger_that_fails_is_survived(caplog):
    class MLFlowLogger:
        @property
        def experiment(self):
            raise ConnectionError("no http://ann:hunter2@host")

    assert resolve_sink([MLFlowLogger()], environ={}) is None
    assert "no run to log to: ConnectionError: no http://***@host" in caplog.text


def test_setting_up_does_not_import_mlflow_where_it_is_not_used():
    code = (
        "import sys; from scale_callbacks.integrations.mlflow import resolve_sink; "
        "assert resolve_sink(environ={}) is None; assert 'mlflow' not in sys.modules, 'loaded'; "
        "assert 'matplotlib' not in sys.modules"
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    environ = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
