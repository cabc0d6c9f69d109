import logging
import math
import socket
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from scale_callbacks import LossForecaster, Monitor, Schedule
from scale_callbacks.integrations._mlflow_journal import Entry
from scale_callbacks.integrations._mlflow_open import Opened, Target
from scale_callbacks.integrations._mlflow_run import RunWriter
from scale_callbacks.integrations._mlflow_text import without_secrets
from scale_callbacks.integrations.mlflow import MlflowSink, run_page

DEAD = "http://ann:hunter2@127.0.0.1:9"


@pytest.fixture
def run_id(store, tmp_path):
    """A fresh run, its artifacts in the test's own folder."""
    experiment = store.create_experiment(tmp_path.name, artifact_location=(tmp_path / "artifacts").as_uri())
    return store.create_run(experiment).info.run_id


class Tape:
    """A sink that keeps what it was handed, to be played to others: a run is forecast once for all tests."""

    def __init__(self):
        self.pairs, self.end = [], None

    def write(self, record, summary):
        self.pairs.append((record, summary))

    def close(self, summary):
        self.end = summary

    def play(self, sink):
        for record, summary in self.pairs:
            sink.write(record, summary)
        sink.close(self.end)


PLAN = Schedule.wsd(1e-3, 1000, warmup=50, cooldown=200)
STEPS = np.arange(1, 1001)
LOSSES = 2.0 + 0.5 * (STEPS / 1000) ** -0.4 + np.random.default_rng(0).normal(0, 0.02, 1000)


def train(sink, *, steps=1000):
    monitor = Monitor(LossForecaster(PLAN), sinks=[sink], name="train_loss")
    for step in range(1, steps + 1):
        monitor.observe(step, float(LOSSES[step - 1]))
    monitor.close()
    assert not [warning for warning in monitor.warnings if "Sink" in warning]
    return sink


@pytest.fixture(scope="module")
def whole():
    return train(Tape())


@pytest.fixture(scope="module")
def half():
    return train(Tape(), steps=500)


@pytest.fixture(scope="module")
def one(half):
    """One record and its summary, from the middle of a run."""
    return half.pairs[-1][0], half.end


def points(store, run_id, key):
    return [(m.step, m.value) for m in store.get_metric_history(run_id, key)]


class Scripted:
    """A client whose calls fail or block as the test says, and otherwise go to a real one."""

    def __init__(self, client, **before):
        self._client = client
        self._before = before
        self.tracking_uri = None
        self.calls = []

    def __getattr__(self, name):
        def call(*args, **options):
            self.calls.append((name, time.monotonic(), threading.current_thread().name))
            self._before.get(name, lambda: None)()
            return getattr(self._client, name)(*args, **options)

        return call


def test_every_forecast_is_a_point_at_its_step(store, run_id, whole):
    sink = MlflowSink(store, run_id, batch_seconds=0)
    whole.play(sink)
    records = [record for record, _ in whole.pairs if record.forecast is not None]
    assert len(records) > 40
    for key in ("forecast/train_loss", "forecast/train_loss_low", "forecast/train_loss_high", "lr_area"):
        assert points(store, run_id, key) == [
            (r.step, r.metrics[key]) for r, _ in whole.pairs if key in r.metrics
        ]
    assert points(store, run_id, "forecast/final") == [(r.step, r.forecast.value) for r in records]
    for law, weight in records[-1].forecast.weights.items():
        assert points(store, run_id, f"forecast/weight/{law}")[-1] == (records[-1].step, weight)
    assert (sink.faults, sink.dropped) == (0, 0)


def test_settings_are_params_and_what_changes_is_a_tag(store, run_id, whole):
    whole.play(MlflowSink(store, run_id))
    data = store.get_run(run_id).data
    for name, value in {**whole.end.settings, "monitor": "train_loss", "peak_rate": PLAN.peak}.items():
        assert data.params[f"forecast.{name}"] == str(value)
    assert data.tags["forecast.status"] == "ok"
    assert data.tags["forecast.step"] == "1000"
    assert data.tags["forecast.finished"] == "true"
    assert data.tags["forecast.decision"] == "continue"
    weights = whole.end.forecast.weights
    assert {law: data.tags[f"forecast.weight.{law}"] for law in weights} == {
        law: f"{weight:.3f}" for law, weight in weights.items()
    }
    found = store.search_runs([store.get_run(run_id).info.experiment_id], "tags.forecast.status = 'ok'")
    assert [run.info.run_id for run in found] == [run_id]


