"""Logs as the frameworks themselves write them: a replay forecasts what the live callback did."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from scale_callbacks import LossForecaster, MemorySink, MlflowSink, Monitor
from scale_callbacks.cli import app
from scale_callbacks.logs import read_log
from scale_callbacks.logs.plan import plan_of
from scale_callbacks.replay import replay


def run(*arguments):
    told = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200", "LINES": "60"})
    assert told.exception is None or isinstance(told.exception, SystemExit), told.exception
    return told


def replayed(log):
    sink = MemorySink()
    plan, _ = plan_of(log, log.planned or int(log.steps[-1]))
    monitor = Monitor(LossForecaster(plan, steps_per_epoch=log.steps_per_epoch), sinks=[sink])
    replay(log, monitor)
    return sink


# MLflow.


@pytest.fixture
def mlflow_run(store, schedule, losses):
    """A run under way, as a training with our sink leaves it in MLflow."""
    from mlflow.entities import Metric

    started = store.create_run("0")
    monitor = Monitor(
        LossForecaster(schedule), sinks=[MlflowSink(store, started.info.run_id)], name="train_loss"
    )
    points = []
    for step, loss in enumerate(losses[:500].tolist(), start=1):
        monitor.observe(step, loss)
        points += [
            Metric("train_loss", loss, step, step),
            Metric("lr-SGD", schedule.lr(float(step)), step, step),
        ]
    store.log_batch(started.info.run_id, metrics=points)
    monitor.close()
    return started.info.run_id, monitor


def test_an_mlflow_run_is_replayed(mlflow_run, store_uri, tmp_path, losses):
    run_id, monitor = mlflow_run
    log = read_log(f"mlflow:{run_id}", tracking_uri=store_uri)
    assert (log.name, log.planned, log.ended) == ("train_loss", 1000, False)
    assert np.allclose(log.values, losses[:500])
    plan = "wsd:warmup=50,cooldown=200,rate=1e-3"
    told = run(
        "replay", f"mlflow:{run_id}", "--tracking-uri", store_uri, "--schedule", plan, "--out", tmp_path
    )
    assert told.exit_code == 0, told.output
    last = monitor.history[-1]
    assert f"{last.step:,}" in told.output
    assert f": {last.value:.2f}" in told.output or f": {last.value:.3f}" in told.output
    assert (tmp_path / "report.html").is_file()


def test_an_mlflow_run_is_watched_until_it_ends(mlflow_run, store, store_uri):
    run_id, monitor = mlflow_run
    told = run("watch", f"mlflow:{run_id}", "--tracking-uri", store_uri, "--once")
    assert told.exit_code == 0, told.output
    assert "train_loss at step 1,000: " in told.output
    assert f"{monitor.history[-1].step:,}" in told.output
    store.set_terminated(run_id)
    assert "the run has ended" in run("watch", f"mlflow:{run_id}", "--tracking-uri", store_uri).output


@pytest.mark.parametrize("command", ["replay", "watch", "report"])
def test_a_wrong_run_id_is_answered_with_the_latest_runs(command, mlflow_run, store_uri):
    told = run(command, "mlflow:0123456789abcdef0123456789abcdef", "--tracking-uri", store_uri)
    assert told.exit_code == 2
    assert "there is no run '0123456789abcdef0123456789abcdef'" in told.stderr
    assert mlflow_run[0] in told.stderr
    assert told.stderr.count("\n") == 1


def test_an_unknown_metric_of_an_mlflow_run_is_answered_with_those_there_are(mlflow_run, store_uri):
    told = run("replay", f"mlflow:{mlflow_run[0]}", "--tracking-uri", store_uri, "--metric", "accuracy")
    assert told.exit_code == 2
    assert "it has: lr-SGD, train_loss, forecast/" in told.stderr
    told = run("watch", f"mlflow:{mlflow_run[0]}", "--tracking-uri", store_uri, "--metric", "accuracy")
    assert "has no forecasts of 'accuracy'; it has: train_loss" in told.stderr


def test_a_run_without_metrics_and_one_without_forecasts_are_told(store, store_uri):
    from mlflow.entities import Metric

    run_id = store.create_run("0").info.run_id
    assert "has logged no metric" in run("replay", f"mlflow:{run_id}", "--tracking-uri", store_uri).stderr
    store.log_batch(run_id, metrics=[Metric("loss", 1.0, 1, 1)])
    told = run("watch", f"mlflow:{run_id}", "--tracking-uri", store_uri, "--once")
    assert told.exit_code == 1
    assert "tells of no forecast yet" in told.stderr


def test_metrics_logged_without_steps_are_numbered(store, store_uri):
    from mlflow.entities import Metric

    run_id = store.create_run("0").info.run_id
    store.log_batch(run_id, metrics=[Metric("loss", 1.0 + 1 / i, i, 0) for i in range(1, 60)])
    log = read_log(f"mlflow:{run_id}", tracking_uri=store_uri)
    assert log.steps.tolist() == list(range(1, 60))
    assert log.values[0] == 2.0


def test_a_server_that_is_not_there_is_told_without_its_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    told = run("replay", "mlflow:a", "--tracking-uri", "http://ann:secret@127.0.0.1:9")
    assert told.exit_code == 2
    assert "secret" not in told.output + told.stderr
    assert told.stderr.count("\n") == 1


# Lightning and Transformers.


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_lightnings_logger_writes_is_replayed(tmp_path):
    import lightning.pytorch as pl
    import torch
    from lightning.pytorch.callbacks import LearningRateMonitor
    from lightning.pytorch.loggers import CSVLogger

    from tests.integrations.lightning_runs import Net, data, trainer

    class Scheduled(Net):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=200)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": decay, "interval": "step"}}

    logger = CSVLogger(tmp_path)
    fit = trainer(LearningRateMonitor("step"), logger=logger, max_steps=200, log_every_n_steps=1)
    assert isinstance(fit, pl.Trainer)
    net = Scheduled()
    fit.fit(net, data())
    logger.save()
    log = read_log(logger.log_dir)
    assert log.name == "train_loss"
    assert np.allclose(log.values, net.losses, rtol=1e-5)
    assert np.allclose(log.rates[1], net.rates, atol=2e-3)
    assert log.steps_per_epoch == pytest.approx(20, abs=1)
    assert len(replayed(log).records) > 20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_trainers_state_is_replayed_as_the_callback_forecast_it(tmp_path):
    from scale_callbacks.integrations.transformers import LossForecastCallback
    from tests.integrations.hf_runs import trainer

    live = MemorySink()
    fit = trainer(tmp_path, LossForecastCallback(sinks=[live]), max_steps=200, logging_steps=2)
    fit.train()
    fit.state.save_to_json(str(tmp_path / "trainer_state.json"))
    log = read_log(str(tmp_path / "trainer_state.json"))
    assert (log.name, log.planned, log.ended, log.is_mean) == ("loss", 200, True, True)
    assert log.steps_per_epoch == 20
    told = replayed(log)
    assert [record.step for record in told.records] == [record.step for record in live.records]
    ours, theirs = ([r.forecast.value for r in s.records if r.forecast] for s in (told, live))
    # The file has the losses to four digits or so, and the rates only at the steps that were logged.
    assert np.allclose(ours, theirs, rtol=0.03)
    assert json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
