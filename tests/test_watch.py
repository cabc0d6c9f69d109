import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from scale_callbacks import JsonlSink, LossForecaster, Monitor
from scale_callbacks.cli import app
from scale_callbacks.forecast_lines import UNREADABLE, Lines

ROOT = Path(__file__).parents[1]


def run(*arguments):
    told = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "120", "LINES": "60"})
    assert told.exception is None or isinstance(told.exception, SystemExit), told.exception
    return told


def written(path, schedule, losses, *, close):
    sink = JsonlSink(path)
    monitor = Monitor(LossForecaster(schedule), sinks=[sink], name="train_loss")
    for step, loss in enumerate(losses, start=1):
        monitor.observe(step, float(loss))
    assert monitor.flush(60)
    if close:
        monitor.close()
    else:  # as the end of a killed process does
        sink._file.close()
    return monitor


def read(path):
    lines = Lines()
    lines.take(path.read_text(encoding="utf-8").splitlines())
    return lines


@pytest.mark.parametrize("seen", [30, 500, 1000])
def test_the_lines_tell_the_run_again(tmp_path, schedule, losses, seen):
    monitor = written(tmp_path / "a.jsonl", schedule, losses[:seen], close=True)
    lines = read(tmp_path / "a.jsonl")
    told, true = lines.summary(), monitor.summary()
    assert lines.ended
    for name in ("name", "horizon", "schedule", "last_step", "history", "settings", "finished", "measured"):
        assert getattr(told, name) == getattr(true, name), name
    assert told.decision == true.decision
    assert told.forecast.value == true.forecast.value
    assert told.forecast.weights == true.forecast.weights
    assert np.allclose(told.forecast.path_value, true.forecast.path_value, rtol=1e-6)
    for name in ("steps", "mean", "spread", "count"):
        assert np.allclose(getattr(told.bins, name), getattr(true.bins, name), rtol=1e-6), name


def test_a_resumed_run_goes_on_in_its_file(tmp_path, schedule, losses):
    path = tmp_path / "a.jsonl"
    first = written(path, schedule, losses[:600], close=True)
    second = Monitor(LossForecaster(schedule), sinks=[JsonlSink(path)], name="train_loss")
    second.load_state_dict(first.state_dict())
    for step, loss in enumerate(losses[400:], start=401):
        second.observe(step, float(loss))
    second.close()
    told, true = read(path).summary(), second.summary()
    assert told.history == true.history
    assert np.allclose(told.bins.mean, true.bins.mean, rtol=1e-6)


def test_a_killed_runs_lines_are_read_up_to_the_cut(tmp_path, schedule, losses):
    path = tmp_path / "a.jsonl"
    written(path, schedule, losses[:500], close=False)
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole[:-300] + "\nnot json\n", encoding="utf-8")
    lines = read(path)
    assert lines.notes == {UNREADABLE: 2}
    assert len(lines.summary().history) == whole.count("\n") - 1
    assert not lines.ended


def test_lines_of_version_0_1_are_read():
    row = {"name": "loss", "step": 100, "value": 2.0, "low": 1.9, "high": 2.1, "level": 0.9, "horizon": 1000}
    row |= {"status": "ok", "decision": {"stop": False, "reason": "", "evidence": {}}, "metrics": {}}
    lines = Lines()
    lines.take([json.dumps(row), json.dumps(row | {"step": 200, "value": 2.05})])
    assert [point.value for point in lines.summary().history] == [2.0, 2.05]
    assert lines.summary().horizon == 1000


def test_a_file_stays_small(tmp_path, schedule, losses):
    written(tmp_path / "a.jsonl", schedule, losses, close=True)
    assert (tmp_path / "a.jsonl").stat().st_size < 300_000


def test_a_report_is_made_of_the_forecasts_that_were_made(tmp_path, schedule, losses):
    monitor = written(tmp_path / "a.jsonl", schedule, losses[:500], close=False)
    told = run("report", tmp_path / "a.jsonl", "--out", tmp_path / "out")
    assert told.exit_code == 0, told.output
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="run">(.*?)</script>', page, re.S)[1])
    assert data["forecast"]["ends"][0] == pytest.approx(monitor.history[-1].value, rel=1e-6)
    assert data["loss"]["mean"]
    assert data["rate"]["area"]


def test_a_report_of_a_log_replays_it(tmp_path, schedule, losses):
    rows = [f"{s},{v},{schedule.lr(float(s))}" for s, v in enumerate(losses, start=1)]
    (tmp_path / "run.csv").write_text("\n".join(["step,loss,lr", *rows]), encoding="utf-8")
    assert run("report", tmp_path / "run.csv", "--out", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / "report.html").is_file()


def test_one_look_shows_the_run_as_it_stands(tmp_path, schedule, losses):
    monitor = written(tmp_path / "a.jsonl", schedule, losses[:500], close=False)
    told = run("watch", tmp_path / "a.jsonl", "--once")
    assert told.exit_code == 0, told.output
    assert "train_loss at step 1,000: " in told.output
    assert f"{monitor.history[-1].step:,}" in told.output
    assert "\u25cf" in told.output


def test_watching_ends_with_the_run(tmp_path, schedule, losses):
    path = tmp_path / "a.jsonl"
    path.touch()

    def train():
        time.sleep(0.5)
        written(path, schedule, losses[:700], close=False)
        time.sleep(0.5)
        written(path, schedule, losses, close=True)

    thread = threading.Thread(target=train)
    thread.start()
    told = run("watch", path, "--interval", "0.1")
    thread.join()
    assert told.exit_code == 0, told.output
    assert "measured at the end" in told.output


def test_ctrl_c_leaves_quietly(tmp_path, schedule, losses):
    written(tmp_path / "a.jsonl", schedule, losses[:500], close=False)
    command = [
        sys.executable,
        "-m",
        "scale_callbacks.cli",
        "watch",
        str(tmp_path / "a.jsonl"),
        "--interval",
        "0.1",
    ]
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        watching = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, heard)
    assert watching.stdout.readline().startswith("train_loss at step 1,000: ")
    watching.send_signal(signal.SIGINT)
    _, said = watching.communicate(timeout=60)
    assert watching.returncode == 0
    assert said == ""


@pytest.mark.parametrize(("content", "code"), [("", 1), ("step,loss\n1,2\n", 2), (None, 2)])
def test_what_is_no_file_of_forecasts_is_told_in_one_line(tmp_path, content, code):
    if content is not None:
        (tmp_path / "a.jsonl").write_text(content)
    told = run("watch", tmp_path / "a.jsonl", "--once")
    assert told.exit_code == code
    assert told.stderr.startswith("error: ")
    assert told.stderr.count("\n") == 1


def test_what_a_name_holds_does_not_reach_the_terminal(tmp_path, schedule, losses):
    path = tmp_path / "a.jsonl"
    monitor = Monitor(LossForecaster(schedule), sinks=[JsonlSink(path)], name="loss\x1b[31m[bold]")
    for step, loss in enumerate(losses[:200], start=1):
        monitor.observe(step, float(loss))
    monitor.close()
    told = run("watch", path, "--once")
    assert "\x1b[31m" not in told.output
    assert "[bold]" in told.output
