"""What LossForecast observes in real, tiny Lightning trainings, and where its forecasts go."""

import csv
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger

import scale_callbacks
from scale_callbacks import MemorySink
from scale_callbacks.integrations import _trainer
from scale_callbacks.integrations.lightning import LossForecast
from tests.integrations.lightning_runs import (
    RECORDED,
    AtEpochEnd,
    Net,
    OnEpoch,
    Scored,
    Silent,
    Validated,
    data,
    history,
    told,
    trainer,
)

pytestmark = RECORDED

# --- what a user sees


def test_forecast_reaches_metrics_loggers_and_sinks(tmp_path: Path) -> None:
    sink = MemorySink()
    fit = trainer(LossForecast(sinks=[sink]), logger=CSVLogger(tmp_path))
    fit.fit(Net(), data())
    keys = {f"forecast/train_loss{tail}" for tail in ("", "_low", "_high")} | {"lr_area", "lr_annealing_area"}
    assert keys <= fit.callback_metrics.keys()
    last = sink.records[-1]
    assert last.step == 60
    assert last.forecast is not None
    assert fit.callback_metrics["forecast/train_loss"].item() == pytest.approx(last.forecast.value)
    assert fit.callback_metrics["forecast/train_loss_low"] < fit.callback_metrics["forecast/train_loss_high"]
    with open(tmp_path / "lightning_logs" / "version_0" / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["forecast/train_loss"]]
    assert len(rows) == sum(record.forecast is not None for record in sink.records)
    assert [int(row["step"]) for row in rows] == [r.step - 1 for r in sink.records if r.forecast is not None]
    assert sink.summary is not None
    assert sink.summary.finished


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
def test_forecast_stands_on_the_progress_bar(bar: type[pl.Callback], capsys: Any) -> None:
    callback = LossForecast()
    fit = trainer(bar(), callback, enable_progress_bar=True)
    fit.fit(Net(), data())
    assert callback.forecast is not None
    shown = capsys.readouterr()
    assert "forecast/" in shown.out + shown.err
    assert f"{callback.forecast.value:.4g} [" in fit.progress_bar_metrics["forecast/train_loss"]


def test_progress_bar_can_be_left_alone() -> None:
    fit = trainer(LossForecast(progress_bar=False))
    fit.fit(Net(), data())
    assert "forecast/train_loss" not in fit.progress_bar_metrics


def test_checkpoint_can_be_chosen_by_the_forecast(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, monitor="forecast/train_loss", every_n_train_steps=20, save_top_k=1)
    fit = trainer(LossForecast(), best, enable_checkpointing=True)
    fit.fit(Net(), data())
    assert best.best_model_score is not None
    assert Path(best.best_model_path).exists()


def test_lazy_name_and_level() -> None:
    assert scale_callbacks.LossForecast is LossForecast
    callback = LossForecast(level=0.5)
    trainer(callback).fit(Net(), data())
    assert callback.forecast is not None
    assert callback.forecast.level == 0.5


# --- what is observed, and at which steps


def test_each_step_is_observed_in_a_short_run() -> None:
    callback, net = LossForecast(), Net()
    trainer(callback, max_steps=60).fit(net, data())
    assert [(step, span) for step, _, span, _ in told(callback)] == [(t, 1) for t in range(1, 61)]
    np.testing.assert_allclose([value for _, value, _, _ in told(callback)], net.losses, rtol=1e-6)


def test_longer_run_is_observed_by_window_means_that_end_with_the_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_trainer, "FEWEST_READS", 8)
    callback, net = LossForecast(), Net()
    trainer(callback, max_steps=60).fit(net, data())
    assert [(step, span) for step, _, span, _ in told(callback)] == [
        *((t, 7) for t in range(7, 57, 7)),
        (60, 4),
    ]
    assert told(callback)[0][1] == pytest.approx(np.mean(net.losses[:7]))
    assert told(callback)[-1][1] == pytest.approx(np.mean(net.losses[56:]))


@pytest.mark.parametrize(
    ("horizon", "log_every", "every"),
    [
        (1, 50, 1),
        (60, 50, 1),
        (1500, 50, 3),
        (10_000, 5, 10),
        (25_000, 50, 50),
        (100_000, 50, 100),
        (10**7, 50, 10**4),
        (900, 0, 1),
    ],
)
def test_reads_are_at_most_a_thousand_and_as_often_as_the_trainer_logs(
    horizon: int, log_every: int, every: int
) -> None:
    assert _trainer.window_length(horizon, log_every) == every
    assert horizon / every <= 1000


