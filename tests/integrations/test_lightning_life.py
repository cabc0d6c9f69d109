"""LossForecast over several fits, copies and restarts."""

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from scale_callbacks import MemorySink
from scale_callbacks.integrations import _trainer
from scale_callbacks.integrations.lightning import LossForecast
from tests.integrations.lightning_runs import (
    RECORDED,
    AtEpochEnd,
    Net,
    OnEpoch,
    Silent,
    Stop,
    Validated,
    data,
    history,
    told,
    trainer,
)

pytestmark = RECORDED


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
