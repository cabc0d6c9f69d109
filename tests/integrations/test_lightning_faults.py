"""What goes wrong in a Lightning training, and arguments that cannot be."""

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision

from scale_callbacks import LossForecaster, MemorySink, Schedule
from scale_callbacks.integrations import _source
from scale_callbacks.integrations.lightning import LossForecast
from tests.integrations.lightning_runs import RECORDED, Net, Silent, Stop, data, told, trainer

pytestmark = RECORDED


def test_losses_that_are_not_finite_are_left_out_and_counted() -> None:
    class Bad(Silent):
        def loss(self, batch: Any) -> torch.Tensor:
            bad = len(self.losses) in (3, 4, 30)
            return super().loss(batch) + (
                math.nan if bad and len(self.losses) == 3 else math.inf if bad else 0.0
            )

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            for p in self.parameters():
                p.grad = torch.nan_to_num(p.grad, 0.0, 0.0, 0.0)

    callback = LossForecast()
    trainer(callback).fit(Bad(), data())
    assert sum(callback.warnings.values()) == 3
    assert callback.forecast is not None
    assert math.isfinite(callback.forecast.value)


def test_steps_that_mixed_precision_skips_are_passed_over() -> None:
    class Overflowing(Net):
        def loss(self, batch: Any) -> torch.Tensor:
            overflow = torch.inf if len(self.losses) in (3, 4, 30) else 1.0
            return super().loss(batch) * overflow

    scaler = torch.amp.GradScaler("cpu")
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    callback, net = LossForecast(), Overflowing()
    trainer(callback, plugins=[plugin]).fit(net, data())
    assert scaler.get_scale() < 2.0**16  # it did skip steps: each halves its scale
    assert callback.warnings == {"train_loss was not finite and left out": 3}
    assert callback.forecast is not None
    assert callback.forecast.low < callback.forecast.value < callback.forecast.high


def test_training_of_one_step() -> None:
    callback = LossForecast()
    trainer(callback, max_steps=1).fit(Net(), data())
    assert callback.forecast is None


def test_training_that_ends_early_keeps_its_last_forecast() -> None:
    class Enough(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            trainer.should_stop = trainer.global_step >= 25

    sink = MemorySink()
    trainer(LossForecast(sinks=[sink]), Enough()).fit(Net(), data())
    assert sink.summary is not None
    assert sink.summary.forecast is not None
    assert not sink.summary.finished


@pytest.mark.parametrize("error", [RuntimeError("fault"), KeyboardInterrupt()])
def test_sinks_are_closed_when_the_training_fails(error: BaseException) -> None:
    sink = MemorySink()
    with pytest.raises((RuntimeError, SystemExit)):
        trainer(LossForecast(sinks=[sink]), Stop(30, error)).fit(Net(), data())
    assert sink.summary is not None
    assert sink.summary.last_step == 30


def test_fault_in_the_forecaster_does_not_reach_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any) -> None:
        raise ZeroDivisionError("law")

    monkeypatch.setattr(LossForecaster, "forecast", broken)
    callback = LossForecast()
    fit = trainer(callback)
    fit.fit(Net(), data())
    assert fit.global_step == 60
    assert callback.warnings["forecast failed"] > 1


@pytest.mark.parametrize(
    "where",
    [
        "_source.Tap._of_log",
        "_source.Tap.guess_at_batch",
        "_collector.Collector.closed",
        "_watch.Watch._observe",
        "_outlet.Outlet.publish",
        "_watch.Watch._due",
    ],
)
def test_fault_of_our_own_is_said_once_and_switches_us_off(
    where: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(f"scale_callbacks.integrations.{where}", broken)
    fit = trainer(LossForecast())
    fit.fit(Net(), data())
    assert fit.global_step == 60
    assert sum("ours" in message for message in caplog.messages) == 1


def test_logger_that_fails_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    log = logger.log_metrics

    def broken(metrics: dict[str, float], step: int | None = None) -> None:
        if "lr_area" in metrics:
            raise OSError("disk full")
        log(metrics, step)

    monkeypatch.setattr(logger, "log_metrics", broken)
    callback = LossForecast()
    fit = trainer(callback, logger=logger)
    fit.fit(Net(), data())
    assert callback.warnings["CSVLogger failed to log"] > 1
    assert "forecast/train_loss" in fit.callback_metrics


@pytest.mark.parametrize("module", [Net, Silent])
def test_lightning_that_hides_its_results_is_read_by_its_public_metrics(
    module: type[Net], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_source, "train_metrics", lambda trainer: None)
    callback, net = LossForecast(), module()
    trainer(callback).fit(net, data())
    np.testing.assert_allclose([value for _, value, _, _ in told(callback)], net.losses, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"monitor": ""}, ValueError, "monitor=''"),
        ({"monitor": 3}, ValueError, "monitor=3"),
        ({"horizon": 0}, ValueError, "horizon=0"),
        ({"horizon": 2.5}, ValueError, "horizon=2.5"),
        ({"schedule": "cosine"}, TypeError, "schedule='cosine'"),
        (
            {"schedule": Schedule.constant(1.0, 50), "horizon": 60},
            ValueError,
            "horizon=60 is not the schedule's 50",
        ),
        ({"level": 1.0}, ValueError, "level=1.0"),
        ({"sinks": [print]}, TypeError, "has no methods write"),
    ],
)
def test_bad_arguments_are_refused_at_once(
    arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        LossForecast(**arguments)
