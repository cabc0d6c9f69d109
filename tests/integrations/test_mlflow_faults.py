"""Stores that fail: training goes on, the delay is bounded, and what was journalled arrives in the end."""

import errno
import os
import threading
import time

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from scale_callbacks import LossForecaster, Monitor, Schedule
from scale_callbacks.cli import app
from scale_callbacks.integrations import _mlflow_journal, _mlflow_server
from scale_callbacks.integrations._mlflow_open import Target
from scale_callbacks.integrations._mlflow_server import reachable
from scale_callbacks.integrations.mlflow import MlflowSink, resolve_sink

from .gate import Gate

STEPS = 300


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.close()


@pytest.fixture
def experiment(store, tmp_path):
    name = f"faults {tmp_path.name}"
    return name, store.create_experiment(name, artifact_location=(tmp_path / "artifacts").as_uri())


def train(sink, steps=STEPS):
    """Train; the longest time that a step took, in seconds."""
    monitor = Monitor(LossForecaster(Schedule.constant(1e-3, STEPS)), sinks=[sink], name="train_loss")
    longest = 0.0
    for step in range(1, steps + 1):
        begun = time.monotonic()
        monitor.observe(step, 2.0 + (step / STEPS) ** -0.5)
        longest = max(longest, time.monotonic() - begun)
    monitor.close()
    assert not [warning for warning in monitor.warnings if "Sink" in warning]
    return longest, [point.step for point in monitor.history]


def sync(*args):
    return CliRunner().invoke(app, ["sync", *map(str, args)], env={"COLUMNS": "200"})


@pytest.mark.parametrize(
    "mode", [*(pytest.param(mode, marks=pytest.mark.slow) for mode in ("failing", "stuck")), "shut"]
)
def test_a_server_that_never_works_costs_little_and_loses_nothing(
    gate, mode, store, store_uri, experiment, journals
):
    gate.open(mode) if mode != "shut" else gate.shut()
    target = Target(gate.address, experiment=experiment[0])
    sink = MlflowSink.starting(target, flush_seconds=6.0)
    begun = time.monotonic()
    longest, steps = train(sink)
    assert longest < 1.0
    assert time.monotonic() - begun < 20.0
    assert sink.dropped > 0
    (path,) = journals.iterdir()
    done = sync(path, "--tracking-uri", store_uri)
    assert done.exit_code == 0, done.output
    (run,) = store.search_runs([experiment[1]])
    points = store.get_metric_history(run.info.run_id, "forecast/train_loss")
    assert [point.step for point in points] == steps
    assert run.info.status == "FINISHED"
    assert run.data.metrics["forecast/measured"] == pytest.approx(3.0, abs=0.01)
    assert not list(journals.iterdir())


def test_a_server_that_is_gone_is_asked_by_a_short_knock_alone(gate):
    gate.shut()
    begun = time.monotonic()
    assert not reachable(gate.address)
    assert time.monotonic() - begun < 3.0
    gate.open()
    assert reachable(gate.address)
    assert gate.requests == []


def test_a_name_that_resolves_slowly_costs_bounded_time(monkeypatch):
    monkeypatch.setattr(_mlflow_server, "_connects", lambda *_: time.sleep(60))
    begun = time.monotonic()
    assert not reachable("http://nowhere.test", patience=0.1)
    assert time.monotonic() - begun < 5.0


