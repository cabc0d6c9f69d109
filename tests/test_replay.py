import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from scale_callbacks import LossForecaster, MemorySink, Monitor, RewardForecaster, SaturationRule, Schedule
from scale_callbacks.cli import app
from scale_callbacks.logs import Log
from scale_callbacks.logs.plan import parse_schedule, plan_of
from scale_callbacks.replay import replay

ROOT = Path(__file__).parents[1]


def point_by_point(log, monitor):
    """What a live run does: every point by itself."""
    for i, (step, value, span) in enumerate(zip(log.steps, log.values, log.spans, strict=True)):
        extra = {name: column[i] for name, column in log.extra.items() if np.isfinite(column[i])}
        monitor.observe(step, value, extra=extra or None, span=int(span))


def both(log, make):
    seen = []
    for play in (replay, point_by_point):
        sink = MemorySink()
        monitor = make(sink)
        play(log, monitor)
        monitor.close()
        seen.append((sink, monitor))
    return seen


def same(log, make):
    (fast, batched), (live, single) = both(log, make)
    assert [record.forecast for record in fast.records] == [record.forecast for record in live.records]
    assert [record.decision for record in fast.records] == [record.decision for record in live.records]
    assert [record.step for record in fast.records] == [record.step for record in live.records]
    assert batched.state_dict() == single.state_dict()
    assert repr(fast.summary) == repr(live.summary)
    return len(live.records)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3), st.booleans(), st.floats(0.2, 1.6))
def test_a_replay_forecasts_what_the_live_run_did(seed, stride, is_mean, share):
    draw = np.random.default_rng(seed)
    plan = Schedule.wsd(1e-3, 1000, warmup=50, cooldown=200)
    steps = np.cumsum(draw.integers(1, stride + 1, int(1000 * share / (1 + stride / 2)))).astype(float)
    losses = 2.0 + steps**-0.4 + draw.normal(0, 0.02, len(steps)) + 9.0 * (draw.random(len(steps)) > 0.995)
    losses[draw.random(len(steps)) > 0.99] = np.nan
    log = Log("made up", "loss", steps, losses, is_mean=is_mean)
    assert same(log, lambda sink: Monitor(LossForecaster(plan), sinks=[sink], name="loss")) > 5


def test_a_replayed_reward_stops_where_the_live_run_did():
    draw = np.random.default_rng(0)
    steps = np.arange(1.0, 601.0)
    rewards = 1 - np.exp(-steps / 40) + draw.normal(0, 0.1, 600)
    spread = np.where(steps % 5 == 0, 0.2, np.nan)
    log = Log("made up", "reward", steps, rewards, extra={"frac_reward_zero_std": spread})
    make = lambda sink: Monitor(RewardForecaster(600), rules=[SaturationRule()], sinks=[sink])  # noqa: E731
    (fast, _), (live, _) = both(log, make)
    assert [r.decision for r in fast.records] == [r.decision for r in live.records]
    assert [r.forecast for r in fast.records] == [r.forecast for r in live.records]
    assert any(r.decision.stop for r in fast.records)


# The plan.


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        ("constant", Schedule.constant(1.0, 1000)),
        ("linear:warmup=10,rate=3e-4", Schedule.linear(3e-4, 1000, warmup=10)),
        ("cosine:warmup=1%,rate=2,floor=0.2", Schedule.cosine(2.0, 1000, warmup=10, floor=0.2)),
        ("wsd:cooldown=20%,shape=1-sqrt", Schedule.wsd(1.0, 1000, cooldown=200, shape="1-sqrt")),
        ("wsd: warmup=5, cooldown=100", Schedule.wsd(1.0, 1000, warmup=5, cooldown=100)),
    ],
)
def test_a_plan_is_read_as_it_is_written(text, plan):
    assert parse_schedule(text, 1000) == plan


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("exotic", "none of constant, linear, cosine, wsd"),
        ("wsd", "needs the steps of its cooldown"),
        ("linear:cooldown=5", "does not take 'cooldown'"),
        ("linear:warmup", "VALUE"),
        ("linear:speed=3", "'speed=3' is none of"),
        ("linear:warmup=x", "is no number"),
        ("linear:warmup=-5", "not negative"),
        ("linear:rate=nan", "finite"),
        ("wsd:cooldown=2000", "2000"),
    ],
)
def test_a_plan_that_is_none_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_schedule(text, 1000)


