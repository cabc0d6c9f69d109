"""What a killed training has journalled reaches its run: at its next start, or by `scale-callbacks sync`."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scale_callbacks.cli import app
from scale_callbacks.integrations._mlflow_journal import Entry, Journal
from scale_callbacks.integrations._mlflow_text import public_address

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("mlflow_run.py")
DEAD = "http://ann:hunter2@127.0.0.1:9"


@pytest.fixture
def experiment(store, tmp_path):
    name = f"sync {tmp_path.name}"
    return name, store.create_experiment(name, artifact_location=(tmp_path / "artifacts").as_uri())


@pytest.fixture
def run_id(store, experiment):
    return store.create_run(experiment[1]).info.run_id


def train(tmp_path, uri, experiment, *args):
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": uri}
    environ["MLFLOW_EXPERIMENT_NAME"] = experiment[0]
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    done = subprocess.run(
        command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert "hunter2" not in done.stdout + done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def sync(*args):
    return CliRunner().invoke(app, ["sync", *map(str, args)], env={"COLUMNS": "200"})


def steps_of(store, run_id, key="forecast/train_loss"):
    return [point.step for point in store.get_metric_history(run_id, key)]


def entries(n, since=0):
    return [
        Entry(1_700_000_000_000 + 10 * i, i, {"a": i / 7}, {"forecast.step": str(i)}) for i in range(since, n)
    ]


def write_journal(folder, head, some):
    journal = Journal(folder, head)
    for entry in some:
        journal.append(entry)
    path = journal.path
    journal.close(remove=False)
    return path


@pytest.mark.slow
def test_a_killed_training_goes_on_with_its_run_and_nothing_is_lost_or_doubled(
    store, store_uri, experiment, tmp_path, journals
):
    code, first = train(tmp_path, store_uri, experiment, 400, 230)
    assert code == -signal.SIGKILL
    assert len(list(journals.iterdir())) == 1
    code, second = train(tmp_path, store_uri, experiment, 400)
    assert code == 0
    assert second["run_id"] == first["run_id"]
    (run,) = store.search_runs([experiment[1]])
    assert run.info.status == "FINISHED"
    points = store.get_metric_history(second["run_id"], "forecast/train_loss")
    assert [point.step for point in points] == second["steps"]
    assert set(first["steps"]) <= set(second["steps"])
    assert [point.timestamp for point in points] == sorted(point.timestamp for point in points)
    assert list(journals.iterdir()) == []


def test_sync_sends_what_a_killed_training_could_not(store, store_uri, experiment, tmp_path, journals):
    # The server is not there at all; the run does not even exist yet.
    code, killed = train(tmp_path, DEAD, experiment, 400, 230)
    assert code == -signal.SIGKILL
    assert killed["run_id"] is None
    (path,) = journals.iterdir()
    assert b"hunter2" not in path.read_bytes()
    done = sync(path, "--tracking-uri", store_uri)
    assert done.exit_code == 0, done.output
    (run,) = store.search_runs([experiment[1]])
    assert f"forecasts sent to run {run.info.run_id}; the journal is removed" in done.output
    assert steps_of(store, run.info.run_id) == killed["steps"]
    assert run.data.params["forecast.monitor"] == "train_loss"
    points = store.get_metric_history(run.info.run_id, "forecast/train_loss")
    assert run.info.start_time <= points[0].timestamp <= points[-1].timestamp
    assert not path.exists()


@pytest.mark.slow
def test_exit_without_closing_loses_nothing(store, store_uri, experiment, tmp_path, journals):
    code, _ = train(tmp_path, DEAD, experiment, 200)
    assert code == 0
    assert sync(journals, "--tracking-uri", store_uri).exit_code == 0
    (run,) = store.search_runs([experiment[1]])
    assert len(steps_of(store, run.info.run_id)) > 20


@pytest.mark.slow
def test_a_training_resumed_before_its_run_existed_makes_one_run(
    store, store_uri, experiment, tmp_path, journals
):
    train(tmp_path, DEAD, experiment, 400, 230)
    code, done = train(tmp_path, store_uri, experiment, 400)
    assert code == 0
    (run,) = store.search_runs([experiment[1]])
    assert run.info.run_id == done["run_id"]
    assert steps_of(store, run.info.run_id) == done["steps"]
    assert list(journals.iterdir()) == []


def test_sync_keeps_order_and_times_and_skips_what_is_there(store, run_id, journals):
    head = {"store": store.tracking_uri, "run_id": run_id, "settings": {"forecast.x": "1"}}
    from mlflow.entities import Metric

    some = entries(20)
    store.log_batch(run_id, [Metric("a", e.metrics["a"], e.milliseconds, e.step) for e in some[:7]])
    write_journal(journals, head, some)
    done = sync(run_id)
    assert done.exit_code == 0, done.output
    assert "13 forecasts sent" in done.output
    assert "7 were there already" in done.output
    points = store.get_metric_history(run_id, "a")
    assert [(p.timestamp, p.step, p.value) for p in points] == [
        (e.milliseconds, e.step, e.metrics["a"]) for e in some
    ]
    data = store.get_run(run_id).data
    assert (data.tags["forecast.step"], data.params["forecast.x"]) == ("19", "1")
    assert store.get_run(run_id).info.status == "RUNNING"


def test_sync_ends_a_run_that_was_started_here(store, run_id, journals):
    head = {"store": store.tracking_uri, "run_id": run_id, "own": True, "end": "FAILED"}
    write_journal(journals, head, entries(3))
    assert sync(run_id).exit_code == 0
    assert store.get_run(run_id).info.status == "FAILED"


def test_sync_takes_a_password_from_the_environment_alone(store, run_id, journals, monkeypatch):
    from scale_callbacks.integrations import _mlflow_sync

    asked = []
    monkeypatch.setattr(_mlflow_sync, "RunOpener", lambda target: asked.append(target.uri) or _raise)
    monkeypatch.setattr(_mlflow_sync, "reachable", lambda *_, **__: True)
    uri = "http://ann:hunter2@nowhere.test:5000"
    write_journal(journals, {"store": public_address(uri), "run_id": "r"}, entries(3))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other.test")
    sync("r")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    done = sync("r")
    assert asked == ["http://nowhere.test:5000", uri]
    assert "hunter2" not in done.output
    assert done.exit_code == 1


def _raise():
    raise ConnectionError("no route to http://ann:hunter2@nowhere.test")


def test_sync_says_what_is_wrong_with_what_it_is_given(store, journals, tmp_path):
    def said(*args):
        done = sync(*args)
        assert done.exit_code != 0
        return " ".join(done.output.replace("│", " ").split())

    assert "no journal of a run 123abc" in said("123abc")
    assert "there is none: nothing is left to be sent" in said("123abc")
    path = write_journal(journals, {"store": DEAD.replace("ann:hunter2@", ""), "run_id": "r9"}, entries(2))
    assert f"there are: {path.name}" in said("123abc")
    assert "no server answers at http://127.0.0.1:9" in said("r9")
    assert "Run with id=r9 not found" in said("r9", "--tracking-uri", store.tracking_uri)
    assert path.exists()
    (tmp_path / "notes.txt").write_text("hello\n")
    assert "holds no journal" in said(tmp_path / "notes.txt")
    (tmp_path / "empty").mkdir()
    assert "no journal in" in said(tmp_path / "empty")
    nameless = write_journal(tmp_path / "x", {"run_id": "r"}, entries(1))
    assert "names no store: give --tracking-uri" in said(nameless)


def test_a_file_cut_off_in_mid_line_gives_what_can_be_read(store, run_id, journals):
    path = write_journal(journals, {"store": store.tracking_uri, "run_id": run_id}, entries(5))
    path.write_bytes(path.read_bytes()[:-30])
    done = sync(path)
    assert done.exit_code == 0
    assert "4 forecasts sent" in done.output
    assert "1 broken lines were left out" in done.output
    assert steps_of(store, run_id, "a") == [0, 1, 2, 3]


def test_a_journal_that_cannot_be_removed_is_marked(store, run_id, journals, monkeypatch):
    from scale_callbacks.integrations import _mlflow_journal, _mlflow_sync

    monkeypatch.setattr(_mlflow_journal, "_fcntl", None)  # no locks: others may be writing it
    path = write_journal(journals, {"store": store.tracking_uri, "run_id": run_id}, entries(5))
    assert "5 forecasts sent" in sync(path).output
    assert path.exists()
    with path.open("rb") as file:
        assert _mlflow_sync.read_journal(file).entries == ()
    assert "0 forecasts sent" in sync(path).output
    assert len(steps_of(store, run_id, "a")) == 5


def test_a_journal_is_plain_data(journals):
    path = write_journal(journals, {"run_id": "r"}, entries(1))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"head": {"run_id": "r"}}, {"n": 1, "entry": vars(entries(1)[0])}]
