"""The examples run as a newcomer runs them, only shorter."""

import importlib
import itertools
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """What a short run of the demo leaves, and what it says."""
    out = tmp_path_factory.mktemp("demo")
    run = subprocess.run(
        [sys.executable, "examples/pretrain_gpt.py", "--steps", "60", "--threads", "1", "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return out, run.stdout, run.stderr


@pytest.mark.slow
def test_demo_says_the_forecasts_and_the_final_loss(demo):
    _, said, _ = demo
    final = float(re.search(r"It became (\d\.\d+)", said)[1])
    rows = re.findall(
        r"(\d0)% │ +(\d+) │ +(\d\.\d+) │ (\d\.\d+) to (\d\.\d+) │ +([+-]\d+\.\d)% │ +(yes|no)", said
    )
    assert [int(row[0]) for row in rows][-5:] == [50, 60, 70, 80, 90]
    for percent, step, value, low, high, error, held in rows:
        assert int(step) <= int(percent) * 60 / 100
        assert float(error) == pytest.approx(100 * (float(value) / final - 1), abs=0.1)
        assert (float(low) <= final <= float(high)) == (held == "yes")


@pytest.mark.slow
def test_demo_learns(demo):
    _, said, _ = demo
    assert float(re.search(r"It became (\d\.\d+)", said)[1]) < 3.5  # 5.5 is a guess


@pytest.mark.slow
def test_demo_leaves_a_picture_and_an_mlflow_run_at_the_page_it_names(demo):
    from mlflow import MlflowClient

    out, said, _ = demo
    assert (out / "forecast.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    experiment, run_id = re.search(r"experiments/(\d+)/runs/(\w+)/model-metrics", said).groups()
    client = MlflowClient(re.search(r"--backend-store-uri (\S+)", said)[1])
    run = client.get_run(run_id)
    assert run.info.experiment_id == experiment
    assert run.info.status == "FINISHED"
    assert {"train_loss", "val_loss", "forecast/train_loss", "forecast/train_loss_low"} <= set(
        run.data.metrics
    )
    assert "forecast.png" in {file.path for file in client.list_artifacts(run_id)}


@pytest.mark.slow
def test_demo_keeps_other_packages_quiet(demo):
    _, said, complained = demo
    assert complained == ""
    assert "INFO" not in said


def test_text_is_split_by_file_the_same_way_each_time(monkeypatch):
    monkeypatch.setenv("MLFLOW_LOGGING_LEVEL", "WARNING")  # the demo sets it, for good
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import pretrain_gpt

    train, held_out = pretrain_gpt.library_text()
    again = pretrain_gpt.library_text()
    assert 0.03 < len(held_out) / len(train) < 0.3
    assert train.equal(again[0])
    assert held_out.equal(again[1])


def test_schedule_warms_up_stays_and_cools_down_to_almost_nothing(monkeypatch):
    monkeypatch.setenv("MLFLOW_LOGGING_LEVEL", "WARNING")  # the demo sets it, for good
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from pretrain_gpt import wsd

    rates = [wsd(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 40)
    assert rates[39:800] == pytest.approx([1.0] * 761)
    assert rates[999] == pytest.approx(1 / 200)
    assert wsd(1000, 1000) == 0.0


@pytest.mark.slow
def test_small_curves_are_written_as_the_backtest_reads_them(tmp_path):
    from scale_callbacks.runs import read_runs

    subprocess.run(
        [
            sys.executable,
            "examples/make_small_curves.py",
            str(tmp_path),
            "--minutes",
            "0.001",
            "--first",
            "2",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=600,
    )
    (run,) = read_runs([tmp_path])
    assert run.final < 4.0
    assert len(run.steps) == run.schedule.horizon == 480


def test_runs_of_several_epochs_read_each_window_once_an_epoch_and_log_means(monkeypatch):
    monkeypatch.setenv("MLFLOW_LOGGING_LEVEL", "WARNING")  # the demo sets it, for good
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    maker = importlib.import_module("make_epoch_curves")
    sizes = {"vocabulary": 256, "width": 32, "depth": 1, "context": 16, "batch": 4}
    lengths = {"total_steps": 40, "epochs": 2.0, "warmup_steps": 4, "log_every": 10, "logs_means": True}
    recipe = replace(maker.draw(1), **sizes, **lengths)
    text = torch.randint(256, (4000,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    epoch = itertools.islice(maker.batches(recipe, text), 19)
    windows = [tuple(row) for batch in epoch for row in batch.tolist()]
    assert len(set(windows)) == len(windows) == 19 * 4  # 1,281 bytes of the text
    rows = list(maker.train(recipe, text, text[:400]))
    told = maker.small.logged([row[:3] for row in rows], recipe.log_every, means=recipe.logs_means)
    assert [step for step, _, _ in told] == [10, 20, 30, 40]
    assert told[1][2] == pytest.approx(sum(row[2] for row in rows[10:20]) / 10)
    assert rows[-1][3] is not None


@pytest.mark.parametrize("model", ["resnet", "vit", "mlp"])
def test_picture_curves_are_written_as_the_backtest_reads_them(model, tmp_path, monkeypatch):
    from scale_callbacks.runs import read_runs

    monkeypatch.setenv("MLFLOW_LOGGING_LEVEL", "WARNING")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    maker = importlib.import_module("make_image_curves")
    dice = np.random.default_rng(0)
    parts = {}
    for part, count in (("train", 120), ("test", 20)):
        parts[f"y_{part}"] = dice.integers(0, 10, count, dtype=np.uint8)
        parts[f"x_{part}"] = dice.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "pictures.npz", **parts)
    sizes = {"model": model, "width": 16, "depth": 1, "pictures": 100, "batch": 8}
    lengths = {"total_steps": 40, "epochs": 3.33, "log_every": 4, "optimizer": "adamw", "warmup_steps": 0}
    recipe = replace(maker.draw(1), **sizes, **lengths, augment="mix", schedule="thirds", peak_lr=0.01)
    monkeypatch.setattr(maker, "draw", lambda seed: recipe)
    maker.main(tmp_path / "pictures.npz", tmp_path / "runs", minutes=1e-4)
    (run,) = read_runs([tmp_path / "runs"])
    assert not run.language_model
    assert run.steps_per_epoch == pytest.approx(12, rel=0.01)
    assert run.steps.tolist() == list(range(4, 41, 4))
    assert run.schedule.lr([8, 20, 40]).tolist() == pytest.approx([1e-2, 1e-3, 1e-4], rel=1e-3)
    assert run.losses[-1] < run.losses[0]


def test_an_epoch_of_pictures_shows_each_once_and_mixes_labels(monkeypatch):
    monkeypatch.setenv("MLFLOW_LOGGING_LEVEL", "WARNING")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    maker = importlib.import_module("make_image_curves")
    pictures = torch.arange(96.0).reshape(-1, 1, 1, 1).expand(-1, 1, 28, 28) / 96
    labels = torch.arange(96) % 10
    recipe = replace(maker.draw(1), pictures=96, batch=32, augment="none")
    epoch = list(itertools.islice(maker.batches(recipe, pictures, labels), 3))
    assert sorted(float(it[0, 0, 0]) for batch, _ in epoch for it in batch) == pictures[:, 0, 0, 0].tolist()
    _, truth = next(maker.batches(replace(recipe, augment="mix"), pictures, labels))
    torch.testing.assert_close(truth.sum(dim=1), torch.ones(32))
    assert (truth.max(dim=1).values < 1).any()
    cut = maker.augmented(torch.ones(2, 1, 28, 28), "cut", torch.Generator().manual_seed(0))
    assert 100 <= int((cut[0] == 0).sum()) <= 100 + 28 * 28 - 22 * 22


def test_classifying_digits_holds_its_end_from_early_on(tmp_path):
    command = [sys.executable, "examples/classify_digits.py", "--epochs", "20", "--out", str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    text = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
    assert "1,797 digits, read 20 times: 580 steps." in text
    final = float(re.search(r"It became (\d\.\d+)", text)[1])
    rows = re.findall(r"(\d0)% │ +\d+ │ +(\d\.\d+) │ (\d\.\d+) to (\d\.\d+) │ +\S+% │ +(yes|no)", text)
    assert [row[0] for row in rows] == [str(percent) for percent in range(10, 100, 10)]
    assert all((float(low) <= final <= float(high)) == (held == "yes") for *_, low, high, held in rows)
    assert sum(row[-1] == "yes" for row in rows) >= 7
    assert final < 1.5  # 2.3 is a guess
    assert (tmp_path / "forecast.png").read_bytes().startswith(b"\x89PNG")


def tuned(*options):
    """What a short search says."""
    command = [sys.executable, "examples/tune_with_optuna.py", "--trials", "6", "--steps", "120", *options]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_a_search_with_optuna_finds_the_best_trial_in_fewer_steps():
    quick, whole = tuned(), tuned("--pruner", "none")
    assert quick.returncode == whole.returncode == 0, quick.stderr + whole.stderr
    assert whole.stdout.count("ended at step 120 with a loss of") == 6
    pruned = quick.stdout.count("pruned at step")
    assert pruned + quick.stdout.count("ended at step 120") == 6
    assert pruned >= 1
    best = [re.search(r"Best: trial (\d+) with a loss of (\d\.\d+)", said.stdout) for said in (quick, whole)]
    assert best[0].groups() == best[1].groups()
    share = [int(re.search(r"run, (\d+)% of those", said.stdout)[1]) for said in (quick, whole)]
    assert share[0] < share[1] == 100


def test_a_pruner_that_there_is_not_is_refused_with_those_there_are():
    told = tuned("--pruner", "hyperband")
    assert told.returncode == 2
    assert "'hyperband' is none of forecast, median, none" in told.stderr