def test_the_measured_end_stands_beside_the_forecast(store, run_id, whole):
    whole.play(MlflowSink(store, run_id))
    metrics = store.get_run(run_id).data.metrics
    assert metrics["forecast/measured"] == pytest.approx(LOSSES[-10:].mean(), abs=0.02)
    assert (
        metrics["forecast/train_loss_low"]
        < metrics["forecast/measured"]
        < metrics["forecast/train_loss_high"]
    )


def test_an_unfinished_run_claims_no_measured_end(store, run_id, half):
    half.play(MlflowSink(store, run_id))
    data = store.get_run(run_id).data
    assert "forecast/measured" not in data.metrics
    assert data.tags["forecast.finished"] == "false"


def test_the_picture_and_the_report_are_left_at_the_end(store, run_id, whole, tmp_path):
    whole.play(MlflowSink(store, run_id))
    assert [file.path for file in store.list_artifacts(run_id)] == ["forecast.png", "report.html"]
    with open(store.download_artifacts(run_id, "forecast.png", tmp_path), "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    with open(store.download_artifacts(run_id, "report.html", tmp_path), encoding="utf-8") as file:
        page = file.read()
    assert page.startswith("<!doctype html>")
    assert "train_loss" in page


def test_a_picture_that_cannot_be_drawn_keeps_nothing_else_back(store, run_id, whole, monkeypatch, caplog):
    def fail(*_):
        raise MemoryError("no room for a picture")

    monkeypatch.setattr("scale_callbacks.integrations._mlflow_artifacts.save_forecast_png", fail)
    sink = MlflowSink.starting(Target(store.tracking_uri, run_id))
    whole.play(sink)
    assert [file.path for file in store.list_artifacts(run_id)] == ["report.html"]
    assert store.get_run(run_id).info.status == "FINISHED"
    assert sink.faults == 1
    assert "the figure was not logged: MemoryError" in caplog.text


def test_a_run_that_somebody_else_started_stays_open(store, run_id, whole):
    whole.play(MlflowSink(store, run_id))
    assert store.get_run(run_id).info.status == "RUNNING"


@pytest.mark.parametrize(
    ("outcome", "status"), [(None, "FINISHED"), ("FAILED", "FAILED"), ("KILLED", "KILLED")]
)
def test_a_run_of_its_own_is_ended_as_it_ended(store, run_id, one, outcome, status):
    record, summary = one
    sink = MlflowSink.starting(Target(store.tracking_uri, run_id))
    sink.write(record, summary)
    sink.outcome = outcome
    sink.close(summary)
    assert sink.run_id == run_id
    assert store.get_run(run_id).info.status == status


def test_numbers_that_are_not_finite_are_not_sent(store, run_id, one):
    record, summary = one
    sink = MlflowSink(store, run_id)
    sink.write(replace(record, metrics={"bad": math.nan, "worse": -math.inf, "good": 1.5}), summary)
    sink.close(summary)
    metrics = store.get_run(run_id).data.metrics
    assert metrics["good"] == 1.5
    assert not {"bad", "worse"} & set(metrics)
    assert sink.faults == 0


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("loss@1 $", "loss_1 _"),
        ("../up//x", "up/x"),
        ("\u640d\u5931", "__"),
        ("n" * 300, "n" * 250),
        ("/", "_"),
    ],
)
def test_names_are_written_as_mlflow_takes_them(store, run_id, one, name, kept):
    record, summary = one
    sink = MlflowSink(store, run_id)
    sink.write(replace(record, metrics={name: 1.0}), summary)
    sink.close(summary)
    assert store.get_run(run_id).data.metrics[kept] == 1.0
    assert sink.faults == 0