def test_silent_module_is_watched_by_the_loss_it_returns() -> None:
    callback, net = LossForecast(), Silent()
    trainer(callback).fit(net, data())
    np.testing.assert_allclose([value for _, value, _, _ in told(callback)], net.losses, rtol=1e-6)


@pytest.mark.parametrize("module", [Net, Silent])
def test_gradient_accumulation_counts_optimizer_steps_and_means_micro_batches(module: type[Net]) -> None:
    callback, net = LossForecast(), module()
    trainer(callback, max_epochs=3, accumulate_grad_batches=3).fit(net, data(batches=20))
    assert [step for step, _, _, _ in told(callback)] == list(range(1, 22))  # 7 an epoch, the last one short
    epoch = [np.mean(net.losses[i : min(i + 3, 20)]) for i in range(0, 20, 3)]
    np.testing.assert_allclose([value for _, value, _, _ in told(callback)][:7], epoch, rtol=1e-6)


class Forked(Net):
    log_as = {"name": "train_loss", "on_step": True, "on_epoch": True}  # noqa: RUF012


@pytest.mark.parametrize("monitor", ["train_loss", "train_loss_step"])
def test_metric_logged_on_step_and_epoch_is_taken_on_each_step(monitor: str) -> None:
    callback, net = LossForecast(monitor), Forked()
    trainer(callback).fit(net, data())
    np.testing.assert_allclose([value for _, value, _, _ in told(callback)], net.losses, rtol=1e-6)


@pytest.mark.parametrize(
    ("module", "monitor"), [(OnEpoch, "train_loss"), (Forked, "train_loss_epoch"), (AtEpochEnd, "train_loss")]
)
def test_epoch_means_are_placed_at_the_middle_of_their_epoch(module: type[Net], monitor: str) -> None:
    callback, net = LossForecast(monitor), module()
    trainer(callback, max_epochs=9).fit(net, data(batches=20))
    assert [(step, span) for step, _, span, _ in told(callback)] == [(20 * e, 20) for e in range(1, 10)]
    means = np.reshape(net.losses, (9, 20)).mean(axis=1)
    np.testing.assert_allclose([value for _, value, _, _ in told(callback)], means, rtol=1e-5)
    assert callback.forecast is not None


def test_accuracy_is_forecast_as_what_rises() -> None:
    callback = LossForecast("val_acc")
    fit = trainer(callback, max_epochs=15)
    fit.fit(Scored(lr=0.002), data(), data(batches=50))
    forecaster = callback._watch.monitor.forecaster  # type: ignore[union-attr]
    assert forecaster.settings["measure"] == "score"
    seen = forecaster.curve.bins().mean
    assert seen[-1] > seen[0]
    half = next(point for point in history(callback) if point.step >= 200)
    assert seen[0] < half.low < half.value < half.high <= 1.0
    assert half.low < seen[-1] < half.high
    assert callback.forecast is not None
    assert callback.forecast.value == pytest.approx(seen[-1], abs=0.01)


@pytest.mark.parametrize("sanity", [0, 2])
def test_validation_loss_is_observed_at_the_step_it_was_taken_with_the_train_loss(sanity: int) -> None:
    callback, net = LossForecast("val_loss"), Validated()
    fit = trainer(callback, max_steps=100, val_check_interval=10, num_sanity_val_steps=sanity)
    fit.fit(net, data(), data(batches=2))
    assert [(step, span) for step, _, span, _ in told(callback)] == [(10 * i, 1) for i in range(1, 11)]
    # without a sanity check the first validation tells that the name is its own
    extras = [extra["train_loss"] for *_, extra in told(callback)[0 if sanity else 1 :]]
    means = np.reshape(net.losses, (10, 10)).mean(axis=1)[-len(extras) :]
    np.testing.assert_allclose(extras, means, rtol=1e-5)
    assert told(callback)[-1][1] == pytest.approx(fit.callback_metrics["val_loss"].item())
    assert callback.forecast is not None


def test_train_loss_is_watched_when_the_module_also_validates() -> None:
    callback, net = LossForecast(), Validated()
    trainer(callback, val_check_interval=10).fit(net, data(), data(batches=2))
    np.testing.assert_allclose([value for _, value, _, _ in told(callback)], net.losses, rtol=1e-6)


@pytest.mark.parametrize("module", [Net, Silent])
def test_step_that_logs_or_returns_nothing_is_passed_over(module: type[Net]) -> None:
    class Skipping(module):  # type: ignore[misc, valid-type]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx % 5 == 3 else super().training_step(batch, batch_idx)

    callback, net = LossForecast(), Skipping()
    trainer(callback).fit(net, data())
    np.testing.assert_allclose([value for _, value, _, _ in told(callback)], net.losses, rtol=1e-6)
    assert len(net.losses) == 48
