"""The plan that LossForecast reads off a Lightning trainer."""

from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from scale_callbacks import Schedule
from scale_callbacks.integrations.lightning import LossForecast
from tests.integrations.lightning_runs import RECORDED, Net, Silent, data, history, told, trainer

pytestmark = RECORDED


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
