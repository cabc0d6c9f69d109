"""LossForecast in real, tiny Lightning trainings."""

import copy
import csv
import logging
import math
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import (
    GradientAccumulationScheduler,
    ModelCheckpoint,
    RichProgressBar,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision

import scale_callbacks
from scale_callbacks import LossForecaster, MemorySink, Schedule
from scale_callbacks.integrations import _source, _trainer
from scale_callbacks.integrations.lightning import LossForecast
from tests.integrations.lightning_runs import QUIET, Net, Recording, Silent, Validated, data, trainer

pytestmark = QUIET


@pytest.fixture(autouse=True)
def recording(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scale_callbacks.integrations.lightning.Monitor", Recording)
    monkeypatch.setattr("scale_callbacks.due.LINEAR", 1 / 8)  # some 15 forecasts a run do
    monkeypatch.setattr("scale_callbacks.due.RATIO", 1.5)


def told(callback: LossForecast) -> list[tuple[int, float, int, Any]]:
    assert callback._watch is not None
    monitor = callback._watch.monitor
    assert isinstance(monitor, Recording)
    return monitor.__dict__.get("told", [])


def history(callback: LossForecast) -> list[Any]:
    assert callback._watch is not None
    return callback._watch.monitor.history


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


class OnEpoch(Net):
    log_as = {"name": "train_loss", "on_step": False, "on_epoch": True}  # noqa: RUF012


class AtEpochEnd(Silent):
    def on_train_epoch_end(self) -> None:
        self.log("train_loss", torch.tensor(self.losses[-20:]).mean())


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


class Manual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = self.optimizers()
        loss = super().training_step(batch, batch_idx)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return {"loss": loss}


class ManualSilent(Manual):
    log_as = None


@pytest.mark.parametrize("module", [Manual, ManualSilent])
def test_manual_optimisation(module: type[Net]) -> None:
    callback, net = LossForecast(), module()
    trainer(callback, max_epochs=3).fit(net, data())
    np.testing.assert_allclose([value for _, value, _, _ in told(callback)], net.losses, rtol=1e-6)
    assert callback.forecast is not None
    assert callback.forecast.horizon == 60


class Two(Net):
    """Two optimizers; the second holds more parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.other = torch.nn.Linear(4, 30)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        small, large = self.optimizers()
        for optimizer in (small, large):
            loss = super().training_step(batch, batch_idx) + self.other(batch[0]).square().mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.lr_schedulers().step()

    def configure_optimizers(self) -> Any:
        small = torch.optim.SGD(self.net.parameters(), lr=0.05)
        large = torch.optim.SGD(self.other.parameters(), lr=0.01)
        return [small, large], [torch.optim.lr_scheduler.StepLR(large, 10, 0.5)]


class Alternating(Two):
    """A critic that steps on every batch, and a generator that does on each fifth."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        small, large = self.optimizers()
        for optimizer in (small, large) if batch_idx % 5 == 0 else (large,):
            loss = Net.training_step(self, batch, batch_idx) + self.other(batch[0]).square().mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.lr_schedulers().step()


def test_manual_optimisation_that_steps_now_and_then_is_timed() -> None:
    callback = LossForecast()
    fit = trainer(callback, max_epochs=4)
    fit.fit(Alternating(), data(batches=50))
    assert fit.global_step == 240
    forecasts = callback._watch.monitor.history  # type: ignore[union-attr]
    assert forecasts[-1].step == 240
    assert callback.forecast is not None
    assert callback.forecast.horizon == 240
    schedule = callback._watch.schedule  # type: ignore[union-attr]
    # the scheduler halves every 10 batches, each of 1.2 steps; measured after 16 batches and an epoch
    assert schedule.lr([240]).tolist() == pytest.approx([0.01 / 2**19], rel=0.01)
    assert sum("the plan ends at step" in warning for warning in callback.warnings) <= 2


def test_several_optimizers_count_the_steps_of_all_and_follow_the_largest() -> None:
    callback, net = LossForecast(), Two()
    fit = trainer(callback, max_epochs=3)
    fit.fit(net, data())
    assert fit.global_step == 120
    assert [step for step, *_ in told(callback)][-1] == 120
    assert callback.forecast is not None
    assert callback.forecast.horizon == 120
    schedule = callback._watch.monitor.forecaster.schedule  # type: ignore[union-attr]
    assert schedule.lr([1, 20, 21, 41]).tolist() == pytest.approx([0.01, 0.01, 0.005, 0.0025])  # type: ignore[union-attr]


# --- the plan


@pytest.mark.parametrize(
    ("settings", "horizon"),
    [
        ({"max_steps": 50}, 50),
        ({"max_epochs": 4}, 80),
        ({"max_steps": 50, "max_epochs": 4}, 50),
        ({"max_steps": 500, "max_epochs": 2}, 40),
        ({"max_epochs": 4, "limit_train_batches": 5}, 20),
        ({"max_epochs": 4, "limit_train_batches": 0.5}, 40),
        ({"max_epochs": 4, "accumulate_grad_batches": 3}, 28),
        ({"max_epochs": 2, "max_time": "00:01:00:00"}, 40),
    ],
)
def test_horizon_is_what_ends_the_run_first(settings: dict[str, Any], horizon: int) -> None:
    callback = LossForecast()
    fit = trainer(callback, **settings)
    fit.fit(Net(), data())
    assert fit.global_step == horizon
    assert history(callback)[-1].step == horizon


def test_accumulation_that_changes_by_epoch_is_counted() -> None:
    callback = LossForecast()
    fit = trainer(callback, GradientAccumulationScheduler({0: 1, 1: 4, 3: 10}), max_epochs=4)
    net = Silent()
    fit.fit(net, data(batches=20))
    assert fit.global_step == 20 + 5 + 5 + 2
    assert history(callback)[-1].step == fit.global_step
    assert told(callback)[20][1] == pytest.approx(np.mean(net.losses[20:24]))


class Endless(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(data(batches=200).dataset)


def test_length_that_cannot_be_known_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"give LossForecast\(horizon="):
        trainer(LossForecast(), max_steps=-1, max_epochs=-1).fit(Net(), data())
    loader: Any = torch.utils.data.DataLoader(Endless(), batch_size=4)
    with pytest.raises(ValueError, match=r"give LossForecast\(horizon="):
        trainer(LossForecast(), max_epochs=3).fit(Net(), loader)


def test_given_horizon_and_endless_data() -> None:
    callback = LossForecast(horizon=40)
    fit = trainer(callback, max_steps=-1, max_epochs=-1, max_time={"seconds": 3600})
    fit.fit_loop.epoch_loop.max_steps = 40  # stands for the hour
    fit.fit(Net(), torch.utils.data.DataLoader(Endless(), batch_size=4))
    assert history(callback)[-1].step == 40


def test_given_schedule_is_the_plan() -> None:
    schedule = Schedule.cosine(0.1, 60, warmup=5)
    callback = LossForecast(schedule=schedule)
    trainer(callback).fit(Net(), data())
    assert callback._watch.monitor.forecaster.schedule is schedule  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("config", "accumulate"),
    [
        ({"interval": "step"}, 1),
        ({"interval": "step"}, 3),
        ({"interval": "epoch"}, 1),
        ({"interval": "epoch", "frequency": 2}, 3),
        ({"interval": "step", "frequency": 5}, 1),
        ({"interval": "step", "frequency": 6}, 3),
        ({"interval": "step", "frequency": 50}, 1),
    ],
)
def test_plan_is_what_lightning_applies(config: dict[str, Any], accumulate: int) -> None:
    class Scheduled(Net):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
            return [optimizer], [{"scheduler": scheduler, **config}]

    callback, net = LossForecast(), Scheduled()
    batches = 30
    trainer(callback, max_epochs=4, accumulate_grad_batches=accumulate).fit(net, data(batches=batches))
    schedule = callback._watch.monitor.forecaster.schedule  # type: ignore[union-attr]
    planned = schedule.lr(np.arange(1, len(net.rates) + 1))  # type: ignore[union-attr]
    np.testing.assert_allclose(planned, net.rates, rtol=1e-9)


def test_plateau_scheduler_is_held_with_one_warning() -> None:
    class Plateau(Net):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "train_loss"}}

    with pytest.warns(UserWarning, match="cannot be known ahead") as caught:
        trainer(LossForecast()).fit(Plateau(), data())
    assert sum("cannot be known" in str(warning.message) for warning in caught) == 1