def test_two_metrics_share_a_run_under_two_prefixes(store, run_id, whole, one):
    whole.play(MlflowSink(store, run_id))
    second = MlflowSink(store, run_id, prefix="forecast_val")
    record, summary = one
    second.write(replace(record, name="val_loss"), replace(summary, name="val_loss"))
    second.close(replace(summary, name="val_loss"))
    data = store.get_run(run_id).data
    assert (data.params["forecast.monitor"], data.params["forecast_val.monitor"]) == (
        "train_loss",
        "val_loss",
    )
    assert data.metrics["forecast_val/final"] == one[0].forecast.value
    assert {file.path for file in store.list_artifacts(run_id)} == {
        "forecast.png",
        "report.html",
        "forecast_val.png",
        "forecast_val.report.html",
    }
    assert second.faults == 0


def test_a_run_resumed_with_other_settings_keeps_its_params_and_still_gets_forecasts(
    store, run_id, one, caplog
):
    record, summary = one
    for i, level in enumerate((0.9, 0.8)):
        sink = MlflowSink(store, run_id)
        summary = replace(summary, settings={"level": level})
        sink.write(replace(record, step=500 + i), summary)
        sink.close(summary)
    assert store.get_run(run_id).data.params["forecast.level"] == "0.9"
    assert len(points(store, run_id, "forecast/final")) == 2
    assert sink.faults == 1
    assert "the settings were not logged" in caplog.text


def test_points_sent_twice_are_kept_once(store, run_id):
    writer = RunWriter(lambda: Opened(store, run_id))
    entries = [Entry(1_700_000_000_000 + i, i, {"a": float(i)}) for i in range(3)]
    writer.send(entries[:2])
    writer.send(entries)
    assert points(store, run_id, "a") == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_many_points_go_in_calls_of_a_thousand(store, run_id):
    client = Scripted(store)
    RunWriter(lambda: Opened(client, run_id)).send(
        [Entry(1_700_000_000_000, i, {"a": float(i), "b": 1.0}) for i in range(600)]
    )
    assert [name for name, *_ in client.calls] == ["get_run", "log_batch", "log_batch"]
    assert len(points(store, run_id, "a")) == 600


def test_forecasts_that_come_fast_are_sent_in_few_batches(store, run_id, whole):
    client = Scripted(store)
    whole.play(MlflowSink(client, run_id, batch_seconds=60))
    batches = [call for call in client.calls if call[0] == "log_batch"]
    assert len(batches) <= 3  # settings, the first forecasts, the rest at the end
    assert len(points(store, run_id, "lr_area")) == len(whole.pairs)


def test_only_the_sink_s_own_thread_speaks_to_the_store(store, run_id, whole):
    client = Scripted(store)
    whole.play(MlflowSink(client, run_id, batch_seconds=0))
    assert {thread for *_, thread in client.calls} == {"scale-callbacks-mlflow"}


def test_a_slow_store_does_not_hold_training_up(store, run_id, one):
    record, summary = one
    client = Scripted(store, log_batch=lambda: time.sleep(0.4))
    sink = MlflowSink(client, run_id, batch_seconds=0)
    took = []
    for step in range(1, 51):
        begun = time.perf_counter()
        sink.write(replace(record, step=step), summary)
        took.append(time.perf_counter() - begun)
    assert sorted(took)[25] < 2e-3
    sink.close(summary)
    assert len(points(store, run_id, "forecast/final")) == 50
    assert sink.dropped == 0


def test_a_store_that_fails_for_a_while_gets_everything_later(store, run_id, whole, caplog):
    def fail_thrice():
        if [name for name, *_ in client.calls].count("log_batch") <= 3:
            raise ConnectionError("no route to https://ann:hunter2@host/api")

    client = Scripted(store, log_batch=fail_thrice)
    with caplog.at_level(logging.WARNING):
        whole.play(MlflowSink(client, run_id, batch_seconds=0))
    assert len(points(store, run_id, "lr_area")) == len(whole.pairs)
    lines = [line.getMessage() for line in caplog.records if line.name == "scale_callbacks"]
    assert len(lines) == len({line.split(":")[1] for line in lines})  # each sort of fault once
    assert "ConnectionError: no route to https://***@host/api" in caplog.text
    assert "hunter2" not in caplog.text


def test_a_store_that_fails_for_good_costs_bounded_memory(store, run_id, one, monkeypatch):
    def fail():
        raise ConnectionError("gone")

    monkeypatch.setattr("scale_callbacks.integrations._mlflow_outbox.BACKLOG", 10)
    record, summary = one
    sink = MlflowSink(Scripted(store, log_batch=fail), run_id, batch_seconds=0)
    for step in range(30):
        sink.write(replace(record, step=step), summary)
    assert len(sink._outbox) == 10
    assert sink.dropped == 20
    sink.close(summary)
    assert sink.faults > 0


