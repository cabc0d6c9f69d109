"""The examples of TRL, Trainer, Accelerate and plain loops run as a newcomer runs them, only shorter."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def said(*command, timeout=600):
    """What an example prints; its errors fail the test."""
    run = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


# --- a loop of one's own ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_plain_loop_obeys_the_stop():
    text = said("examples/plain_loop.py", "--steps", 500, "--batch", 128)
    stopped = int(re.search(r"^process 0 stops at step (\d+) of 500$", text, re.M)[1])
    assert 50 <= stopped < 500
    assert f"stop at step {stopped}: saturated: in the last" in text


@pytest.mark.slow
def test_processes_of_the_plain_loop_stop_at_one_step():
    text = said(
        "-m", "torch.distributed.run", "--nproc-per-node", 2, "examples/plain_loop.py", "--steps", 500
    )
    stops = dict(re.findall(r"process (\d) stops at step (\d+) of 500", text))
    assert set(stops) == {"0", "1"}
    assert stops["0"] == stops["1"]
    assert len(re.findall("^stop at step", text, re.M)) == 1  # the sentence is printed once


@pytest.mark.slow
def test_processes_of_the_accelerate_loop_stop_at_one_step():
    text = said(
        "-m", "torch.distributed.run", "--nproc-per-node", 2, "examples/accelerate_loop.py", "--steps", 400
    )
    stops = dict(re.findall(r"process (\d) stops at step (\d+) of 400", text))
    assert set(stops) == {"0", "1"}
    assert stops["0"] == stops["1"]


@pytest.mark.slow
def test_accelerate_loop_gives_up_when_the_wanted_loss_is_out_of_reach_and_only_then():
    assert re.search(
        r"^process 0 stops at step \d+ of 300$", said("examples/accelerate_loop.py", "--steps", 300), re.M
    )
    assert "stops" not in said("examples/accelerate_loop.py", "--steps", 300, "--wanted", 6)


# --- Trainer ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_finetuning_says_the_forecasts_and_the_final_loss(tmp_path):
    from mlflow import MlflowClient

    text = said("examples/finetune_transformers.py", "--steps", 120, "--out", tmp_path)
    final = float(re.search(r"It became (\d\.\d+)", text)[1])
    rows = re.findall(
        r"(\d0)% │ +(\d+) │ +(\d\.\d+) │ (\d\.\d+) to (\d\.\d+) │ +([+-]\d+\.\d)% │ +(yes|no)", text
    )
    assert [int(row[0]) for row in rows][-4:] == [60, 70, 80, 90]
    for percent, step, value, low, high, error, held in rows:
        assert int(step) <= int(percent) * 120 / 100
        assert float(error) == pytest.approx(100 * (float(value) / final - 1), abs=0.1)
        assert (float(low) <= final <= float(high)) == (held == "yes")
    assert final < 3.5  # 5.5 is a guess
    assert (tmp_path / "forecast.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("finetune").experiment_id])
    assert run.info.status == "FINISHED"
    assert {"loss", "forecast/loss", "forecast/loss_low", "forecast/loss_high"} <= set(run.data.metrics)


# --- GRPO -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grpo():
    """The example as a module."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import grpo_saturation
    finally:
        sys.path.remove(str(ROOT / "examples"))
    return grpo_saturation


@pytest.mark.slow
def test_rewards_check_the_answer(grpo):
    asked, answers = ["314159="] * 4, ["685840", "685841", "68584", "000000"]
    shares = [1.0, 5 / 6, 5 / 6, 1 / 6]
    assert grpo.smooth(0)(asked, answers) == pytest.approx(shares)
    assert grpo.s_shaped(0)(asked, answers) == pytest.approx([share**6 for share in shares])
    state = SimpleNamespace(global_step=10, max_steps=400)
    assert grpo.zero_one(0)(asked, answers, trainer_state=state) == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.slow
def test_checker_of_the_zero_one_reward_has_outages_in_the_second_half_only(grpo, bench):
    check = grpo.zero_one(0)
    passed = [
        np.mean(
            check(
                ["314159="] * 100,
                ["685840"] * 100,
                trainer_state=SimpleNamespace(global_step=step, max_steps=400),
            )
        )
        for step in range(400)
    ]
    down = np.flatnonzero(np.array(passed) < 1.0)
    assert 12 <= len(down) <= 39
    assert down.min() >= 200
    assert down.max() < 400 * 0.89
    stream = {"reward": (np.arange(400) % 2).astype(float)}
    bridged = bench.without_outages("zero-one-0", stream)["reward"] != stream["reward"]
    assert set(np.flatnonzero(bridged)) <= set(down)
    assert bridged.sum() > 0.3 * len(down)


@pytest.mark.slow
def test_grpo_example_stops_and_goes_on_to_the_end(tmp_path):
    text = said("examples/grpo_saturation.py", "--steps", 60, "--seed", 12, "--to-the-end", "--out", tmp_path)
    stop = int(re.search(r"stopped at step (\d+), reward saturated: in the last", text)[1])
    assert re.search(rf"^Saved: {60 - stop} of 60 steps, ", text, re.M)
    assert re.search(r"^step +60: reward 0\.\d+$", text, re.M)
    assert re.search(r"at the stop, \d+% of the gain was reached", text)
    assert (tmp_path / f"checkpoint-{stop}").is_dir()


# --- the table of fifteen runs ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench():
    """The benchmark as a module."""
    sys.path.insert(0, str(ROOT / "tests" / "bench"))
    try:
        import grpo_table
    finally:
        sys.path.remove(str(ROOT / "tests" / "bench"))
    return grpo_table


def test_streams_are_those_of_fifteen_whole_runs(bench):
    streams = bench.read_bundle()
    assert set(streams) == {f"{reward}-{seed}" for reward in bench.REWARDS for seed in range(5)}
    for stream in streams.values():
        assert len(stream["reward"]) == 400
        assert 0.0 <= stream["reward"].min() < stream["reward"].max() <= 1.0


def test_no_recorded_run_is_stopped_while_a_tenth_of_its_gain_is_still_to_come(bench):
    for name in ("smooth-1", "s-shaped-2", "zero-one-4"):  # the narrowest of each reward
        stream = bench.read_bundle()[name]
        bridged = bench.row(name, bench.without_outages(name, stream), *bench.replay(stream))
        assert bridged.share > 0.9
        assert bridged.saved > 0.3
        assert bridged.reason.startswith("saturated")


def test_rest_of_a_recorded_run_brings_no_more_a_unit_of_learning_signal_than_what_came_before(bench):
    for name, stream in bench.read_bundle().items():  # what the rule takes for granted
        start, end, curve = bench.measure(bench.without_outages(name, stream)["reward"])
        signal = np.cumsum(stream["learning_rate"] * stream["reward_std"] ** 2)
        for step in range(160, 320, 20):
            so_far = (curve[step] - start) / signal[step]
            assert (end - curve[step]) / (signal[-1] - signal[step]) < so_far, (name, step)


def test_row_of_a_stop_is_judged_by_the_whole_run(bench):
    stream = {"reward": 1 - np.exp(-np.arange(400) / 50)}
    early, late, none = (bench.row("run", stream, stop, "") for stop in (100, 200, 400))
    assert early.share == pytest.approx(0.85, abs=0.03)
    assert not early.met
    assert late.met
    assert late.saved == 0.5
    assert not none.met
    assert 140 <= late.reached <= 165