# --- names that are not logged


@pytest.mark.parametrize(
    ("settings", "batches", "seen"),
    [({"max_steps": 200}, 100, 64), ({"max_epochs": 3}, 20, 20), ({"max_epochs": 1}, 20, 20)],
)
def test_unknown_name_is_refused_when_the_names_have_settled(
    settings: dict[str, Any], batches: int, seen: int
) -> None:
    net = Net()
    with pytest.raises(ValueError, match=r"monitor='loss' is not logged.* it logs: train_loss\."):
        trainer(LossForecast("loss"), **settings).fit(net, data(batches=batches))
    assert len(net.losses) == seen


def test_names_that_the_sanity_check_tells_are_listed_too() -> None:
    with pytest.raises(ValueError, match=r"it logs: train_loss, val_loss"):
        trainer(LossForecast("loss")).fit(Validated(), data(), data(batches=2))


@pytest.mark.parametrize("first", [2, 9, 30])
def test_name_logged_for_the_first_time_on_a_later_batch_is_waited_for(first: int) -> None:
    class Later(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("lr", self.lr)
            return super().training_step(batch, batch_idx)

        def log(self, name: str, *args: Any, **kwargs: Any) -> None:
            if name != "train_loss" or self.global_step + 1 >= first:
                super().log(name, *args, **kwargs)

    callback, net = LossForecast(), Later()
    trainer(callback, max_steps=120).fit(net, data(batches=120))
    found = next(2**i for i in range(9) if 2**i >= first) + 1
    assert [step for step, *_ in told(callback)] == list(range(found, 121))
    np.testing.assert_allclose([value for _, value, *_ in told(callback)], net.losses[found - 1 :], rtol=1e-6)
    assert callback.warnings == {}
    assert callback.forecast is not None


def test_name_logged_every_so_often_is_observed_where_it_is_logged() -> None:
    class Seldom(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("lr", self.lr)
            self.log_as = {"name": "train_loss"} if self.global_step % 10 == 9 else None
            return super().training_step(batch, batch_idx)

    callback, net = LossForecast(), Seldom()
    trainer(callback, max_steps=200).fit(net, data(batches=200))
    assert [step for step, *_ in told(callback)] == list(range(20, 201, 10))
    assert callback.forecast is not None


def test_name_that_might_have_come_later_is_warned_of_and_training_goes_on(caplog: Any) -> None:
    callback, net = LossForecast("loss"), Validated()
    with caplog.at_level(logging.WARNING, logger="scale_callbacks"):
        fit = trainer(callback, num_sanity_val_steps=0, max_epochs=2)
        fit.fit(net, data(batches=100), data(batches=2))
    assert fit.global_step == 200
    assert sum("it logs: train_loss, val_loss" in message for message in caplog.messages) == 1
    assert told(callback) == []


def test_silent_module_with_unknown_validation_names_loses_no_loss() -> None:
    class Both(Silent):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.loss(batch))

    callback, net = LossForecast(), Both()
    trainer(callback, num_sanity_val_steps=0).fit(net, data(), data(batches=2))
    np.testing.assert_allclose([value for _, value, _, _ in told(callback)], net.losses, rtol=1e-6)


# --- the life of a callback


def test_fast_dev_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sink = MemorySink()
    fit = trainer(LossForecast(sinks=[sink], mlflow=True), fast_dev_run=True)
    fit.fit(Validated(), data(), data(batches=2))
    assert fit.global_step == 1
    assert sink.records == []
    assert list(tmp_path.iterdir()) == []


def test_validate_before_fit_is_not_part_of_the_run() -> None:
    callback, net = LossForecast("val_loss"), Validated()
    fit = trainer(callback, max_steps=100, val_check_interval=10)
    fit.validate(net, data(batches=2), verbose=False)
    fit.fit(net, data(), data(batches=2))
    fit.validate(net, data(batches=2), verbose=False)
    assert [step for step, *_ in told(callback)] == [10 * i for i in range(1, 11)]


def test_second_fit_with_a_new_trainer_is_a_new_run() -> None:
    callback = LossForecast()
    trainer(callback).fit(Net(), data())
    first = history(callback)
    trainer(callback).fit(Net(), data())
    assert history(callback) == first
    assert len(told(callback)) == 60


def test_second_fit_of_one_trainer_goes_on_with_the_run() -> None:
    callback, net = LossForecast(horizon=80), Net()
    fit = trainer(callback, max_epochs=2)
    fit.fit(net, data())
    fit.fit_loop.max_epochs = 4
    fit.fit(net, data())
    whole = LossForecast(horizon=80)
    trainer(whole, max_epochs=4).fit(Net(), data())
    assert history(callback) == history(whole)


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_copies_start_afresh_before_and_after_a_fit(twin_of: Any) -> None:
    callback = LossForecast(sinks=[MemorySink()])
    before = twin_of(callback)
    trainer(callback).fit(Net(), data())
    after = twin_of(callback)
    for twin in (before, after):
        trainer(twin).fit(Net(), data())
        assert history(twin) == history(callback)
        assert len(told(twin)) == 60


class Stop(pl.Callback):
    """Ends the training after a step the way a fault does."""

    def __init__(self, step: int, error: BaseException | None = None) -> None:
        self.step, self.error = step, error or RuntimeError("fault")

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise self.error


def same_whatever_the_order(module: type[Net]) -> Net:
    """Losses that depend on the step alone: on resume, Lightning starts the data of an epoch again."""

    class Same(module):  # type: ignore[misc, valid-type]
        def loss(self, batch: Any) -> torch.Tensor:
            x = torch.ones(1, 4)
            return ((self.net(x) - 1) ** 2).mean() + 1.0 + 0.1 * math.sin(17 * self.trainer.global_step)

    return Same(lr=0.001)


@pytest.mark.parametrize(
    ("module", "monitor", "stop"),
    [
        (Net, "train_loss", 57),
        (Net, "train_loss", 73),
        (Silent, "train_loss", 57),
        (Validated, "val_loss", 57),
    ],
)
def test_resumed_run_forecasts_bit_for_bit_the_same(
    module: type[Net], monitor: str, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_trainer, "FEWEST_READS", 40)  # windows of 5 steps: checkpoints fall inside them

    def fit(*callbacks: pl.Callback, ckpt: str | None = None) -> None:
        saver = ModelCheckpoint(tmp_path, every_n_train_steps=9, save_top_k=-1, filename="{step}")
        it = trainer(*callbacks, saver, enable_checkpointing=True, max_steps=200, val_check_interval=5)
        val = (data(batches=2),) if module is Validated else ()
        it.fit(same_whatever_the_order(module), data(), *val, ckpt_path=ckpt)

    whole = LossForecast(monitor)
    fit(whole)
    with pytest.raises(RuntimeError, match="fault"):
        fit(LossForecast(monitor), Stop(stop))
    resumed = LossForecast(monitor)
    fit(resumed, ckpt=str(tmp_path / f"step={stop - stop % 9}.ckpt"))
    assert history(resumed) == history(whole)
    assert len(history(whole)) > 5
    assert resumed.state_dict() == whole.state_dict()


@pytest.mark.parametrize("module", [OnEpoch, AtEpochEnd])
def test_run_resumed_at_an_epochs_end_forecasts_bit_for_bit_the_same(
    module: type[Net], tmp_path: Path
) -> None:
    def fit(*callbacks: pl.Callback, ckpt: str | None = None) -> None:
        saver = ModelCheckpoint(tmp_path, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
        it = trainer(*callbacks, saver, enable_checkpointing=True, max_epochs=20)
        it.fit(same_whatever_the_order(module), data(batches=20), ckpt_path=ckpt)

    whole = LossForecast()
    fit(whole)
    resumed = LossForecast()
    fit(resumed, ckpt=str(tmp_path / "epoch=11.ckpt"))
    assert history(resumed) == history(whole)
    assert len(history(whole)) > 3


def test_resumed_run_has_its_forecast_at_once(tmp_path: Path) -> None:
    first = LossForecast()
    fit = trainer(first, max_steps=30)
    fit.fit(Net(), data())
    fit.save_checkpoint(tmp_path / "last.ckpt")

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
            assert first.forecast is not None
            assert trainer.callback_metrics["forecast/train_loss"].item() == pytest.approx(
                first.forecast.value
            )
            trainer.should_stop = True

    trainer(LossForecast(), Look()).fit(Net(), data(), ckpt_path=tmp_path / "last.ckpt")


def test_state_that_cannot_be_read_is_reported_and_the_run_goes_on(tmp_path: Path, caplog: Any) -> None:
    fit = trainer(LossForecast(), max_steps=30)
    fit.fit(Net(), data())
    fit.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=False)
    for value in state["callbacks"].values():
        value["monitor"] = {"version": 1, "nonsense": True}
    torch.save(state, tmp_path / "last.ckpt")
    callback = LossForecast()
    again = trainer(callback)
    again.fit(Net(), data(), ckpt_path=tmp_path / "last.ckpt")
    assert again.global_step == 60
    assert [step for step, *_ in told(callback)] == list(range(31, 61))
    assert "saved state cannot be used" in caplog.text


def test_checkpoint_from_before_the_callback_was_added(tmp_path: Path) -> None:
    fit = trainer(max_steps=30)
    fit.fit(Net(), data())
    fit.save_checkpoint(tmp_path / "last.ckpt")
    callback = LossForecast()
    trainer(callback).fit(Net(), data(), ckpt_path=tmp_path / "last.ckpt")
    assert [step for step, *_ in told(callback)] == list(range(31, 61))


# --- what goes wrong in a run


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