def test_a_dead_server_costs_neither_an_exception_nor_time(one, caplog):
    from mlflow import MlflowClient

    record, summary = one
    begun = time.monotonic()
    sink = MlflowSink(MlflowClient(DEAD), "0" * 32)
    sink.write(record, summary)
    assert time.monotonic() - begun < 1.0
    sink.close(summary)
    assert time.monotonic() - begun < 8.0
    assert "were not logged in time" in caplog.text
    assert "hunter2" not in caplog.text


def test_a_server_that_is_slow_gets_the_whole_time(store, run_id, one, monkeypatch):
    monkeypatch.setattr("scale_callbacks.integrations._mlflow_sink.STUCK", 0.2)
    client = Scripted(store, log_batch=lambda: time.sleep(1.0))
    with socket.create_server(("127.0.0.1", 0)) as there:
        client.tracking_uri = f"http://127.0.0.1:{there.getsockname()[1]}"
        sink = MlflowSink(client, run_id)
        sink.write(*one)
        sink.close(one[1])
    assert (sink.faults, sink.dropped) == (0, 0)
    assert len(points(store, run_id, "forecast/final")) == 1


def test_a_server_that_hangs_is_given_up(store, run_id, one, monkeypatch):
    monkeypatch.setattr("scale_callbacks.integrations._mlflow_sink.STUCK", 0.5)
    release = threading.Event()
    record, summary = one
    sink = MlflowSink(Scripted(store, log_batch=lambda: release.wait(30)), run_id)
    sink.write(record, summary)
    begun = time.monotonic()
    sink.close(summary)
    assert time.monotonic() - begun < 3.0
    release.set()
    sink._thread.join(10)
    assert not sink._thread.is_alive()  # it does not go on talking behind the user's back


def test_closing_twice_or_writing_after_it_does_nothing(store, run_id, one):
    record, summary = one
    sink = MlflowSink(store, run_id)
    sink.write(record, summary)
    sink.close(summary)
    before = store.get_run(run_id).data.metrics
    sink.write(replace(record, metrics={"late": 1.0}), summary)
    sink.close(summary)
    assert store.get_run(run_id).data.metrics == before


def test_a_run_of_one_step_is_logged_without_a_fault(store, run_id):
    sink = MlflowSink(store, run_id)
    train(sink, steps=1)
    assert sink.faults == 0
    assert store.get_run(run_id).data.tags["forecast.finished"] == "false"


def test_figures_are_drawn_a_few_times_and_less_in_short_runs(store, run_id, whole, one, monkeypatch):
    client = Scripted(store)
    whole.play(MlflowSink(client, run_id, batch_seconds=0))
    assert [name for name, *_ in client.calls].count("log_artifact") == 2
    # As if the run had lasted for hours: the drawings in between are affordable.
    record, summary = one
    client = Scripted(store)
    sink = MlflowSink(client, run_id, batch_seconds=0)
    sink._pictures._born -= 10_000
    for step in range(0, 1000, 50):
        sink.write(replace(record, step=step), replace(summary, last_step=step))
        deadline = time.monotonic() + 10
        while sink._outbox and time.monotonic() < deadline:
            time.sleep(0.01)
    sink.close(summary)
    assert [name for name, *_ in client.calls].count("log_artifact") == 8


def test_the_run_s_page_is_named(store, run_id):
    experiment = store.get_run(run_id).info.experiment_id
    assert run_page(store, run_id) == f"#/experiments/{experiment}/runs/{run_id}/model-metrics"


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://ann:hunter2@host/db is down",
        "at http://:hunter2@[::1]:5000/x",
        "https://host/api?access_token=hunter2&x=1",
        "password=hunter2",
        "https://ann:a@b/hunter2@host",
    ],
)
def test_secrets_are_left_out_of_messages(text):
    assert "hunter2" not in without_secrets(text)
    assert without_secrets("3 of 4 at https://host:5000/api?x=1") == "3 of 4 at https://host:5000/api?x=1"