def test_behind_a_proxy_the_server_is_taken_to_be_there(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    assert reachable("https://mlflow.test:1")
    assert not reachable("https://127.0.0.1:9")
    assert reachable("sqlite:///x.db")


@pytest.mark.parametrize("place", ["/dev/null/x", "/proc/x"])
def test_without_a_place_for_the_journal_it_sends_from_memory(
    place, store, store_uri, experiment, monkeypatch, caplog
):
    monkeypatch.setenv("SCALE_CALLBACKS_JOURNAL", place)
    sink = resolve_sink(environ={"MLFLOW_TRACKING_URI": store_uri, "MLFLOW_EXPERIMENT_NAME": experiment[0]})
    _, steps = train(sink)
    (run,) = store.search_runs([experiment[1]])
    assert [p.step for p in store.get_metric_history(run.info.run_id, "forecast/final")] == steps
    assert run.info.status == "FINISHED"
    assert sink.faults > 20
    assert caplog.text.count("the journal was not written") == 1
    assert sink.dropped == 0


def test_a_disk_that_fills_up_is_survived_and_used_again(store, experiment, journals, monkeypatch, caplog):
    full = [False]
    real = _mlflow_journal.Journal._write

    def write(self, line):
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, line)

    monkeypatch.setattr(_mlflow_journal.Journal, "_write", write)
    run_id = store.create_run(experiment[1]).info.run_id
    sink = MlflowSink(store, run_id, batch_seconds=60.0)
    monitor = Monitor(LossForecaster(Schedule.constant(1e-3, STEPS)), sinks=[sink], name="train_loss")
    for step in range(1, STEPS + 1):
        full[0] = 100 <= step < 200
        monitor.observe(step, 2.0 + (step / STEPS) ** -0.5)
    with sink._outbox.path.open("rb") as file:  # fine here, where the lock is not needed
        kept = {entry.step for entry in _mlflow_journal.read_journal(file).entries}
    assert {step // 100 for step in kept} == {0, 2, 3}
    monitor.close()
    points = store.get_metric_history(run_id, "forecast/final")
    assert [p.step for p in points] == [point.step for point in monitor.history]
    assert caplog.text.count("the journal was not written") == 1
    assert list(journals.iterdir()) == []


def test_a_disk_that_hangs_holds_nobody_up(store, experiment, journals, monkeypatch, caplog):
    released = threading.Event()
    real = _mlflow_journal.Journal._write

    def write(self, line):
        if line.get("n", 0) >= 5:
            released.wait(60)
        real(self, line)

    monkeypatch.setattr(_mlflow_journal.Journal, "_write", write)
    monkeypatch.setattr("scale_callbacks.integrations._mlflow_outbox.STUCK", 0.1)
    run_id = store.create_run(experiment[1]).info.run_id
    sink = MlflowSink(store, run_id)
    longest, steps = train(sink)
    assert longest < 1.0
    assert [p.step for p in store.get_metric_history(run_id, "forecast/final")] == steps
    assert sink.dropped == 0
    assert caplog.text.count("the journal's disk hangs") == 1
    released.set()


def test_journals_can_be_switched_off(store, experiment, tmp_path, monkeypatch):
    monkeypatch.setenv("SCALE_CALLBACKS_JOURNAL", "off")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run_id = store.create_run(experiment[1]).info.run_id
    sink = MlflowSink(store, run_id)
    train(sink)
    assert (sink.faults, sink.dropped) == (0, 0)
    assert not (tmp_path / "home").exists()
    assert len(store.get_metric_history(run_id, "forecast/final")) > 20


def test_a_journal_that_cannot_be_read_keeps_nothing_back(store, experiment, journals, caplog):
    run_id = store.create_run(experiment[1]).info.run_id
    journals.mkdir()
    (journals / f"{run_id}.deadbeef.jsonl").mkdir()
    (journals / f"{run_id}.cafecafe.jsonl").write_bytes(b"\x00" * 100)
    sink = MlflowSink(store, run_id)
    _, steps = train(sink)
    assert [p.step for p in store.get_metric_history(run_id, "forecast/final")] == steps
    assert "a journal was left where it is" in caplog.text


def test_a_run_that_another_process_writes_is_not_joined(store, store_uri, experiment, journals, monkeypatch):
    environ = {"MLFLOW_TRACKING_URI": store_uri, "MLFLOW_EXPERIMENT_NAME": experiment[0]}
    first = resolve_sink(environ=environ)
    state = first.state_dict()
    monkeypatch.setattr("scale_callbacks.integrations._mlflow_sink.written_elsewhere", lambda *_: True)
    second = resolve_sink(environ=environ, resume=state)
    assert second.run_id != first.run_id
    assert MlflowClient(store_uri).get_run(second.run_id).info.status == "RUNNING"


@pytest.mark.slow
def test_a_hundred_megabytes_of_journals_are_bounded(tmp_path, monkeypatch):
    """A run without a server for its whole life keeps at most the journal's limit."""
    monkeypatch.setenv("SCALE_CALLBACKS_JOURNAL", str(tmp_path / "j"))
    sink = MlflowSink.starting(Target("http://127.0.0.1:9"), flush_seconds=1.0)
    from scale_callbacks.integrations._mlflow_journal import LIMIT, Entry

    for i in range(20_000):
        sink._outbox.put(Entry(i, i, {f"m{k}": 1.0 for k in range(10)}, {"reason": "x" * 400}))
    (path,) = (tmp_path / "j").iterdir()
    assert os.path.getsize(path) <= LIMIT
    assert len(sink._outbox) <= 1000