def logged(plan, until, every=10):
    steps = np.arange(every, until + 1.0, every)
    return Log("made up", "loss", steps, np.ones(len(steps)), rates=(steps, np.asarray(plan.lr(steps))))


@pytest.mark.parametrize("shape", [Schedule.linear, Schedule.cosine])
@pytest.mark.parametrize("floor", [0.0, 1e-4])
def test_rates_of_a_run_under_way_are_continued_in_their_shape(shape, floor):
    plan = shape(1e-3, 2000, warmup=100, floor=floor)
    found, guessed = plan_of(logged(plan, 1000), 2000)
    steps = np.arange(1, 2001)
    assert np.abs(np.asarray(found.lr(steps)) - np.asarray(plan.lr(steps))).max() < 1e-5
    assert "is taken to go on so" in guessed


def test_rates_that_tell_no_shape_are_held_and_that_is_said():
    found, guessed = plan_of(logged(Schedule.wsd(1e-3, 2000, warmup=100, cooldown=400), 1000), 2000)
    assert found.lr(2000.0) == 1e-3
    assert "give --schedule" in guessed


def test_rates_of_a_finished_run_are_its_plan():
    plan = Schedule.wsd(1e-3, 2000, warmup=100, cooldown=400)
    found, guessed = plan_of(logged(plan, 2000), 2000)
    assert guessed == ""
    assert np.allclose(found.lr(np.arange(10, 2001)), plan.lr(np.arange(10, 2001)), atol=1e-6)


def test_a_plan_of_a_million_rates_has_few_knots():
    plan = Schedule.wsd(1e-3, 1_000_000, warmup=2000, cooldown=200_000)
    found, _ = plan_of(logged(plan, 1_000_000, every=1), 1_000_000)
    assert len(found.steps) < 5000
    assert found.area(1e6) == pytest.approx(plan.area(1e6), rel=1e-4)


# The command.


def run(*arguments):
    told = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})
    assert told.exception is None or isinstance(told.exception, SystemExit), told.exception
    return told


@pytest.fixture
def log_file(tmp_path, losses, schedule):
    rows = [f"{s},{v},{schedule.lr(float(s))}" for s, v in enumerate(losses, start=1)]
    (tmp_path / "run.csv").write_text("\n".join(["step,loss,lr", *rows]), encoding="utf-8")
    return tmp_path / "run.csv"


def test_a_finished_run_is_replayed_and_reported(log_file, tmp_path):
    told = run("replay", log_file, "--out", tmp_path / "out")
    assert told.exit_code == 0, told.output
    assert "100% │ 1,000 │" in told.output
    assert "measured at the end: 2." in told.output
    assert (tmp_path / "out" / "forecast.png").read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "loss</span> ended at" in page
    assert "run.csv" in page


def test_a_logged_accuracy_is_replayed_as_what_rises(tmp_path, losses, schedule):
    rows = [f"{s},{1 - v / 10},{schedule.lr(float(s))}" for s, v in enumerate(losses, start=1)]
    (tmp_path / "run.csv").write_text("\n".join(["step,val_acc,lr", *rows]), encoding="utf-8")
    told = run("replay", tmp_path / "run.csv", "--metric", "val_acc", "--out", tmp_path / "out")
    assert told.exit_code == 0, told.output
    measured = float(re.search(r"measured at the end: ([0-9.]+)", told.output).group(1))
    half = re.search(r"50% │ +500 │ +([0-9.]+) │", told.output)
    assert half, told.output
    assert abs(float(half.group(1)) - measured) < 0.01
    assert "wrong way" not in told.output


def test_a_run_under_way_is_forecast_to_its_end(log_file, tmp_path):
    log_file.write_text("\n".join(log_file.read_text().splitlines()[:500]))
    plan = "wsd:warmup=50,cooldown=200,rate=1e-3"
    told = run("replay", log_file, "--horizon", 1000, "--schedule", plan, "--out", tmp_path / "out")
    assert told.exit_code == 0, told.output
    assert "loss at step 1,000: " in told.output
    assert "measured" not in told.output
    held = run("replay", log_file, "--horizon", 1000, "--out", tmp_path / "out")
    assert "give --schedule" in held.output


def test_a_reward_needs_no_plan(tmp_path):
    rows = [{"step": i, "reward": 1 - float(np.exp(-i / 20)) + 0.01 * (i % 7)} for i in range(1, 301)]
    (tmp_path / "reward.jsonl").write_text("\n".join(map(json.dumps, rows)))
    told = run("replay", tmp_path / "reward.jsonl", "--reward", "--out", tmp_path / "out")
    assert told.exit_code == 0, told.output
    assert "decision: stop, at step " in told.output
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Decision: stop" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.csv"], "nothing.csv: No such file"),
        (["FILE", "--metric", "accuracy"], "has no 'accuracy'; it has: loss, lr"),
        (["FILE", "--lr", "rate"], "has no 'rate'"),
        (["FILE", "--schedule", "exotic"], "none of constant"),
        (["FILE", "--level", "2"], "level=2.0 must lie between 0 and 1"),
        (["mlflow:nothing", "--tracking-uri", "sqlite:////nowhere/mlflow.db"], "no MLflow database"),
    ],
)
def test_mistakes_are_told_in_one_line(log_file, arguments, message):
    told = run("replay", *[log_file if argument == "FILE" else argument for argument in arguments])
    assert told.exit_code == 2
    assert told.stderr.startswith("error: ")
    assert message in told.stderr
    assert told.stderr.count("\n") == 1


def test_a_log_without_rates_asks_for_the_plan(tmp_path):
    (tmp_path / "run.csv").write_text("step,loss\n" + "\n".join(f"{i},{2 + 1 / i}" for i in range(1, 100)))
    told = run("replay", tmp_path / "run.csv")
    assert told.exit_code == 2
    assert "--schedule cosine:warmup=1%" in told.stderr


@pytest.mark.slow
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_million_points_take_seconds_and_little_memory(tmp_path, form):
    steps = np.arange(1, 1_000_001)
    plan = Schedule.wsd(3e-4, 1_000_000, warmup=2000, cooldown=200_000)
    losses = 2.0 + (steps / 1e6) ** -0.2 + np.random.default_rng(0).normal(0, 0.05, len(steps))
    rows = zip(steps.tolist(), losses.tolist(), np.asarray(plan.lr(steps)).tolist(), strict=True)
    with (tmp_path / "log").open("w") as file:
        if form == "csv":
            file.write("step,loss,lr\n")
            file.writelines(f"{s},{v:.5f},{r:.6g}\n" for s, v, r in rows)
        else:
            file.writelines(f'{{"step": {s}, "loss": {v:.5f}, "lr": {r:.6g}}}\n' for s, v, r in rows)
    # Asked from inside: what the kernel reports to a parent counts the parent's own memory at the fork.
    program = (
        "import sys, time; from pathlib import Path; from scale_callbacks.cli import app\n"
        "try: app(['replay', *sys.argv[1:]])\n"
        "except SystemExit as end: assert not end.code\n"
        "peak = next(l for l in Path('/proc/self/status').read_text().splitlines() if 'VmHWM' in l)\n"
        "print('used', peak.split()[1], time.process_time())"
    )
    command = [sys.executable, "-c", program, tmp_path / "log", "--out", tmp_path / "out"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    peak, seconds = map(float, told.splitlines()[-1].split()[1:])
    assert peak < 300_000  # kB
    assert seconds < 10.0  # 4 to 5 on a machine that has nothing else to do
